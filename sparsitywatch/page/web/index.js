// @ts-check
/** The page as a tab of TensorBoard: what its server calls a plugin's module. */

import { serverSource } from "./data.js";

/** TensorBoard's own colours of runs, light and dark, in its order. */
const COLOURS = ["#425066", "#12b5cb", "#e52592", "#f9ab00", "#9334e6", "#7cb342", "#e8710a"];
const DARK = ["#c3cad4", "#12b5cb", "#e52592", "#f9ab00", "#c58af9", "#7cb342", "#e8710a"];

/** The page of TensorBoard around the tab, or the window itself. */
function around() {
  try {
    return window.parent.document.body ? window.parent : window;
  } catch {
    return window; // of another origin, as in some notebooks
  }
}

/** @param {string} tag @param {Record<string, string>} attributes */
function loaded(tag, attributes) {
  return new Promise((resolve, reject) => {
    const element = document.createElement(tag);
    element.onload = resolve;
    element.onerror = () => reject(new Error(`${tag} could not be loaded`));
    Object.assign(element, attributes);
    document.head.append(element);
  });
}

/** What TensorBoard calls when the tab is opened. */
export async function render() {
  const outer = around();
  await Promise.all([
    loaded("link", { rel: "stylesheet", href: "./uPlot.min.css" }),
    loaded("link", { rel: "stylesheet", href: "./page.css" }),
    loaded("script", { src: "./uPlot.iife.min.js" }),
  ]);
  const { mount } = await import("./main.js");
  const root = document.createElement("div");
  root.id = "app";
  document.body.append(root);
  document.documentElement.classList.add("live");
  document.documentElement.lang = "en";
  const isDark = () => outer.document.body.classList.contains("dark-mode");
  const dress = () => { document.documentElement.dataset.theme = outer === window ? "" : isDark() ? "dark" : "light"; };
  if (outer !== window) dress();
  const page = await mount(root, serverSource("./"), {
    read: () => linked(outer),
    write: (query) => link(outer, query),
    colours: (names) => names.map((_, i) => (isDark() ? DARK : COLOURS)[i % COLOURS.length]),
  });
  if (outer !== window) {
    new MutationObserver(() => { dress(); page.build(); }).observe(outer.document.body, { attributes: true, attributeFilter: ["class"] });
  } else {
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page.build());
  }
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
