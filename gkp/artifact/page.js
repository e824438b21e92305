"use strict";
// The address may say how a table is sorted: #TABLE,COLUMN,ascending; what a page adds follows after "&".
// Empty cells stay last in both directions.
let sorted = "", addition = () => "";
function remember() {
  history.replaceState(null, "", "#" + sorted + addition());
}
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
  sorted = `${header.closest("table").id},${header.dataset.key},${direction}`;
}
function sortByAddress() {
  const [table, key, direction] = location.hash.slice(1).split("&")[0].replaceAll("%2C", ",").split(",");
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
    remember();
  });
}
addEventListener("hashchange", sortByAddress);
sortByAddress();
