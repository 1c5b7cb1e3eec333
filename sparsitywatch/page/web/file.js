// @ts-check
/** The page as a file: its data stand in it, and a link's state behind its #. */

import { fileSource } from "./data.js";
import { COLOURS, DARK } from "./format.js";
import { mount } from "./main.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const root = /** @type {HTMLElement} */ (document.getElementById("app"));
const text = document.getElementById("data")?.textContent ?? "";

/** @type {import("./main.js").Host} */
const host = {
  read: () => new URLSearchParams(location.hash.slice(1)),
  write: (query) => {
    if (location.protocol !== "about:") history.replaceState(null, "", `#${query}`); // a frame of a notebook has no address
  },
  colours: (names) => names.map((_, i) => (dark.matches ? DARK : COLOURS)[i % COLOURS.length]),
};

document.documentElement.classList.add("live");
fileSource(text).then((source) => mount(root, source, host)).then((page) => {
  dark.addEventListener("change", () => page.build());
  addEventListener("hashchange", () => { page.restore(); page.build(); });
}).catch((error) => {
  document.documentElement.classList.remove("live"); // the words and the drawing are there
  console.error(error);
});
