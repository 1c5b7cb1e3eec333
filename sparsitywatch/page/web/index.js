// @ts-check
/** The page as a tab of TensorBoard: what its server calls a plugin's module. */

import { serverSource } from "./data.js";
import { COLOURS, DARK } from "./format.js";
import { Follower, ofAddress, ofTable, tableOf } from "./elsewhere.js";
import { mount } from "./main.js";

/** For which TensorBoard may think about what its runs are. */
const PATIENCE_MS = 1000;

/** The page of TensorBoard around the tab, or the window itself. */
function around() {
  try {
    return window.parent.document.body ? window.parent : window;
  } catch {
    return window; // of another origin, as in some notebooks
  }
}

/** The style sheet, without which nothing has its width. */
function dressed() {
  return new Promise((resolve, reject) => {
    const link = document.createElement("link");
    Object.assign(link, { rel: "stylesheet", href: "./page.css", onload: resolve,
      onerror: () => reject(new Error("page.css could not be loaded")) });
    document.head.append(link);
  });
}

/** What TensorBoard calls when the tab is opened. */
export async function render() {
  const outer = around();
  /** @type {Map<string, number>} each run of TensorBoard with the place of its colour, as it counts */
  const places = new Map();
  /** @type {import("./main.js").Page | undefined} */
  let page;
  const told = hostRuns(outer, (names) => {
    for (const name of names) if (!places.has(name)) places.set(name, places.size);
    page?.build();
  });
  const ready = Promise.all([dressed(), told]);
  const root = document.createElement("div");
  root.id = "app";
  document.body.append(root);
  document.documentElement.classList.add("live");
  document.documentElement.lang = "en";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (outer === window ? dark.matches : outer.document.body.classList.contains("dark-mode"));
  const dress = () => { document.documentElement.dataset.theme = outer === window ? "" : isDark() ? "dark" : "light"; };
  if (outer !== window) dress();
  const follower = new Follower();
  page = await mount(root, serverSource("./"), {
    ready,
    read: () => linked(outer),
    write: (query) => link(outer, query),
    colours: (names) => {
      const rows = tableOf(outer.document);
      return names.map((name, i) => rows.get(runOf(places, name))?.colour
        || (isDark() ? DARK : COLOURS)[(places.get(runOf(places, name)) ?? i) % COLOURS.length]);
    },
    changes: (names) => {
      const own = new Map(names.map((name) => [runOf(places, name), name]));
      const sources = { address: ofAddress(outer.location.hash), table: ofTable(outer.location.search, tableOf(outer.document)) };
      return [...follower.changes(sources, [...own.keys()])].map(([run, isShown]) => [own.get(run) ?? run, isShown]);
    },
  });
  if (outer !== window) {
    outer.addEventListener("hashchange", () => page?.refresh());
    new MutationObserver(() => { dress(); page?.build(); }).observe(outer.document.body, { attributes: true, attributeFilter: ["class"] });
  } else {
    dark.addEventListener("change", () => page?.build());
  }
}

/**
 * Hear of TensorBoard's runs, in the order in which it gives them colours; without TensorBoard, or
 * if it does not answer, of none.
 * @param {Window} outer @param {(names: string[]) => void} told
 * @returns {Promise<void>} once it has answered
 */
function hostRuns(outer, told) {
  if (outer === window) return Promise.resolve();
  const { port1, port2 } = new MessageChannel();
  return new Promise((resolve) => {
    setTimeout(resolve, PATIENCE_MS);
    port1.onmessage = (event) => {
      const { type, id, payload, isReply } = JSON.parse(event.data);
      if (!isReply) port1.postMessage(JSON.stringify({ type, id, payload: null, error: null, isReply: true }));
      if (Array.isArray(payload) && (isReply || type === "experimental.RunsChanged")) told(payload);
      resolve();
    };
    outer.postMessage("experimental.bootstrap", "*", [port2]);
    port1.postMessage(JSON.stringify({ type: "experimental.GetRuns", id: 0, payload: null, error: null, isReply: false }));
  });
}

/** What a run is called in TensorBoard: as its event files are. @param {Map<string, number>} places @param {string} name */
function runOf(places, name) {
  const own = `${name}/sparsitywatch`;
  return [own, name, "sparsitywatch", "."].find((run) => places.has(run)) ?? own;
}

const PREFIX = "p.sparsity.";

/** What the address of the page around says of this tab. @param {Window} outer */
function linked(outer) {
  const found = new URLSearchParams();
  for (const [key, value] of new URLSearchParams(outer.location.search)) {
    if (key.startsWith(PREFIX)) found.set(key.slice(PREFIX.length), value);
  }
  return found;
}

/** @param {Window} outer @param {URLSearchParams} query */
function link(outer, query) {
  const all = new URLSearchParams(outer.location.search);
  for (const key of [...all.keys()]) if (key.startsWith(PREFIX)) all.delete(key);
  for (const [key, value] of query) all.set(PREFIX + key, value);
  const text = all.toString();
  outer.history.replaceState(outer.history.state, "", `${outer.location.pathname}${text ? `?${text}` : ""}${outer.location.hash}`);
}
