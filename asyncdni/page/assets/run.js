// One run: what is known of it, and its part of the page.

import { CHARTS, Chart } from "./charts.js";
import { Picture } from "./network.js";
import { delayChoice } from "./slowness.js";
import { Timeline } from "./timeline.js";
import { Card, SHARES, logButton } from "./worker.js";
import {
  $,
  MARKS,
  NONE,
  STATES,
  bytes,
  count,
  duration,
  element,
  fixed,
  known,
  percent,
  slug,
  write,
} from "./words.js";

const EVENTS_SHOWN = 200;
const CHARTS_MS = 15; // for drawing charts in a frame
const MANY = 12; // workers from which on their cards and links scroll within the page

export class Run {
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
    const bars = element("li", "", "small bars: staleness in updates, up to the number below");
    this.section("states").append(bars);
    this.reset();
  }

  reset() {
    this.step = 1;
    this.points = new Map(); // by worker: a map from the tick to the point
    this.evaluations = [];
    this.events = [];
    this.newestDrawn = -1; // number of the newest event that is on the page
    this.changes = (this.changes || 0) + 1; // of what the curves show
  }

  take(news) {
    if (news.network) {
      this.reset();
      this.network = news.network;
      this.column = Object.fromEntries(news.network.columns.map((name, at) => [name, at + 1]));
      this.build();
      this.timeline.reset(news.network);
    }
    this.news = news;
    this.timeline.take(news.slices);
    for (const [name, points] of Object.entries(news.points)) {
      if (!this.points.has(name)) this.points.set(name, new Map());
      for (const point of points) this.points.get(name).set(point[1], point);
    }
    if (news.evaluations.length || Object.keys(news.points).length) this.changes += 1;
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
      const delay = delayChoice(this, link.from, link.to);
      if (delay) row.append(element("td"));
      if (delay) row.lastChild.append(delay.root);
      body.append(row);
      return { lag, sent, back, delay };
    });
    $(".added", this.section("links")).hidden = !this.links.some(({ delay }) => delay);
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
      if (cells.delay) cells.delay.draw(news);
    });
    this.picture.draw();
    this.drawEvents();
    this.timeline.draw();
    return this.drawCharts(end_s);
  }

  // Draw the charts that are out of date, at least one of them; return whether some are left for
  // the next frame, so that a page of many workers never stands still for long.
  drawCharts(end_s) {
    const began = performance.now();
    const old = this.charts.filter((chart) => chart.isOld(end_s));
    for (const [at, chart] of old.entries()) {
      if (at && performance.now() - began > CHARTS_MS) return true;
      chart.draw(end_s);
    }
    return false;
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
