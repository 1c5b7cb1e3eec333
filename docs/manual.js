// The theme puts each button that copies code into a landmark without a name: a group, then.
new MutationObserver(() => {
  for (const nav of document.querySelectorAll("nav.md-code__nav:not([role])")) nav.setAttribute("role", "group");
}).observe(document.body, { childList: true, subtree: true });
