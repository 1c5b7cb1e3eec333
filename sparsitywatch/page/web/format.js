// @ts-check
/** Numbers and pieces of the document, as a person reads them. */

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

/** @param {number} x a fraction, as per cent with three digits */
export function percent(x) {
  return `${significant(100 * x, 3)} %`;
}

/** @param {number} x @param {number} digits */
export function significant(x, digits) {
  const text = x.toPrecision(digits);
  return /e/.test(text) ? text.replace(/\.?0+e/, "e") : String(Number(text));
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
  return thousandths < 0 ? "–" : `${(thousandths / 10).toFixed(1)} %`;
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
