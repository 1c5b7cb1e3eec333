// @ts-check
/**
 * What TensorBoard shows of its runs elsewhere: which are chosen there, and in what colours.
 *
 * It tells a tab which runs there are, and no more. But what is chosen stands in the page around:
 * Scalars, Images and the like keep it in the address, and Time Series has a table of its runs,
 * which stays in the document once it was opened. Where neither is found, nothing is said.
 */

import { matching } from "./data.js";

/**
 * @typedef {(run: string) => boolean | undefined} Says whether a run of TensorBoard is shown; undefined: not known
 * @typedef {{chosen: boolean, colour: string}} Row
 */

/** What Scalars, Images and the like show. @param {string} hash of the address @returns {Says} */
export function ofAddress(hash) {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const matches = matching(parts.get("regexInput"), "");
  const chosen = unpacked(parts.get("runSelectionState"));
  return (run) => matches(run) && chosen.get(run) !== false;
}

/** @param {string | null} state in base64 @returns {Map<string, unknown>} */
function unpacked(state) {
  try {
    return new Map(Object.entries(state ? JSON.parse(atob(state)) : {}));
  } catch {
    return new Map(); // a link that was cut: TensorBoard complains of it itself
  }
}

/** What Time Series shows. @param {string} search of the address @param {Map<string, Row>} rows @returns {Says} */
export function ofTable(search, rows) {
  const matches = matching(new URLSearchParams(search).get("runFilter"), "i");
  return (run) => (matches(run) ? rows.get(run)?.chosen : false);
}

/** The table of runs of Time Series; empty until it was opened. @param {Document} document @returns {Map<string, Row>} */
export function tableOf(document) {
  const rows = new Map();
  for (const row of document.querySelectorAll("runs-data-table [data-id]")) {
    const box = /** @type {HTMLInputElement | null} */ (row.querySelector("input[type=checkbox]"));
    const swatch = /** @type {HTMLElement | null} */ (row.querySelector(".run-color-swatch"));
    const [, run] = /^[^/]*\/(.*)$/.exec(row.getAttribute("data-id") ?? "") ?? []; // behind the experiment
    if (run && box) rows.set(run, { chosen: box.checked, colour: hexadecimal(swatch?.style.backgroundColor ?? "") });
  }
  return rows;
}

/** @param {string} rgb as a browser writes it @returns {string} as "#rrggbb"; empty if it is none */
export function hexadecimal(rgb) {
  const parts = /^rgb\((\d+), (\d+), (\d+)\)$/.exec(rgb);
  return parts ? `#${parts.slice(1).map((x) => Number(x).toString(16).padStart(2, "0")).join("")}` : "";
}

/** Remembers what was said, to tell what has changed: so the last choice counts, wherever it was made. */
export class Follower {
  constructor() {
    /** @type {Map<string, boolean>} */
    this.before = new Map();
  }

  /**
   * Runs that are now hidden where they were shown, and the other way round; at first all are shown.
   * @param {Record<string, Says>} sources by name @param {string[]} runs
   * @returns {Map<string, boolean>} whether a run is shown now
   */
  changes(sources, runs) {
    const changed = new Map();
    for (const [source, says] of Object.entries(sources)) {
      for (const run of runs) {
        const key = `${source} ${run}`;
        const now = says(run);
        if (now === undefined || now === (this.before.get(key) ?? true)) continue;
        this.before.set(key, now);
        changed.set(run, now);
      }
    }
    return changed;
  }
}
