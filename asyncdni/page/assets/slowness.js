// Controls that make workers and links slow, for demonstrations.

import { control, controls } from "./server.js";
import { element } from "./words.js";

const FACTORS = [1, 2, 5, 10, 20, 50];
const ADDED = [0, 0.001, 0.005, 0.02, 0.1, 0.5];
const LATENCIES = [0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1];

// A choice of numbers; `told` gives the one that holds now, in the news of the run.
class Choice {
  constructor(name, words, numbers, choose, told) {
    this.root = element("select", "small");
    this.root.setAttribute("aria-label", name);
    this.told = told;
    for (const number of numbers) {
      const option = element("option", "", words(number));
      option.value = number;
      this.root.append(option);
    }
    this.root.addEventListener("change", () => choose(Number(this.root.value)));
  }

  draw(news) {
    const now = String(this.told(news));
    if (document.activeElement !== this.root && this.root.value !== now) this.root.value = now;
    this.root.disabled = !news.live;
  }
}

// How many times as long each op of a worker takes; null on a page without controls.
export function slowChoice(run, worker) {
  if (!controls.token) return null;
  return new Choice(
    `slow ${worker} down`,
    (factor) => (factor === 1 ? "slow down …" : `${factor} times slower`),
    FACTORS,
    (factor) => control(run, worker, "slow", { factor }),
    (news) => news.workers[worker].factor,
  );
}

// How much longer each op of a worker takes; null on a page without controls.
export function addedChoice(run, worker) {
  if (!controls.token) return null;
  return new Choice(
    `lengthen ops of ${worker}`,
    (added) => (added ? `+ ${1000 * added} ms an op` : "+ 0 ms an op"),
    ADDED,
    (added) => control(run, worker, "lengthen", { added_s: added }),
    (news) => news.workers[worker].added_s,
  );
}

// How much longer messages take on a link, each way; null on a page without controls.
export function delayChoice(run, from, to) {
  if (!controls.token) return null;
  return new Choice(
    `latency of ${from} → ${to}`,
    (latency) => (latency ? `${1000 * latency} ms` : "none"),
    LATENCIES,
    (latency) => control(run, from, "delay", { to, latency_s: latency }),
    (news) => news.workers[from].latency_s[to] || 0,
  );
}
