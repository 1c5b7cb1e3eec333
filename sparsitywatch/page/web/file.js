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

/** Of a sheet of A4 with margins of a centimetre, in pixels; the least share of a page that drawings take. */
const [SHEET_WIDTH, SHEET_HEIGHT, LEAST_SHARE] = [718, 1047, 0.37];

/** On paper the drawings take what the words leave of their page, or most of the next one. */
function fitPaper() {
  for (const paper of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".paper"))) {
    const overview = /** @type {HTMLElement | null} */ (paper.querySelector(".overview"));
    if (!overview) continue;
    paper.style.width = `${SHEET_WIDTH}px`;
    const words = (overview.getBoundingClientRect().top - paper.getBoundingClientRect().top) / SHEET_HEIGHT;
    paper.style.width = "";
    const rest = 0.97 - (words % 1);
    overview.style.minHeight = `${Math.round(100 * (rest < LEAST_SHARE ? 0.62 : rest))}vh`;
    overview.style.setProperty("--high", `${Math.min(100, Math.round((100 * (rest < LEAST_SHARE ? 0.62 : rest)) / 0.52))}%`);
  }
}

matchMedia("print").addEventListener("change", ({ matches }) => matches && fitPaper());
document.documentElement.classList.add("live");
fileSource(text).then((source) => mount(root, source, host)).then((page) => {
  dark.addEventListener("change", () => page.build());
  addEventListener("hashchange", () => { page.restore(); page.build(); });
}).catch((error) => {
  document.documentElement.classList.remove("live"); // the words and the drawing are there
  console.error(error);
});
