// @ts-check
/** Every tensor by step as a heatmap, and how large the weights of one of them are. */

import { nearest } from "./data.js";
import { capital, colour, h, numbered, s, share, significant, whole } from "./format.js";

/**
 * @typedef {import("./data.js").PageData} PageData
 * @typedef {import("./data.js").Details} Details
 * @typedef {{label: string, key: string, member: number[], isGroup: boolean}} Row
 * @typedef {{kind: string, group: string, sort: string, search: string}} Choice
 */

const ROW = 18;
const VALUES = 56;
/** Colours of viridis, from nothing to the largest share. */
const VIRIDIS = ["440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"]
  .map((text) => [0, 2, 4].map((i) => Number.parseInt(text.slice(i, i + 2), 16)));
/** @type {Record<string, string>} */
export const KINDS = { near_zero: "near zero", dormant: "dormant", removed: "removed" };

/** @param {number} x in [0, 1] @returns {number[]} red, green, blue */
export function viridis(x) {
  const place = Math.min(Math.max(x, 0), 1) * (VIRIDIS.length - 1);
  const left = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[left].map((c, i) => Math.round(c + (place - left) * (VIRIDIS[left + 1][i] - c)));
}

/**
 * Names without what all have in common: the block, and the rest, which is the kind.
 * @param {string[]} names
 */
export function parted(names) {
  let parts = names.map((name) => name.split("."));
  const whole = () => parts.every((p) => p.length > 1);
  if (whole() && parts.every((p) => p[p.length - 1] === "weight")) parts = parts.map((p) => p.slice(0, -1));
  while (names.length > 1 && whole() && parts.every((p) => p[0] === parts[0][0]) && !/^\d+$/.test(parts[0][0])) {
    parts = parts.map((p) => p.slice(1));
  }
  return parts.map((p) => {
    const block = p.slice(0, -1).findIndex((part) => /^\d+$/.test(part));
    return { block: p.slice(0, block + 1).join("."), kind: p.slice(block + 1).join("."), label: p.join(".") };
  });
}

/**
 * Rows in the order that was asked for.
 * @param {string[]} names @param {number[][]} cells @param {number} column @param {Choice} choice
 * @returns {Row[]}
 */
export function rowsOf(names, cells, column, choice) {
  const parts = parted(names);
  const wanted = choice.search.toLowerCase();
  const found = names.map((_, i) => i).filter((i) => names[i].toLowerCase().includes(wanted));
  const value = (/** @type {number} */ i) => cells[i][column] ?? -1;
  const rise = (/** @type {number} */ i) => {
    const known = cells[i].filter((x) => x >= 0);
    return known.length ? value(i) - known[0] : -Infinity;
  };
  /** @type {Record<string, (a: number, b: number) => number>} */
  const orders = { model: (a, b) => a - b, largest: (a, b) => value(b) - value(a) || a - b, rise: (a, b) => rise(b) - rise(a) || a - b };
  const single = (/** @type {number} */ i) => ({ label: parts[i].label, key: names[i], member: [i], isGroup: false });
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
    const label = `${choice.group === "block" ? "block " : ""}${key}: mean of ${own.length}`;
    return [{ label, key, member: own, isGroup: true }, ...[...own].sort(orders[choice.sort]).map(single)];
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
   * @param {{name: string, label: string, exponent: number}} look its class, what it is, and the power of a share that its colours are even in
   */
  constructor(root, told, look = { name: "heat", label: "Every tensor", exponent: 1 }) {
    this.root = root;
    this.told = told;
    this.exponent = look.exponent;
    this.canvas = /** @type {HTMLCanvasElement} */ (h("canvas", { "aria-hidden": "true" }));
    this.values = /** @type {HTMLCanvasElement} */ (h("canvas", { "aria-hidden": "true" }));
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
    /** @type {number[]} */
    this.steps = [];
    /** @type {[number, number]} */
    this.range = [0, 1];
    this.high = 1000;
    this.step = 0;
    /** @type {{t: number, rows: Row[], dense: number}} of which column the numbers are that stand there */
    this.numbers = { t: -1, rows: [], dense: 1 };
  }

  /** @param {number[]} steps of the columns @param {number[][]} cells @param {Row[]} rows @param {[number, number]} range @param {string} open */
  draw(steps, cells, rows, range, open) {
    Object.assign(this, { steps, cells, rows, range });
    this.high = Math.max(1, ...cells.map((row) => row.reduce((a, b) => Math.max(a, b), 0)));
    this.names.replaceChildren(...rows.map((row) =>
      h("li", { class: row.isGroup ? "group" : "" }, row.isGroup ? h("span", {}, row.label)
        : h("button", { type: "button", title: row.key, "aria-pressed": String(row.key === open), onclick: () => this.told.open(row.member[0]) }, row.label))));
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

  /** The colour of each number of thousandths, as a pixel of four bytes. */
  paints() {
    const bytes = new Uint8ClampedArray(4 * 1001);
    for (let n = 0; n <= 1000; n += 1) bytes.set([...viridis((n / this.high) ** this.exponent), 255], 4 * n);
    return new Uint32Array(bytes.buffer);
  }

  paint() {
    const width = this.canvas.parentElement?.clientWidth ?? 0;
    if (!width || !this.rows.length) return;
    const [low, high] = this.range;
    const columns = Array.from({ length: width }, (_, x) => nearest(this.steps, low + ((x + 0.5) / width) * (high - low)));
    Object.assign(this.canvas, { width, height: this.rows.length });
    this.canvas.style.height = `${this.rows.length * ROW}px`;
    const context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    const image = context.createImageData(width, this.rows.length);
    const pixels = new Uint32Array(image.data.buffer);
    const paints = this.paints();
    this.rows.forEach((row, y) => {
      const own = row.isGroup ? this.steps.map((_, t) => Math.round(meanOf(row.member.map((i) => this.cells[i][t])))) : this.cells[row.member[0]];
      for (let x = 0; x < width; x += 1) {
        const thousandths = own[columns[x]];
        if (thousandths >= 0) pixels[y * width + x] = paints[thousandths];
      }
    });
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
    Object.assign(this.values, { width: VALUES * dense, height: this.rows.length * ROW * dense });
    Object.assign(this.values.style, { width: `${VALUES}px`, height: `${this.rows.length * ROW}px` });
    const context = /** @type {CanvasRenderingContext2D} */ (this.values.getContext("2d"));
    context.scale(dense, dense);
    context.fillStyle = colour(this.root, "ink");
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "right";
    context.textBaseline = "middle";
    this.rows.forEach((row, y) => {
      context.fillText(share(Math.round(meanOf(row.member.map((i) => this.cells[i][t])))), VALUES - 2, (y + 0.5) * ROW);
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
  bins.forEach((row, x) => row.forEach((n, b) => {
    if (n >= 0) image.data.set([...viridis(Math.sqrt(n / high)), 255], 4 * ((ends.length - 1 - b) * columns.length + x));
  }));
  context.putImageData(image, 0, 0);
  Object.assign(canvas.style, { width: "100%", height: `${height}px` });
  const svg = curveOf(width, height, high, ends, [{ row: bins[0], kind: "then" }, { row: bins[t], kind: "now" }]);
  const last = own.length - 1;
  root.replaceChildren(
    h("h3", {}, "How large its weights are: ", h("code", {}, name), " ", h("button", { type: "button", onclick: close }, "close")),
    h("div", { class: "pair" },
      h("figure", {}, canvas, h("figcaption", {}, `${capital(numbered(data, own[0]))} to ${whole(own[last])} from left to right; from bottom to top |w| from ${power(ends[0])} to ${power(ends[ends.length - 1])}. Bright: many weights have that size.`)),
      h("figure", {}, svg, h("figcaption", {}, `Shares of its weights by log10 |w|: at ${numbered(data, own[t])} (line), at ${numbered(data, own[0])} (dashed). Weights that move to the left shrink.`))),
  );
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
