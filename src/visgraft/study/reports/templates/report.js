"use strict";

// Plots. A colour in a figure is the name of a CSS variable, resolved whenever the mode changes.
const PAPER_WIDTH = 680;
const NARROW = 480;
const LEGEND_LINE = 12;
const figures = [...document.querySelectorAll("script[data-for]")].map((script) => ({
  element: document.getElementById(script.dataset.for),
  text: script.textContent,
}));

function paint({ element, text }, width) {
  const style = getComputedStyle(document.documentElement);
  const { data, layout } = JSON.parse(text, (_, value) =>
    typeof value === "string" && value.startsWith("var(--")
      ? style.getPropertyValue(value.slice(4, -1)).trim()
      : value,
  );
  const room = width ?? element.clientWidth;
  const named = layout.showlegend ? data.filter((trace) => trace.name && trace.showlegend !== false) : [];
  const narrow = room < NARROW ? LEGEND_LINE * named.length : 0; // one name per line of the legend
  layout.height = Number(element.dataset.height) + narrow;
  layout.width = width;
  if (room < NARROW) layout.font.size = 11;
  layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
  return Plotly.react(element, data, layout, {
    responsive: width === undefined,
    displaylogo: false,
    modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
  });
}

const paintAll = (width) => figures.forEach((figure) => paint(figure, width));
paintAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paintAll());
addEventListener("beforeprint", () => {
  document.documentElement.classList.add("paper");
  paintAll(PAPER_WIDTH);
});
addEventListener("afterprint", () => {
  document.documentElement.classList.remove("paper");
  paintAll();
});

// Tables. Cells without a number or a key go last, whatever the direction.
const UNITS = {
  k: 1e3, M: 1e6, G: 1e9, "µs": 1e-6, ms: 1e-3, s: 1, min: 60, h: 3600,
  B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30,
};

function keyOf(cell) {
  const text = (cell.dataset.key ?? cell.textContent).trim();
  if (text === "" || text === "–" || text === "none") return null;
  const found = /^[[<]?\s*([+-]?\d[\d.]*(?:e[+-]?\d+)?)(?:\s*([^\s\d[(]+))?/i.exec(text);
  return found ? Number(found[1]) * (UNITS[found[2]] ?? 1) : text;
}

function order(x, y) {
  if (typeof x === "number" && typeof y === "number") return x - y;
  return String(x).localeCompare(String(y), "en", { numeric: true });
}

function sortBy(header) {
  const table = header.closest("table");
  const column = [...header.parentNode.children].indexOf(header);
  const direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  table.querySelectorAll("th[aria-sort]").forEach((th) => th.setAttribute("aria-sort", "none"));
  header.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const keyed = [...table.tBodies[0].rows].map((row) => [keyOf(row.children[column]), row]);
  keyed.sort(([x], [y]) =>
    x === null || y === null ? (x === null) - (y === null) : direction * order(x, y),
  );
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}
document.querySelectorAll("table.sortable th[aria-sort] button").forEach((button) =>
  button.addEventListener("click", () => sortBy(button.parentNode)),
);

// Tooltips: one box for the page, shown by the pointer and by the keyboard's focus alike.
const tip = document.getElementById("tip");
let owner = null;

function showTip(element) {
  hideTip();
  if (!element.dataset.tip) return;
  owner = element;
  tip.textContent = element.dataset.tip;
  tip.hidden = false;
  element.setAttribute("aria-describedby", "tip");
  placeTip();
}

function placeTip() {
  const place = owner.getBoundingClientRect();
  const left = Math.min(place.left, innerWidth - tip.offsetWidth - 8);
  const above = place.top - tip.offsetHeight - 6;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above > 4 ? above : place.bottom + 6}px`;
}

function hideTip() {
  owner?.removeAttribute("aria-describedby");
  owner = null;
  tip.hidden = true;
}

for (const [shows, hides] of [["mouseover", "mouseout"], ["focusin", "focusout"]]) {
  addEventListener(shows, (event) => {
    const element = event.target.closest?.("[data-tip]");
    if (element) showTip(element);
  });
  addEventListener(hides, (event) => {
    if (event.target.closest?.("[data-tip]") === owner) hideTip();
  });
}
addEventListener(
  "scroll",
  () => {
    if (owner && owner === document.activeElement) placeTip(); // the focus itself scrolls
    else hideTip();
  },
  { capture: true, passive: true },
);
addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});
