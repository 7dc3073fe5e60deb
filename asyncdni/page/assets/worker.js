// The card of one worker.

import { control, controls, showLog } from "./server.js";
import { addedChoice, slowChoice } from "./slowness.js";
import {
  NONE,
  STATES,
  bytes,
  count,
  element,
  fixed,
  known,
  percent,
  slug,
  write,
} from "./words.js";

export function logButton(run, worker) {
  const button = element("button", "small", "Log");
  button.type = "button";
  button.setAttribute("aria-label", `Log of ${worker}`);
  button.addEventListener("click", () => showLog(run, worker));
  return button;
}

export const SHARES = [
  ["busy", "in ops"],
  ["transport", "with messages"],
  ["waiting", "waiting"],
];

export class Card {
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
      stages.append(
        element("li", "", `${name}${stage.layers || "no layers"} → ${stage.shape}${loss}`),
      );
    }
    this.process = element("p", "process");
    this.bar = element("div", "shares");
    this.bar.setAttribute("role", "img");
    this.shares = SHARES.map(([key]) => element("span", key));
    this.bar.append(...this.shares);
    this.facts = element("dl", "pairs");
    this.values = new Map();
    this.bins = element("div", "bins");
    this.bins.setAttribute("role", "img");
    this.buttons = element("div", "buttons");
    this.buttons.append(logButton(run, about.name));
    this.actions = new Map();
    this.slow = slowChoice(run, about.name);
    this.added = addedChoice(run, about.name);
    if (this.slow) this.buttons.append(this.slow.root, this.added.root);
    this.root.append(head, stages, this.process, this.bar, this.facts, this.bins, this.buttons);
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
    if (worker.factor > 1) parts.push(`made ${worker.factor} times slower`);
    if (worker.added_s) parts.push(`ops made ${1000 * worker.added_s} ms longer`);
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
    this.drawBins(worker.staleness_bins || []);
    this.drawActions(worker);
    if (this.slow) this.slow.draw(news);
    if (this.added) this.added.draw(news);
  }

  // The distribution of staleness since the process began: a bar for each bin, with its upper edge.
  drawBins(bins) {
    this.bins.hidden = bins.length < 2;
    while (this.bins.children.length < bins.length) {
      const bin = element("span", "bin");
      bin.append(element("i"), element("small"));
      this.bins.append(bin);
    }
    const highest = Math.max(...bins.map(([, share]) => share), 0.01);
    [...this.bins.children].forEach((bin, at) => {
      bin.hidden = at >= bins.length;
      if (bin.hidden) return;
      const [edge, share] = bins[at];
      bin.firstChild.style.height = `${(100 * share) / highest}%`;
      bin.title = `staleness up to ${edge}: ${percent(share, 1)}`;
      write(bin.lastChild, edge);
    });
    const words = bins.map(([edge, share]) => `${edge}: ${percent(share)}`).join(", ");
    this.bins.setAttribute("aria-label", `Staleness in updates, up to: ${words}`);
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
        this.buttons.insertBefore(button, this.slow && this.slow.root);
      }
      const paused = worker.state === "paused";
      const fits = action === "kill" || (action === "pause") !== paused;
      this.actions.get(action).hidden = !this.run.news.live || !fits;
      this.actions.get(action).disabled = !worker.pid;
    }
  }
}
