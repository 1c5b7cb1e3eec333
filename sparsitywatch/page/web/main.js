// @ts-check
/** The page: what is chosen, where the cursor is, and what follows from both. */

import { Charts, download, moreOf, panelsOf, stripOf } from "./charts.js";
import { bySeed, csv, hoursOf, matching, nearest } from "./data.js";
import { capital, h, percent } from "./format.js";
import { Heatmap, drawExperts, drawHistogram, meanOf, power, rowsOf, scale } from "./tensors.js";
import { byNeed, drawCost, events, foot, header, runTable, spikePicture, tiles } from "./view.js";

/**
 * @typedef {import("./data.js").PageData} PageData
 * @typedef {import("./data.js").Details} Details
 * @typedef {import("./data.js").Source} Source
 * @typedef {{ready?: Promise<unknown>, read: () => URLSearchParams, write: (query: URLSearchParams) => void,
 *   colours: (names: string[]) => string[], changes?: (names: string[]) => [string, boolean][]}} Host
 *   what to wait for; where links and colours come from; which runs were hidden or shown around the page since
 */

const POLL_MS = 3000;
/** For which the first screen waits to know how all runs stand: the worst is chosen once, and stays. */
const CHOICE_MS = 6000;
/** Runs that are shown at first, where there are several. */
const FEW = 4;
/** Runs that a choice around the page brings into it at most; more are loaded one by one, by hand. */
const MANY = 12;
/** State in words of a run whose log is damaged. */
const UNREAD = "not readable";

/**
 * Show the page, and keep it up to date where its source is live.
 * @param {HTMLElement} root @param {Source} source @param {Host} host
 */
export async function mount(root, source, host) {
  const page = new Page(root, source, host);
  await page.refresh();
  if (source.live) setInterval(() => document.hidden || page.refresh(), POLL_MS);
  return page;
}

export class Page {
  /** @param {HTMLElement} root @param {Source} source @param {Host} host */
  constructor(root, source, host) {
    this.root = root;
    this.source = source;
    this.host = host;
    /** @type {Map<string, {version: string, data: PageData}>} */
    this.loaded = new Map();
    /** @type {Map<string, {version: string, data: Promise<PageData>}>} */
    this.asked = new Map();
    /** @type {Map<string, {version: string, details: Details}>} */
    this.deep = new Map();
    /** @type {Map<string, {version: string, summary: import("./data.js").Summary}>} how each run stands */
    this.stands = new Map();
    /** @type {string[]} */
    this.names = [];
    this.looks = "";
    /** @type {Set<string> | null} */
    this.chosen = null;
    this.first = "";
    this.built = "";
    /** @type {number | null} */
    this.pinned = null;
    /** @type {number | null} */
    this.hovered = null;
    /** @type {[number, number] | null} */
    this.range = null;
    this.tau = "";
    this.other = "";
    this.smooth = 0;
    this.filter = "";
    /** @type {HTMLInputElement | undefined} */
    this.input = undefined;
    /** Of the charts: over hours; runs that differ in the seed as one. */
    this.isTimed = this.isOne = false;
    this.tensor = "";
    this.choice = { kind: "", group: "none", sort: "", search: "" };
    this.frame = 0;
    this.failure = "";
    this.isAsking = false;
    this.restore();
    document.addEventListener("keydown", (e) => this.key(e));
  }

  /** What a link says. */
  restore() {
    const query = this.host.read();
    const step = Number.parseInt(query.get("step") ?? "", 10);
    this.pinned = Number.isFinite(step) ? step : null;
    this.tensor = query.get("tensor") ?? "";
    this.tau = query.get("tau") ?? "";
    this.first = query.get("run") ?? "";
    this.choice.search = query.get("search") ?? "";
    this.other = query.get("chart") ?? "";
    this.filter = query.get("filter") ?? "";
    this.smooth = Math.min(Math.max(Number(query.get("smooth")) || 0, 0), 0.95);
    this.isTimed = query.get("axis") === "time";
    this.isOne = query.get("seeds") === "one";
    const [, low, high] = (/^(-?[\d.]+)-(-?[\d.]+)$/.exec(query.get("zoom") ?? "") ?? []).map(Number);
    this.range = low < high ? [low, high] : null;
    this.linked = (query.get("with") ?? "").split("|").filter(Boolean);
  }

  /** A link to what is seen now. */
  remember() {
    const query = new URLSearchParams();
    if (this.pinned !== null) query.set("step", String(this.pinned));
    if (this.tensor) query.set("tensor", this.tensor);
    if (this.tau) query.set("tau", this.tau);
    // of a short run whole steps may be too coarse
    if (this.range) query.set("zoom", this.range.map((x) => x.toFixed(this.range && this.range[1] - this.range[0] > 100 ? 0 : 3)).join("-"));
    if (this.choice.search) query.set("search", this.choice.search);
    const kept = { chart: this.other, filter: this.filter, smooth: this.smooth ? String(this.smooth) : "", axis: this.isTimed ? "time" : "", seeds: this.isOne ? "one" : "" };
    for (const [key, value] of Object.entries(kept)) if (value) query.set(key, value);
    if (this.names.length > 1) {
      query.set("run", this.first);
      query.set("with", [...(this.chosen ?? [])].filter((name) => name !== this.first).join("|"));
    }
    this.host.write(query);
  }

  /** Ask what is new, and draw if something is. @returns {Promise<void>} */
  async refresh() {
    try {
      const runs = await this.source.runs();
      const names = runs.map((run) => run.name);
      await this.host.ready;
      if (!this.chosen && names.length > 1 && !names.includes(this.first)) {
        this.names = names;
        this.root.replaceChildren(h("p", { class: "none" }, `Reading ${names.length} logs, to show the worst first …`));
        const patience = new Promise((resolve) => { setTimeout(resolve, CHOICE_MS); });
        await Promise.race([this.summarise(runs), patience]);
        this.root.replaceChildren();
      }
      const followed = this.hear(names);
      const looks = [...names, ...this.host.colours(names)].join("\n");
      let changed = followed || !this.root.childElementCount || looks !== this.looks || this.failure !== "";
      Object.assign(this, { names, looks });
      const news = runs.filter(({ name, version }) => this.chosen?.has(name) && this.loaded.get(name)?.version !== version);
      await Promise.all(news.map(async (run) => {
        const data = await this.ask(run).catch((error) => this.unread(run, error));
        if (data) this.loaded.set(run.name, { version: run.version, data });
      }));
      if (!this.data && names.some((name) => !this.isUnread(name))) return this.refresh(); // others are there
      changed ||= news.length > 0;
      this.failure = "";
      if (changed) this.build();
      if (names.length > 1) this.summarise(runs);
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      if (text !== this.failure) this.root.prepend(h("p", { class: "warning", role: "alert" }, `No answer: ${text}. Trying again.`));
      this.failure = text;
    }
  }

  /** The data of a run, asked for once. @param {import("./data.js").RunName} run */
  ask({ name, version }) {
    const before = this.asked.get(name);
    if (before?.version === version) return before.data;
    const data = this.source.page(name);
    data.catch(() => this.asked.delete(name)); // whoever waits for it hears of it
    this.asked.set(name, { version, data });
    return data;
  }

  /** A log that cannot be read takes nothing from the others. @param {import("./data.js").RunName} run @param {Error} error */
  unread({ name, version }, error) {
    if (error instanceof TypeError || this.names.length < 2) throw error; // there is no server, or nothing else
    const headline = `Its log cannot be read: ${error.message}`;
    this.stands.set(name, { version, summary: { state: "broken", badge: UNREAD, headline, last: "", time: null, heard: -1, events: 0 } });
    if (this.chosen?.delete(name) || this.first === name) this.settle(this.names);
    this.looks = ""; // all is drawn anew
  }

  /** @param {string} name */
  isUnread(name) {
    return this.stands.get(name)?.summary.badge === UNREAD;
  }

  /** The names of readable runs, the worst first. @param {string[]} names */
  sorted(names) {
    return byNeed(names.map((name) => ({ name, stands: this.stands.get(name)?.summary })))
      .map(({ name }) => name).filter((name) => !this.isUnread(name));
  }

  /** Runs that are shown at first. @param {string[]} names @param {Set<string>} [hidden] */
  few(names, hidden = new Set()) {
    const found = this.sorted(names);
    const linked = found.filter((name) => name === this.first || this.linked?.includes(name));
    if (this.linked?.length && linked.includes(this.first)) return linked;
    const others = found.filter((name) => name !== this.first && !hidden.has(name));
    return [...found.filter((name) => name === this.first), ...others].slice(0, FEW);
  }

  /**
   * Choose what was chosen around the page since the last time; one run always stays.
   * @param {string[]} names of all runs @returns {boolean} whether something was
   */
  hear(names) {
    const changes = this.host.changes?.(names) ?? [];
    if (!this.chosen?.size) {
      this.chosen = new Set(this.few(names, new Set(changes.map(([name]) => name)))); // at first all are shown
    } else {
      for (const [name, isShown] of changes) {
        if (!isShown) this.chosen.delete(name);
        else if (this.chosen.size < MANY) this.chosen.add(name);
      }
    }
    this.settle(names);
    return changes.length > 0;
  }

  /** The run that is shown in full is one of those that are shown. @param {string[]} names */
  settle(names) {
    if (this.chosen?.has(this.first) && names.includes(this.first)) return;
    const found = this.sorted(names);
    const next = found.find((name) => this.chosen?.has(name)) ?? (found.includes(this.first) ? this.first : found[0] ?? "");
    if (next !== this.first && this.names.length) this.pinned = null;
    this.first = next;
    if (next) this.chosen?.add(next);
  }

  get data() {
    return this.loaded.get(this.first)?.data;
  }

  /** What a title says where the charts above have several runs. */
  get whose() {
    return this.names.length > 1 ? ` of ${this.first}` : "";
  }

  /** Maps and magnitudes of the first run, once they are there. */
  get details() {
    return this.deep.get(this.first)?.details;
  }

  /** The step that everything is shown at. */
  get step() {
    const steps = this.data?.steps ?? [];
    const last = steps[steps.length - 1];
    return this.hovered ?? (this.pinned === null ? last : steps[nearest(steps, this.pinned)]);
  }

  build() {
    const { data } = this;
    if (this.charts?.active) { // what is drawn over with the pointer stays until it is let go
      addEventListener("mouseup", () => setTimeout(() => this.build()), { once: true });
      return;
    }
    if (!data) {
      this.root.replaceChildren(this.selector(), h("p", { class: "none" }, this.names.length ? "None of these logs can be read."
        : "No watched run in this log directory yet. A run appears here as soon as its watch has begun."));
      return;
    }
    const scroll = document.documentElement.scrollTop;
    const isTyping = document.activeElement === this.input;
    const folds = this.built === this.first ? [...this.root.querySelectorAll("details")] : []; // as they were left by hand
    this.built = this.first;
    const top = header(data, this.source.live, this.selector(), (event) => this.pin(event.seen));
    const below = foot(data, this.source.live);
    if (!data.steps.length) {
      this.root.replaceChildren(top, h("main", {}, events(data, () => undefined), below));
      return;
    }
    const plots = h("div", { class: "plots", tabindex: "0", role: "group",
      "aria-label": "Charts. Left and right arrows move the cursor by a snapshot, Home and End to the ends, plus and minus zoom, 0 shows all, E goes to the next event." });
    this.charts = new Charts(plots, { hover: (step) => this.hover(step), pin: (step) => this.pin(step), zoomed: (range) => this.zoomed(range) });
    this.cost = data.curves.length ? h("section", { class: "removal" }) : null;
    const side = h("aside", {}, events(data, (event) => this.pin(event.seen)), this.cost ?? "");
    this.map = h("section", { class: "tensors", id: "tensors" });
    this.experts = h("section", { class: "tensors", id: "experts" });
    this.surface = h("section", { class: "tensors", id: "thresholds" });
    const left = h("div", { class: "left" }, this.tools(), plots);
    this.root.replaceChildren(top, h("main", {}, tiles(data), h("div", { class: "grid" }, side, left), spikePicture(data), this.map, this.experts, this.surface, below));
    for (const { id, open } of folds) document.getElementById(id)?.toggleAttribute("open", open);
    if (isTyping) this.input?.focus();
    this.drawCharts();
    document.documentElement.scrollTop = scroll;
    this.deepen();
  }

  /** Ask how runs stand that are not known to, one after the other. @param {import("./data.js").RunName[]} runs */
  async summarise(runs) {
    if (this.isAsking || !this.source.summary) return;
    this.isAsking = true;
    for (const { name, version } of runs) {
      if (this.stands.get(name)?.version === version) continue;
      try {
        this.stands.set(name, { version, summary: await this.source.summary(name) });
      } catch (error) {
        if (error instanceof TypeError) break; // the next refresh asks again
        this.unread({ name, version }, /** @type {Error} */ (error));
      }
    }
    this.isAsking = false;
    this.drawTable();
  }

  /** The table of runs anew, where something in it is. */
  drawTable() {
    const [before, now] = [this.root.querySelector(".runs"), this.selector(null)];
    if (!before || typeof now === "string") return;
    const { id } = document.activeElement ?? {};
    for (const part of ["h2", "table"]) {
      const [old, fresh] = [before, now].map((one) => /** @type {Element} */ (one.querySelector(part)));
      if (old.outerHTML !== fresh.outerHTML) old.replaceWith(fresh); // else the same ages and all
    }
    if (id) document.getElementById(id)?.focus();
  }

  /** How each run stands and which are shown, the broken ones first; nothing where there is one. @param {HTMLElement | null} field */
  selector(field = this.field()) {
    if (this.names.length < 2) return "";
    const colours = this.host.colours(this.names);
    const matches = matching(this.filter, "i");
    const runs = this.names.map((name, i) => ({ name, isListed: matches(name), colour: colours[i], stands: this.stands.get(name)?.summary,
      isShown: this.chosen?.has(name) ?? false, isFirst: name === this.first, isUnread: this.isUnread(name) }));
    return runTable(runs, (name, on) => this.choose(name, on), (name) => this.turnTo(name), field);
  }

  /** Where runs are filtered by name, if they are many; the same one while the table around it is new. */
  field() {
    if (this.names.length <= FEW && !this.filter) return null;
    this.input ??= /** @type {HTMLInputElement} */ (h("input", { type: "search", id: "filter", placeholder: "part of a name",
      oninput: () => { this.filter = this.input?.value ?? ""; this.remember(); this.drawTable(); if (this.data?.steps.length) this.drawCharts(); } }));
    if (document.activeElement !== this.input) this.input.value = this.filter;
    return this.input;
  }

  /** @param {string} name @param {boolean} on */
  async choose(name, on) {
    if (on) this.chosen?.add(name);
    else this.chosen?.delete(name);
    this.settle(this.names);
    if (!this.loaded.has(name)) await this.refresh();
    else this.build();
    this.remember();
  }

  /** @param {string} name */
  async turnTo(name) {
    this.first = name;
    this.chosen?.add(name);
    this.pinned = null;
    if (!this.loaded.has(name)) await this.refresh();
    else this.build();
    this.remember();
  }

  /** What near zero means, one more series, and every number as a file. */
  tools() {
    const data = /** @type {PageData} */ (this.data);
    const rules = nearZeroRules(data);
    const ends = this.details?.magnitudes?.ends ?? [];
    const at = this.tau.startsWith("abs:") ? ends.indexOf(Number(this.tau.slice(4))) : -1;
    const options = rules.map((name) => option(name, data.about[name].label.split(", ")[1] ?? name, this.tau || `near_zero/${data.rule}`));
    if (ends.length) options.push(option("abs", "|w| ≤ a size that you choose", at < 0 ? "" : "abs"));
    const tau = h("select", { id: "tau", onchange: (/** @type {Event} */ e) => {
      const { value } = /** @type {HTMLSelectElement} */ (e.target);
      this.setTau(value === "abs" ? `abs:${ends[this.alike()]}` : value);
    } }, ...options);
    const slider = at < 0 ? null : h("label", {}, h("input", { type: "range", id: "tau-at", min: 0, max: ends.length - 1, value: at,
      "aria-label": "Largest size of a weight that counts as near zero", oninput: (/** @type {Event} */ e) => this.setTau(`abs:${ends[Number(/** @type {HTMLInputElement} */ (e.target).value)]}`) }),
      " ", h("output", { id: "tau-is", for: "tau-at" }, `|w| ≤ ${power(ends[at])}`));
    const other = h("select", { id: "other", onchange: (/** @type {Event} */ e) => {
      this.other = /** @type {HTMLSelectElement} */ (e.target).value;
      this.remember();
      this.drawCharts();
    } }, option("", "none", this.other), ...moreOf(data, `near_zero/${data.rule}`).map(([label, names]) =>
      h("optgroup", { label }, ...names.map((name) => option(name, capital(data.about[name].label), this.other)))));
    return h("div", { class: "tools" },
      h("label", {}, "near zero means ", tau), slider, h("label", {}, "one more chart ", other), ...this.lines(),
      h("button", { type: "button", onclick: () => this.charts?.reset(), title: "or double-click in a chart" }, "whole run"),
      h("button", { type: "button", onclick: () => download(`${data.name}.csv`, new Blob([csv(data)], { type: "text/csv" })) }, "numbers (CSV)"),
      h("small", {}, data.events.length ? "Number: an event was seen; dotted: it began; band: how sure that is. " : "",
        "Drag: zoom; click: hold the cursor; arrow keys: move it."));
  }

  /** How lines are drawn: smoothed, over which axis, of which runs. */
  lines() {
    const chosen = this.models();
    const redraw = (/** @type {() => void} */ change) => { change(); this.remember(); this.drawCharts(); };
    const output = h("output", { for: "smooth" }, String(this.smooth));
    return [
      hoursOf(/** @type {PageData} */ (this.data)) ? h("label", {}, "over ", h("select", { id: "axis", onchange: (/** @type {Event} */ e) => redraw(() => { this.isTimed = /** @type {HTMLSelectElement} */ (e.target).value === "time"; }) },
        option("", `${this.data?.unit}s`, this.isTimed ? "time" : ""), option("time", "hours", this.isTimed ? "time" : ""))) : null,
      h("label", { title: "Of the past in each point of the line; 0: as measured" }, "smoothing ", h("input", { type: "range", id: "smooth", min: 0, max: 0.95, step: 0.05, value: this.smooth,
        oninput: (/** @type {Event} */ e) => redraw(() => { output.textContent = String(this.smooth = Number(/** @type {HTMLInputElement} */ (e.target).value)); }) }), " ", output),
      bySeed(chosen).length < chosen.length ? h("label", {}, h("input", { type: "checkbox", id: "seeds", checked: this.isOne,
        onchange: (/** @type {Event} */ e) => redraw(() => { this.isOne = /** @type {HTMLInputElement} */ (e.target).checked; }) }), " seeds as one line") : null,
    ];
  }

  /** The runs in the charts, as they were measured. */
  models() {
    const colours = this.host.colours(this.names);
    const matches = matching(this.filter, "i");
    const names = [this.first, ...this.names.filter((name) => name !== this.first && this.chosen?.has(name) && matches(name))];
    return names.filter((name) => this.loaded.get(name)?.data.steps.length)
      .map((name) => ({ name, data: this.withTau(name), colour: colours[this.names.indexOf(name)] }));
  }

  /** The threshold below which about as many weights are as by the first rule now: where the slider begins. */
  alike() {
    const { data, details } = this;
    const all = details?.magnitudes?.all ?? [];
    const now = data?.series[`near_zero/${data.rule}`]?.findLast((x) => x !== null) ?? 0.1;
    return Math.max(0, all[all.length - 1]?.findIndex((x) => x >= 1e6 * now) ?? 0);
  }

  /** @param {string} tau */
  setTau(tau) {
    this.tau = tau === `near_zero/${this.data?.rule}` ? "" : tau;
    this.remember();
    const is = document.getElementById("tau-is");
    const { id } = document.activeElement ?? {};
    if (is && id === "tau-at") is.textContent = `|w| ≤ ${power(Number(tau.slice(4)))}`;
    else this.root.querySelector(".left .tools")?.replaceWith(this.tools());
    if (id === "tau") document.getElementById("tau")?.focus();
    this.drawCharts();
    this.drawMap();
    this.buildThresholds();
    if (this.names.length > 1) this.deepen();
  }

  drawCharts() {
    const data = /** @type {PageData} */ (this.data);
    const models = this.isOne ? bySeed(this.models()) : this.models();
    const nearZero = this.tau || `near_zero/${data.rule}`;
    const charts = /** @type {Charts} */ (this.charts);
    Object.assign(charts, { pinned: this.step, smooth: this.smooth, inTime: this.isTimed });
    const all = models.flatMap((model) => model.data.steps);
    const [first, last] = [Math.min(...all), Math.max(...all)];
    charts.range = this.range && this.range[0] < last && this.range[1] > first ? this.range : null; // a link of another run
    this.rows = stripOf(data);
    const panels = panelsOf(models[0].data, nearZero, this.other);
    if (panels.length) panels[0].strip = this.rows.map(({ label }) => label);
    charts.draw(models, panels);
    this.fillStrip();
    this.update();
  }

  /** Which tensors the first chart is about, once that is known: under its steps. */
  fillStrip() {
    const { data, details } = this;
    const cells = details?.maps.rows.near_zero ?? details?.maps.rows.dormant;
    if (!data || !cells || !details || !this.rows) return;
    const steps = details.maps.columns.map((t) => data.steps[t] ?? 0);
    this.charts?.fill(steps, this.rows.map(({ member }) => steps.map((_, t) => meanOf(member.map((i) => cells[i][t])) / 1000)));
  }

  /** The data of a run, with near-zero weights by the magnitude that is chosen. @param {string} name @returns {PageData} */
  withTau(name) {
    const { data } = /** @type {{data: PageData}} */ (this.loaded.get(name));
    const magnitudes = this.deep.get(name)?.details.magnitudes;
    if (!this.tau.startsWith("abs:") || !magnitudes) return data;
    const log = Number(this.tau.slice(4));
    const bin = magnitudes.ends.indexOf(log);
    if (bin < 0) return data;
    /** @type {(number | null)[]} */
    const values = data.steps.map(() => null);
    // between the snapshots whose spectra were read there is a line, and no gap
    const some = magnitudes.columns.map((t, i) => /** @type {[number, number]} */ ([t, magnitudes.all[i][bin] / 1e6]));
    for (const [t, x] of some) values[t] = x;
    const label = `near-zero weights, |w| ≤ ${power(log)}`;
    return { ...data, unasked: data.unasked,
      series: { ...data.series, [this.tau]: filled(data.steps, values) },
      about: { ...data.about, [this.tau]: { label, unit: "fraction", sentence: "From the stored spectra." } } };
  }

  // ---------------------------------------------------------------- the cursor

  /** @param {number | null} step */
  hover(step) {
    this.hovered = step;
    this.later();
  }

  /** @param {number} step */
  pin(step) {
    const steps = this.data?.steps ?? [];
    this.pinned = steps[nearest(steps, step)];
    this.hovered = null;
    const [low, high] = this.charts?.shownRange ?? [0, 0];
    if (this.pinned < low || this.pinned > high) this.charts?.reset();
    if (this.charts) this.charts.pinned = this.pinned;
    this.remember();
    this.later();
    if (this.tensor) this.openTensor();
  }

  /** Other steps are shown in the charts. @param {[number, number] | null} range */
  zoomed(range) {
    this.range = range;
    for (const map of [this.heatmap, this.thresholds]) map?.zoom(/** @type {Charts} */ (this.charts).shownRange);
    this.remember();
  }

  later() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.update());
  }

  update() {
    const { data, step } = this;
    if (!data?.steps.length) return;
    this.charts?.show(step, this.hovered === null);
    this.heatmap?.show(step);
    this.thresholds?.show(step);
    if (this.cost) drawCost(this.cost, data, step);
    if (this.experts && this.details?.experts) drawExperts(this.experts, this.details.experts, data, step, this.whose);
  }

  /** @param {KeyboardEvent} e */
  key(e) {
    const target = /** @type {HTMLElement} */ (e.target);
    if (!this.data?.steps.length || !this.charts || e.ctrlKey || e.metaKey || e.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName) || target.closest(".heatmap, .scroll")) return;
    const { steps } = this.data;
    const at = steps.indexOf(this.step);
    const [low, high] = this.charts.shownRange;
    const zoom = (/** @type {number} */ factor) => {
      const half = (factor * (high - low)) / 2;
      this.charts?.zoom(Math.max(steps[0], this.step - half), Math.min(steps[steps.length - 1], this.step + half));
    };
    /** @type {Record<string, () => void>} */
    const actions = {
      ArrowLeft: () => this.pin(steps[Math.max(at - 1, 0)]),
      ArrowRight: () => this.pin(steps[Math.min(at + 1, steps.length - 1)]),
      Home: () => this.pin(steps[0]),
      End: () => this.pin(steps[steps.length - 1]),
      "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => this.charts?.reset(), Escape: () => this.charts?.reset(),
      e: () => {
        const seen = (this.data?.events ?? []).map((event) => event.seen).sort((a, b) => a - b);
        if (seen.length) this.pin(seen.find((s) => s > this.step) ?? seen[0]);
      },
    };
    const action = actions[e.key];
    if (!action) return;
    e.preventDefault();
    action();
  }

  // ---------------------------------------------------------------- by tensor

  /** Maps and magnitudes of the first run; of all that are shown where their spectra are counted. */
  async deepen() {
    const { first } = this;
    const wanted = this.tau.startsWith("abs:") ? [first, ...(this.chosen ?? [])] : [first];
    const lacking = [...new Set(wanted)].filter((name) => this.loaded.has(name) && this.deep.get(name)?.version !== this.loaded.get(name)?.version);
    await Promise.all(lacking.map(async (name) => {
      const version = this.loaded.get(name)?.version ?? "";
      this.deep.set(name, { version, details: await this.source.details(name) });
    }));
    if (lacking.length) {
      if (this.first !== first) return;
      this.root.querySelector(".left .tools")?.replaceWith(this.tools());
      if (this.tau.startsWith("abs:")) this.drawCharts();
    }
    this.fillStrip();
    this.buildMap();
    this.buildThresholds();
    this.update();
  }

  buildMap() {
    const details = /** @type {Details} */ (this.details);
    const data = /** @type {PageData} */ (this.data);
    const map = /** @type {HTMLElement} */ (this.map);
    const kinds = Object.keys(details.maps.rows);
    if (!kinds.length) return;
    if (!kinds.includes(this.choice.kind)) this.choice.kind = kinds[0];
    this.choice.sort ||= data.tensors.length > 40 ? "largest" : "model";
    const place = h("div", {});
    this.note = h("p", { class: "legend", "aria-live": "polite" });
    this.histogram = h("div", { class: "histogram-of" });
    this.heatmap = new Heatmap(place, {
      open: (i) => { this.tensor = data.tensors[i]; this.remember(); this.openTensor(); this.drawMap(); },
      pin: (step) => this.pin(step), hover: (step) => this.hover(step) });
    const level = details.maps.level === null ? "" : ` when ${percent(details.maps.level)} of all go`;
    map.replaceChildren(
      h("h2", {}, `Every tensor${this.whose} by ${data.unit} `, h("small", {}, "share of each tensor's own weights, of its layer's inputs, or of the gradient; click a name for the size of its weights")),
      h("div", { class: "tools" },
        this.select("show", "kind", kinds.map((kind) => [kind, details.maps.labels[kind] + (kind === "removed" ? level : kind === "dead" ? ", dormant" : "")])),
        this.select("group by", "group", [["none", "nothing"], ["block", "block"], ["kind", "kind"]]),
        this.select("sort by", "sort", [["model", "order in the model"], ["largest", "share at the cursor"], ["rise", "rise since the beginning"]]),
        h("label", {}, "search ", h("input", { type: "search", value: this.choice.search, oninput: (/** @type {Event} */ e) => {
          this.choice.search = /** @type {HTMLInputElement} */ (e.target).value;
          this.remember();
          this.drawMap();
        } }))),
      this.note, this.histogram, place);
    this.drawMap();
    this.openTensor();
  }

  /** All weights by every threshold that the spectra were asked for. */
  buildThresholds() {
    const { data, details, surface } = this;
    if (!data || !details || !surface) return;
    const title = h("h2", {}, `Near zero${this.whose} by every threshold and ${data.unit} `, h("small", {}, "share of all in-scope weights; click a threshold to see it in the charts"));
    if (!details.magnitudes) return surface.replaceChildren(title, h("p", { class: "none" }, "This log has no spectra, which tell how many weights lie below any threshold."));
    const { columns, ends, all } = details.magnitudes;
    const names = ends.map((log) => `|w| ≤ ${power(log)}`);
    const rows = names.map((label, b) => ({ label, real: label, key: label, member: [b], isGroup: false })).reverse();
    const steps = columns.map((t) => data.steps[t]);
    const place = h("div", {});
    this.thresholds = new Heatmap(place, {
      open: (b) => this.setTau(`abs:${ends[b]}`), pin: (step) => this.pin(step), hover: (step) => this.hover(step) },
      { name: "surface", label: "Every threshold" });
    surface.replaceChildren(title, h("p", { class: "legend" }, "share:", scale(this.root), ". The number at the right is at the cursor. ",
      h("code", {}, "sparsitywatch emergence"), " says which thresholds turn abruptly, if any."), place);
    this.thresholds.step = this.step;
    this.thresholds.draw(steps, ends.map((_, b) => all.map((shares) => Math.round(shares[b] / 1000))), rows,
      this.charts?.shownRange ?? [steps[0], steps[steps.length - 1]], names[ends.findIndex((log) => this.tau === `abs:${log}`)] ?? "");
  }

  /** @param {string} label @param {"kind" | "group" | "sort"} field @param {string[][]} options */
  select(label, field, options) {
    return h("label", {}, `${label} `, h("select", { onchange: (/** @type {Event} */ e) => {
      this.choice[field] = /** @type {HTMLSelectElement} */ (e.target).value;
      this.drawMap();
    } }, ...options.map(([value, text]) => option(value, text, this.choice[field]))));
  }

  drawMap() {
    const { data, details, heatmap, note } = this;
    if (!data || !details || !heatmap || !note) return;
    const bin = this.tau.startsWith("abs:") && details.magnitudes ? details.magnitudes.ends.indexOf(Number(this.tau.slice(4))) : -1;
    const byTau = this.choice.kind === "near_zero" && bin >= 0 && details.magnitudes;
    const columns = byTau ? byTau.columns : details.maps.columns;
    const cells = byTau ? byTau.below.map((rows) => rows.map((row) => row[bin])) : details.maps.rows[this.choice.kind];
    const steps = columns.map((t) => data.steps[t] ?? 0);
    const rows = rowsOf(data.tensors, data.blocks, cells, nearest(steps, this.step), this.choice, data.facts.ledger);
    heatmap.step = this.step;
    const under = (this.choice.kind === "dead" && details.maps.rows.dormant) || [];
    heatmap.draw(steps, cells, rows, this.charts?.shownRange ?? [steps[0], steps[steps.length - 1]], this.tensor, under);
    const rule = this.choice.kind !== "near_zero" ? "" : byTau ? `, |w| ≤ ${power(Number(this.tau.slice(4)))}` : ` (${data.about[`near_zero/${data.rule}`]?.label.split(", ")[1] ?? ""})`;
    const halves = under.length ? " (upper half of a row) and dormant weights (lower half)" : "";
    note.replaceChildren(`${details.maps.labels[this.choice.kind]}${halves}${rule}:`, scale(this.root),
      this.choice.kind === "dead" ? ". Dead: zero on every held-out example, or none reaches the layer. Dormant: no gradient. Grey: not known" : "",
      `. ${rows.filter((row) => !row.isGroup).length} of ${data.tensors.length} tensors; the number at the right is at the cursor`);
  }

  openTensor() {
    const { data, details, histogram } = this;
    if (!data || !histogram) return;
    const tensor = data.tensors.indexOf(this.tensor);
    if (tensor < 0) return histogram.replaceChildren();
    if (!details?.magnitudes) return histogram.replaceChildren(h("p", { class: "none" }, "This log has no spectra that tell how large the weights of a tensor are."));
    drawHistogram(histogram, this.tensor, details.magnitudes, tensor, data, this.step, () => {
      this.tensor = "";
      this.remember();
      histogram.replaceChildren();
      this.drawMap();
    });
  }
}

/** Of the first rms only where there was a first: else it is the present one. @param {PageData} data */
function nearZeroRules(data) {
  return Object.keys(data.series).filter((name) => {
    const twin = data.series[name.replace("initial_", "rms_")];
    const isTwin = name.includes("/initial_") && twin?.every((x, t) => x === data.series[name][t]);
    return name.startsWith("near_zero/") && !isTwin;
  });
}

/** Between known values a straight line. @param {number[]} steps @param {(number | null)[]} values */
function filled(steps, values) {
  const known = steps.map((_, t) => t).filter((t) => values[t] !== null);
  return values.map((x, t) => {
    if (x !== null || t < known[0] || t > known[known.length - 1]) return x;
    const right = known[nearest(known, t)] > t ? nearest(known, t) : nearest(known, t) + 1;
    const [a, b] = [known[right - 1], known[right]];
    const [low, high] = [/** @type {number} */ (values[a]), /** @type {number} */ (values[b])];
    return low + ((high - low) * (steps[t] - steps[a])) / (steps[b] - steps[a]);
  });
}

/** @param {string} value @param {string} text @param {string} chosen */
function option(value, text, chosen) {
  return h("option", { value, selected: value === chosen }, text);
}
