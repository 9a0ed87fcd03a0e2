"use strict";
// Maps over the patches of a picture, in the colours of viridis, which grow lighter evenly.

const VIRIDIS = [
  "440154", "481a6c", "472f7d", "414487", "39568c", "31688e", "2a788e", "23888e",
  "1f988b", "22a884", "35b779", "54c568", "7ad151", "a5db36", "d2e21b", "fde725",
].map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));

function colour(level) {
  const at = (level / 255) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return VIRIDIS[low].map((from, i) => Math.round(from + (at - low) * (VIRIDIS[low + 1][i] - from)));
}

/** The maps of a data set. of(query) returns {name, label, levels, bottom, top, shared, low, high} for each kind of map, or [] for a query without maps. */
class Overlays {
  constructor({ grid, rows, kinds }) {
    [this.rows, this.columns] = grid;
    this.places = new Map(rows.map((query, place) => [query, place]));
    this.kinds = kinds.map((kind) => ({ ...kind, bytes: null }));
  }

  of(query) {
    const place = this.places.get(query);
    if (place === undefined) return [];
    const patches = this.rows * this.columns;
    return this.kinds.map((kind) => {
      kind.bytes ||= Uint8Array.from(atob(kind.levels), (c) => c.charCodeAt(0));
      const shared = !Array.isArray(kind.top);
      return {
        name: kind.name,
        label: kind.label,
        levels: kind.bytes.subarray(place * patches, (place + 1) * patches),
        bottom: kind.bottom,
        top: shared ? kind.top : kind.top[place],
        shared,
        low: kind.low[place],
        high: kind.high[place],
      };
    });
  }

  draw(canvas, levels) {
    canvas.width = this.columns;
    canvas.height = this.rows;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(this.columns, this.rows);
    levels.forEach((level, i) => pixels.data.set([...colour(level), 255], 4 * i));
    context.putImageData(pixels, 0, 0);
  }
}

function colourBar({ bottom, top, shared, low, high }) {
  const stops = VIRIDIS.map((rgb) => `rgb(${rgb.join(" ")})`).join(", ");
  const bar = element("span", { class: "bar", "aria-hidden": "true" });
  bar.style.backgroundImage = `linear-gradient(to right, ${stops})`;
  const scaleText = shared ? "one scale for all queries; values beyond it have the end colours" : "scale of this query";
  return element(
    "div", { class: "scale" },
    element("span", {}, shown(bottom)), bar, element("span", {}, shown(top)),
    element("p", {}, `${scaleText}; here ${shown(low)} to ${shown(high)}`),
  );
}
