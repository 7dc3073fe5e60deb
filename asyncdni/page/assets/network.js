// The picture of the network as it is cut.

import { STATES, known, percent, slug, write } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const BOX = { width: 136, height: 58, gap: 64, row: 18, letters: 16 };
const RANKS_BELOW_EACH_OTHER = 12;

// Boxes of workers from left to right, or downwards where the page is narrow.
export class Picture {
  constructor(run) {
    this.run = run;
    this.home = run.section("network");
    const ranks = new Map();
    for (const { name, producers } of run.network.workers) {
      ranks.set(name, Math.max(-1, ...producers.map((one) => ranks.get(one) ?? -1)) + 1);
    }
    this.columns = [];
    for (const [name, rank] of ranks) (this.columns[rank] ||= []).push(name);
  }

  layout() {
    const ranks = this.columns.length;
    const across = Math.max(...this.columns.map((names) => names.length));
    const wide = ranks * BOX.width + (ranks - 1) * BOX.gap + 4;
    const down = wide > this.home.clientWidth && ranks <= RANKS_BELOW_EACH_OTHER;
    const step = down ? BOX.height + 40 : BOX.width + BOX.gap;
    const beside = down ? BOX.width + BOX.row : BOX.height + BOX.row;
    const places = new Map();
    this.columns.forEach((names, rank) => {
      const shift = ((across - names.length) * beside) / 2;
      names.forEach((name, at) => {
        const [along, aside] = [rank * step + 2, shift + at * beside + 2];
        places.set(name, down ? [aside, along] : [along, aside]);
      });
    });
    const length = (ranks - 1) * step + (down ? BOX.height : BOX.width) + 4;
    const breadth = across * beside - BOX.row + 4;
    return { down, places, size: down ? [breadth, length] : [length, breadth] };
  }

  draw() {
    if (this.width !== this.home.clientWidth) {
      this.width = this.home.clientWidth;
      this.build();
    }
    const words = [];
    for (const [name, box] of this.boxes) {
      const worker = this.run.news.workers[name];
      const busy = known(worker.busy) && worker.pid ? ` ${percent(worker.busy)}` : "";
      box.group.setAttribute("class", `box state ${slug(worker.state)}`);
      write(box.state, `${STATES[worker.state][0]} ${worker.state}${busy}`);
      words.push(`${name} ${worker.state}`);
    }
    this.home.setAttribute("aria-label", `The network as it is cut: ${words.join(", ")}`);
  }

  build() {
    const {
      down,
      places,
      size: [width, height],
    } = this.layout();
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height });
    for (const link of this.run.network.links) {
      const [[x1, y1], [x2, y2]] = [places.get(link.from), places.get(link.to)];
      const [ax, ay] = down
        ? [x1 + BOX.width / 2, y1 + BOX.height]
        : [x1 + BOX.width, y1 + BOX.height / 2];
      const [bx, by] = down ? [x2 + BOX.width / 2, y2 - 6] : [x2 - 6, y2 + BOX.height / 2];
      const [mx, my] = [(ax + bx) / 2, (ay + by) / 2];
      const path = down
        ? `C${ax} ${my} ${bx} ${my} ${bx} ${by}`
        : `C${mx} ${ay} ${mx} ${by} ${bx} ${by}`;
      const tip = down ? `M${bx - 4} ${by}h8l-4 6z` : `M${bx} ${by - 4}v8l6 -4z`;
      svg.append(shape("path", { d: `M${ax} ${ay}${path}`, class: "edge" }));
      svg.append(shape("path", { d: tip, class: "tip" }));
      const place = down ? { x: mx + 8, y: my + 4 } : { x: mx, y: my - 7, "text-anchor": "middle" };
      svg.append(shape("text", { ...place, class: "shape" }, link.shape));
    }
    this.boxes = new Map();
    for (const [name, [x, y]] of places) {
      const group = shape("g", {});
      const short = name.length > BOX.letters ? `${name.slice(0, BOX.letters - 1)}…` : name;
      const state = shape("text", { x: x + 12, y: y + 42, class: "what" });
      group.append(
        shape("rect", { x, y, width: BOX.width, height: BOX.height, rx: 6 }),
        shape("rect", { x, y: y + 6, width: 5, height: BOX.height - 12, class: "edge-mark" }),
        shape("text", { x: x + 12, y: y + 23, class: "name" }, short),
        state,
      );
      svg.append(group);
      this.boxes.set(name, { group, state });
    }
    this.home.replaceChildren(svg);
  }
}
