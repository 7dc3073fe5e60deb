// The page of a run: server-sent events in, pictures out. All text from outside goes through
// textContent; nothing is ever parsed as HTML.
"use strict";

const $ = (selector, root = document) => root.querySelector(selector);

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Text is set only where it changes, so that a selection and a screen reader keep their place.
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// --- words and numbers ---------------------------------------------------------------------------

const NONE = "–";
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const known = (value) => value !== null && value !== undefined;
const count = (value) => (known(value) ? whole.format(value) : NONE);
const fixed = (value, digits) => (known(value) ? value.toFixed(digits) : NONE);
const percent = (value, digits = 0) => (known(value) ? `${(100 * value).toFixed(digits)} %` : NONE);

function bytes(value) {
  if (!known(value)) return NONE;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (value >= 1000 && power < units.length - 1) {
    value /= 1000;
    power += 1;
  }
  return `${value.toFixed(power && value < 100 ? 1 : 0)} ${units[power]}`;
}

function compact(value) {
  return new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(value);
}

function duration(seconds) {
  const all = Math.round(seconds);
  const pad = (value) => String(value).padStart(2, "0");
  const [hours, minutes] = [Math.floor(all / 3600), Math.floor(all / 60) % 60];
  return hours ? `${hours}:${pad(minutes)}:${pad(all % 60)}` : `${minutes}:${pad(all % 60)}`;
}

// --- states and colours --------------------------------------------------------------------------

// Each state has a sign of its own beside its colour, which not everybody can tell apart.
const STATES = {
  starting: ["○", "its process has not joined yet"],
  learning: ["●", "it makes updates"],
  waiting: ["◐", "no update since its last report, or its guard waits for true gradients"],
  paused: ["‖", "stopped from this page"],
  down: ["✕", "its process has died"],
  "catching up": ["↻", "a new process, before its first update"],
  done: ["✓", "the run has ended"],
};
const MARKS = { bad: "✕", good: "✓", news: "·" };

// Okabe and Ito's colours without black and yellow, lighter on dark ground.
const LIGHT = ["#0072b2", "#d55e00", "#007a5a", "#b0558a", "#b87f00", "#2b8cc4"];
const DARK = ["#56a9e8", "#f0803c", "#2fbf95", "#dd95bd", "#e6a817", "#8fd0f5"];
const DASHES = [[], [8, 4], [2, 3], [12, 3, 2, 3]];
const dark = matchMedia("(prefers-color-scheme: dark)");

function stroke(index) {
  const colours = dark.matches ? DARK : LIGHT;
  const dash = DASHES[Math.floor(index / colours.length) % DASHES.length];
  return { stroke: colours[index % colours.length], dash };
}

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// --- one run -------------------------------------------------------------------------------------

const EVENTS_SHOWN = 200;
const MANY = 12; // workers from which on their cards and links scroll within the page

class Run {
  constructor(index) {
    this.index = index;
    this.root = $("#run-template").content.cloneNode(true).firstElementChild;
    this.section = (name) => $(`.${name}`, this.root);
    this.cards = new Map();
    this.charts = [];
    this.timeline = new Timeline(this);
    for (const [state, [sign, text]] of Object.entries(STATES)) {
      const item = element("li", `state ${slug(state)}`);
      item.append(element("b", "sign", sign), `${state}: ${text}`);
      this.section("states").append(item);
    }
    for (const [share, text] of SHARES) {
      const item = element("li");
      item.append(element("b", `swatch ${share}`), `share of the time ${text}`);
      this.section("states").append(item);
    }
    this.reset();
  }

  reset() {
    this.step = 1;
    this.points = new Map(); // by worker: a map from the tick to the point
    this.evaluations = [];
    this.events = [];
  }

  take(news) {
    if (news.network) {
      this.reset();
      this.network = news.network;
      this.column = Object.fromEntries(news.network.columns.map((name, at) => [name, at + 1]));
      this.build();
    }
    this.news = news;
    for (const [name, points] of Object.entries(news.points)) {
      if (!this.points.has(name)) this.points.set(name, new Map());
      for (const point of points) this.points.get(name).set(point[1], point);
    }
    if (news.step !== this.step) this.coarsen(news.step);
    this.evaluations.push(...news.evaluations);
    if (this.evaluations.length > 2000) this.evaluations = this.evaluations.filter((_, i) => i % 2);
    this.events.push(...news.events);
    this.events.splice(0, this.events.length - EVENTS_SHOWN);
  }

  // The steps of the grid of time have become longer: of each the first point is kept.
  coarsen(step) {
    this.step = step;
    for (const [name, points] of this.points) {
      const first = new Map();
      for (const [tick, point] of points) {
        const at = Math.floor(tick / step) * step;
        if (!first.has(at)) first.set(at, point);
      }
      this.points.set(name, first);
    }
  }

  // Make what depends on the network alone.
  build() {
    write(this.section("title"), this.news ? this.news.title : "");
    write(this.section("facts"), `${this.network.facts}; data: ${this.network.data}`);
    this.section("workers").replaceChildren();
    this.root.classList.toggle("many", this.network.workers.length > MANY);
    this.cards.clear();
    for (const worker of this.network.workers) {
      const card = new Card(this, worker);
      this.cards.set(worker.name, card);
      this.section("workers").append(card.root);
    }
    const body = $("tbody", this.section("links"));
    body.replaceChildren();
    this.links = this.network.links.map((link) => {
      const row = element("tr");
      const [lag, sent, back] = [element("td"), element("td"), element("td")];
      const head = element("th", "", `${link.from} → ${link.to}`);
      head.scope = "row";
      row.append(head, element("td", "", link.shape), lag);
      row.append(element("td", "", known(link.bound) ? `${count(link.bound)} batches` : NONE));
      row.append(sent, back);
      body.append(row);
      return { lag, sent, back };
    });
    this.picture = new Picture(this);
    this.makeCharts();
  }

  makeCharts() {
    for (const chart of this.charts) chart.destroy();
    this.section("charts").replaceChildren();
    this.charts = CHARTS.map((about) => new Chart(this, about));
  }

  draw(end_s) {
    const { news } = this;
    write(this.section("title"), news.title);
    this.section("phase").textContent = news.phase;
    this.section("phase").className = `phase ${news.phase}`;
    const { progress } = news;
    const bar = $("progress", this.root);
    bar.value = progress.fraction || 0;
    write(this.section("left"), this.left(progress));
    this.tiles(progress);
    for (const worker of this.network.workers) this.cards.get(worker.name).draw(news);
    this.network.links.forEach((link, at) => {
      const [from, to] = [news.workers[link.from], news.workers[link.to]];
      const lag = (from.lags || {})[link.to];
      const cells = this.links[at];
      write(cells.lag, known(lag) ? `${count(lag)} batches` : NONE);
      cells.lag.classList.toggle("at-bound", known(link.bound) && lag >= link.bound);
      write(cells.sent, bytes((from.bytes_to || {})[link.to]));
      write(cells.back, bytes((to.bytes_to || {})[link.from]));
    });
    this.picture.draw();
    for (const chart of this.charts) chart.draw(end_s);
    this.drawEvents();
    this.timeline.draw();
  }

  left(progress) {
    if (!known(progress.epoch)) return "";
    const epoch = `epoch ${fixed(progress.epoch, 1)} of ${progress.epochs.toLocaleString("en")}`;
    const left = this.news.live && known(progress.left_s);
    return left ? `${epoch}, ${duration(progress.left_s)} left` : epoch;
  }

  tiles(progress) {
    const found = [
      ["samples/s, mean", count(progress.samples_per_s)],
      ["training loss", fixed(progress.train_loss, 4)],
      ["test accuracy", percent(progress.accuracy, 2)],
      ["test loss", fixed(progress.test_loss, 4)],
      ["time", duration(this.news.time_s)],
      ["restarts", count(progress.restarts)],
    ];
    for (const [name, value] of Object.entries(progress.metrics || {})) {
      found.push([name, fixed(value, 4)]);
    }
    const list = this.section("tiles");
    while (list.children.length < found.length) {
      const tile = element("div");
      tile.append(element("dt"), element("dd"));
      list.append(tile);
    }
    found.forEach(([name, value], at) => {
      write(list.children[at].firstChild, name);
      write(list.children[at].lastChild, value);
    });
  }

  drawEvents() {
    const newest = this.events.length ? this.events[this.events.length - 1][0] : 0;
    if (newest === this.newestDrawn) return;
    this.newestDrawn = newest;
    const items = this.events.toReversed().map(([, time, mark, worker, text]) => {
      const item = element("li", mark);
      item.append(element("b", "sign", MARKS[mark]), element("time", "", duration(time)));
      item.append(element("span", "text", text));
      if (worker && this.cards.has(worker)) item.append(logButton(this, worker));
      return item;
    });
    $("ol", this.section("events")).replaceChildren(...items);
  }

  // The time of the newest point, in seconds.
  end() {
    return this.news.time_s;
  }
}

const slug = (state) => state.replace(" ", "-");

function logButton(run, worker) {
  const button = element("button", "small", "Log");
  button.type = "button";
  button.setAttribute("aria-label", `Log of ${worker}`);
  button.addEventListener("click", () => showLog(run, worker));
  return button;
}

// --- a worker ------------------------------------------------------------------------------------

const SHARES = [["busy", "in ops"], ["transport", "with messages"], ["waiting", "waiting"]];

class Card {
  constructor(run, about) {
    this.run = run;
    this.name = about.name;
    this.root = element("article", "card");
    this.root.setAttribute("aria-label", `Worker ${about.name}`);
    const head = element("div", "bar");
    this.state = element("span", "state");
    head.append(element("h4", "", about.name), this.state);
    const stages = element("ul", "stages");
    for (const stage of about.stages) {
      const name = about.stages.length > 1 ? `${stage.name}: ` : "";
      const loss = stage.loss ? `, ${stage.loss}` : "";
      stages.append(element("li", "", `${name}${stage.layers || "no layers"} → ${stage.shape}${loss}`));
    }
    this.process = element("p", "process");
    this.bar = element("div", "shares");
    this.bar.setAttribute("role", "img");
    this.shares = SHARES.map(([key]) => element("span", key));
    this.bar.append(...this.shares);
    this.facts = element("dl", "pairs");
    this.values = new Map();
    this.buttons = element("div", "buttons");
    this.buttons.append(logButton(run, about.name));
    this.actions = new Map();
    this.root.append(head, stages, this.process, this.bar, this.facts, this.buttons);
  }

  draw(news) {
    const worker = news.workers[this.name];
    const silent = known(worker.heard_s) ? news.time_s - worker.heard_s : 0;
    const [sign] = STATES[worker.state];
    const guard = worker.guarded ? ", guard" : "";
    write(this.state, `${sign} ${worker.state}${guard}`);
    this.state.className = `state ${slug(worker.state)}`;
    const parts = [`${count(worker.parameters)} parameters`];
    if (worker.host) parts.push(`${worker.host}, process ${worker.pid}`);
    if (worker.restarts) parts.push(`restarts: ${worker.restarts}`);
    if (news.live && silent > 3) parts.push(`silent for ${silent.toFixed(0)} s`);
    write(this.process, parts.join("; "));
    this.drawShares(worker);
    this.pairs({
      "samples/s": count(worker.samples_per_s),
      updates: count(worker.updates),
      agreement: fixed(worker.agreement, 2),
      staleness: fixed(worker.staleness, 1),
      "95 % below": fixed(worker.staleness_p95, 0),
      queue: count(worker.queue),
      messages: count(worker.messages),
      sent: bytes(worker.bytes_sent),
      received: bytes(worker.bytes_received),
      memory: bytes(worker.memory_bytes),
      cores: fixed(worker.cores, 2),
      "given up": count((worker.dropped || 0) + (worker.skipped || 0) + (worker.missed || 0)),
    });
    this.drawActions(worker);
  }

  drawShares(worker) {
    const words = [];
    SHARES.forEach(([key, text], at) => {
      const share = Math.max(0, Math.min(1, worker[key] || 0));
      this.shares[at].style.width = `${100 * share}%`;
      words.push(`${text} ${percent(share)}`);
    });
    this.bar.setAttribute("aria-label", `Share of the time: ${words.join(", ")}`);
    this.bar.title = words.join(", ");
  }

  pairs(found) {
    for (const [name, value] of Object.entries(found)) {
      if (!this.values.has(name)) {
        const pair = element("div");
        this.values.set(name, element("dd"));
        pair.append(element("dt", "", name), this.values.get(name));
        this.facts.append(pair);
      }
      write(this.values.get(name), value);
    }
  }

  drawActions(worker) {
    for (const action of controls.actions) {
      if (!this.actions.has(action)) {
        const button = element("button", action === "kill" ? "small kill" : "small", action);
        button.type = "button";
        button.setAttribute("aria-label", `${action} ${this.name}`);
        button.addEventListener("click", () => control(this.run, this.name, action));
        this.actions.set(action, button);
        this.buttons.append(button);
      }
      const paused = worker.state === "paused";
      const fits = action === "kill" || (action === "pause") !== paused;
      this.actions.get(action).hidden = !this.run.news.live || !fits;
      this.actions.get(action).disabled = !worker.pid;
    }
  }
}

// --- the network ---------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const BOX = { width: 136, height: 58, gap: 64, row: 18, letters: 16 };
const RANKS_BELOW_EACH_OTHER = 12;

// Boxes of workers from left to right, or downwards where the page is narrow.
class Picture {
  constructor(run) {
    this.run = run;
    this.home = run.section("network");
    const ranks = new Map();
    for (const { name, producers } of run.network.workers) {
      ranks.set(name, Math.max(-1, ...producers.map((one) => ranks.get(one) ?? -1)) + 1);
    }
    this.columns = [];
    for (const [name, rank] of ranks) (this.columns[rank] ||= []).push(name);
  }

  layout() {
    const ranks = this.columns.length;
    const across = Math.max(...this.columns.map((names) => names.length));
    const wide = ranks * BOX.width + (ranks - 1) * BOX.gap + 4;
    const down = wide > this.home.clientWidth && ranks <= RANKS_BELOW_EACH_OTHER;
    const step = down ? BOX.height + 40 : BOX.width + BOX.gap;
    const beside = down ? BOX.width + BOX.row : BOX.height + BOX.row;
    const places = new Map();
    this.columns.forEach((names, rank) => {
      const shift = ((across - names.length) * beside) / 2;
      names.forEach((name, at) => {
        const [along, aside] = [rank * step + 2, shift + at * beside + 2];
        places.set(name, down ? [aside, along] : [along, aside]);
      });
    });
    const length = (ranks - 1) * step + (down ? BOX.height : BOX.width) + 4;
    const breadth = across * beside - BOX.row + 4;
    return { down, places, size: down ? [breadth, length] : [length, breadth] };
  }

  draw() {
    if (this.width !== this.home.clientWidth) {
      this.width = this.home.clientWidth;
      this.build();
    }
    const words = [];
    for (const [name, box] of this.boxes) {
      const worker = this.run.news.workers[name];
      const busy = known(worker.busy) && worker.pid ? ` ${percent(worker.busy)}` : "";
      box.group.setAttribute("class", `box state ${slug(worker.state)}`);
      write(box.state, `${STATES[worker.state][0]} ${worker.state}${busy}`);
      words.push(`${name} ${worker.state}`);
    }
    this.home.setAttribute("aria-label", `The network as it is cut: ${words.join(", ")}`);
  }

  build() {
    const { down, places, size: [width, height] } = this.layout();
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height });
    for (const link of this.run.network.links) {
      const [[x1, y1], [x2, y2]] = [places.get(link.from), places.get(link.to)];
      const [ax, ay] = down ? [x1 + BOX.width / 2, y1 + BOX.height] : [x1 + BOX.width, y1 + BOX.height / 2];
      const [bx, by] = down ? [x2 + BOX.width / 2, y2 - 6] : [x2 - 6, y2 + BOX.height / 2];
      const [mx, my] = [(ax + bx) / 2, (ay + by) / 2];
      const path = down ? `C${ax} ${my} ${bx} ${my} ${bx} ${by}` : `C${mx} ${ay} ${mx} ${by} ${bx} ${by}`;
      const tip = down ? `M${bx - 4} ${by}h8l-4 6z` : `M${bx} ${by - 4}v8l6 -4z`;
      svg.append(shape("path", { d: `M${ax} ${ay}${path}`, class: "edge" }));
      svg.append(shape("path", { d: tip, class: "tip" }));
      const place = down ? { x: mx + 8, y: my + 4 } : { x: mx, y: my - 7, "text-anchor": "middle" };
      svg.append(shape("text", { ...place, class: "shape" }, link.shape));
    }
    this.boxes = new Map();
    for (const [name, [x, y]] of places) {
      const group = shape("g", {});
      const short = name.length > BOX.letters ? `${name.slice(0, BOX.letters - 1)}…` : name;
      const state = shape("text", { x: x + 12, y: y + 42, class: "what" });
      group.append(
        shape("rect", { x, y, width: BOX.width, height: BOX.height, rx: 6 }),
        shape("rect", { x, y: y + 6, width: 5, height: BOX.height - 12, class: "edge-mark" }),
        shape("text", { x: x + 12, y: y + 23, class: "name" }, short),
        state,
      );
      svg.append(group);
      this.boxes.set(name, { group, state });
    }
    this.home.replaceChildren(svg);
  }
}

// --- curves --------------------------------------------------------------------------------------

// Each has a title, a column of the workers' points and how its values are written; `tests` adds a
// column of the evaluations.
const CHARTS = [
  { title: "Loss", column: "loss", tests: 4, text: (v) => fixed(v, 4) },
  { title: "Test accuracy", tests: 3, text: (v) => percent(v, 2), percent: true },
  { title: "Samples a second", column: "samples_per_s", text: count, axis: compact, zero: true },
  { title: "Agreement of synthetic and true gradients (cosine)", column: "agreement", text: (v) => fixed(v, 2) },
  { title: "Staleness of gradients (updates, mean)", column: "staleness", text: (v) => fixed(v, 1), zero: true },
  { title: "Share of the time in ops", column: "busy", text: (v) => percent(v), zero: true, percent: true },
  { title: "CPU cores in use", column: "cores", text: (v) => fixed(v, 2), zero: true },
  { title: "Memory", column: "memory_bytes", text: bytes, axis: bytes, zero: true },
];
const LEGEND_MAX = 12;
const SECONDS = [1, 2, 5, 10, 15, 30, ...[1, 2, 5, 10, 15, 30, 60, 120, 360, 720, 1440].map((n) => 60 * n)];
const CHART_HEIGHT = 190;

class Chart {
  constructor(run, about) {
    this.run = run;
    this.about = about;
    this.root = element("figure", "chart");
    this.root.append(element("figcaption", "", about.title));
    this.empty = element("p", "note", "nothing yet");
    this.root.append(this.empty);
    run.section("charts").append(this.root);
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.root);
  }

  destroy() {
    this.observer.disconnect();
    if (this.plot) this.plot.destroy();
  }

  // The lines that there is something of: [label, map from seconds to the value, or to null where
  // the worker had died].
  lines() {
    const { run, about } = this;
    const found = [];
    const at = about.column && run.column[about.column];
    for (const worker of run.network.workers) {
      if (!about.column || (about.column === "loss" && !worker.has_loss)) continue;
      const values = new Map();
      for (const [tick, point] of run.points.get(worker.name) || []) {
        const interrupts = point.every((value, place) => place < 2 || value === null);
        if (interrupts || known(point[at])) values.set(tick * run.network.tick_s, point[at]);
      }
      const label = about.tests ? `training, ${worker.name}` : worker.name;
      if ([...values.values()].some(known)) found.push([label, values]);
    }
    if (about.tests) {
      const values = new Map();
      for (const one of run.evaluations) if (known(one[about.tests])) values.set(one[1], one[about.tests]);
      if (values.size) found.push(["test", values]);
    }
    return found;
  }

  draw(end_s) {
    const lines = this.lines();
    this.empty.hidden = lines.length > 0;
    if (!lines.length) return;
    const labels = lines.map(([label]) => label).join("\n");
    if (labels !== this.labels) {
      if (this.plot) this.plot.destroy();
      this.labels = labels;
      this.plot = new uPlot(this.options(lines), [[]], this.root);
    }
    const times = [...new Set(lines.flatMap(([, values]) => [...values.keys()]))].sort((a, b) => a - b);
    // To uPlot null is an interruption of the line, undefined a time that is another line's.
    const columns = lines.map(([, values]) => times.map((time) => values.get(time)));
    this.end_s = Math.max(1, end_s);
    this.plot.setData([times, ...columns]);
    const last = lines.slice(0, LEGEND_MAX).map(([label, values]) => `${label} ${this.about.text([...values.values()].findLast(known))}`);
    this.plot.root.setAttribute("role", "img");
    this.plot.root.setAttribute("aria-label", `${this.about.title}; last values: ${last.join(", ")}`);
  }

  options(lines) {
    const { about } = this;
    const [ink, line] = [style("--muted"), style("--line")];
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const few = lines.length <= LEGEND_MAX;
    return {
      width: this.width(),
      height: CHART_HEIGHT,
      legend: { show: few, live: true },
      cursor: { y: false, points: { size: 6 }, focus: { prox: 24 } },
      focus: { alpha: 0.3 },
      scales: {
        x: { time: false, range: () => [0, this.end_s] },
        y: { range: (_, low, high) => this.range(low, high) },
      },
      axes: [
        { ...axis, values: (_, marks) => marks.map((mark) => duration(mark)), space: 60, size: 28, incrs: SECONDS },
        { ...axis, values: (_, marks) => this.marks(marks), size: 54 },
      ],
      series: [
        { label: "\u00a0", value: (_, time) => (known(time) ? `at ${duration(time)}` : "") },
        ...lines.map(([label], at) => ({
          label,
          ...stroke(at),
          width: few ? 1.75 : 1,
          points: { show: (_, __, from, to) => to - from < 24, size: 4 },
          value: (_, value) => (known(value) ? about.text(value) : ""),
        })),
      ],
    };
  }

  // What stands beside the marks of the vertical axis.
  marks(values) {
    const { about } = this;
    if (about.percent) {
      const step = values.length > 1 ? values[1] - values[0] : 1;
      return values.map((value) => percent(value, step < 0.001 ? 2 : step < 0.01 ? 1 : 0));
    }
    return values.map(about.axis || ((value) => String(Number(value.toPrecision(4)))));
  }

  range(low, high) {
    if (!known(low)) return [0, 1];
    const bottom = this.about.zero ? Math.min(0, low) : low;
    const spare = (high - bottom || Math.abs(high) || 1) * 0.06;
    return [this.about.zero && low >= 0 ? 0 : bottom - spare, high + spare];
  }

  width() {
    return Math.max(200, this.root.clientWidth - 16);
  }

  resize() {
    if (this.plot && this.plot.width !== this.width()) {
      this.plot.setSize({ width: this.width(), height: CHART_HEIGHT });
    }
  }
}

// --- timeline ------------------------------------------------------------------------------------

const ROW = 26;
const BAR = 20;
const LABEL = 92;

class Timeline {
  constructor(run) {
    this.run = run;
    this.home = run.section("timeline");
    this.canvas = $("canvas", this.home);
    this.begin = 0;
    this.length = 0.02;
    for (const button of this.home.querySelectorAll("[data-move]")) {
      button.addEventListener("click", () => this.move(button.dataset.move));
    }
    $(".arrows", this.home).addEventListener("change", () => this.paint());
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => {
      this.drag = [event.clientX, this.begin];
      this.canvas.setPointerCapture(event.pointerId);
    });
    this.canvas.addEventListener("pointerup", () => (this.drag = null));
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    new ResizeObserver(() => this.paint()).observe(this.home);
  }

  draw() {
    const note = this.run.section("timeline-note");
    if (!this.run.news.traced) {
      write(note, "Workers write their ops at the end of a run with --trace; `asyncdni view DIR` then shows them here.");
    } else if (!this.asked) {
      this.asked = true;
      this.load();
    }
  }

  async load() {
    const query = new URLSearchParams({ run: this.run.index, begin: this.begin, length: this.length });
    const asked = (this.newest = Symbol("request"));
    const answer = await fetch(`/timeline?${query}`).catch(() => null);
    if (!answer || asked !== this.newest) return;
    if (!answer.ok) {
      write(this.run.section("timeline-note"), await answer.text());
      return;
    }
    this.found = await answer.json();
    write(this.run.section("timeline-note"), "One row for each worker, one box for each op, hatched where it waits. Drag or ◀ ▶ to move, wheel with Ctrl or + − to zoom.");
    this.home.hidden = false;
    if (!this.placed) {
      this.placed = true;
      this.begin = this.found.whole_s / 2;
      this.load();
      return;
    }
    [this.begin, this.length] = [this.found.begin_s, this.found.length_s];
    this.legend();
    this.paint();
  }

  move(way) {
    const middle = this.begin + this.length / 2;
    if (way === "in" || way === "out") {
      this.length *= way === "in" ? 0.5 : 2;
      this.begin = middle - this.length / 2;
    } else {
      this.begin += (way === "on" ? 0.5 : -0.5) * this.length;
    }
    this.load();
  }

  key(event) {
    const ways = { ArrowLeft: "back", ArrowRight: "on", "+": "in", "-": "out" };
    if (!ways[event.key]) return;
    event.preventDefault();
    this.move(ways[event.key]);
  }

  wheel(event) {
    if (!event.ctrlKey) return;
    event.preventDefault();
    this.move(event.deltaY < 0 ? "in" : "out");
  }

  legend() {
    const items = Object.entries(this.found.names).map(([letter, name]) => {
      const item = element("li");
      const mark = element("b", "swatch");
      mark.style.background = this.found.colours[letter];
      item.append(mark, `${letter}: ${name}`);
      return item;
    });
    this.run.section("ops").replaceChildren(...items);
  }

  paint() {
    if (!this.found) return;
    const { canvas, found } = this;
    const ratio = devicePixelRatio || 1;
    const width = this.home.clientWidth;
    const height = found.workers.length * ROW + 24;
    [canvas.width, canvas.height] = [width * ratio, height * ratio];
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "12px system-ui, sans-serif";
    this.scale = (width - LABEL - 8) / found.length_s;
    found.workers.forEach((worker, at) => this.row(pen, worker, at * ROW));
    if ($(".arrows", this.home).checked) this.paintArrows(pen);
    this.axis(pen, found.workers.length * ROW);
    write($(".window", this.home), `${(1000 * found.length_s).toPrecision(3)} ms from ${found.begin_s.toFixed(3)} s on, of ${found.whole_s.toFixed(1)} s`);
  }

  x(time) {
    return LABEL + Math.max(0, Math.min(this.found.length_s, time)) * this.scale;
  }

  row(pen, worker, y) {
    pen.fillStyle = style("--ink");
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    const short = worker.name.length > 12 ? `${worker.name.slice(0, 11)}…` : worker.name;
    pen.fillText(short, LABEL - 8, y + BAR / 2);
    pen.fillStyle = style("--raised");
    pen.fillRect(LABEL, y, this.found.length_s * this.scale, BAR);
    for (const [from, to] of worker.waits) this.hatch(pen, this.x(from), y, this.x(to));
    pen.textAlign = "center";
    for (const [letter, batch, from, to] of worker.boxes) {
      const [left, right] = [this.x(from), this.x(to)];
      pen.fillStyle = this.found.colours[letter] || "#000000";
      pen.fillRect(left, y, Math.max(0.6, right - left), BAR);
      if (right - left >= 28) {
        pen.fillStyle = "#ffffff";
        pen.fillText(`${letter}${batch}`, (left + right) / 2, y + BAR / 2);
      }
    }
  }

  hatch(pen, left, y, right) {
    if (right - left < 1) return;
    pen.save();
    pen.beginPath();
    pen.rect(left, y, right - left, BAR);
    pen.clip();
    pen.strokeStyle = style("--line");
    pen.beginPath();
    for (let x = left - BAR; x < right; x += 6) {
      pen.moveTo(x, y + BAR);
      pen.lineTo(x + BAR, y);
    }
    pen.stroke();
    pen.restore();
  }

  paintArrows(pen) {
    for (const [gradient, sender, receiver, from, to] of this.found.arrows) {
      const falls = receiver > sender;
      pen.strokeStyle = stroke(gradient ? 1 : 0).stroke;
      pen.beginPath();
      pen.moveTo(this.x(from), sender * ROW + (falls ? BAR : 0));
      pen.lineTo(this.x(to), receiver * ROW + (falls ? 0 : BAR));
      pen.stroke();
    }
  }

  axis(pen, y) {
    const steps = Math.max(2, Math.min(10, Math.floor((this.home.clientWidth - LABEL) / 90)));
    pen.fillStyle = style("--muted");
    pen.textBaseline = "top";
    for (let at = 0; at <= steps; at += 1) {
      const time = (at / steps) * this.found.length_s;
      pen.textAlign = at === steps ? "right" : "center";
      pen.fillText(`${Number((1000 * time).toPrecision(3))} ms`, this.x(time), y + 4);
    }
  }

  point(event) {
    if (!this.found) return;
    const area = this.canvas.getBoundingClientRect();
    if (this.drag) {
      this.begin = this.drag[1] - (event.clientX - this.drag[0]) / this.scale;
      this.load();
      return;
    }
    const time = (event.clientX - area.left - LABEL) / this.scale;
    const worker = this.found.workers[Math.floor((event.clientY - area.top) / ROW)];
    const box = worker && worker.boxes.find(([, , from, to]) => from <= time && time <= to);
    const text = box ? `${worker.name}: ${this.found.names[box[0]] || box[0]}, batch ${box[1]}, ${Math.round(1e6 * (box[3] - box[2]))} µs` : "";
    write($(".under", this.home), text);
  }
}

// --- logs and controls ---------------------------------------------------------------------------

async function showLog(run, worker) {
  write($("#log-title"), `Log of ${worker}`);
  write($("#log-text"), "…");
  $("#log").showModal();
  const query = new URLSearchParams({ run: run.index, worker });
  const answer = await fetch(`/log?${query}`).catch(() => null);
  write($("#log-text"), answer ? await answer.text() : "The command has ended: see DIR/logs.");
  $("#log-text").scrollTop = $("#log-text").scrollHeight;
}

let controls = { actions: [], token: null };

async function control(run, worker, action) {
  const answer = await fetch("/control", {
    method: "POST",
    headers: { "X-Asyncdni-Token": controls.token },
    body: JSON.stringify({ run: run.index, worker, action }),
  }).catch(() => null);
  if (!answer || !answer.ok) say(answer ? await answer.text() : "the command has ended", "lost");
}

// --- the whole page ------------------------------------------------------------------------------

const runs = new Map();
const chosen = new Set();
let touched = false; // whether the user has chosen which runs to show

function say(text, className) {
  write($("#connection"), text);
  $("#connection").className = className;
}

function take(news) {
  for (const [index, one] of Object.entries(news)) {
    if (!runs.has(index)) addRun(index, one);
    runs.get(index).take(one);
    write(runs.get(index).label, one.title);
  }
  draw();
}

function addRun(index, news) {
  const run = new Run(index);
  runs.set(index, run);
  const label = element("label");
  run.box = element("input");
  run.box.type = "checkbox";
  run.box.addEventListener("change", () => {
    touched = true;
    show(index, run.box.checked);
    draw();
  });
  run.label = element("span");
  label.append(run.box, run.label);
  $("#choice").append(label);
  $("#choice").hidden = runs.size < 2;
  if (touched) return;
  // Runs that have ended stand side by side; of those that go on it is the newest that is shown.
  if (news.live) for (const other of [...chosen]) show(other, false);
  if (news.live || chosen.size < 3) show(index, true);
}

function show(index, wanted) {
  const run = runs.get(index);
  run.box.checked = wanted;
  if (wanted) chosen.add(index);
  else chosen.delete(index);
  const shown = [...runs.keys()].filter((one) => chosen.has(one));
  $("#runs").replaceChildren(...shown.map((one) => runs.get(one).root));
  $("#runs").classList.toggle("several", shown.length > 1);
}

let waiting = false;

// Draw at the next frame; a page that nobody sees is not drawn.
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const shown = [...chosen].map((index) => runs.get(index)).filter((run) => run.news);
    const end_s = Math.max(0, ...shown.map((run) => run.end()));
    for (const run of shown) run.draw(end_s);
    const live = shown.find((run) => run.news.live);
    document.title = live ? `${percent(live.news.progress.fraction || 0)} ${live.news.title}` : "asyncdni";
  });
}

function listen() {
  const stream = new EventSource("/events");
  stream.addEventListener("open", () => say("● connected", "live"));
  stream.addEventListener("error", () => say("✕ connection lost, trying again", "lost"));
  stream.addEventListener("message", (event) => take(JSON.parse(event.data)));
  stream.addEventListener("end", () => {
    stream.close();
    say("✓ the command has ended; this is its last state", "ended");
  });
}

$("#log-close").addEventListener("click", () => $("#log").close());
addEventListener("resize", draw);
dark.addEventListener("change", () => {
  for (const run of runs.values()) if (run.network) run.makeCharts();
  for (const run of runs.values()) run.timeline.paint();
  draw();
});

async function start() {
  const answer = await fetch("/controls");
  if (answer.ok) controls = await answer.json();
  listen();
}

start();
