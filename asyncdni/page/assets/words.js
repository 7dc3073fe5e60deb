// What all files of the page share: elements, words for numbers, signs and colours.

export const $ = (selector, root = document) => root.querySelector(selector);

export function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Text is set only where it changes, so that a selection and a screen reader keep their place.
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// --- numbers

export const NONE = "–";
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const known = (value) => value !== null && value !== undefined;
export const count = (value) => (known(value) ? whole.format(value) : NONE);
export const fixed = (value, digits) => (known(value) ? value.toFixed(digits) : NONE);
export const percent = (value, digits = 0) =>
  known(value) ? `${(100 * value).toFixed(digits)} %` : NONE;

export function bytes(value) {
  if (!known(value)) return NONE;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (value >= 1000 && power < units.length - 1) {
    value /= 1000;
    power += 1;
  }
  return `${value.toFixed(power && value < 100 ? 1 : 0)} ${units[power]}`;
}

export function compact(value) {
  return new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(
    value,
  );
}

export function duration(seconds) {
  const all = Math.round(seconds);
  const pad = (value) => String(value).padStart(2, "0");
  const [hours, minutes] = [Math.floor(all / 3600), Math.floor(all / 60) % 60];
  return hours ? `${hours}:${pad(minutes)}:${pad(all % 60)}` : `${minutes}:${pad(all % 60)}`;
}

// --- states and colours

export const slug = (state) => state.replace(" ", "-");

// Each state has a sign of its own beside its colour, which not everybody can tell apart.
export const STATES = {
  starting: ["○", "its process has not joined yet"],
  learning: ["●", "it makes updates"],
  waiting: ["◐", "no update since its last report, or its guard waits for true gradients"],
  paused: ["‖", "stopped from this page"],
  down: ["✕", "its process has died"],
  "catching up": ["↻", "a new process, before its first update"],
  done: ["✓", "the run has ended"],
};
export const MARKS = { bad: "✕", good: "✓", news: "·" };

// Okabe and Ito's colours without black and yellow, lighter on dark ground.
const LIGHT = ["#0072b2", "#d55e00", "#007a5a", "#b0558a", "#b87f00", "#2b8cc4"];
const DARK = ["#56a9e8", "#f0803c", "#2fbf95", "#dd95bd", "#e6a817", "#8fd0f5"];
const DASHES = [[], [8, 4], [2, 3], [12, 3, 2, 3]];
export const dark = matchMedia("(prefers-color-scheme: dark)");

export function stroke(index) {
  const colours = dark.matches ? DARK : LIGHT;
  const dash = DASHES[Math.floor(index / colours.length) % DASHES.length];
  return { stroke: colours[index % colours.length], dash };
}

export const style = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();
