// @ts-check
/** The words of the page: verdict, tiles, events, the cost of removing, and what stands below. */

import { nearest } from "./data.js";
import { ago, capital, h, numbered, percent, s, shown, significant, whole } from "./format.js";
import { parted } from "./tensors.js";

/**
 * @typedef {import("./data.js").PageData} PageData
 * @typedef {import("./data.js").RunEvent} RunEvent
 * @typedef {import("./data.js").Curve} Curve
 */

/** Events that are listed at once. */
const FEW_EVENTS = 8;
/** Names of tensors that an event says at once. */
const FEW_NAMES = 4;

/**
 * @param {PageData} data @param {boolean} live @param {HTMLElement | string} selector which runs are shown
 * @param {(event: RunEvent) => void} pick
 */
export function header(data, live, selector, pick) {
  const { verdict } = data;
  const since = live && data.alive ? ago(Date.now() / 1000 - data.alive) : "";
  const watch = [...(since ? [`last sign of life ${since}`] : []), ...data.watch].join(" · ");
  const event = data.events[verdict.event - 1];
  return h("header", {}, selector,
    h("p", { class: "eyebrow" }, "Sparsity of the run ", h("b", {}, data.name), watch ? ` · ${watch}` : ""),
    h("h1", {}, h("span", { class: `badge ${verdict.state.split(" ")[0]}` }, verdict.badge), " ", verdict.headline),
    h("p", { class: "answers" }, ...where(data, verdict.where), ...answer("Why", verdict.cause), ...answer("How sure", verdict.confidence),
      event ? number(event, pick) : null),
    h("p", { class: "action" }, h("b", {}, "What to do: "), verdict.advice),
    event ? story(data, event, pick) : null,
    verdict.not_watched.length ? h("p", { class: "unwatched" }, h("b", {}, "Not watched: "), verdict.not_watched.join("; "), ".") : null,
    h("p", { class: "taken" }, data.taken));
}

const STATES = ["broken", "look", "too early to tell", "healthy"];

/**
 * The gravest first, of equals the one that was heard of last; what is not known yet stands last.
 * @template {{stands?: import("./data.js").Summary}} T @param {T[]} runs @returns {T[]}
 */
export function byNeed(runs) {
  const rank = (/** @type {T} */ { stands }) => (stands ? STATES.indexOf(stands.state) : STATES.length);
  return [...runs].sort((a, b) => rank(a) - rank(b) || (b.stands?.heard ?? -1) - (a.stands?.heard ?? -1));
}

/**
 * How each run stands, the broken ones first.
 * @param {{name: string, colour: string, stands: import("./data.js").Summary | undefined, isListed: boolean, isShown: boolean, isFirst: boolean, isUnread: boolean}[]} runs
 * @param {(name: string, on: boolean) => void} choose @param {(name: string) => void} turnTo @param {HTMLElement | null} field for the filter
 */
export function runTable(runs, choose, turnTo, field) {
  const sorted = byNeed(runs.map((run, i) => ({ ...run, id: `run-${i}` })).filter((run) => run.isListed));
  const counts = STATES.map((state) => [runs.filter((run) => run.stands?.state === state).length, state]).filter(([number]) => number);
  const rows = sorted.map(({ name, id, colour, stands, isShown, isFirst, isUnread }) => h("tr", { class: isFirst ? "run first" : "run" },
    h("th", { scope: "row" },
      h("input", { type: "checkbox", id, checked: isShown, disabled: isUnread, onchange: (/** @type {Event} */ e) => choose(name, /** @type {HTMLInputElement} */ (e.target).checked) }),
      h("label", { for: id, title: name }, h("i", { style: `background:${colour}`, "aria-hidden": "true" }), name)),
    h("td", {}, stands ? h("span", { class: `badge ${stands.state.split(" ")[0]}` }, stands.badge) : "…"),
    h("td", { title: stands?.headline }, stands?.headline ?? ""),
    h("td", {}, isUnread ? "" : stands ? [stands.last || "no snapshot", stands.time ? ago(Date.now() / 1000 - stands.time) : ""].filter(Boolean).join(", ") : ""),
    h("td", {}, isUnread || !stands ? "" : `${stands.events}`),
    h("td", {}, isUnread ? "" : isFirst ? h("small", {}, "shown below")
      : h("button", { type: "button", id: `full-${id}`, onclick: () => turnTo(name), "aria-label": `Show ${name} below` }, "show"))));
  const titles = ["run", "state", "what happened", "last snapshot", "events", "details"];
  return h("section", { class: runs.length > 5 ? "runs long" : "runs", tabindex: "0", role: "region", "aria-label": "Runs" },
    field ? h("label", { class: "filter" }, "filter ", field) : null,
    h("h2", {}, `${sorted.length < runs.length ? `${sorted.length} of ` : ""}${runs.length} runs `, h("small", {}, `${counts.map(([number, state]) => `${number} ${state}`).join(", ")}; ticked: in the charts`)),
    h("table", {}, h("thead", {}, h("tr", {}, ...titles.map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, ...rows)));
}

/** What came before the headline's event, and what with it or after it. @param {PageData} data @param {RunEvent} main @param {(event: RunEvent) => void} pick */
function story(data, main, pick) {
  const others = data.events.filter((event) => event !== main).sort((a, b) => a.onset - b.onset);
  const told = [...others.filter((event) => event.onset < main.low).slice(-1), ...others.filter((event) => event.onset >= main.low).slice(0, 2)];
  return told.length ? h("ul", { class: "story" }, ...told.map((event) =>
    h("li", { title: event.title }, number(event, pick), h("b", {}, event.onset < main.low ? " Before it: " : " With it: "), event.title))) : null;
}

/** @param {PageData} data */
export function tiles(data) {
  const last = data.steps[data.steps.length - 1];
  return h("ul", { class: "tiles", "aria-label": "Latest numbers", tabindex: "0" }, ...data.tiles.map((tile) =>
    h("li", { title: data.about[tile.series]?.sentence },
      h("span", { class: "label" }, tile.label),
      h("b", { class: tile.value.split(" [")[0].length > 16 ? "long" : null }, tile.value.split(" [")[0], h("small", {}, tile.value.slice(tile.value.split(" [")[0].length))), h("small", { title: tile.why }, tile.why || [tile.was && tile.step === last ? "" : `at ${numbered(data, tile.step)}`, tile.was ? `was ${tile.was}` : ""].filter(Boolean).join("; ")),
      tile.series in data.series ? spark(data.steps, data.series[tile.series]) : null)));
}

/** A line without axes. @param {number[]} steps @param {(number | null)[]} values */
export function spark(steps, values) {
  /** @type {number[]} */
  const known = [];
  for (let t = 0; t < steps.length; t += 1) if (values[t] !== null) known.push(t);
  const every = Math.max(1, Math.ceil(known.length / 150));
  const some = known.filter((_, i) => i % every === 0 || i === known.length - 1);
  const numbers = some.map((t) => /** @type {number} */ (values[t]));
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  const width = steps[steps.length - 1] - steps[0] || 1;
  const points = some.map((t, i) =>
    `${((200 * (steps[t] - steps[0])) / width).toFixed(1)},${(27 - (24 * (numbers[i] - low)) / (high - low || 1)).toFixed(1)}`);
  return s("svg", { viewBox: "0 0 200 30", preserveAspectRatio: "none", class: "spark", "aria-hidden": "true" },
    s("polyline", { points: points.join(" ") }));
}

/** The headline's event in full, each other one in a line that opens. @param {PageData} data @param {(event: RunEvent) => void} pick */
export function events(data, pick) {
  const isMain = (/** @type {RunEvent} */ event) => event.number === data.verdict.event;
  const sorted = [...data.events.filter(isMain), ...[...data.events].reverse().filter((event) => !isMain(event))];
  const cards = sorted.map((event) =>
    h("li", { id: `event-${event.number}`, class: event.reverted >= 0 ? "gone" : event.severity }, number(event, pick),
      h("details", { id: `told-${event.number}`, open: isMain(event) || sorted.length === 1 }, h("summary", { title: event.title }, event.title),
        h("p", {}, capital(event.when), "."),
        event.where.length ? h("p", {}, ...where(data, event.where)) : null,
        event.why.length ? h("p", {}, ...answer("Why", event.why.join("; "))) : null,
        event.also.length ? h("p", {}, capital(event.also.join("; ")), ".") : null,
        h("p", { class: "do" }, h("b", {}, "→ "), event.do))));
  const more = cards.splice(FEW_EVENTS);
  const order = data.verdict.event ? "the headline's first, then newest first" : "newest first";
  return h("section", { class: "events", id: "events" },
    h("h2", {}, "Events", " ", h("small", {}, sorted.length > 1 ? `${sorted.length}, ${order}; click one to read it` : "")),
    cards.length ? h("ol", {}, ...cards) : h("p", { class: "none" }, data.steps.length
      ? "None: no watched number jumped, took off, or rose steadily." : "None yet: nothing has been measured."),
    more.length ? fold("more-events", `${more.length} older event${more.length === 1 ? "" : "s"}`, h("ol", {}, ...more)) : null);
}

/** @param {RunEvent} event @param {(event: RunEvent) => void} pick */
function number(event, pick) {
  return h("button", { type: "button", class: "number", "aria-label": `Show event ${event.number} in the charts`, onclick: () => pick(event) }, String(event.number));
}

/** In which tensors, by the names that they have in the map below. @param {PageData} data @param {string[]} names */
function where(data, names) {
  if (!names.length) return [];
  const labels = new Map(parted(data.tensors, data.blocks, data.facts.ledger).map((part, i) => [data.tensors[i], part.label]));
  const few = names.slice(0, FEW_NAMES).map((name) => labels.get(name) ?? name).join("; ");
  const more = names.length - FEW_NAMES;
  return [h("b", {}, "Where: "), h("span", { title: names.join(", ") }, more > 0 ? `${few} and ${more} more` : few), ". "];
}

/** @param {string} question @param {string} text */
function answer(question, text) {
  return text ? [h("b", {}, `${question}: `), `${text}. `] : [];
}

// ------------------------------------------------------------------ what removing costs

const [LEFT, TOP, WIDE, HIGH] = [26, 10, 330, 125];
const MOST = 4;

/**
 * What removing weights costs at the snapshot that is nearest to the cursor.
 * @param {HTMLElement} root @param {PageData} data @param {number} step
 */
export function drawCost(root, data, step) {
  const curve = data.curves[nearest(data.curves.map((c) => c.step), step)];
  if (root.dataset.step === String(curve.step)) return;
  root.dataset.step = String(curve.step);
  const t = data.steps.indexOf(curve.step);
  const at = (/** @type {string} */ name) => data.series[`essential_sparsity/${name}`]?.[t] ?? null;
  const [value, low, high] = [at("value"), at("low"), at("high")];
  const interval = low === null || high === null ? "" : ` [${percent(low)}, ${percent(high)}]`;
  const told = value === null ? `says nothing: ${curve.reason || "not known"}` : `essential sparsity ${percent(value)}${interval}, ${curve.drop}`;
  const onset = data.events[data.verdict.event - 1]?.onset ?? data.steps[0];
  const then = data.curves.findLast((c) => c.step <= onset && c.step < curve.step);
  root.replaceChildren(
    h("h2", {}, "What removing weights costs ", h("small", {}, "at the cursor")),
    h("p", { class: "legend" }, `${capital(numbered(data, curve.step))}: ${told}`, then ? `; dashed: ${numbered(data, then.step)}, ${data.verdict.event ? "before the event" : "the first"}` : ""),
    costSvg(curve, value, low, high, then),
    h("p", { class: "axis" }, "share of the weights removed, smallest first → harm; 1 is what is tolerated"));
}

/** @param {Curve} curve @param {number | null} value @param {number | null} low @param {number | null} high @param {Curve} [then] an earlier one */
function costSvg(curve, value, low, high, then) {
  const bottom = Math.min(-0.5, ...curve.harm.map((y) => Math.max(y ?? 0, -MOST)));
  const x = (/** @type {number} */ share) => LEFT + WIDE * share;
  const y = (/** @type {number} */ harm) => TOP + (HIGH * (MOST - Math.min(harm, 100 * MOST))) / (MOST - bottom);
  const known = curve.sparsity.map((share, i) => ({ share, harm: curve.harm[i] })).filter((p) => p.harm !== null);
  const points = known.map((p) => `${x(p.share).toFixed(1)},${y(/** @type {number} */ (p.harm)).toFixed(1)}`);
  const earlier = (then?.sparsity ?? []).flatMap((share, i) => (then?.harm[i] == null ? [] : [`${x(share).toFixed(1)},${y(Number(then.harm[i])).toFixed(1)}`]));
  const label = `Harm by share of weights removed, in units of what is tolerated: ${known.map((p) => `${percent(p.share)}: ${significant(/** @type {number} */ (p.harm), 3)}`).join(", ")}`;
  const svg = s("svg", { viewBox: `0 0 ${LEFT + WIDE + 24} ${TOP + HIGH + 22}`, role: "img", "aria-label": label, class: "cost" });
  if (low !== null && high !== null) svg.append(s("rect", { x: x(low), y: TOP, width: WIDE * (high - low), height: HIGH, class: "interval" }));
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(s("line", { x1: x(share), x2: x(share), y1: TOP, y2: TOP + HIGH, class: "rule" }),
      s("text", { x: x(share), y: TOP + HIGH + 16, class: "tick" }, `${100 * share} %`));
  }
  for (const harm of [0, 1, 2, 3, 4]) svg.append(s("text", { x: LEFT - 8, y: y(harm) + 4, class: "tick end" }, String(harm)));
  svg.append(s("line", { x1: LEFT, x2: x(1), y1: y(1), y2: y(1), class: "tolerated" }), s("polyline", { points: earlier.join(" "), class: "then", "clip-path": "url(#cost-area)" }), s("polyline", { points: points.join(" "), "clip-path": "url(#cost-area)" }));
  svg.prepend(s("clipPath", { id: "cost-area" }, s("rect", { x: LEFT - 3, y: TOP - 3, width: WIDE + 6, height: HIGH + 6 })));
  for (const p of known) if (/** @type {number} */ (p.harm) <= MOST) svg.append(s("circle", { cx: x(p.share), cy: y(/** @type {number} */ (p.harm)), r: 2.2 }));
  if (value !== null) svg.append(s("circle", { cx: x(value), cy: y(1), r: 5.5, class: "ring" }));
  return svg;
}

// ------------------------------------------------------------------ where a spike began

/** The loss around the last spike, and under it how far each block moved. @param {PageData} data */
export function spikePicture({ spike }) {
  if (!spike) return "";
  const { steps, loss, blocks, rises, began, at } = spike;
  const [left, row, top, wide] = [235, 16, 70, 700 / steps.length];
  const bottom = top + row * blocks.length;
  const x = (/** @type {number} */ t) => left + wide * t;
  const known = loss.map((value, t) => ({ t, value: value ?? NaN })).filter((p) => !Number.isNaN(p.value));
  const [low, high] = [Math.min(...known.map((p) => p.value)), Math.max(...known.map((p) => p.value))];
  const y = (/** @type {number} */ value) => top - 8 - ((top - 16) * (value - low)) / (high - low || 1);
  const text = (/** @type {number} */ at, /** @type {number} */ high, /** @type {string} */ words, end = "end") => s("text", { x: at, y: high, class: `tick ${end}` }, words);
  const svg = s("svg", { viewBox: `0 0 ${left + 720} ${bottom + 24}`, role: "img", "aria-label": spike.told, class: "spike" },
    s("polyline", { points: known.map((p) => `${x(p.t + 0.5).toFixed(1)},${y(p.value).toFixed(1)}`).join(" ") }));
  if (known.length) svg.append(text(left - 8, y(high) + 4, `loss ${significant(high, 3)}`), text(left - 8, y(low) + 4, significant(low, 3)));
  blocks.forEach((block, i) => svg.append(text(left - 8, top + row * i + 12, block.split(".").slice(-2).join(".")), ...rises[i].map((rise, t) =>
    s("rect", { x: x(t).toFixed(1), y: top + row * i, width: (wide + 0.3).toFixed(1), height: row - 1, opacity: Math.min(Math.max((rise ?? 0) / 2000, 0), 1).toFixed(2) }))));
  for (const [t, words, end] of /** @type {[number, string, string][]} */ ([[0, "", "start"], [began, "began at ", "end"], [at, "spike at ", "start"]])) {
    if (t >= 0) svg.append(s("line", { x1: x(t), x2: x(t), y1: 0, y2: bottom + 4 }), text(x(t), bottom + 18, `${words}${whole(steps[t])}`, end));
  }
  return h("section", { class: "tensors", id: "spike" }, h("h2", {}, "Where the last spike began"), h("p", { class: "legend" }, `${spike.told}.`), svg,
    h("p", { class: "axis" }, "Rows are blocks of the model, columns are steps. Colour: how far the step moved the block's weights, beside the usual before the rise. None: as far or less. Full: four times as far or more."));
}

// ------------------------------------------------------------------ at the foot

/** @param {PageData} data @param {boolean} live */
export function foot(data, live) {
  const { facts } = data;
  const failed = facts.failed.map(([step, why]) => [whole(step), why]);
  const notes = facts.notes.map(([step, why]) => [whole(step), why]);
  const left = data.num_snapshots - data.steps.length;
  const words = [...facts.words, ...Object.values(data.about).map(({ label, sentence }) => [label, sentence])];
  return h("section", { class: "foot" },
    failed.length ? fold("failed", `${facts.num_failed} failed snapshot${facts.num_failed === 1 ? "" : "s"}`, table([data.unit, "why"], failed), true) : null,
    notes.length ? fold("notes", "Notes", table([data.unit, "note"], notes), true) : null,
    data.verdict.watch.length ? fold("standing", "The watch", h("div", {}, ...data.verdict.watch.map((text) => h("p", {}, text)))) : null,
    fold("provenance", "What the numbers depend on", h("div", {},
      facts.replayed_from.length ? h("p", {}, `Replayed from saved checkpoints: ${facts.replayed_from.join(", ")}.`) : null,
      facts.provenance.length > 1 ? h("p", { class: "warning" }, "It changed during this run: the parts below cannot be compared with each other.") : null,
      ...facts.provenance.flatMap((part) => [
        facts.provenance.length > 1 ? h("h3", {}, `${capital(numbered(data, part.first))} to ${whole(part.last)}`) : null, list(part.facts)]))),
    facts.ledger.length ? fold("scope", `Scope: ${facts.scope}`, table(["parameter", "scope", "shape", "weights", "why"],
      facts.ledger.map((row) => row.map((cell) => (typeof cell === "number" ? whole(cell) : cell))))) : null,
    facts.costs.length ? fold("costs", facts.replayed_from.length ? "What the replay cost" : "What the watch cost", list(facts.costs)) : null,
    fold("numbers", "All numbers as a table", lazily(() => numbers(data))),
    fold("words", "What the words mean", h("dl", { class: "words" }, ...words.flatMap(([word, text]) => [h("dt", {}, word), h("dd", {}, text)]))),
    h("p", { class: "made" }, left > 0 ? `${whole(data.steps.length)} of ${whole(data.num_snapshots)} snapshots are shown, evenly chosen, and those of events; records.jsonl has all. ` : "",
      `Made by sparsitywatch ${data.version}${live ? "" : " from the log of this run"}. The method: essential sparsity after Jaiswal et al. 2023, arXiv:2306.03805.`));
}

/** @param {string} id @param {string} title @param {Node} body @param {boolean} [open] */
function fold(id, title, body, open = false) {
  return h("details", { id, open }, h("summary", {}, title), body);
}

/** @param {() => Node} make */
function lazily(make) {
  const place = h("div", {});
  queueMicrotask(() => place.parentElement?.addEventListener("toggle", () => place.childElementCount || place.append(make()), { once: true }));
  return place;
}

/** @param {string[]} head @param {string[][]} rows */
function table(head, rows) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": head.join(", ") },
    h("table", {}, h("thead", {}, h("tr", {}, ...head.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((cell, i) => h(i ? "td" : "th", i ? {} : { scope: "row" }, cell)))))));
}

/** @param {import("./data.js").Fact[]} facts */
function list(facts) {
  return h("dl", { class: "facts" }, ...facts.map(([name, value, remark]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value, " ", h("small", {}, remark)))));
}

/** @param {PageData} data */
function numbers(data) {
  const names = Object.keys(data.series).filter((name) => !name.startsWith("watch/"));
  return table([data.unit, ...names.map((name) => data.about[name].label)], data.steps.map((step, t) =>
    [whole(step), ...names.map((name) => shown(data.about[name].unit, data.series[name][t]))]));
}
