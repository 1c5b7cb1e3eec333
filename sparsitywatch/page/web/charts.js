// @ts-check
/** Charts over the optimizer steps with one cursor, by uPlot. */

import { between, hoursOf, nearest, smoothed, whyApart, whyNone } from "./data.js";
import { colour, h, numbered, shown, significant, tickSpace, tickTexts } from "./format.js";
import { paintOf, parted } from "./tensors.js";

/**
 * @typedef {import("./data.js").PageData} PageData
 * @typedef {{series: string, label: string, colour: string, dash?: number[], width?: number,
 *   among?: number[], alone?: boolean, scale?: string, values?: (number | null | undefined)[]}} Line
 * @typedef {{key: string, title: string, note: string, lines: Line[], band?: string[],
 *   height: number, from_zero: boolean, top: number | null, strip?: string[]}} Panel strip: rows under its steps
 * @typedef {{name: string, data: PageData, colour: string}} Run
 * @typedef {Run & {xs: number[]}} Model xs: where its snapshots are on the axis: their steps, or hours
 * @typedef {{panel: Panel, plot: any, values: HTMLElement[], why: HTMLElement, apart: string[], lines: {line: Line, model: Model}[]}} Drawn
 */

/** @type {any} */
const uPlot = /** @type {any} */ (globalThis).uPlot;

/**
 * The charts that a run has numbers for.
 * @param {PageData} data
 * @param {string} nearZero name of the near-zero series
 * @param {string} other one more series, or ""
 * @returns {Panel[]}
 */
export function panelsOf(data, nearZero, other) {
  const rule = data.about[nearZero]?.label.split(", ")[1] ?? "";
  const panels = data.panels.map((panel) => ({
    ...panel,
    lines: panel.lines.map((line) => (line.series === `near_zero/${data.rule}` ? { ...line, series: nearZero, label: `near zero (${rule})` } : line)),
  }));
  if (other) {
    const about = data.about[other];
    panels.push({
      key: "other", title: about.label[0].toUpperCase() + about.label.slice(1), note: about.sentence, height: 130,
      from_zero: false, top: null, lines: [{ series: other, label: about.label, colour: "purple" }],
    });
  }
  return panels
    .map((panel) => ({ ...panel, lines: panel.lines.filter((l) => data.series[l.series]?.some((x) => x !== null)) }))
    .filter((panel) => panel.lines.length > 0);
}

const MORE_AT_MOST = 10;

/**
 * Series for one more chart by group, ten at most, none that is drawn anyway.
 * @param {PageData} data @param {string} nearZero @returns {[string, string[]][]}
 */
export function moreOf(data, nearZero) {
  const drawn = new Set(panelsOf(data, nearZero, "").flatMap((panel) => panel.lines.map((line) => line.series)));
  const groups = { "with an event": data.events.map((event) => event.series), ...data.choices };
  /** @type {[string, string[]][]} */
  const found = [];
  let left = MORE_AT_MOST;
  for (const [group, names] of Object.entries(groups)) {
    const own = names.filter((name, i) => names.indexOf(name) === i && !drawn.has(name) && data.series[name]?.some((x) => x !== null));
    const some = own.slice(0, left);
    left -= some.length;
    for (const name of some) drawn.add(name);
    if (some.length) found.push([group, some]);
  }
  return found;
}

/** Heights of the axis of steps and of all rows under it, and the least of one. */
const [UNDER, STRIP, LEAST] = [26, 76, 4];

/**
 * The rows of tensors under the first chart: one a block, or where there is one block one a tensor.
 * @param {PageData} data @returns {{label: string, member: number[]}[]}
 */
export function stripOf(data) {
  const parts = parted(data.tensors, data.blocks, data.facts.ledger);
  const isOne = new Set(parts.map((part) => part.block)).size < 2;
  /** @type {Map<string, {label: string, member: number[]}>} */
  const rows = new Map();
  parts.forEach((part, i) => {
    const key = isOne ? data.tensors[i] : part.block;
    const row = rows.get(key) ?? { label: isOne ? part.role : part.layer || "others", member: [] };
    row.member.push(i);
    rows.set(key, row);
  });
  const all = [...rows.values()];
  if (all.length < 2) return [];
  const every = Math.ceil((all.length * LEAST) / STRIP); // of very many neighbours share a row
  return all.filter((_, i) => i % every === 0).map((row, i) => ({ label: row.label, member: all.slice(i * every, (i + 1) * every).flatMap((one) => one.member) }));
}

/** Whether a chart is of what an event happened to: bands of all events in all charts would hide them. @param {Panel} panel @param {string} series */
function isHome(panel, series) {
  const room = series.split("/")[0];
  return panel.lines.some((line) => line.series === series || (room !== "motion" && line.series.split("/")[0] === room));
}

/** Charts below each other; whoever moves the cursor of one moves that of all. */
export class Charts {
  /**
   * @param {HTMLElement} root
   * @param {{hover: (step: number | null) => void, pin: (step: number) => void, zoomed: (range: [number, number] | null) => void}} told
   */
  constructor(root, told) {
    this.root = root;
    this.told = told;
    /** @type {Drawn[]} */
    this.drawn = [];
    /** @type {Model[]} */
    this.models = [];
    /** How much of the past is in a smoothed line. */
    this.smooth = 0;
    /** @type {string[]} */
    this.how = [];
    this.inTime = false;
    this.isTimed = false; // where the log knows it
    this.width = 0;
    /** @type {[number, number] | null} */
    this.range = null;
    this.pinned = 0;
    this.at = 0;
    /** @type {{steps: number[], rows: number[][]} | null} shares by row and step, below 0 where none is known */
    this.strip = null;
    /** @type {any} */
    this.active = null;
    new ResizeObserver(() => this.resize()).observe(root);
  }

  /** @param {Run[]} runs the first one has the events @param {Panel[]} panels */
  draw(runs, panels) {
    for (const { plot } of this.drawn) plot.destroy();
    const hours = runs.map(({ data }) => (this.inTime ? hoursOf(data) : null));
    this.isTimed = hours[0] !== null;
    const models = runs.map((run, i) => ({ ...run, xs: hours[i]?.hours ?? run.data.steps })).filter((_, i) => !this.isTimed || hours[i]);
    this.models = models;
    const paused = hours[0]?.paused ?? 0;
    this.how = [this.isTimed ? `over hours of training${paused ? `, without ${significant(paused, 2)} h of pauses` : ""}` : "",
      this.smooth ? "lines are smoothed, faint ones and numbers are not" : "",
      models.some(({ data }) => data.range) ? "of seeds: mean and range" : ""].filter(Boolean);
    this.strip = null;
    this.width = this.root.clientWidth;
    this.drawn = panels.map((panel) => this.chart(panel));
    this.root.replaceChildren(...this.drawn.map(({ plot, panel, values, why, apart, lines }) => {
      const legend = lines.map(({ line, model }, i) =>
        h("span", { class: "key" },
          h("i", { class: (this.dashes(line)?.[0] ?? 9) < 3 ? "dotted" : this.dashes(line) ? "dashed" : "", style: `border-color:${this.paint(line, model)}`, "aria-hidden": "true" }),
          models.length > 1 || model.data.range ? `${model.name}: ${model === models[0] ? line.label : line.label.split(/[:(,]/)[0].trim()} ` : `${line.label} `, values[i]));
      const note = panel.strip?.length ? `${panel.note}; under it where: near zero by ${models[0].data.tensors.length > panel.strip.length ? "block" : "tensor"}` : panel.note;
      const title = h("h2", {}, panel.title, " ", h("small", {}, [note, ...this.how].join("; ")));
      const save = h("p", { class: "save" }, ...["PNG", "CSV"].map((kind) => h("button", { type: "button", "aria-label": `Download the chart “${panel.title}” as ${kind}`,
        onclick: () => (kind === "CSV" ? this.saveNumbers(panel, plot) : this.savePicture(panel, plot, lines, values)) }, kind)));
      plot.root.setAttribute("role", "img");
      plot.root.setAttribute("aria-label", this.said(panel, lines));
      return h("section", { class: "chart", "data-chart": panel.key }, save, title, h("p", { class: "legend" }, ...legend),
        apart.length ? h("p", { class: "apart" }, `Left out, as they cannot be compared with ${models[0].name}: ${apart.join("; ")}.`) : null, plot.root, why);
    }));
    if (this.range) this.zoom(...this.range);
    requestAnimationFrame(() => this.show(this.pinned)); // a chart knows its scales a moment later
  }

  /** Where a step of the first run is on the axis. @param {number} step */
  x(step) {
    const [{ data, xs }] = this.models;
    return between(data.steps, xs, step);
  }

  /** The step of the first run that is there. @param {number} x */
  stepAt(x) {
    const [{ data, xs }] = this.models;
    return between(xs, data.steps, x);
  }

  /** What the axis shows, as drawn. @param {Panel} panel @param {any} plot */
  saveNumbers(panel, plot) {
    const { min, max } = plot.scales.x;
    const names = plot.series.slice(1).map((/** @type {any} */ one) => `"${one.label.replaceAll('"', '""')}"`);
    const rows = plot.data[0].map((/** @type {number} */ _, /** @type {number} */ i) => plot.data.map((/** @type {any[]} */ one) => one[i] ?? "").join())
      .filter((/** @type {string} */ _, /** @type {number} */ i) => plot.data[0][i] >= min && plot.data[0][i] <= max);
    download(this.file(panel, "csv"), new Blob([[[this.isTimed ? "hours" : this.models[0].data.unit, ...names].join(), ...rows].join("\n") + "\n"], { type: "text/csv" }));
  }

  /** The canvas under its title and the names of its lines. @param {Panel} panel @param {any} plot @param {Drawn["lines"]} lines @param {HTMLElement[]} values */
  savePicture(panel, plot, lines, values) {
    const from = plot.ctx.canvas;
    const dense = window.devicePixelRatio || 1;
    const row = 20 * dense;
    const picture = Object.assign(document.createElement("canvas"), { width: from.width, height: from.height + row * (lines.length + 1) });
    const ctx = /** @type {CanvasRenderingContext2D} */ (picture.getContext("2d"));
    ctx.fillStyle = colour(this.root, "paper");
    ctx.fillRect(0, 0, picture.width, picture.height);
    const words = [[[panel.title, this.how.join("; ")].join("   "), "ink"], ...lines.map(({ line, model }, i) => [values[i].parentElement?.textContent ?? line.label, this.paint(line, model)])];
    words.forEach(([text, paint], i) => {
      ctx.fillStyle = i ? paint : colour(this.root, paint);
      ctx.font = `${i ? "" : "bold "}${13 * dense}px system-ui, sans-serif`;
      ctx.fillText(text, 8 * dense, row * (i + 0.75));
    });
    ctx.drawImage(from, 0, row * words.length);
    picture.toBlob((blob) => blob && download(this.file(panel, "png"), blob));
  }

  /** @param {Panel} panel @param {string} ending */
  file(panel, ending) {
    return `${this.models[0].name.replace(/[^\w.-]+/g, "-")}-${panel.key}.${ending}`;
  }

  /** Shares of the rows under the first chart. @param {number[]} steps @param {number[][]} rows */
  fill(steps, rows) {
    this.strip = { steps, rows };
    this.drawn[0]?.plot.redraw(false);
  }

  /** Where, under when: the rows of tensors on the axis of the steps. @param {any} u @param {string[]} labels */
  drawStrip(u, labels) {
    const { ctx, bbox } = u;
    const dense = window.devicePixelRatio || 1;
    const row = (STRIP / labels.length) * dense;
    const top = bbox.top + bbox.height + UNDER * dense;
    const paint = paintOf(this.root);
    ctx.save();
    ctx.font = `${11 * dense}px system-ui, sans-serif`;
    ctx.textAlign = "right";
    ctx.textBaseline = "middle";
    ctx.fillStyle = colour(this.root, "grey");
    const every = Math.ceil((12 * dense) / row);
    labels.forEach((label, i) => {
      if (i % every === 0) ctx.fillText(label.length > 9 ? `${label.slice(0, 8)}…` : label, bbox.left - 6 * dense, top + row * (i + 0.5));
    });
    ctx.beginPath();
    ctx.rect(bbox.left, top, bbox.width, STRIP * dense);
    ctx.clip();
    ctx.fillStyle = colour(this.root, "light");
    ctx.fillRect(bbox.left, top, bbox.width, STRIP * dense);
    const { steps, rows } = this.strip ?? { steps: [], rows: [] };
    const edge = (/** @type {number} */ t) => u.valToPos(this.x((steps[Math.max(t - 1, 0)] + steps[Math.min(t, steps.length - 1)]) / 2), "x", true);
    rows.forEach((shares, i) => shares.forEach((share, t) => {
      if (share < 0) return;
      ctx.fillStyle = `rgb(${paint(share).join()})`;
      const [left, right] = [Math.floor(edge(t)), Math.ceil(edge(t + 1))];
      ctx.fillRect(left, Math.floor(top + row * i), Math.max(right - left, 1), Math.ceil(row));
    }));
    ctx.restore();
  }

  /** What a screen reader says: the ends of every line. @param {Panel} panel @param {Drawn["lines"]} lines */
  said(panel, lines) {
    const parts = lines.map(({ line, model }) => {
      const { data } = model;
      const known = data.steps.map((_, t) => t).filter((t) => typeof data.series[line.series]?.[t] === "number");
      const told = [known[0], known[known.length - 1]].filter((t) => t !== undefined)
        .map((t) => `${shown(data.about[line.series].unit, data.series[line.series][t])} at ${numbered(data, data.steps[t])}`);
      return `${model.name}, ${line.label}: ${told.join(", ")}`;
    });
    return `${panel.title} ${parts.join("; ")}. The table below the charts has all numbers.`;
  }

  /** @param {Line} line @param {Model} model the colour of a run where there are several */
  paint(line, model) {
    return this.models.length > 1 ? model.colour : colour(this.root, line.colour);
  }

  /** Where the colour tells the run, dashes tell the line. @param {Line} line */
  dashes(line) {
    return line.dash ?? (this.models.length > 1 ? line.among : undefined);
  }

  /** @param {Panel} panel @returns {Drawn} */
  chart(panel) {
    const [first] = this.models;
    /** @type {string[]} */
    const apart = [];
    const models = this.models.filter((model) => {
      const reason = model === first ? "" : whyApart(first.data, model.data, panel.lines[0].series);
      if (reason) apart.push(`${model.name} (${reason})`);
      return !reason;
    });
    const lines = models.flatMap((model) => panel.lines
      .filter((line) => model.data.series[line.series] && (model === first || !line.alone)).map((line) => ({ line, model })));
    const tables = models.map((model) => {
      const own = lines.filter((l) => l.model === model).map((l) => column(model.data, l.line));
      const soft = this.smooth ? own.map((values) => smoothed(values, this.smooth)) : [];
      return [model.xs, ...own, ...soft, ...bandsOf(panel, model, lines).flatMap(({ ends }) => ends)];
    });
    const data = tables.length > 1 ? uPlot.join(tables) : tables[0];
    const values = lines.map(() => h("b"));
    const plot = new uPlot(this.options(panel, lines, models), data, null);
    return { panel, plot, values, apart, lines, why: h("p", { class: "why" }) };
  }

  /** @param {Panel} panel @param {Drawn["lines"]} lines @param {Model[]} models that are in this chart */
  options(panel, lines, models) {
    const ink = colour(this.root, "grey");
    const rule = { stroke: colour(this.root, "rule"), width: 1 };
    /** @type {any[]} */
    const series = [{}];
    /** @type {any[]} */
    const bands = [];
    for (const model of models) {
      const whose = this.models.length > 1 || model.data.range ? `${model.name}: ` : "";
      for (const isSoft of this.smooth ? [false, true] : [false]) {
        for (const { line } of lines.filter((l) => l.model === model)) {
          const points = { show: model.data.steps.length < 2 };
          const stroke = this.paint(line, model);
          series.push({ label: `${whose}${line.label}${isSoft ? `, smoothed by ${this.smooth}` : ""}`, width: line.width ?? 1.6,
            stroke: this.smooth && !isSoft ? faded(stroke, 0.3) : stroke, dash: this.dashes(line), scale: line.scale ?? "y", points });
        }
      }
      for (const { line, scale } of bandsOf(panel, model, lines)) {
        const stroke = this.paint(line, model);
        bands.push({ series: [series.length + 1, series.length], fill: faded(stroke, 0.2) });
        for (const end of ["low", "high"]) series.push({ label: `${whose}${line.label}, ${end}`, stroke, width: 0, scale, points: { show: false } });
      }
    }
    const unit = this.models[0].data.about[panel.lines[0].series].unit;
    const axis = { stroke: ink, grid: rule, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const right = panel.lines.some((line) => line.scale);
    return {
      width: Math.max(this.width, 200), height: heightOf(panel), series, bands,
      padding: [14, right ? 4 : 26, panel.strip?.length ? STRIP + 4 : 0, 0],
      legend: { show: false },
      scales: { x: { time: false }, y: { range: (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => limits(panel, low, high) } },
      axes: [
        { ...axis, size: UNDER, values: this.isTimed ? (/** @type {any} */ _, /** @type {number[]} */ ticks) => hourTexts(ticks) : ticked("steps"),
          space: (/** @type {any} */ _, /** @type {number} */ __, /** @type {number} */ low, /** @type {number} */ high, /** @type {number} */ width) => (this.isTimed ? 70 : tickSpace(low, high, width)) },
        { ...axis, size: 56, space: 24, values: ticked(unit) },
        ...(right ? [{ ...axis, scale: "right", side: 1, size: 52, grid: { show: false }, values: ticked("") }] : []),
      ],
      cursor: {
        sync: { key: "sparsitywatch", scales: ["x", null] }, y: false,
        drag: { x: true, y: false, setScale: false }, focus: { prox: -1 },
        points: { size: (/** @type {any} */ u, /** @type {number} */ i) => (u.series[i].width > 0 ? 7 : 0) },
        bind: { dblclick: (/** @type {any} */ u) => () => { if (u) this.reset(); return null; } },
      },
      hooks: {
        drawClear: [(/** @type {any} */ u) => this.behind(u, panel)],
        draw: [(/** @type {any} */ u) => { this.marks(u, panel); if (panel.strip?.length) this.drawStrip(u, panel.strip); }],
        setSelect: [(/** @type {any} */ u) => this.selected(u)],
        ready: [(/** @type {any} */ u) => this.listen(u)],
      },
    };
  }

  /** @param {any} u */
  listen(u) {
    let down = 0;
    const at = (/** @type {MouseEvent} */ e) => this.snapshot(u.posToVal(e.offsetX, "x"));
    u.over.addEventListener("mousedown", (/** @type {MouseEvent} */ e) => {
      down = e.clientX;
      this.active = u;
      addEventListener("mouseup", () => setTimeout(() => { this.active = null; }), { once: true });
    });
    u.over.addEventListener("mousemove", (/** @type {MouseEvent} */ e) => this.told.hover(at(e)));
    u.over.addEventListener("mouseleave", () => this.told.hover(null));
    u.over.addEventListener("click", (/** @type {MouseEvent} */ e) => {
      if (Math.abs(e.clientX - down) <= 3) this.told.pin(at(e));
    });
  }

  /** The step of the nearest snapshot of the first run. @param {number} x */
  snapshot(x) {
    const [{ data, xs }] = this.models;
    return data.steps[nearest(xs, x)];
  }

  /** A part was drawn over with the pointer: it is shown alone. @param {any} u */
  selected(u) {
    const { left, width } = u.select;
    if (u !== this.active || width < 4) return;
    const ends = [u.posToVal(left, "x"), u.posToVal(left + width, "x")];
    for (const { plot } of this.drawn) plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.zoom(this.stepAt(ends[0]), this.stepAt(ends[1]));
  }

  /** @param {number} min @param {number} max first and last step that are shown */
  zoom(min, max) {
    this.range = [min, max];
    for (const { plot } of this.drawn) plot.setScale("x", { min: this.x(min), max: this.x(max) });
    requestAnimationFrame(() => this.show(this.at)); // the cursor stays at its step, not at its place
    this.told.zoomed(this.range);
  }

  /** All snapshots again. */
  reset() {
    const ends = this.models.flatMap((m) => [m.xs[0], m.xs[m.xs.length - 1]]);
    this.zoom(this.stepAt(Math.min(...ends)), this.stepAt(Math.max(...ends)));
    this.range = null;
    this.told.zoomed(null);
  }

  /** Steps that are shown. @returns {[number, number]} */
  get shownRange() {
    if (this.range) return this.range;
    const { steps } = this.models[0].data;
    return [steps[0], steps[steps.length - 1]];
  }

  /** The cursor and the numbers beside the names. @param {number} step @param {boolean} [move] */
  show(step, move = true) {
    this.at = step;
    for (const { plot, lines, values, why } of this.drawn) {
      const reason = this.missing(lines, step);
      if (why.textContent !== reason) why.textContent = reason;
      if (move) plot.setCursor({ left: plot.valToPos(this.x(step), "x"), top: 5 }, false);
      lines.forEach(({ line, model }, i) => {
        const t = nearest(model.xs, this.x(step));
        const told = (/** @type {number | null | undefined} */ value) => shown(model.data.about[line.series].unit, value);
        const { low, high } = model.data.range ?? {};
        const text = told(column(model.data, line)[t]) + (low && high?.[line.series] ? ` [${told(low[line.series][t])}, ${told(high[line.series][t])}]` : "");
        if (values[i].textContent !== text) values[i].textContent = text;
      });
    }
  }

  /** Why lines of the first run have no number. @param {Drawn["lines"]} lines @param {number} step */
  missing(lines, step) {
    const { data, name } = this.models[0];
    const t = nearest(data.steps, step);
    const own = lines.filter(({ model }) => model === this.models[0]);
    /** @type {Map<string, string[]>} */
    const by = new Map();
    for (const { line } of own.filter((one) => typeof column(data, one.line)[t] !== "number")) {
      const reason = whyNone(data, line.series, t);
      if (reason) by.set(reason, [...(by.get(reason) ?? []), line.label]);
    }
    const told = [...by].map(([reason, labels]) => (labels.length === own.length ? reason : `${labels.join(", ")}: ${reason}`));
    return told.length ? `No number${this.models.length > 1 ? ` of ${name}` : ""} at ${numbered(data, data.steps[t])}: ${told.join("; ")}.` : "";
  }

  resize() {
    const width = this.root.clientWidth;
    if (!width || width === this.width) return;
    this.width = width;
    for (const { plot, panel } of this.drawn) plot.setSize({ width, height: heightOf(panel) });
    this.show(this.pinned);
  }

  /** Grey where essential sparsity says nothing; a band where an event began. @param {any} u @param {Panel} panel */
  behind(u, panel) {
    const { ctx, bbox } = u;
    const { data } = this.models[0];
    const informative = data.series["essential_sparsity/informative"];
    ctx.save();
    if (panel.key === "essential" && informative) {
      ctx.fillStyle = colour(this.root, "light");
      const { steps } = data;
      const middle = (/** @type {number} */ t) => (steps[Math.max(t - 1, 0)] + steps[Math.min(t, steps.length - 1)]) / 2;
      informative.forEach((x, t) => {
        if (x !== 0 || informative[t - 1] === 0) return;
        let end = t;
        while (informative[end + 1] === 0) end += 1;
        clippedRect(ctx, bbox, u.valToPos(this.x(middle(t)), "x", true), u.valToPos(this.x(middle(end + 1)), "x", true));
      });
    }
    ctx.fillStyle = faded(colour(this.root, "red"), 0.13);
    for (const event of data.events) {
      if (isHome(panel, event.series)) clippedRect(ctx, bbox, u.valToPos(this.x(event.low), "x", true), u.valToPos(this.x(event.high), "x", true));
    }
    ctx.restore();
  }

  /** A number in a circle. @param {any} ctx @param {number} number @param {number} x @param {number} y @param {number} dense */
  numbered(ctx, number, x, y, dense) {
    ctx.setLineDash([]);
    ctx.fillStyle = colour(this.root, "ink");
    ctx.beginPath();
    ctx.arc(x, y, 8 * dense, 0, 2 * Math.PI);
    ctx.fill();
    ctx.fillStyle = colour(this.root, "paper");
    ctx.font = `bold ${11 * dense}px system-ui, sans-serif`;
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    ctx.fillText(String(number), x, y + dense);
  }

  /** Where each event was seen, and in the chart of what changed where it began; a cross where a snapshot failed. @param {any} u @param {Panel} panel */
  marks(u, panel) {
    const { ctx, bbox } = u;
    const { data } = this.models[0];
    const dense = window.devicePixelRatio || 1;
    const [left, right] = [bbox.left, bbox.left + bbox.width];
    ctx.save();
    ctx.lineWidth = dense;
    ctx.strokeStyle = colour(this.root, "ink");
    const inside = (/** @type {number} */ x) => x >= left - 1 && x <= right + 1;
    let taken = -Infinity; // events of one step have their numbers side by side, as far as they stay near it
    const main = data.verdict.event;
    const mine = main ? u.valToPos(this.x(data.events[main - 1].seen), "x", true) : -Infinity;
    for (const event of [...data.events].sort((a, b) => a.seen - b.seen)) {
      ctx.globalAlpha = event.number === main || isHome(panel, event.series) ? 1 : 0.35;
      const [onset, seen] = [event.onset, event.seen].map((step) => Math.round(u.valToPos(this.x(step), "x", true)));
      if (inside(seen)) path(ctx, [[seen, bbox.top], [seen, bbox.top + bbox.height]], []);
      if (isHome(panel, event.series) && inside(onset)) {
        path(ctx, [[onset, bbox.top + bbox.height], [onset, bbox.top], [Math.min(seen, right), bbox.top]], [2 * dense, 3 * dense]);
      }
      if (!inside(seen)) continue;
      const place = event.number === main ? seen : Math.max(seen, taken + 17 * dense);
      const isClear = event.number === main || Math.abs(place - mine) > 16 * dense;
      if (!isClear || place - seen > 40 * dense) continue;
      taken = place;
      ctx.globalAlpha = 1;
      this.numbered(ctx, event.number, place, bbox.top, dense);
    }
    ctx.globalAlpha = 1;
    ctx.fillStyle = colour(this.root, "red");
    ctx.font = `bold ${13 * dense}px system-ui, sans-serif`;
    ctx.textAlign = "center";
    for (const t of data.failed) {
      const x = u.valToPos(this.x(data.steps[t]), "x", true);
      if (x >= bbox.left && x <= bbox.left + bbox.width) ctx.fillText("×", x, bbox.top + bbox.height - 6 * dense);
    }
    ctx.restore();
  }
}

/** @param {Panel} panel */
function heightOf(panel) {
  return panel.height + (panel.strip?.length ? STRIP + 4 : 0);
}

/** A line through points. @param {any} ctx @param {number[][]} points @param {number[]} dash */
function path(ctx, points, dash) {
  ctx.setLineDash(dash);
  ctx.beginPath();
  points.forEach(([x, y], i) => (i ? ctx.lineTo(x, y) : ctx.moveTo(x, y)));
  ctx.stroke();
}

/** @param {any} ctx @param {any} box @param {number} left @param {number} right at least a pixel wide */
function clippedRect(ctx, box, left, right) {
  const from = Math.max(left, box.left);
  const to = Math.min(Math.max(right, left + 1), box.left + box.width);
  if (to > from) ctx.fillRect(from, box.top, to - from, box.height);
}

/**
 * A series for a chart: null is a gap, and undefined, where nothing was asked for, is none.
 * @param {PageData} data @param {Line} line
 */
export function column(data, line) {
  const values = line.values ?? data.series[line.series] ?? data.steps.map(() => null);
  if (!/^(essential_sparsity|value)\//.test(line.series) || !data.unasked.length) return values;
  const unasked = new Set(data.unasked);
  return values.map((x, t) => (x === null && unasked.has(t) ? undefined : x));
}

/** @param {Panel} panel @param {number | null} low @param {number | null} high @returns {[number, number]} */
function limits(panel, low, high) {
  if (low === null || high === null) return [0, 1];
  if (panel.top !== null) return [0, panel.top];
  const bottom = panel.from_zero ? Math.min(low, 0) : low;
  const room = 0.06 * (high - bottom) || 0.05 * Math.abs(high) || 1;
  return [panel.from_zero && bottom === 0 ? 0 : bottom - room, high + room];
}

/** Lines with a band around them: an interval, or of several seeds the range. @param {Panel} panel @param {Model} model @param {Drawn["lines"]} lines of the chart */
function bandsOf(panel, { data, name }, lines) {
  const own = lines.filter((one) => one.model.name === name).map(({ line }) => line);
  const { range } = data;
  if (range) return own.filter(({ series }) => range.low[series]).map((line) => ({ line, scale: line.scale ?? "y", ends: [range.low[line.series], range.high[line.series]] }));
  const ends = (panel.band ?? []).map((series) => column(data, { series, label: "", colour: "" }));
  return panel.band?.length && data.series[panel.band[0]] && own.length ? [{ line: own[0], scale: "y", ends }] : [];
}

/** Hours at the ticks of an axis; of less than two minutes and more than two days in a handier unit. @param {number[]} ticks */
function hourTexts(ticks) {
  const most = Math.max(...ticks);
  const [size, name] = most < 1 / 30 ? [3600, "s"] : most < 2 ? [60, "min"] : most < 48 ? [1, "h"] : [1 / 24, "d"];
  return ticks.map((x) => `${significant(x * size, 3)} ${name}`);
}

/** @param {string} name @param {Blob} blob */
export function download(name, blob) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(/** @type {HTMLAnchorElement} */ (link).href), 1000);
}

/** What an axis of uPlot writes; half a step is nothing. @param {string} unit */
function ticked(unit) {
  return (/** @type {any} */ _, /** @type {number[]} */ ticks, /** @type {number} */ __, /** @type {number} */ ___, /** @type {number} */ gap) => {
    const texts = tickTexts(unit, ticks, gap);
    return unit === "steps" ? texts.map((text, i) => (Number.isInteger(ticks[i]) ? text : "")) : texts;
  };
}

/** @param {string} paint "#rrggbb" @param {number} alpha */
export function faded(paint, alpha) {
  const n = Number.parseInt(paint.slice(1), 16);
  return `rgba(${n >> 16}, ${(n >> 8) & 255}, ${n & 255}, ${alpha})`;
}
