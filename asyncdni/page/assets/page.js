// The page: the runs of one command, and which of them are shown. All text from outside goes
// through textContent; nothing is ever parsed as HTML.

import { Run } from "./run.js";
import { listen } from "./server.js";
import { $, dark, element, percent, write } from "./words.js";

const runs = new Map();
const chosen = new Set();
const title = document.title;
let touched = false; // whether the user has chosen which runs to show

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
    const unfinished = shown.filter((run) => run.draw(end_s));
    const live = shown.find((run) => run.news.live);
    document.title = live
      ? `${percent(live.news.progress.fraction || 0)} ${live.news.title}`
      : title;
    if (unfinished.length) draw();
  });
}

addEventListener("resize", draw);
dark.addEventListener("change", () => {
  for (const run of runs.values()) if (run.network) run.makeCharts();
  for (const run of runs.values()) run.timeline.paint();
  draw();
});

listen(take);
