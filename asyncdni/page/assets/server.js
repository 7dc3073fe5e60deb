// All that the page asks of the server: news, logs, controls. A page in one file has no server, but
// holds news and logs itself.

import { $, write } from "./words.js";

const kept = JSON.parse($("#kept")?.textContent ?? "null");

// Say how things stand with the server, at the top of the page.
export function say(text, className) {
  write($("#connection"), text);
  $("#connection").className = className;
}

export async function showLog(run, worker) {
  write($("#log-title"), `Log of ${worker}`);
  write($("#log-text"), "…");
  $("#log").showModal();
  write($("#log-text"), kept ? kept.logs[run.index][worker] : await askLog(run, worker));
  $("#log-text").scrollTop = $("#log-text").scrollHeight;
}

async function askLog(run, worker) {
  const query = new URLSearchParams({ run: run.index, worker });
  const answer = await fetch(`/log?${query}`).catch(() => null);
  return answer ? answer.text() : "The command has ended: see DIR/logs.";
}

export let controls = { actions: [], token: null };

// Have the server do something to a worker; `more` says how much of it.
export async function control(run, worker, action, more = {}) {
  const answer = await fetch("/control", {
    method: "POST",
    headers: { "X-Asyncdni-Token": controls.token },
    body: JSON.stringify({ run: run.index, worker, action, ...more }),
  }).catch(() => null);
  if (!answer || !answer.ok) say(answer ? await answer.text() : "the command has ended", "lost");
}

// Call `take` with all news of the server, from now on.
export async function listen(take) {
  if (kept) {
    take(kept.news);
    return;
  }
  const answer = await fetch("/controls");
  if (answer.ok) controls = await answer.json();
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
