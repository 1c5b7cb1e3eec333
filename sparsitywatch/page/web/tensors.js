// @ts-check
/** Every tensor by step as a heatmap, and how large the weights of one of them are. */

import { nearest } from "./data.js";
import { capital, colour, h, numbered, percent, s, share, significant, whole } from "./format.js";

/**
 * @typedef {import("./data.js").PageData} PageData
 * @typedef {import("./data.js").Details} Details
 * @typedef {{label: string, real: string, key: string, member: number[], isGroup: boolean}} Row
 * @typedef {{kind: string, group: string, sort: string, search: string}} Choice
 */

const ROW = 18;
const VALUES = 56;
/** From nothing to everything on white; on black the other way round. Colours are even in the square root of a share. */
const PALE_TO_DARK = ["ffffd9", "edf8b1", "c7e9b4", "7fcdbb", "41b6c4", "1d91c0", "225ea8", "253494", "081d58"]
  .map((text) => [0, 2, 4].map((i) => Number.parseInt(text.slice(i, i + 2), 16)));
/** Shares whose colours are said. */
const SAID = [0, 0.01, 0.05, 0.25, 0.5, 1];

/** @param {Element} root on which the colours are @returns {(share: number) => number[]} red, green, blue */
export function paintOf(root) {
  const isDark = colour(root, "paper") !== "#ffffff";
  return (share) => {
    const x = Math.sqrt(Math.min(Math.max(share, 0), 1));
    const place = (isDark ? 1 - x : x) * (PALE_TO_DARK.length - 1);
    const left = Math.min(Math.floor(place), PALE_TO_DARK.length - 2);
    return PALE_TO_DARK[left].map((c, i) => Math.round(c + (place - left) * (PALE_TO_DARK[left + 1][i] - c)));
  };
}

/** What the colours mean. @param {Element} root */
export function scale(root) {
  const paint = paintOf(root);
  return h("span", { class: "scale" }, ...SAID.flatMap((x) => [h("i", { style: `background:rgb(${paint(x).join()})`, "aria-hidden": "true" }), percent(x)]));
}

/** What the last parts of a name say, in the families of transformers. @type {[RegExp, string][]} */
const ROLES = [
  [/\b(query_key_value|c_attn|in_proj|in_proj_weight|qkv|qkv_proj|Wqkv)$/, "attention query/key/value"],
  [/(\b(query|q_proj|q_lin|to_q)|att.*\.q)$/i, "attention query"],
  [/(\b(key|k_proj|k_lin|to_k)|att.*\.k)$/i, "attention key"],
  [/(\b(value|v_proj|v_lin|to_v)|att.*\.v)$/i, "attention value"],
  [/att.*\.(dense|out_proj|o_proj|o|out_lin|c_proj|proj)$/i, "attention output"],
  [/\b(gate_proj|wi_0)$/, "feed-forward gate"],
  [/\b(intermediate\.dense|c_fc|up_proj|fc1|fc_in|lin1|linear1|wi|wi_1|dense_h_to_4h)$/, "feed-forward in"],
  [/\b(output\.dense|c_proj|down_proj|fc2|fc_out|lin2|linear2|wo|dense_4h_to_h)$/, "feed-forward out"],
];
const isNumber = (/** @type {string} */ part) => /^\d+$/.test(part);

/**
 * Names without what all have in common: the block, the rest, which is the kind, and both in words.
 * @param {string[]} names @param {string[]} blocks of each
 * @param {(string | number)[][]} [ledger] rows of the scope: the name first, its shape third
 */
export function parted(names, blocks, ledger = []) {
  let parts = names.map((name) => name.split("."));
  let cut = 0;
  const whole = () => parts.every((p) => p.length > 1);
  if (whole() && parts.every((p) => p[p.length - 1] === "weight")) parts = parts.map((p) => p.slice(0, -1));
  while (names.length > 1 && whole() && parts.every((p) => p[0] === parts[0][0]) && !isNumber(parts[0][0])) {
    parts = parts.map((p) => p.slice(1));
    cut += 1;
  }
  const shapes = new Map(ledger.map((row) => [row[0], String(row[2])]));
  /** @type {Map<string, number>} */
  const counts = new Map();
  const found = parts.map((p, i) => {
    const path = blocks[i].split(".").slice(cut);
    const block = path.length < p.length && path.some(isNumber) ? path.length - 1 : -1;
    const [before, after] = [p.slice(0, block + 1), p.slice(block + 1)];
    const layer = before.length ? [...before.slice(0, -1).filter((word) => !/^(layers?|h|blocks?)$/.test(word)), "layer", before[block]].join(" ") : "";
    const kind = after.join(".");
    let role = ROLES.find(([pattern]) => pattern.test(kind))?.[1] ?? kind;
    if (isNumber(after[after.length - 1])) { // in a Sequential
      const type = (shapes.get(names[i])?.match(/\d+/g)?.length ?? 2) > 2 ? "convolution" : "linear";
      const key = [...p.slice(0, -1), type].join(".");
      counts.set(key, (counts.get(key) ?? 0) + 1);
      role = [...after.slice(0, -1), type, counts.get(key)].join(" ");
    }
    return { block: before.join("."), layer, kind, role, real: p.join("."), label: [layer, role].filter(Boolean).join(", ") };
  });
  const labels = found.map((part) => part.label);
  return found.map((part, i) => (labels.indexOf(part.label) === i && labels.lastIndexOf(part.label) === i ? part : { ...part, label: part.real }));
}

/**
 * Rows in the order that was asked for.
 * @param {string[]} names @param {string[]} blocks @param {number[][]} cells @param {number} column @param {Choice} choice
 * @param {(string | number)[][]} [ledger]
 * @returns {Row[]}
 */
export function rowsOf(names, blocks, cells, column, choice, ledger) {
  const parts = parted(names, blocks, ledger);
  const wanted = choice.search.toLowerCase();
  const found = names.map((_, i) => i).filter((i) => `${parts[i].label}\n${names[i]}`.toLowerCase().includes(wanted));
  const value = (/** @type {number} */ i) => cells[i][column] ?? -1;
  const rise = (/** @type {number} */ i) => {
    const known = cells[i].filter((x) => x >= 0);
    return known.length ? value(i) - known[0] : -Infinity;
  };
  /** @type {Record<string, (a: number, b: number) => number>} */
  const orders = { model: (a, b) => a - b, largest: (a, b) => value(b) - value(a) || a - b, rise: (a, b) => rise(b) - rise(a) || a - b };
  const single = (/** @type {number} */ i) => ({ label: parts[i].label, real: parts[i].real, key: names[i], member: [i], isGroup: false });
  if (choice.group === "none") return found.sort(orders[choice.sort]).map(single);
  /** @type {Map<string, number[]>} */
  const groups = new Map();
  for (const i of found) {
    const key = (choice.group === "block" ? parts[i].block : parts[i].kind) || "others";
    groups.set(key, [...(groups.get(key) ?? []), i]);
  }
  const mean = (/** @type {number[]} */ own, /** @type {number} */ t) => meanOf(own.map((i) => cells[i][t]));
  const keys = [...groups.keys()];
  if (choice.sort !== "model") {
    keys.sort((a, b) => mean(groups.get(b) ?? [], column) - mean(groups.get(a) ?? [], column));
  }
  return keys.flatMap((key) => {
    const own = groups.get(key) ?? [];
    const first = parts[own[0]];
    const label = `${(choice.group === "block" ? first.layer : first.role) || key}: mean of ${own.length}`;
    return [{ label, real: label, key, member: own, isGroup: true }, ...[...own].sort(orders[choice.sort]).map(single)];
  });
}

/** @param {number[]} shares those below 0 are unknown */
export function meanOf(shares) {
  const known = shares.filter((x) => x >= 0);
  return known.length ? known.reduce((a, b) => a + b, 0) / known.length : -1;
}

/** The heatmap: names, cells, and the number of each row at the cursor. */
export class Heatmap {
  /**
   * @param {HTMLElement} root @param {{open: (row: number) => void, pin: (step: number) => void, hover: (step: number | null) => void}} told
   * @param {{name: string, label: string}} look its class, and what it is
   */
  constructor(root, told, look = { name: "heat", label: "Every tensor" }) {
    this.root = root;
    this.told = told;
    this.canvas = /** @type {HTMLCanvasElement} */ (h("canvas", { "aria-hidden": "true" }));
    this.values = /** @type {HTMLCanvasElement} */ (h("canvas", { "aria-hidden": "true", width: VALUES })); // else no room for cells on a phone
    this.cursor = h("div", { class: "cursor" });
    this.names = h("ul", { class: "names" });
    this.body = h("div", { class: `heatmap ${look.name}`, tabindex: "0", role: "region", "aria-label": look.label },
      this.names, h("div", { class: "cells" }, this.canvas, this.cursor), this.values);
    root.replaceChildren(this.body);
    this.canvas.addEventListener("mousemove", (e) => told.hover(this.stepAt(e.offsetX)));
    this.canvas.addEventListener("mouseleave", () => told.hover(null));
    this.canvas.addEventListener("click", (e) => told.pin(this.stepAt(e.offsetX)));
    new ResizeObserver(() => this.paint()).observe(root);
    /** @type {Row[]} */
    this.rows = [];
    /** @type {number[][]} */
    this.cells = [];
    /** @type {number[][]} shown below these in each row; none: all of a row is theirs */
    this.under = [];
    /** @type {number[]} */
    this.steps = [];
    /** @type {[number, number]} */
    this.range = [0, 1];
    this.step = 0;
    /** @type {{t: number, rows: Row[], dense: number}} of which column the numbers are that stand there */
    this.numbers = { t: -1, rows: [], dense: 1 };
  }

  /** @param {number[]} steps of the columns @param {number[][]} cells @param {Row[]} rows @param {[number, number]} range @param {string} open @param {number[][]} [under] */
  draw(steps, cells, rows, range, open, under = []) {
    Object.assign(this, { steps, cells, rows, range, under });
    this.names.replaceChildren(...rows.map((row) =>
      h("li", { class: row.isGroup ? "group" : "" }, row.isGroup ? h("span", {}, row.label)
        : h("button", { type: "button", title: row.key, "aria-pressed": String(row.key === open), onclick: () => this.told.open(row.member[0]) }, row.label, row.real === row.label ? null : h("small", {}, ` ${row.real}`)))));
    this.paint();
  }

  /** @param {number} x in pixels */
  stepAt(x) {
    const [low, high] = this.range;
    return this.steps[nearest(this.steps, low + (x / Math.max(this.canvas.clientWidth, 1)) * (high - low))];
  }

  /** Other steps are shown. @param {[number, number]} range */
  zoom(range) {
    this.range = range;
    this.paint();
  }

  /** What each row shows, from top to bottom. */
  bands() {
    return this.under.length ? [this.cells, this.under] : [this.cells];
  }

  /** The colour of each number of thousandths, as a pixel of four bytes. */
  paints() {
    const bytes = new Uint8ClampedArray(4 * 1001);
    const paint = paintOf(this.root);
    for (let n = 0; n <= 1000; n += 1) bytes.set([...paint(n / 1000), 255], 4 * n);
    return new Uint32Array(bytes.buffer);
  }

  paint() {
    const width = this.canvas.parentElement?.clientWidth ?? 0;
    if (!width || !this.rows.length) return;
    const [low, high] = this.range;
    const columns = Array.from({ length: width }, (_, x) => nearest(this.steps, low + ((x + 0.5) / width) * (high - low)));
    const bands = this.bands();
    const lines = bands.length > 1 ? 9 : 1; // of a row: four of each band, and one that parts it from the next row
    Object.assign(this.canvas, { width, height: this.rows.length * lines });
    this.canvas.style.height = `${this.rows.length * ROW}px`;
    const context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    const image = context.createImageData(width, this.rows.length * lines);
    const pixels = new Uint32Array(image.data.buffer);
    const paints = this.paints();
    this.rows.forEach((row, y) => bands.forEach((cells, b) => {
      const own = row.isGroup ? this.steps.map((_, t) => Math.round(meanOf(row.member.map((i) => cells[i][t])))) : cells[row.member[0]];
      const colours = columns.map((t) => (own[t] >= 0 ? paints[own[t]] : 0));
      for (let line = 0; line < Math.min(lines, 4); line += 1) pixels.set(colours, (y * lines + 4 * b + line) * width);
    }));
    context.putImageData(image, 0, 0);
    this.show(this.step);
  }

  /** The line of the cursor and the number of each row there. @param {number} step */
  show(step) {
    this.step = step;
    if (!this.rows.length || !this.steps.length) return;
    const [low, high] = this.range;
    const place = (step - low) / (high - low || 1);
    this.cursor.hidden = place < 0 || place > 1;
    this.cursor.style.left = `${100 * place}%`;
    const t = nearest(this.steps, step);
    const dense = window.devicePixelRatio || 1;
    const seen = this.numbers;
    if (seen.t === t && seen.rows === this.rows && seen.dense === dense) return; // another range, or the same column
    this.numbers = { t, rows: this.rows, dense };
    const bands = this.bands();
    const width = VALUES * (bands.length > 1 ? 1.7 : 1);
    Object.assign(this.values, { width: width * dense, height: this.rows.length * ROW * dense });
    Object.assign(this.values.style, { width: `${width}px`, height: `${this.rows.length * ROW}px` });
    const context = /** @type {CanvasRenderingContext2D} */ (this.values.getContext("2d"));
    context.scale(dense, dense);
    context.fillStyle = colour(this.root, "ink");
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "right";
    context.textBaseline = "middle";
    this.rows.forEach((row, y) => {
      const shares = bands.map((cells) => share(Math.round(meanOf(row.member.map((i) => cells[i][t])))));
      context.fillText(shares.join(" · "), width - 2, (y + 0.5) * ROW);
    });
  }
}

/**
 * How large the weights of one tensor are, over the run: dark where many are.
 * @param {HTMLElement} root @param {string} name @param {import("./data.js").Magnitudes} magnitudes
 * @param {number} tensor @param {import("./data.js").PageData} data @param {number} step @param {() => void} close
 */
export function drawHistogram(root, name, magnitudes, tensor, data, step, close) {
  const { columns, ends, below } = magnitudes;
  const own = columns.map((i) => data.steps[i]);
  const bins = below[tensor].map((row) => row.map((x, b) => (x < 0 ? -1 : b ? x - row[b - 1] : x)));
  const t = nearest(own, step);
  const width = 620;
  const height = 220;
  const high = Math.max(1, ...bins.flat());
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas", { width: columns.length, height: ends.length, role: "img",
    "aria-label": `log10 of the magnitudes of ${name} over the run` }));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(columns.length, ends.length);
  const paint = paintOf(root);
  bins.forEach((row, x) => row.forEach((n, b) => {
    if (n >= 0) image.data.set([...paint(n / high), 255], 4 * ((ends.length - 1 - b) * columns.length + x));
  }));
  context.putImageData(image, 0, 0);
  Object.assign(canvas.style, { width: "100%", height: `${height}px` });
  const svg = curveOf(width, height, high, ends, [{ row: bins[0], kind: "then" }, { row: bins[t], kind: "now" }]);
  const last = own.length - 1;
  root.replaceChildren(
    h("h3", {}, "How large its weights are: ", h("code", {}, name), " ", h("button", { type: "button", onclick: close }, "close")),
    h("div", { class: "pair" },
      h("figure", {}, canvas, h("figcaption", {}, `${capital(numbered(data, own[0]))} to ${whole(own[last])} from left to right; from bottom to top |w| from ${power(ends[0])} to ${power(ends[ends.length - 1])}. The stronger the colour, the more weights have that size.`)),
      h("figure", {}, svg, h("figcaption", {}, `Shares of its weights by log10 |w|: at ${numbered(data, own[t])} (line), at ${numbered(data, own[0])} (dashed). Weights that move to the left shrink.`))),
  );
}

/**
 * What came to each expert of each layer at a snapshot, beside the busiest one.
 * @param {HTMLElement} root @param {import("./data.js").Experts} experts @param {PageData} data @param {number} step @param {string} whose
 */
export function drawExperts(root, { columns, names, loads }, data, step, whose) {
  const steps = columns.map((i) => data.steps[i] ?? 0);
  const t = nearest(steps, step);
  const key = `${columns.length} ${t}`;
  if (root.dataset.column === key) return;
  root.dataset.column = key;
  const own = loads.map((load) => load[t]);
  const tops = own.map((load) => Math.max(1, ...load));
  const rows = names.map((label, i) => ({ label: `${label}: ${percent(tops[i] / Math.max(1, own[i].reduce((a, b) => a + b, 0)))} to expert ${own[i].indexOf(tops[i])}`,
    real: label, key: label, member: [i], isGroup: true }));
  const numbers = own.reduce((a, b) => (b.length > a.length ? b : a)).map((_, expert) => expert);
  const [place, chosen] = [h("div", {}), h("b", {}, "0")];
  const hover = (/** @type {number | null} */ expert) => {
    chosen.textContent = String(expert ?? chosen.textContent);
    map.show(Number(chosen.textContent));
  };
  /** @type {Heatmap} */
  const map = new Heatmap(place, { open: () => undefined, pin: () => undefined, hover },
    { name: "experts", label: "Every expert" });
  root.replaceChildren(h("h2", {}, `Load of the experts${whose} at ${numbered(data, steps[t])} `, h("small", {}, "positions of held-out examples that each got; beside a name, what the busiest got of all")),
    h("p", { class: "legend" }, "beside the busiest of its layer:", scale(root), `. Experts 0 to ${numbers.length - 1} from left to right; the number at the right is of expert `, chosen), place);
  map.draw(numbers, own.map((load, i) => load.map((x) => Math.round((1000 * x) / tops[i]))), rows, [-0.5, numbers.length - 0.5], "");
}

/** @param {number} log */
export function power(log) {
  return significant(10 ** log, 2);
}

/**
 * @param {number} width @param {number} height @param {number} high @param {number[]} ends
 * @param {{row: number[], kind: string}[]} lines
 */
function curveOf(width, height, high, ends, lines) {
  const svg = s("svg", { viewBox: `0 0 ${width} ${height + 22}`, role: "img", "aria-label": "Histogram of log10 of the magnitudes" });
  const x = (/** @type {number} */ b) => ((b + 0.5) * width) / ends.length;
  svg.append(s("line", { x1: 0, x2: width, y1: height, y2: height, class: "rule" }));
  ends.forEach((log, b) => {
    if (Number.isInteger(log)) svg.append(s("text", { x: x(b), y: height + 16, class: "tick" }, `${log}`));
  });
  for (const { row, kind } of lines) {
    const d = row.map((n, b) => `${b ? "L" : "M"}${x(b).toFixed(1)},${(height * (1 - (0.95 * Math.max(n, 0)) / high)).toFixed(1)}`).join("");
    svg.append(s("path", { d, class: `histogram ${kind}` }));
  }
  return svg;
}
