"use strict";
// The browser of the queries of each data set, and the start of the page.

// The height in pixels of a query in the list, as in the style sheet.
const ROW = 60;
// How many rows are drawn above and below the visible ones.
const SPARE = 6;
const MARKS = ["✓", "✗", "–"];
const WORDS = ["right", "wrong"];
const CLASSES = ["right", "wrong", "junk"];
const counted = (number, one, several) => `${number} ${number === 1 ? one : several}`;

class Browser {
  constructor(section, data) {
    Object.assign(this, { section, data, id: section.dataset.browser, overlay: "" });
    this.list = section.querySelector("[data-list]");
    this.detail = section.querySelector("[data-detail]");
    this.control = (name) => section.querySelector(`[data-control="${name}"]`);
    this.overlays = new Overlays(data.maps);
    this.space = element("div", { class: "space", role: "presentation" });
    this.list.append(this.space);
    this.urls = new Map();
    for (const name of ["order", "camera", "outcome"]) this.control(name).addEventListener("change", () => this.filter());
    section.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
    this.list.addEventListener("scroll", () => this.drawRows());
    this.list.addEventListener("keydown", (event) => this.key(event));
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest("[data-query]");
      if (row) this.choose(Number(row.dataset.query), true);
    });
    new ResizeObserver(() => this.drawRows()).observe(this.list);
    this.filter();
  }

  outcome(query) {
    const first = this.data.query.first[query];
    return { right: first === 1, wrong: first > 1, beyond: first > 10, none: first === 0, all: true };
  }

  filter(wanted) {
    const { names, cameras, precision } = this.data.query;
    const [order, camera, outcome] = ["order", "camera", "outcome"].map((name) => this.control(name).value);
    const sign = order === "best" ? -1 : 1;
    const compareNames = (a, b) => (names[a] < names[b] ? -1 : names[a] > names[b] ? 1 : a - b);
    const compare = (a, b) => {
      if (order === "name") return compareNames(a, b);
      if (precision[a] === null || precision[b] === null) return (precision[a] === null) - (precision[b] === null) || compareNames(a, b);
      return sign * (precision[a] - precision[b]) || compareNames(a, b);
    };
    this.found = names.map((_, query) => query).filter((query) => (!camera || String(cameras[query]) === camera) && this.outcome(query)[outcome]).sort(compare);
    this.space.style.height = `${this.found.length * ROW}px`;
    this.section.querySelector('[data-output="found"]').textContent = `${this.found.length} of ${counted(names.length, "query", "queries")}`;
    this.list.scrollTop = 0;
    const query = wanted ?? (this.found.includes(this.query) ? this.query : this.found[0]);
    if (query === undefined) {
      this.query = undefined;
      this.drawRows();
      this.detail.replaceChildren(element("p", { class: "empty" }, "No query matches. Choose another camera or outcome."));
    } else this.choose(query, false);
  }

  /** Shows a query. If the filters hide it, they are reset. With `told` the page's address names the query. */
  choose(query, told) {
    if (!this.found.includes(query)) {
      this.control("camera").value = "";
      this.control("outcome").value = "all";
      this.filter(query);
    }
    this.query = query;
    // Draw the detail first, because the list takes its height.
    this.drawDetail();
    const top = this.found.indexOf(query) * ROW;
    const { scrollTop, clientHeight } = this.list;
    if (top < scrollTop) this.list.scrollTop = top;
    else if (top + ROW > scrollTop + clientHeight) this.list.scrollTop = top + ROW - clientHeight;
    this.drawRows();
    if (told) history.replaceState(null, "", `#${encodeURIComponent(this.data.name)}/${query}`);
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.list.clientHeight / ROW) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key === "Enter") this.detail.querySelector("h3")?.focus();
    else if (event.key in steps) this.step(steps[event.key]);
    else return;
    event.preventDefault();
  }

  step(by) {
    const place = Math.min(this.found.length - 1, Math.max(0, this.found.indexOf(this.query) + by));
    if (this.found.length) this.choose(this.found[place], true);
  }

  /** Draws only the visible rows, so that thousands of queries stay fast. */
  drawRows() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - SPARE);
    const last = Math.min(this.found.length, Math.ceil((this.list.scrollTop + this.list.clientHeight) / ROW) + SPARE);
    this.space.replaceChildren(...this.found.slice(first, last).map((query, i) => this.row(query, first + i)));
    if (this.query === undefined) this.list.removeAttribute("aria-activedescendant");
    else this.list.setAttribute("aria-activedescendant", `query-${this.id}-${this.query}`);
  }

  row(query, place) {
    const { names, ids, cameras } = this.data.query;
    const row = element(
      "div",
      { class: "row", role: "option", id: `query-${this.id}-${query}`, "data-query": query, "aria-selected": query === this.query, "aria-setsize": this.found.length, "aria-posinset": place + 1 },
      this.picture("query", query, ""),
      element("span", { class: "text" }, element("span", { class: "name" }, names[query]), element("span", { class: "facts" }, this.score(query)), element("span", { class: "facts" }, `identity ${ids[query]} · camera ${cameras[query]}`)),
    );
    row.style.top = `${place * ROW}px`;
    return row;
  }

  score(query) {
    const { precision, first } = this.data.query;
    if (!first[query]) return "– without match";
    return `${first[query] === 1 ? "✓" : "✗"} AP ${(100 * precision[query]).toFixed(1)} %, first match at ${first[query]}`;
  }

  picture(part, index, text) {
    const picture = this.data.pictures[part][index];
    if (!picture) return element("span", { class: "picture missing" }, text ? "no picture" : "");
    const image = element("img", { class: "picture", alt: text, src: `data:image/webp;base64,${picture[0]}`, decoding: "async" });
    image.style.setProperty("--factor", picture[1]);
    return image;
  }

  drawDetail() {
    const { names, ids, cameras, lists, hidden } = this.data.query;
    const query = this.query;
    const place = this.found.indexOf(query);
    const title = element("h3", { tabindex: -1 }, names[query]);
    const walk = [[-1, "Previous"], [1, "Next"]].map(([by, text]) => {
      const button = element("button", { type: "button" }, text);
      button.disabled = !this.found[place + by] && this.found[place + by] !== 0;
      button.addEventListener("click", () => {
        this.step(by);
        [...this.detail.querySelectorAll(".walk button")].find((each) => each.textContent === text && !each.disabled)?.focus();
      });
      return button;
    });
    const facts = element("p", { class: "facts" }, `identity ${ids[query]} · camera ${cameras[query]} · ${this.score(query)}`);
    const entries = lists[query];
    const cards = element("ol", { class: "cards" }, ...entries.map((entry) => this.card(entry)));
    const more = hidden[query] ? [element("p", { class: "note" }, `Not shown: ${counted(hidden[query], "more gallery image", "more gallery images")} as similar, but left out (${this.data.left_out}).`)] : [];
    const head = element("div", { class: "head" }, element("div", {}, title, facts), element("div", { class: "walk" }, ...walk));
    const ranking = element("div", { class: "ranking" }, element("h4", {}, "Ranked list"), element("p", { class: "note" }, `In per cent: ${this.data.similarity.replace(" (%)", "")} to the query.`), cards, ...more);
    this.detail.replaceChildren(head, element("div", { class: "body" }, this.figure(query), ranking));
  }

  card([index, outcome, rank, similarity, strangers]) {
    const { names, ids, cameras } = this.data.gallery;
    const word = WORDS[outcome] ?? this.data.left_out;
    const far = rank > 10 ? " far" : "";
    const near = strangers ? [element("br"), `${strangers < this.data.calibration.most ? "one" : "fewer than one"} stranger in ${strangers.toLocaleString("en")} is this near`] : [];
    return element(
      "li",
      { class: `card ${CLASSES[outcome]}${far}` },
      element("span", { class: "verdict" }, element("span", { class: "mark", "aria-hidden": "true" }, MARKS[outcome]), ` ${rank ? `${far ? "first match, " : ""}rank ${rank}: ` : ""}${word}`),
      this.picture("gallery", index, `gallery image ${names[index]}`),
      element("span", { class: "facts" }, `${similarity.toFixed(this.data.digits)} % similar`, ...near, element("br"), `identity ${ids[index]}`, element("br"), `camera ${cameras[index]}`),
      element("span", { class: "name" }, names[index]),
    );
  }

  /** Returns the large picture of the query with the chosen map over it, and a button with a small picture of each map. */
  figure(query) {
    const maps = this.overlays.of(query);
    const canvas = element("canvas", { class: "overlay", role: "img" });
    const legendBox = element("div", { class: "legend-box" });
    const buttons = [{ name: "", label: "picture" }, ...maps].map((map) => {
      const button = element("button", { type: "button", "data-map": map.name }, map.label);
      if (map.levels) {
        const small = element("canvas", { class: "small", "aria-hidden": "true" });
        this.overlays.draw(small, map.levels);
        button.prepend(small);
      }
      button.addEventListener("click", () => show(map));
      return button;
    });
    const show = (map) => {
      this.overlay = map.name;
      buttons.forEach((button) => button.setAttribute("aria-pressed", button.dataset.map === map.name));
      canvas.hidden = !map.levels;
      if (map.levels) {
        this.overlays.draw(canvas, map.levels);
        canvas.setAttribute("aria-label", `${map.label}, from ${shown(map.low)} to ${shown(map.high)}`);
      }
      legendBox.replaceChildren(...(map.levels ? [element("p", {}, map.label), colourBar(map)] : []));
    };
    show(maps.find((map) => map.name === this.overlay) || { name: "" });
    const large = element("div", { class: "large" }, this.picture("query", query, `query ${this.data.query.names[query]}`), canvas);
    const choices = maps.length ? [element("div", { class: "maps", role: "group", "aria-label": "Maps of the last block" }, ...buttons), legendBox] : [];
    return element("div", { class: "figure" }, large, ...choices);
  }
}

const read = (id) => JSON.parse(document.getElementById(id).textContent);

function start() {
  const browsers = [...document.querySelectorAll("[data-browser]")].map((section) => {
    const data = read(`data-${section.dataset.browser}`);
    const figures = document.getElementById(`set-${section.dataset.browser}`);
    drawCmc(figures.querySelector('[data-chart="cmc"]'), data);
    drawSimilarities(figures, data);
    const light = figures.querySelector('[data-chart="illumination"]');
    if (light) drawIllumination(light, data);
    return new Browser(section, data);
  });
  const training = document.querySelectorAll("[data-training]");
  if (training.length) {
    const charts = read("training-data");
    training.forEach((host) => drawTraining(host, charts[host.dataset.training]));
  }
  const boxes = document.querySelectorAll('[data-control="bright"]');
  const brighten = (on) => {
    document.body.classList.toggle("bright", on);
    boxes.forEach((box) => (box.checked = on));
  };
  boxes.forEach((box) => box.addEventListener("change", () => brighten(box.checked)));
  brighten([...boxes].some((box) => box.checked));
  const followAddress = () => {
    const [name, query] = location.hash.slice(1).split("/");
    const browser = browsers.find(({ data }) => encodeURIComponent(data.name) === name);
    if (!browser || !/^\d+$/.test(query ?? "") || Number(query) >= browser.data.query.names.length) return;
    browser.choose(Number(query), false);
    browser.section.scrollIntoView();
  };
  addEventListener("hashchange", followAddress);
  followAddress();
}

start();
