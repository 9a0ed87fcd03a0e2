"use strict";
// Line charts as SVG. Series differ in dash pattern and marker as well as in colour, for readers who see no colours.

const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 4", "2 3", "10 3 2 3", "4 2", "12 5", "1 4", "8 2 2 2"];
const MARGIN = { left: 58, right: 14, top: 10, bottom: 42 };

function svg(tag, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text) node.textContent = text;
  return node;
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const values = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) values.push(Number((i * step).toPrecision(12)));
  return values;
}

/** Returns a function from data values to pixels. `axis` has low and high, and optionally log and ticks. */
function scale(axis, from, to) {
  const at = axis.log ? Math.log : (value) => value;
  const low = at(axis.low);
  const span = at(axis.high) - low || 1;
  return (value) => from + ((at(value) - low) / span) * (to - from);
}

function shown(value) {
  if (Math.abs(value) >= 10000) return value.toLocaleString("en");
  const rounded = Number(value.toPrecision(4));
  return rounded && Math.abs(rounded) < 0.001 ? rounded.toExponential() : String(rounded);
}

/**
 * Draws a chart into `host`, and again when its width changes. Returns a function that changes the spec and redraws.
 * spec: {x, y: {label, low, high, log, ticks}, series: [{name, points, fill, marks}], lines: [{x, y, label, thin}], summary}
 */
function chart(host, spec) {
  const draw = () => host.replaceChildren(plot(spec, host.clientWidth), ...(spec.series.length > 1 ? [legend(spec.series)] : []));
  let width = 0;
  new ResizeObserver(() => {
    if (host.clientWidth && host.clientWidth !== width) {
      width = host.clientWidth;
      draw();
    }
  }).observe(host);
  return (changes) => {
    Object.assign(spec, changes);
    if (host.clientWidth) draw();
  };
}

function plot(spec, width) {
  const height = Math.round(Math.min(300, Math.max(210, width * 0.56)));
  const box = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spec.summary });
  const x = scale(spec.x, box.left, box.right);
  const y = scale(spec.y, box.bottom, box.top);
  for (const value of spec.y.ticks || ticks(spec.y.low, spec.y.high, 5)) {
    root.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }));
    root.append(svg("text", { x: box.left - 7, y: y(value) + 4, "text-anchor": "end" }, shown(value)));
  }
  for (const value of spec.x.ticks || ticks(spec.x.low, spec.x.high, width < 420 ? 4 : 7)) {
    root.append(svg("line", { class: "tick", x1: x(value), x2: x(value), y1: box.bottom, y2: box.bottom + 5 }));
    root.append(svg("text", { x: x(value), y: box.bottom + 18, "text-anchor": "middle" }, (spec.x.text || shown)(value)));
  }
  root.append(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
  root.append(svg("text", { class: "label", x: (box.left + box.right) / 2, y: height - 5, "text-anchor": "middle" }, spec.x.label));
  const middle = (box.top + box.bottom) / 2;
  root.append(svg("text", { class: "label", x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, spec.y.label));
  spec.series.forEach((series, index) => root.append(curve(series, index, x, y, box.bottom)));
  for (const line of spec.lines || []) root.append(marker(line, x, y, box));
  return root;
}

function curve(series, index, x, y, bottom) {
  const group = svg("g", { class: `series s${index % 8}` });
  const path = series.points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
  if (series.fill && path) {
    const [first, last] = [series.points[0], series.points[series.points.length - 1]];
    group.append(svg("path", { class: "area", d: `${path}L${x(last[0])} ${bottom}L${x(first[0])} ${bottom}Z` }));
  }
  group.append(svg("path", { class: "line", d: path, "stroke-dasharray": DASHES[index % 8] }));
  if (series.marks || series.points.length === 1) {
    for (const [a, b] of series.points) {
      const mark = index % 2 ? svg("rect", { x: x(a) - 3, y: y(b) - 3, width: 6, height: 6 }) : svg("circle", { cx: x(a), cy: y(b), r: 3.2 });
      mark.setAttribute("class", "mark");
      mark.append(svg("title", {}, `${series.name}: ${shown(b)} at ${shown(a)}`));
      group.append(mark);
    }
  }
  return group;
}

function marker(line, x, y, box) {
  const group = svg("g", { class: line.thin ? "rule thin" : "rule" });
  if (line.y !== undefined) {
    group.append(svg("line", { x1: box.left, x2: box.right, y1: y(line.y), y2: y(line.y), "stroke-dasharray": line.dash || "" }));
    return group;
  }
  const at = x(line.x);
  const left = at > (box.left + box.right) / 2;
  group.append(svg("line", { x1: at, x2: at, y1: box.top, y2: box.bottom }));
  group.append(svg("text", { x: at + (left ? -6 : 6), y: box.top + 11, "text-anchor": left ? "end" : "start" }, line.label));
  return group;
}

function legend(series) {
  const list = element("ul", { class: "legend" });
  series.forEach(({ name }, index) => {
    const sample = svg("svg", { width: 34, height: 10, "aria-hidden": "true" });
    const group = svg("g", { class: `series s${index % 8}` });
    group.append(svg("path", { class: "line", d: "M1 5H33", "stroke-dasharray": DASHES[index % 8] }));
    sample.append(group);
    list.append(element("li", {}, sample, name));
  });
  return list;
}

/** Makes an HTML element. Strings among its children become text, never markup. */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

const extent = (points, axis) => points.reduce(([low, high], point) => [Math.min(low, point[axis]), Math.max(high, point[axis])], [Infinity, -Infinity]);

function drawCmc(host, data) {
  const series = Object.entries(data.cmc).map(([name, shares]) => ({ name, points: shares.map((share, rank) => [rank + 1, 100 * share]) }));
  const ranks = series[0].points.length;
  chart(host, {
    x: { label: "rank", low: 1, high: Math.max(2, ranks), ticks: [1, 5, 10, 20, 30, 40, 50].filter((rank) => rank <= ranks) },
    y: { label: "queries with a match (%)", low: 0, high: 100 },
    series,
    summary: `CMC curve: ${[1, 5, 10].filter((rank) => rank <= ranks).map((rank) => `rank ${rank} ${series[0].points[rank - 1][1].toFixed(1)} %`).join(", ")}`,
  });
}

function drawSimilarities(section, data) {
  const percent = (value, more = 0) => `${value.toFixed(data.digits + more)} %`;
  const { edges, ...counts } = data.bars;
  const share = (bars, total) => bars.flatMap((count, i) => [[edges[i], (100 * count) / Math.max(1, total)], [edges[i + 1], (100 * count) / Math.max(1, total)]]);
  const series = ["genuine", "impostor"].map((name) => ({ name, fill: true, points: share(counts[name], data.pairs[name]) }));
  const high = Math.max(...series.map(({ points }) => extent(points, 1)[1])) * 1.12;
  const redraw = chart(section.querySelector('[data-chart="similarities"]'), {
    x: { label: data.similarity, low: edges[0], high: edges[edges.length - 1], text: (value) => String(Number(value.toFixed(data.digits))) },
    y: { label: "share of its pairs (%)", low: 0, high },
    series,
    summary: "Distribution of the similarities of genuine and impostor pairs",
  });
  const choice = section.querySelector('[data-control="rate"]');
  if (!choice) return;
  const show = () => {
    const [, threshold, falseRate, trueRate] = data.thresholds[choice.value];
    redraw({ lines: [{ x: threshold, label: `threshold ${percent(threshold)}` }] });
    const matched = trueRate === null ? "no genuine pairs" : `true-match rate ${(100 * trueRate).toFixed(1)} %`;
    section.querySelector('[data-output="threshold"]').textContent =
      `A pair counts as a match if its similarity is above ${percent(threshold, 1)}: ${matched}, false-match rate ${falseRate.toPrecision(3)}.`;
  };
  const usual = data.thresholds.findIndex(([oneIn]) => oneIn === data.usual);
  choice.value = usual < 0 ? data.thresholds.length - 1 : usual;
  choice.addEventListener("change", show);
  show();
}

function drawIllumination(host, data) {
  const lights = data.illumination.map(({ light }) => light);
  const names = { mAP: "mAP", rank1: "Rank-1" };
  const series = Object.entries(names).map(([key, name]) => ({ name, marks: true, points: data.illumination.map((row) => [row.light, 100 * row[key]]) }));
  const ends = lights.length > 1 ? [Math.max(...lights), Math.min(...lights)] : [lights[0] * 2, lights[0] / 2];
  chart(host, {
    x: { label: "light, brightest first (logarithmic)", low: ends[0], high: ends[1], log: true, ticks: lights.length < 9 ? lights : undefined },
    y: { label: "mAP, Rank-1 (%)", low: 0, high: Math.max(10, ...series.flatMap(({ points }) => points.map((point) => point[1])), 100 * data.score.mAP, 100 * data.score.rank1) * 1.05 },
    series,
    lines: Object.keys(names).map((key, index) => ({ y: 100 * data.score[key], thin: true, dash: DASHES[index] })),
    summary: "mAP and Rank-1 against the share of light",
  });
}

function drawTraining(host, { title, unit, series }) {
  const points = series.flatMap((each) => each.points);
  const [[first, last], [low, high]] = [extent(points, 0), extent(points, 1)];
  chart(host, {
    x: { label: "step", low: Math.min(first, 0), high: last || 1 },
    y: { label: unit, low: Math.min(0, low), high: high * 1.05 || 1 },
    series: series.map((each) => ({ ...each, marks: each.points.length < 30 })),
    summary: title,
  });
}
