/**
 * Elements from data. Texts become text nodes and never HTML, and nothing sets a style attribute, so the page needs
 * neither inline scripts nor inline styles.
 */

/** @typedef {string | number | Node | null | undefined | false} Child */

/**
 * Create an element. `attributes` with the value false, null or undefined are left out; `onclick` and its like are
 * functions; `vars` are custom properties for the style sheet.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const [key, set] of Object.entries(value)) made.style.setProperty(`--${key}`, String(set));
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...kept(children));
  return made;
}

/**
 * Replace the content of an element.
 * @param {Element} parent
 * @param {...(Child | Child[])} children
 */
export function fill(parent, ...children) {
  parent.replaceChildren(...kept(children));
}

/**
 * Return the element with an id.
 * @template {HTMLElement} Kind
 * @param {string} id
 * @param {new () => Kind} kind
 * @returns {Kind}
 */
export function byId(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`the page has no ${kind.name} #${id}`);
  return found;
}

/**
 * A list of tabs with its panels: arrow keys move between the tabs. `show` fills a panel when its tab is first opened.
 * @param {string} label
 * @param {{ id: string, title: string, show: (panel: HTMLElement) => void }[]} tabs
 * @returns {HTMLElement}
 */
export function tabbed(label, tabs) {
  const panels = tabs.map(({ id }) =>
    el("div", { role: "tabpanel", id: `${id}-panel`, "aria-labelledby": `${id}-tab`, hidden: true, tabindex: "0" }),
  );
  const buttons = tabs.map(({ id, title }, i) =>
    el("button", { type: "button", role: "tab", id: `${id}-tab`, "aria-controls": `${id}-panel`, onclick: () => open(i) }, title),
  );
  const filled = new Set();
  /** @param {number} place */
  function open(place) {
    buttons.forEach((button, i) => {
      button.setAttribute("aria-selected", String(i === place));
      button.tabIndex = i === place ? 0 : -1;
    });
    panels.forEach((panel, i) => (panel.hidden = i !== place));
    if (!filled.has(place)) tabs[place]?.show(/** @type {HTMLElement} */ (panels[place]));
    filled.add(place);
  }
  const list = el("div", { role: "tablist", "aria-label": label, class: "tabs" }, ...buttons);
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const place = (buttons.findIndex((button) => button.tabIndex === 0) + step + tabs.length) % tabs.length;
    open(place);
    buttons[place]?.focus();
    event.preventDefault();
  });
  open(0);
  return el("div", { class: "tabbed" }, list, ...panels);
}

/** @param {(Child | Child[])[]} children @returns {(string | Node)[]} */
function kept(children) {
  return children.flat().flatMap((child) => {
    if (child === null || child === undefined || child === false) return [];
    return [typeof child === "number" ? String(child) : child];
  });
}
