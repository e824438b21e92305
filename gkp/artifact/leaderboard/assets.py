"""The page's style and script, inside the page; it loads nothing from anywhere."""

STYLE = """
:root { --ink: #1c1f24; --quiet: #59616c; --paper: #ffffff; --line: #d9dde3; --stripe: #f5f7f9; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7eaee; --quiet: #a3acb8; --paper: #15181d; --line: #363c45; --stripe: #1c2027; --link: #7db9f5; }
}
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 100rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p, li, details { max-width: 75ch; }
a { color: var(--link); }
small { color: var(--quiet); font-size: .78rem; font-weight: 400; white-space: nowrap; }
.method small { display: block; white-space: normal; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .4rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
tr { background: var(--paper); }
tbody tr:nth-child(even) { background: var(--stripe); }
thead th, thead th.number { vertical-align: bottom; font-weight: 600; white-space: normal; }
tbody th { font-weight: 600; min-width: 12rem; }
.latency small { white-space: normal; min-width: 5rem; }
@media (min-width: 50rem) { .method { position: sticky; left: 0; background: inherit; } }
.number { text-align: right; white-space: nowrap; }
.number small { display: block; }
th button { all: unset; cursor: pointer; display: inline; }
th button:hover { text-decoration: underline; }
th button:focus-visible, .scroll:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
th button::after { content: "\\a0\\2195"; color: var(--quiet); opacity: .5; }
th[aria-sort$="ending"] button::after { color: var(--ink); opacity: 1; }
th[aria-sort="ascending"] button::after { content: "\\a0\\2191"; }
th[aria-sort="descending"] button::after { content: "\\a0\\2193"; }
figure { margin: 1rem 0 0; max-width: 46rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: var(--quiet); font-size: .9rem; }
"""
# The address may say how a table is sorted: #TABLE,COLUMN,ascending. Empty cells stay last in both directions.
SCRIPT = """
"use strict";
function sort(header, direction) {
  const body = header.closest("table").tBodies[0], column = header.cellIndex;
  const number = header.dataset.kind === "number", sign = direction === "ascending" ? 1 : -1;
  const value = row => row.cells[column].dataset.sort;
  const rows = [...body.rows].sort((first, second) => {
    const a = value(first), b = value(second);
    if (a === "" || b === "") return (a === "") - (b === "");
    return sign * (number ? a - b : a.localeCompare(b));
  });
  body.append(...rows);
  for (const other of header.parentNode.cells) other.setAttribute("aria-sort", other === header ? direction : "none");
}
function sortByAddress() {
  const [table, key, direction] = decodeURIComponent(location.hash.slice(1)).split(",");
  const header = [...document.querySelectorAll("th[data-key]")].find(
    other => other.dataset.key === key && other.closest("table").id === table);
  if (header && ["ascending", "descending"].includes(direction)) sort(header, direction);
}
for (const header of document.querySelectorAll("th[data-key]")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...header.childNodes);
  header.append(button);
  button.addEventListener("click", () => {
    const now = header.getAttribute("aria-sort");
    const direction = now === "none" ? header.dataset.first : now === "ascending" ? "descending" : "ascending";
    sort(header, direction);
    history.replaceState(null, "", `#${header.closest("table").id},${header.dataset.key},${direction}`);
  });
}
addEventListener("hashchange", sortByAddress);
sortByAddress();
"""
