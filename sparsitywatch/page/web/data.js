// @ts-check
/** What the page is given, and where it comes from: the file itself, or a server. */

/**
 * @typedef {(number | null)[]} Values a series at every kept snapshot; null is not measured
 * @typedef {{label: string, unit: string, sentence: string, beside?: string}} About
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
 *   failed: number[], unasked: number[], gaps: string[], series: Record<string, Values>,
 *   about: Record<string, About>, events: RunEvent[], curves: Curve[], tensors: string[], blocks: string[],
 *   facts: Facts, spike: Spike | null}} PageData
 * Of the last spike: rises of each block in thousandths of a doubling; places among the steps, -1 where none is known.
 * @typedef {{told: string, steps: number[], loss: Values, blocks: string[], rises: Values[], began: number, at: number}} Spike
 *
 * Maps: thousandths by tensor and column, -1 where nothing was measured.
 * @typedef {{columns: number[], level: number | null, rows: Record<string, number[][]>}} Maps
 * Magnitudes: by tensor and column the thousandths of the weights up to each end (log10); of all
 * tensors together the millionths.
 * @typedef {{columns: number[], ends: number[], below: number[][][], all: number[][]}} Magnitudes
 * @typedef {{maps: Maps, magnitudes: Magnitudes | null}} Details
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
