// Curves, drawn by uPlot.

import {
  bytes,
  compact,
  count,
  duration,
  element,
  fixed,
  known,
  percent,
  stroke,
  style,
} from "./words.js";

// Each has a title, a column of the workers' points and how its values are written; `tests` adds a
// column of the evaluations.
export const CHARTS = [
  { title: "Loss", column: "loss", tests: 4, text: (v) => fixed(v, 4) },
  { title: "Test accuracy", tests: 3, text: (v) => percent(v, 2), percent: true },
  { title: "Samples a second", column: "samples_per_s", text: count, axis: compact, zero: true },
  {
    title: "Agreement of synthetic and true gradients (cosine)",
    column: "agreement",
    text: (v) => fixed(v, 2),
  },
  {
    title: "Staleness of gradients (updates, mean)",
    column: "staleness",
    text: (v) => fixed(v, 1),
    zero: true,
  },
  {
    title: "Share of the time in ops",
    column: "busy",
    text: (v) => percent(v),
    zero: true,
    percent: true,
  },
  { title: "CPU cores in use", column: "cores", text: (v) => fixed(v, 2), zero: true },
  { title: "Memory", column: "memory_bytes", text: bytes, axis: bytes, zero: true },
];
const LEGEND_MAX = 12;
const SECONDS = [
  1,
  2,
  5,
  10,
  15,
  30,
  ...[1, 2, 5, 10, 15, 30, 60, 120, 360, 720, 1440].map((n) => 60 * n),
];
const CHART_HEIGHT = 190;

export class Chart {
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
      for (const one of run.evaluations)
        if (known(one[about.tests])) values.set(one[1], one[about.tests]);
      if (values.size) found.push(["test", values]);
    }
    return found;
  }

  // Whether there are new values, or the time has gone on by a pixel.
  isOld(end_s) {
    return this.changes !== this.run.changes || !(end_s - this.end_s < this.end_s / this.width());
  }

  draw(end_s) {
    this.changes = this.run.changes;
    this.end_s = Math.max(1, end_s);
    const lines = this.lines();
    this.empty.hidden = lines.length > 0;
    if (!lines.length) return;
    const labels = lines.map(([label]) => label).join("\n");
    if (labels !== this.labels) {
      if (this.plot) this.plot.destroy();
      this.labels = labels;
      this.plot = new uPlot(this.options(lines), [[]], this.root);
    }
    const times = [...new Set(lines.flatMap(([, values]) => [...values.keys()]))].sort(
      (a, b) => a - b,
    );
    // To uPlot null is an interruption of the line, undefined a time that is another line's.
    const columns = lines.map(([, values]) => times.map((time) => values.get(time)));
    this.plot.setData([times, ...columns]);
    const last = lines
      .slice(0, LEGEND_MAX)
      .map(
        ([label, values]) => `${label} ${this.about.text([...values.values()].findLast(known))}`,
      );
    this.plot.root.setAttribute("role", "img");
    this.plot.root.setAttribute(
      "aria-label",
      `${this.about.title}; last values: ${last.join(", ")}`,
    );
  }

  options(lines) {
    const { about } = this;
    const [ink, line] = [style("--muted"), style("--line")];
    const axis = {
      stroke: ink,
      grid: { stroke: line, width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
    };
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
        {
          ...axis,
          values: (_, marks) => marks.map((mark) => duration(mark)),
          space: 60,
          size: 28,
          incrs: SECONDS,
        },
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
