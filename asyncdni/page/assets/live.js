// The newest ops of a run that goes on: what its workers send while this page is open. Of each half
// second they send the first ops alone, all of them the same stretch of time: see core/slices.py.

const KEPT = 240; // slices of each worker: two minutes,
const KEPT_MAX = 7680; // and of all workers together
const SLOWED = "~";
const LENGTH = 0.5; // seconds of a slice
const SILENCE = 3;

export class Live {
  constructor(names, links) {
    this.rows = new Map(names.map((name) => [name, []]));
    this.kept = Math.max(2, Math.min(KEPT, Math.floor(KEPT_MAX / names.length)));
    const place = new Map(names.map((name, at) => [name, at]));
    this.links = links.map((link) => [place.get(link.from), place.get(link.to)]);
    this.letters = new Set();
  }

  get isEmpty() {
    return this.letters.size === 0;
  }

  // Take slices as the server sends them: [worker, begin_s, until_s, [code, batch, start_us, …]].
  take(slices) {
    for (const [worker, begin, until, numbers] of slices) {
      const row = this.rows.get(worker);
      if (!row) continue;
      for (let at = 0; at < numbers.length; at += 4) {
        const letter = String.fromCharCode(numbers[at]);
        if (letter !== SLOWED) this.letters.add(letter);
      }
      const [start, length] = numbers.slice(-2);
      const end = Math.max(begin + until, numbers.length ? begin + (start + length) / 1e6 : 0);
      // Kept as numbers: as objects, two minutes of many workers' ops would take hundreds of MB.
      row.push({ begin, until: begin + until, end, numbers: Int32Array.from(numbers) });
      if (row.length > this.kept) row.shift();
    }
  }

  // When the oldest slice begins, and when the newest one ends that all workers have sent, but those
  // that have been silent for some seconds.
  get span() {
    const rows = [...this.rows.values()].filter((row) => row.length);
    const ends = rows.map((row) => row[row.length - 1].begin + LENGTH);
    const newest = Math.max(...ends);
    const first = Math.min(...rows.map((row) => row[0].begin));
    return [first, Math.min(...ends.filter((end) => end > newest - SILENCE))];
  }

  // Where a window of that length shows the newest ops: at the begin of the newest slice.
  newest(length) {
    const last = this.span[1];
    return length <= LENGTH ? last - LENGTH : last - length;
  }

  // A length at which the boxes of the busiest worker have room for their letters.
  goodLength(boxes) {
    const found = [...this.rows.values()].flatMap((row) =>
      row
        .slice(-1)
        .map(({ begin, until, numbers }) => ((until - begin) * boxes) / (numbers.length / 4 || 1)),
    );
    return Math.max(0.002, Math.min(LENGTH, ...found));
  }

  // What there is from `begin` on, as the server gives it of a run that was traced.
  window(begin, length) {
    const workers = [...this.rows].map(([name, row]) => this.row(name, row, begin, length));
    const [first, last] = this.span;
    const { links } = this;
    return {
      begin_s: begin,
      length_s: length,
      first_s: first,
      last_s: last,
      workers,
      get arrows() {
        return links.flatMap(([from, to]) => arrows(workers, from, to));
      },
    };
  }

  row(name, row, begin, length) {
    const made = { name, boxes: [], slowed: [], waits: [], blanks: [] };
    const taken = [];
    const covered = [];
    for (const slice of row) {
      if (slice.end < begin || slice.begin > begin + length) continue;
      covered.push([slice.begin - begin, slice.until - begin]);
      for (const [letter, batch, from, to] of opsOf(slice)) {
        if (to <= begin || from >= begin + length) continue;
        const part = [from - begin, to - begin];
        taken.push(part);
        if (letter === SLOWED) made.slowed.push(part);
        else made.boxes.push([letter, batch, ...part]);
      }
    }
    made.blanks = without([[0, length]], [...covered, ...taken]);
    made.waits = without(covered, taken);
    return made;
  }
}

// The ops of a slice: letter, batch, start and end.
function* opsOf({ begin, numbers }) {
  for (let at = 0; at < numbers.length; at += 4) {
    const from = begin + numbers[at + 2] / 1e6;
    yield [String.fromCharCode(numbers[at]), numbers[at + 1], from, from + numbers[at + 3] / 1e6];
  }
}

// The parts of spans, in order, that lie in none of `holes`.
function without(spans, holes) {
  const sorted = holes.toSorted((a, b) => a[0] - b[0]);
  const found = [];
  for (const [from, to] of spans) {
    let at = from;
    for (const [start, end] of sorted) {
      if (end <= at) continue;
      if (start >= to) break;
      if (start > at) found.push([at, start]);
      at = Math.max(at, end);
    }
    if (at < to) found.push([at, to]);
  }
  return found;
}

// The messages of a link, told from the ops of their batch at both ends: [whether a gradient,
// sender, receiver, start, end, batch].
function arrows(workers, from, to) {
  const found = [];
  const [above, below] = [byBatch(workers[from].boxes), byBatch(workers[to].boxes)];
  for (const [batch, ops] of above) {
    const others = below.get(batch) || [];
    const forward = ops.find(([letter]) => letter === "F");
    const taken = forward && others.find(([letter, , at]) => letter === "F" && at >= forward[3]);
    if (taken) found.push([false, from, to, forward[3], taken[2], batch]);
    // Where the true gradient is passed on by an op of its own, that one sends it.
    const sends = others.some(([letter]) => letter === "b") ? "b" : "B";
    const sent = others.find(([letter]) => letter === sends);
    // A stage that has predicted the gradient learns from the true one by other ops than B.
    const uses = ops.some(([letter]) => letter === "P") ? "TbCM" : "Bb";
    const used = sent && ops.find(([letter, , at]) => uses.includes(letter) && at >= sent[3]);
    if (used) found.push([true, to, from, sent[3], used[2], batch]);
  }
  return found;
}

function byBatch(boxes) {
  const found = new Map();
  for (const box of boxes) {
    if (!found.has(box[1])) found.set(box[1], []);
    found.get(box[1]).push(box);
  }
  return found;
}
