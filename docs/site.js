// Names for the copy buttons that the theme adds, and focus for code and tables that scroll.
function improve() {
  document.querySelectorAll(".md-code__nav:not([aria-label])").forEach((nav, place) => {
    nav.setAttribute("aria-label", `Code block ${nav.closest("pre")?.id ?? place}`);
  });
  document.querySelectorAll(":is(.md-typeset__scrollwrap, .md-typeset pre > code):not([tabindex])").forEach((wide) => {
    if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
  });
}
new MutationObserver(improve).observe(document.body, { childList: true, subtree: true });
addEventListener("resize", improve);
improve();
