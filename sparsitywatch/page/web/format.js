// @ts-check
/** Numbers and pieces of the document, as a person reads them. */

/** TensorBoard's own colours of runs, in its order; the first is another in the dark. */
export const COLOURS = ["#425066", "#12b5cb", "#e52592", "#f9ab00", "#9334e6", "#7cb342", "#e8710a"];
export const DARK = ["#8e98a3", ...COLOURS.slice(1)];

/**
 * A number in the unit of its series, with the digits that count.
 * @param {string} unit
 * @param {number | null | undefined} x
 */
export function shown(unit, x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (unit === "fraction") return percent(x);
  if (unit === "count" || unit === "steps") return whole(Math.round(x));
  return significant(x, 4) + (unit === "s" ? " s" : "");
}

const PLAIN = new Intl.NumberFormat("en-US", { maximumFractionDigits: 15 });

/** @param {number} x a share, in per cent with the three digits that count; as `percent` in series.py */
export function percent(x) {
  return `${PLAIN.format(Number((100 * x).toPrecision(3)))} %`;
}

/** The digits that count; an exponent only of what is tiny; as `significant` in series.py. @param {number} x @param {number} digits */
export function significant(x, digits) {
  const rounded = Number(x.toPrecision(digits));
  const isTiny = rounded !== 0 && Math.abs(rounded) < 1e-4;
  return isTiny ? rounded.toExponential().replace(/-(\d)$/, "-0$1") : PLAIN.format(rounded);
}

/**
 * What stands at the ticks of an axis: as many digits as tell one from the next.
 * @param {string} unit @param {number[]} ticks @param {number} gap from tick to tick
 */
export function tickTexts(unit, ticks, gap) {
  const high = Math.max(...ticks.map(Math.abs));
  if (unit === "fraction") return ticks.map((x) => `${PLAIN.format(Number((100 * x).toFixed(decimals(100 * gap))))} %`);
  if (high >= 1e6 && gap >= 1e4) {
    const digits = Math.max(1, decimals(gap / 1e6));
    return ticks.map((x) => (x ? `${(x / 1e6).toFixed(digits)} M` : "0"));
  }
  if (high < 1e-3) return ticks.map((x) => (x ? Number(x.toPrecision(3)).toExponential() : "0"));
  return ticks.map((x) => PLAIN.format(Number(x.toFixed(decimals(gap)))));
}

/** Digits behind the point that a multiple of a number needs. @param {number} gap */
function decimals(gap) {
  let digits = 0;
  while (digits < 12 && Math.abs(gap * 10 ** digits - Math.round(gap * 10 ** digits)) > 1e-6) digits += 1;
  return digits;
}

/** Pixels that a tick of the steps needs, as many as the longest has. @param {number} low @param {number} high @param {number} width */
export function tickSpace(low, high, width) {
  const isShort = high >= 1e6 && (high - low) / (width / 60) >= 1e4; // then it is in millions
  return isShort ? 60 : 24 + 7 * whole(Math.round(high)).length;
}

/** @param {number} n a whole number, such as a step */
export function whole(n) {
  return n.toLocaleString("en-US");
}

/** Where in a run something is: "step 1,200", "epoch 3". @param {{unit: string}} data @param {number} step */
export function numbered(data, step) {
  return `${data.unit} ${whole(step)}`;
}

/** @param {string} text */
export function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}

/** @param {number} thousandths a share; below 0 where nothing was measured */
export function share(thousandths) {
  return thousandths < 0 ? "–" : percent(thousandths / 1000);
}

/** @param {number} seconds how long ago something was, in words */
export function ago(seconds) {
  if (seconds < 90) return "just now";
  const [size, name] = seconds < 5400 ? [60, "min"] : seconds < 129600 ? [3600, "h"] : [86400, "days"];
  return `${Math.round(seconds / Number(size))} ${name} ago`;
}

/**
 * An element; text is text and never markup.
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes] "on…" are listeners; null and false are left out
 * @param {(Node | string | null)[]} children
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  set(element, attributes);
  for (const child of children) {
    if (child !== null) element.append(typeof child === "string" ? child.replace(/(\d) %/g, "$1\u00a0%") : child);
  }
  return element;
}

/**
 * An element of a drawing.
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes]
 * @param {(Node | string)[]} children
 * @returns {SVGElement}
 */
export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(element, attributes);
  element.append(...children);
  return element;
}

/** @param {Element} element @param {Record<string, unknown>} attributes */
function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) {
      element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    } else {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
}

/** @param {Element} element what a variable of the style sheet says @param {string} name */
export function colour(element, name) {
  return getComputedStyle(element).getPropertyValue(`--${name}`).trim();
}
