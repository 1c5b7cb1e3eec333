// The theme puts each button that copies code into a landmark without a name: number them.
let num = 0;
new MutationObserver(() => {
  for (const nav of document.querySelectorAll("nav.md-code__nav:not([aria-label])")) {
    num += 1;
    nav.setAttribute("aria-label", `Code ${num}`);
  }
}).observe(document.body, { childList: true, subtree: true });
