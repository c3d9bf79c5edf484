"use strict";

// Plots. A colour in a figure is the name of a CSS variable, resolved whenever the mode changes.
const PAPER_WIDTH = 680;
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
  layout.height = Number(element.dataset.height);
  layout.width = width;
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

// Tables. Cells without a key go last, whatever the direction.
function sortBy(header) {
  const table = header.closest("table");
  const column = [...header.parentNode.children].indexOf(header);
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  table.querySelectorAll("th[aria-sort]").forEach((th) => th.setAttribute("aria-sort", "none"));
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const key = (row) => row.children[column].dataset.key;
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return ascending ? order : -order;
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}
document.querySelectorAll("table.sortable th[aria-sort] button").forEach((button) =>
  button.addEventListener("click", () => sortBy(button.parentNode)),
);
