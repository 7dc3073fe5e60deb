// How ops look in a timeline. Each family has a shape of its own beside its colours, so that boxes
// without room for their letter are told apart by those who see no colours.

import { element } from "./words.js";

// The part of a bar that each shape takes: from where, and how much.
const SHAPES = { full: [0, 1], cut: [0, 1], upper: [0, 0.62], lower: [0.38, 0.62], thin: [0.2, 0.6] };

// By letter: the colour, as legible on light as on dark ground, and the shape.
const LOOKS = {
  F: ["#0b7bbf", "full"],
  B: ["#d55e00", "cut"],
  b: ["#bf7b00", "cut"],
  W: ["#a8691f", "cut"],
  C: ["#c4574b", "cut"],
  M: ["#b5485e", "cut"],
  P: ["#b05ba3", "upper"],
  T: ["#cc79a7", "upper"],
  S: ["#9d6bc4", "upper"],
  V: ["#8f7fd0", "upper"],
  U: ["#00875f", "lower"],
  A: ["#3d9a6b", "lower"],
  K: ["#6a9a3d", "lower"],
  R: ["#7f868e", "thin"],
  E: ["#5f8f8f", "thin"],
};
const OTHER = ["#7f868e", "full"];

// A letter where so many pixels are free, with the number of its batch from there on.
const LETTER = 12;
const BATCH = 30;

// Draw an op from `left` to `right`, on ground of a colour.
export function drawOp(pen, ground, [letter, batch], [left, right], [y, height]) {
  const [colour, shape] = LOOKS[letter] || OTHER;
  const [from, part] = SHAPES[shape];
  const width = Math.max(0.7, right - left);
  pen.fillStyle = colour;
  pen.fillRect(left, y + from * height, width, part * height);
  if (shape === "cut") {
    pen.fillStyle = ground;
    pen.fillRect(left, y + 0.78 * height, width, 0.1 * height);
  }
  if (width < LETTER) return;
  pen.fillStyle = isDark(colour) ? "#ffffff" : "#000000";
  const middle = shape === "cut" ? 0.42 : from + part / 2 + 0.02;
  const text = width >= BATCH && batch >= 0 ? `${letter}${batch}` : letter;
  pen.fillText(text, left + width / 2, y + middle * height);
}

// What stands for an op in a legend.
export function swatch(letter) {
  const [colour, shape] = LOOKS[letter] || OTHER;
  const [from, part] = SHAPES[shape];
  const stops = [from, from + part].map((one) => `${100 * one}%`);
  const made = element("b", "swatch op");
  made.style.background =
    shape === "cut"
      ? `linear-gradient(${colour} 70%, transparent 70% 85%, ${colour} 85%)`
      : `linear-gradient(transparent ${stops[0]}, ${colour} ${stops[0]} ${stops[1]}, transparent ${stops[1]})`;
  return made;
}

// White letters are easier to read on a colour of less than this luminance, black ones from there on.
function isDark(colour) {
  const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
  const [red, green, blue] = parts.map((one) =>
    one <= 0.04 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4,
  );
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179;
}
