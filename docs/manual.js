// What the theme leaves out when it draws a page: each button that copies code is a landmark without
// a name, so they are numbered; tables that scroll cannot be reached by the keyboard.
let num = 0;
new MutationObserver(() => {
  for (const nav of document.querySelectorAll("nav.md-code__nav:not([aria-label])")) {
    num += 1;
    nav.setAttribute("aria-label", `Code ${num}`);
  }
  for (const wrap of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) wrap.tabIndex = 0;
}).observe(document.body, { childList: true, subtree: true });
