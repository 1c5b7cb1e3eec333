// @ts-check
/** What the page is given, and where it comes from: the file itself, or a server. */

/**
 * @typedef {(number | null)[]} Values a series at every kept snapshot; null is not measured
 * @typedef {{label: string, unit: string, sentence: string}} About
 * @typedef {{series: string, label: string, value: string, step: number,
 *   was: string, why: string}} Tile
 * @typedef {{number: number, series: string, title: string, when: string, where: string[],
 *   why: string[], also: string[], do: string, severity: string, onset: number, low: number, high: number,
 *   seen: number, reverted: number}} RunEvent
 * @typedef {{step: number, sparsity: number[], harm: Values, reason: string, drop: string}} Curve
 * @typedef {[string, string, string]} Fact
 * @typedef {{failed: [number, string][], num_failed: number, notes: [number, string][],
 *   scope: string, ledger: (string | number)[][], replayed_from: string[],
 *   provenance: {first: number, last: number, facts: Fact[]}[], costs: Fact[],
 *   words: [string, string][]}} Facts
 * @typedef {{state: string, badge: string, headline: string, since: number, onset_low: number,
 *   onset_high: number, where: string[], cause: string, advice: string, confidence: string,
 *   not_watched: string[], trouble: string, watch: string[], event: number}} Verdict
 * @typedef {{version: string, name: string, verdict: Verdict,
 *   alive: number | null, watch: string[],
 *   taken: string, unit: string, measured: Record<string, string[]>, tiles: Tile[], rule: string, better: string, num_snapshots: number, steps: number[],
 *   times: Values, failed: number[], unasked: number[], gaps: string[], series: Record<string, Values>,
 *   about: Record<string, About>, panels: import("./charts.js").Panel[], choices: Record<string, string[]>, events: RunEvent[], curves: Curve[], tensors: string[], blocks: string[],
 *   facts: Facts, spike: Spike | null, range?: {low: Record<string, Values>, high: Record<string, Values>}}} PageData
 * Of a run: times in seconds of the epoch, none of a replay. Of several as one: their means, and the range.
 * Of the last spike: rises of each block in thousandths of a doubling; places among the steps, -1 where none is known.
 * @typedef {{told: string, steps: number[], loss: Values, blocks: string[], rises: Values[], began: number, at: number}} Spike
 *
 * Maps: thousandths by tensor and column, -1 where nothing was measured.
 * @typedef {{columns: number[], level: number | null, labels: Record<string, string>, rows: Record<string, number[][]>}} Maps
 * Magnitudes: by tensor and column the thousandths of the weights up to each end (log10); of all
 * tensors together the millionths.
 * @typedef {{columns: number[], ends: number[], below: number[][][], all: number[][]}} Magnitudes
 * Experts: positions that came to each of a layer, by layer and column; empty where nothing was measured.
 * @typedef {{columns: number[], names: string[], loads: number[][][]}} Experts
 * @typedef {{maps: Maps, magnitudes: Magnitudes | null, experts: Experts | null}} Details
 * @typedef {{name: string, version: string}} RunName
 * @typedef {{state: string, badge: string, headline: string, last: string, time: number | null, heard: number, events: number}} Summary
 * @typedef {{live: boolean, runs: () => Promise<RunName[]>,
 *   page: (name: string) => Promise<PageData>, summary?: (name: string) => Promise<Summary>, details: (name: string) => Promise<Details>}} Source
 */

/** @param {number[]} differences @returns {number[]} the numbers, the first difference from 0 */
export function summed(differences) {
  let sum = 0;
  return differences.map((x) => (sum += x));
}

/** @param {Details} details as sent @returns {Details} with numbers instead of differences */
export function decoded(details) {
  const { maps, magnitudes } = details;
  for (const kind of Object.keys(maps.rows)) maps.rows[kind] = maps.rows[kind].map(summed);
  if (magnitudes) {
    magnitudes.below = magnitudes.below.map((columns) => columns.map(summed));
    magnitudes.all = magnitudes.all.map(summed);
  }
  return details;
}

/**
 * The runs of a file: their data stand in the page, compressed.
 * @param {string} base64
 * @returns {Promise<Source>}
 */
export async function fileSource(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  /** @type {{name: string, page: PageData, details: Details, summary: Summary, error?: string}[]} */
  const inside = await new Response(stream).json();
  const runs = new Map(inside.map((run) => [run.name, run]));
  for (const { details } of inside) if (details) decoded(details);
  /** @param {string} name */
  const of = async (name) => {
    const run = /** @type {typeof inside[0]} */ (runs.get(name));
    if (run.error) throw new Error(run.error);
    return run;
  };
  return {
    live: false,
    runs: async () => inside.map(({ name }) => ({ name, version: "" })),
    page: async (name) => (await of(name)).page,
    summary: async (name) => (await of(name)).summary,
    details: async (name) => (await of(name)).details,
  };
}

/**
 * The runs of a server; addresses are relative, so that it may stand behind any path.
 * @param {string} base
 * @returns {Source}
 */
export function serverSource(base) {
  /** @param {string} path @param {Record<string, string>} query */
  const get = async (path, query = {}) => {
    const answer = await fetch(`${base}${path}?${new URLSearchParams(query)}`);
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  };
  return {
    live: true,
    runs: () => get("runs"),
    page: (run) => get("page", { run }),
    summary: (run) => get("summary", { run }),
    details: async (run) => decoded(await get("details", { run })),
  };
}

/**
 * Why a series has no number at a snapshot; empty where it has one.
 * @param {PageData} data @param {string} name @param {number} t
 */
export function whyNone(data, name, t) {
  if (typeof data.series[name]?.[t] === "number") return "";
  const room = name.split("/")[0];
  const told = data.gaps[t] ?? "";
  if (data.failed.includes(t)) return told;
  for (const [kind, words] of [["nan", "NaN"], ["inf", "infinite"]]) {
    const number = data.series[`weights/num_${kind}`]?.[t] ?? 0;
    if (number && room !== "value") return `${number.toLocaleString("en-US")} weight${number === 1 ? " is" : "s are"} ${words}`;
  }
  if (room === "essential_sparsity" && told) return told;
  if (room === "essential_sparsity" || room === "value") {
    return data.unasked.includes(t) ? "the held-out examples were not evaluated here, to save time" : "the held-out examples gave no finite number";
  }
  if (room === "motion" && t === 0) return "it needs a snapshot before this one";
  return room === "forecast" ? "it cannot be foreseen here" : "it was not measured";
}

/** What has to agree where runs are compared, as `sparsitywatch compare` asks it. @type {Record<string, string>} */
const AGREE = { scope_hash: "in-scope weights", proxy_hash: "held-out examples", tolerance: "tolerance", tolerance_mode: "tolerance",
  pattern: "pattern", evaluation: "evaluation", dtypes: "dtypes" };

/** Why a series of one run cannot stand beside that of another; empty if it can. @param {PageData} one @param {PageData} other @param {string} name */
export function whyApart(one, other, name) {
  if (one.unit !== other.unit) return `counts ${other.unit}s`;
  const room = name.split("/")[0];
  if (room === "watch" || /^motion\/(lr|decay_clock)$/.test(name)) return "";
  const differs = (/** @type {string} */ field) => one.measured[field].length > 1 || one.measured[field].join() !== other.measured[field].join();
  const fields = room !== "value" && room !== "essential_sparsity" || differs("scope_hash") ? ["scope_hash"] : Object.keys(AGREE);
  const found = new Set(fields.filter(differs).map((field) => AGREE[field]));
  if (found.size) return `other ${[...found].join(" and ")}`;
  return other.series[name] ? "" : "not measured";
}

/** Index of the number in rising numbers that is nearest. @param {number[]} sorted @param {number} x */
export function nearest(sorted, x) {
  let low = 0;
  let high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - sorted[low - 1] <= sorted[low] - x ? low - 1 : low;
}

/** Between known points a straight line, beyond the ends as in the last piece. @param {number[]} from rising @param {number[]} to @param {number} x */
export function between(from, to, x) {
  if (from === to) return x;
  if (from.length < 2) return to[0] + (x - from[0]);
  const near = nearest(from, x);
  const i = Math.min(Math.max(from[near] > x ? near : near + 1, 1), from.length - 1);
  return to[i - 1] + ((to[i] - to[i - 1]) * (x - from[i - 1])) / (from[i] - from[i - 1]);
}

/** So many times the usual from one snapshot to the next is a pause: the training did not run. */
const PAUSE = 10;

/**
 * Hours of training up to each snapshot, without pauses and jumps of the clock; null where the log does not know.
 * @param {PageData} data @returns {{hours: number[], paused: number} | null} and the hours left out
 */
export function hoursOf({ steps, times }) {
  const gaps = steps.slice(1).map((_, t) => Number(times[t + 1]) - Number(times[t]));
  const middle = (/** @type {number[]} */ all) => all.filter((x) => x > 0).sort((a, b) => a - b)[(all.filter((x) => x > 0).length - 1) >> 1];
  const [gap, pace] = [middle(gaps), middle(gaps.map((x, t) => x / (steps[t + 1] - steps[t])))];
  if (!pace || times.includes(null)) return null;
  let [now, paused] = [0, 0];
  const rest = gaps.map((x, t) => {
    const usual = pace * (steps[t + 1] - steps[t]);
    const isPause = x <= 0 || x > PAUSE * Math.max(usual, gap);
    if (isPause) paused += Math.max(x - usual, 0);
    return (now += isPause ? usual : x) / 3600;
  });
  return { hours: [0, ...rest], paused: paused / 3600 };
}

/** A running mean that forgets, as TensorBoard's; gaps stay gaps. @param {(number | null | undefined)[]} values @param {number} weight of the past, below 1 */
export function smoothed(values, weight) {
  let [sum, total] = [0, 0];
  return values.map((x) => {
    if (typeof x !== "number") return x;
    [sum, total] = [weight * sum + (1 - weight) * x, weight * total + 1 - weight];
    return sum / total;
  });
}

/** Which names a filter keeps. @param {string | null} text @param {string} flags @returns {(run: string) => boolean} */
export function matching(text, flags) {
  if (!text) return () => true;
  try {
    const pattern = new RegExp(text, flags);
    return (run) => pattern.test(run);
  } catch {
    return () => true; // half of an expression, which is still being typed
  }
}

/** What names of runs have in common that differ in their seed or last number. @param {string} name */
export function familyOf(name) {
  const seed = name.replace(/(seed[-_=]?)\d+/i, "$1*");
  return seed === name ? name.replace(/(^|[-_/ ]|run|trial)\d+$/i, "$1*") : seed;
}

/** Whether two runs were trained and measured alike, as far as their logs say. @param {PageData} one @param {PageData} other */
function isAlike(one, other) {
  if (one.unit !== other.unit || JSON.stringify(one.measured) !== JSON.stringify(other.measured)) return false;
  const places = new Map(other.steps.map((step, t) => [step, t]));
  return ["motion/lr", "motion/decay_clock"].every((name) => one.steps.every((step, t) => {
    const [a, b] = [one.series[name]?.[t], other.series[name]?.[places.get(step) ?? -1]];
    return typeof a !== "number" || typeof b !== "number" || Math.abs(a - b) <= 1e-5 * Math.max(Math.abs(a), Math.abs(b));
  }));
}

/**
 * Runs that differ in nothing but the seed as one: the mean of each series where all have it, and its range.
 * @template {{name: string, data: PageData}} T @param {T[]} models @returns {T[]} the first stays the first
 */
export function bySeed(models) {
  /** @type {T[][]} */
  const groups = [];
  for (const model of models) {
    const group = groups.find(([one]) => familyOf(one.name) === familyOf(model.name) && isAlike(one.data, model.data));
    if (group) group.push(model);
    else groups.push([model]);
  }
  return groups.flatMap((group) => {
    const [{ name, data }] = group;
    const places = group.map((one) => new Map(one.data.steps.map((step, t) => [step, t])));
    const steps = data.steps.filter((step) => places.every((place) => place.has(step)));
    if (group.length < 2 || !steps.length) return group;
    /** @type {Record<string, Values>[]} */
    const [mean, low, high] = [{}, {}, {}];
    for (const series of Object.keys(data.series).filter((one) => group.every((model) => model.data.series[one]))) {
      const all = steps.map((step) => group.map((model, i) => model.data.series[series][places[i].get(step) ?? 0]));
      const over = (/** @type {(known: number[]) => number} */ f) => all.map((some) => (some.includes(null) ? null : f(/** @type {number[]} */ (some))));
      mean[series] = over((some) => some.reduce((a, b) => a + b) / some.length);
      low[series] = over((some) => Math.min(...some));
      high[series] = over((some) => Math.max(...some));
    }
    const own = steps.map((step) => places[0].get(step) ?? 0);
    const moved = (/** @type {number[]} */ some) => some.map((t) => own.indexOf(t)).filter((t) => t >= 0);
    return [{ ...group[0], name: `${familyOf(name)} (mean of ${group.length})`, data: { ...data, steps, series: mean, range: { low, high },
      times: own.map((t) => data.times[t]), gaps: own.map((t) => data.gaps[t]), failed: moved(data.failed), unasked: moved(data.unasked) } }];
  });
}

/**
 * Every number over the steps as comma-separated values.
 * @param {PageData} data
 */
export function csv(data) {
  const names = Object.keys(data.series);
  const lines = data.steps.map((step, t) =>
    [step, ...names.map((name) => data.series[name][t] ?? "")].join(","),
  );
  return [[data.unit, ...names].join(","), ...lines].join("\n") + "\n";
}
