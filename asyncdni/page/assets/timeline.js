// When each worker ran which op: of a run that was traced from its files, of one that goes on from
// what its workers send while this page is open.

import { Live } from "./live.js";
import { drawOp, swatch } from "./ops.js";
import { $, count, element, percent, stroke, style, write } from "./words.js";

const ROW = 26;
const BAR = 20;
const LABEL = 92;
const LENGTHS = [1e-4, 10]; // seconds
const BOXES = 24; // of the busiest worker, at first
const KEYS = "Drag or ← → to move, Ctrl and wheel or + − to zoom, ↑ ↓ , . to choose an op";
const LIVE = `The newest ops, one row for each worker: the first of each half second, of all workers at the same time. ${KEYS}, space to hold it still.`;
const EXCERPT = `An excerpt of the run, up to half a second long: the first ops of each worker, of all workers at the same time. More would slow down what is measured. ${KEYS}.`;
const TRACED = `One row for each worker, one box for each op. ${KEYS}.`;
const NOT_YET = "Workers send their newest ops once they have been asked to, half a second late.";

const timelines = []; // of all runs of the page, which have one scale of time

export class Timeline {
  constructor(run) {
    this.run = run;
    timelines.push(this);
    this.home = run.section("timeline");
    this.canvas = $("canvas", this.home);
    this.begin = 0;
    this.length = 0.02;
    this.names = {};
    this.chosen = null; // an op whose messages are shown: its row, and its box
    this.listen();
    new ResizeObserver(() => this.paint()).observe(this.home);
  }

  listen() {
    for (const button of this.home.querySelectorAll("[data-move]")) {
      button.addEventListener("click", () => this.move(button.dataset.move));
    }
    this.hold = $(".hold", this.home);
    this.hold.addEventListener("click", () => this.follow(!this.following));
    $(".arrows", this.home).addEventListener("change", () => this.paint());
    $("details", this.home).addEventListener("toggle", () => this.table());
    const { canvas } = this;
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => this.choose(null));
    canvas.addEventListener("pointerdown", (event) => {
      this.drag = [event.clientX, this.begin];
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointerup", () => (this.drag = null));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  // --- what is shown

  // Begin anew, with the workers of a network.
  reset(network) {
    this.live = new Live(
      network.workers.map(({ name }) => name),
      network.links,
    );
    this.names = network.ops;
    this.follow(true);
  }

  take(slices) {
    const was = this.live.isEmpty;
    this.live.take(slices);
    if (was && !this.live.isEmpty) {
      const busy = timelines.filter(({ live }) => live && !live.isEmpty);
      zoomAll(Math.min(...busy.map(({ live }) => live.goodLength(BOXES))));
    }
    this.isNew = slices.length > 0;
  }

  get isExcerpt() {
    return this.run.news.excerpt;
  }

  draw() {
    const note = this.run.section("timeline-note");
    if (this.run.news.traced) {
      write(note, TRACED);
      if (!this.asked) this.load();
      this.asked = true;
    } else if (this.live.isEmpty) {
      write(note, this.run.news.live ? NOT_YET : "This run has kept none of its ops; `asyncdni train --trace` keeps them all.");
    } else if (this.isNew && (this.following || !this.found)) {
      write(note, this.isExcerpt ? EXCERPT : LIVE);
      this.isNew = false;
      this.load();
    }
  }

  // Fetch or find what is to be seen from `begin` on, and show it.
  async load() {
    this.length = Math.max(LENGTHS[0], Math.min(LENGTHS[1], this.length));
    const found = this.run.news.traced ? await this.fetched() : this.current();
    if (!found) return;
    this.found = found;
    [this.begin, this.length] = [found.begin_s, found.length_s];
    this.chosen = this.chosenAgain();
    this.home.hidden = false;
    this.hold.hidden = this.run.news.traced || this.isExcerpt;
    this.legend();
    this.paint();
    this.table();
  }

  current() {
    if (this.following) this.begin = this.live.newest(this.length);
    const [first, last] = this.live.span;
    this.begin = Math.max(first, Math.min(last - this.length, this.begin));
    return this.live.window(this.begin, this.length);
  }

  async fetched() {
    const query = new URLSearchParams({
      run: this.run.index,
      begin: this.begin,
      length: this.length,
    });
    const asked = (this.newest = Symbol("request"));
    const answer = await fetch(`/timeline?${query}`).catch(() => null);
    if (!answer || asked !== this.newest) return null;
    if (!answer.ok) {
      write(this.run.section("timeline-note"), await answer.text());
      return null;
    }
    const found = await answer.json();
    if (!this.placed) {
      this.placed = true;
      this.begin = found.whole_s / 2;
      return this.fetched();
    }
    return { ...found, first_s: 0, last_s: found.whole_s };
  }

  // --- moving about

  follow(wanted) {
    this.following = wanted;
    write(this.hold, wanted ? "■ hold still" : "▸ follow");
    if (wanted && this.found && !this.live.isEmpty) this.load();
  }

  // `at`: the part of the window that stays in its place when it is zoomed.
  move(way, at = 0.5) {
    if (way === "in" || way === "out") {
      zoomAll(this.length * (way === "in" ? 0.5 : 2), this, at);
    } else {
      this.follow(false);
      this.begin += (way === "on" ? 0.5 : -0.5) * this.length;
      this.load();
    }
  }

  key(event) {
    const ways = { ArrowLeft: "back", ArrowRight: "on", "+": "in", "=": "in", "-": "out" };
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ",": [0, -1], ".": [0, 1] };
    if (!this.found || event.ctrlKey || event.altKey || event.metaKey) return;
    if (ways[event.key]) this.move(ways[event.key]);
    else if (steps[event.key]) this.step(...steps[event.key]);
    else if (event.key === " " && !this.hold.hidden) this.follow(!this.following);
    else if (event.key === "Escape") this.choose(null);
    else return;
    event.preventDefault();
  }

  wheel(event) {
    if (event.ctrlKey) {
      event.preventDefault();
      const area = this.canvas.getBoundingClientRect();
      const at = (event.clientX - area.left - LABEL) / (area.width - LABEL - 8);
      this.move(event.deltaY < 0 ? "in" : "out", Math.max(0, Math.min(1, at)));
    } else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      this.follow(false);
      this.begin += event.deltaX / this.scale;
      this.load();
    }
  }

  point(event) {
    if (!this.found) return;
    const area = this.canvas.getBoundingClientRect();
    if (this.drag) {
      this.follow(false);
      this.begin = this.drag[1] - (event.clientX - this.drag[0]) / this.scale;
      this.load();
      return;
    }
    const time = (event.clientX - area.left - LABEL) / this.scale;
    const row = Math.floor((event.clientY - area.top) / ROW);
    const worker = this.found.workers[row];
    const box = worker && worker.boxes.find(([, , from, to]) => from <= time && time <= to);
    this.choose(box ? { row, box } : null);
  }

  // Choose an op of another worker, or another one of the same.
  step(rows, ops) {
    this.follow(false);
    const { workers, length_s: length } = this.found;
    const old = this.chosen || { row: rows < 0 ? workers.length : rows > 0 ? -1 : 0 };
    const row = (old.row + rows + workers.length) % workers.length;
    const inside = workers[row].boxes.filter(([, , from, to]) => to > 0 && from < length);
    const time = old.box ? old.box[2] : -Infinity;
    let at = inside.findIndex(([, , from]) => from >= time);
    if (at < 0) at = inside.length - 1;
    at = Math.max(0, Math.min(inside.length - 1, at + (old.box ? ops : 0)));
    this.choose(inside.length ? { row, box: inside[at] } : { row, box: null });
  }

  // The chosen op in the window that is shown now.
  chosenAgain() {
    if (!this.chosen || !this.chosen.box) return null;
    const { row, box } = this.chosen;
    const same = this.found.workers[row].boxes.find(([a, b]) => a === box[0] && b === box[1]);
    return same ? { row, box: same } : null;
  }

  choose(chosen) {
    const [old, fresh] = [this.chosen, chosen];
    if (old === fresh || (old && fresh && old.row === fresh.row && old.box === fresh.box)) return;
    this.chosen = chosen;
    this.paint();
  }

  // --- drawing

  legend() {
    const used = this.run.news.traced ? this.found.names : this.live.letters;
    const letters = Object.keys(this.names).filter((one) =>
      used instanceof Set ? used.has(one) : one in used,
    );
    const items = letters.map((letter) => {
      const item = element("li");
      item.append(swatch(letter), `${letter}: ${this.names[letter]}`);
      return item;
    });
    const others = [["waits", this.run.news.traced ? "waiting" : "no op: waiting, or messages"]];
    const rows = this.found.workers;
    if (rows.some((worker) => worker.slowed.length)) others.push(["slowed", "made slow"]);
    others.push(this.run.news.traced ? ["plain", "messages, other"] : ["blanks", "not sent"]);
    others.push(["activation", "activation"], ["gradient", "gradient"]);
    for (const [name, text] of others) {
      const item = element("li");
      item.append(element("b", `swatch ${name}`), text);
      items.push(item);
    }
    const words = items.map((item) => item.textContent).join();
    if (words === this.explained) return;
    this.explained = words;
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
    // Asked for once: a picture has thousands of boxes.
    const names = ["ink", "muted", "ground", "raised", "line", "slow"];
    this.colours = Object.fromEntries(names.map((name) => [name, style(`--${name}`)]));
    this.hatching = hatching(pen, this.colours.line);
    pen.scale(ratio, ratio);
    pen.font = "12px system-ui, sans-serif";
    this.scale = (width - LABEL - 8) / found.length_s;
    found.workers.forEach((worker, at) => this.row(pen, worker, at * ROW));
    this.paintArrows(pen);
    this.axis(pen, found.workers.length * ROW);
    this.tell();
    const [length, from] = [(1000 * found.length_s).toPrecision(3), found.begin_s.toFixed(3)];
    write($(".window", this.home), `${length} ms from ${from} s on, of ${found.last_s.toFixed(1)} s`);
  }

  x(time) {
    return LABEL + Math.max(0, Math.min(this.found.length_s, time)) * this.scale;
  }

  row(pen, worker, y) {
    const { colours, hatching } = this;
    pen.fillStyle = colours.ink;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    const short = worker.name.length > 12 ? `${worker.name.slice(0, 11)}…` : worker.name;
    pen.fillText(short, LABEL - 8, y + BAR / 2);
    const fill = (spans, colour, top = 0, height = BAR) => {
      pen.fillStyle = colour;
      for (const [from, to] of spans) {
        pen.fillRect(this.x(from), y + top, this.x(to) - this.x(from), height);
      }
    };
    fill([[0, this.found.length_s]], colours.raised);
    fill(worker.blanks || [], colours.ground);
    fill(worker.blanks || [], colours.line, BAR / 2, 1);
    fill(worker.waits, hatching);
    fill(worker.slowed, colours.slow, 0.3 * BAR, 0.4 * BAR);
    pen.textAlign = "center";
    for (const box of worker.boxes) {
      const [, , from, to] = box;
      if (to > 0) drawOp(pen, colours.raised, box, [this.x(from), this.x(to)], [y, BAR]);
    }
  }

  // All messages, if they are wanted, or else those of the chosen op's batch from or to its worker.
  paintArrows(pen) {
    const { chosen, found } = this;
    const all = $(".arrows", this.home).checked;
    const isOurs = ([, sender, receiver, , , batch]) =>
      chosen && chosen.box && batch === chosen.box[1] && [sender, receiver].includes(chosen.row);
    for (const arrow of all || chosen ? found.arrows : []) {
      if (!all && !isOurs(arrow)) continue;
      const [gradient, sender, receiver, from, to] = arrow;
      const falls = receiver > sender;
      pen.strokeStyle = stroke(gradient ? 1 : 0).stroke;
      pen.lineWidth = isOurs(arrow) ? 2 : 1;
      pen.setLineDash(gradient ? [5, 3] : []);
      const [x, y] = [this.x(to), receiver * ROW + (falls ? 0 : BAR)];
      const before = [this.x(from), sender * ROW + (falls ? BAR : 0)];
      pen.beginPath();
      pen.moveTo(...before);
      pen.lineTo(x, y);
      pen.stroke();
      pen.setLineDash([]);
      tip(pen, Math.atan2(y - before[1], x - before[0]), x, y);
    }
    if (!chosen || !chosen.box) return;
    const [, , from, to] = chosen.box;
    pen.strokeStyle = this.colours.ink;
    pen.lineWidth = 2;
    pen.strokeRect(this.x(from), chosen.row * ROW, Math.max(2, this.x(to) - this.x(from)), BAR);
  }

  axis(pen, y) {
    const steps = Math.max(2, Math.min(10, Math.floor((this.home.clientWidth - LABEL) / 90)));
    pen.fillStyle = this.colours.muted;
    pen.textBaseline = "top";
    for (let at = 0; at <= steps; at += 1) {
      const time = (at / steps) * this.found.length_s;
      pen.textAlign = at === steps ? "right" : "center";
      pen.fillText(`${Number((1000 * time).toPrecision(3))} ms`, this.x(time), y + 4);
    }
  }

  // --- in words

  // Say what the chosen op is.
  tell() {
    const under = $(".under", this.home);
    if (!this.chosen) return write(under, "");
    const { row, box } = this.chosen;
    const { name } = this.found.workers[row];
    if (!box) return write(under, `${name}: no op here`);
    const [letter, batch, from, to] = box;
    const what = `${this.names[letter] || letter}${batch < 0 ? "" : `, batch ${batch}`}`;
    return write(under, `${name}: ${what}, ${count(1e6 * (to - from))} µs`);
  }

  // The same in a table, for those who can't see the picture.
  table() {
    if (!this.found || !$("details", this.home).open) return;
    const length = this.found.length_s;
    const part = ([from, to]) => Math.max(0, Math.min(length, to) - Math.max(0, from));
    const share = (spans) => spans.reduce((sum, span) => sum + part(span), 0) / length;
    const rows = this.found.workers.map((worker) => {
      const row = element("tr");
      const head = element("th", "", worker.name);
      head.scope = "row";
      row.append(head, element("td", "", count(worker.boxes.length)));
      const boxes = worker.boxes.map(([, , from, to]) => [from, to]);
      for (const spans of [boxes, worker.slowed, worker.waits, worker.blanks || []]) {
        row.append(element("td", "", percent(share(spans))));
      }
      return row;
    });
    $("tbody", this.home).replaceChildren(...rows);
  }
}

// Give all timelines windows of that length, so that they can be compared. Each keeps its middle in
// its place, but one of them, if given, what is at the part `at` of its window.
function zoomAll(wanted, zoomed = null, at = 0.5) {
  const length = Math.max(LENGTHS[0], Math.min(LENGTHS[1], wanted));
  for (const one of timelines) {
    one.begin += (one === zoomed ? at : 0.5) * (one.length - length);
    one.length = length;
    if (one.found) one.load();
  }
}

// Oblique lines, which a waiting worker's row is filled with.
function hatching(pen, colour) {
  const tile = element("canvas");
  [tile.width, tile.height] = [6, 6];
  const own = tile.getContext("2d");
  own.strokeStyle = colour;
  own.beginPath();
  for (const x of [-6, 0, 6]) {
    own.moveTo(x, 6);
    own.lineTo(x + 6, 0);
  }
  own.stroke();
  return pen.createPattern(tile, "repeat");
}

function tip(pen, angle, x, y) {
  pen.fillStyle = pen.strokeStyle;
  pen.beginPath();
  pen.moveTo(x, y);
  for (const side of [-0.4, 0.4]) {
    pen.lineTo(x - 7 * Math.cos(angle + side), y - 7 * Math.sin(angle + side));
  }
  pen.fill();
}
