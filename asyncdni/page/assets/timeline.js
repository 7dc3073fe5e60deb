// When each worker ran which op, of a run that was traced.

import { $, element, stroke, style, write } from "./words.js";

const ROW = 26;
const BAR = 20;
const LABEL = 92;

export class Timeline {
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
      write(
        note,
        "Workers write their ops at the end of a run with --trace; `asyncdni view DIR` then shows them here.",
      );
    } else if (!this.asked) {
      this.asked = true;
      this.load();
    }
  }

  async load() {
    const query = new URLSearchParams({
      run: this.run.index,
      begin: this.begin,
      length: this.length,
    });
    const asked = (this.newest = Symbol("request"));
    const answer = await fetch(`/timeline?${query}`).catch(() => null);
    if (!answer || asked !== this.newest) return;
    if (!answer.ok) {
      write(this.run.section("timeline-note"), await answer.text());
      return;
    }
    this.found = await answer.json();
    write(
      this.run.section("timeline-note"),
      "One row for each worker, one box for each op, hatched where it waits. Drag or ◀ ▶ to move, wheel with Ctrl or + − to zoom.",
    );
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
    write(
      $(".window", this.home),
      `${(1000 * found.length_s).toPrecision(3)} ms from ${found.begin_s.toFixed(3)} s on, of ${found.whole_s.toFixed(1)} s`,
    );
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
    const text = box
      ? `${worker.name}: ${this.found.names[box[0]] || box[0]}, batch ${box[1]}, ${Math.round(1e6 * (box[3] - box[2]))} µs`
      : "";
    write($(".under", this.home), text);
  }
}
