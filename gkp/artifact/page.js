"use strict";
// The address may say how a table is sorted: #TABLE,COLUMN,ascending. Empty cells stay last in both directions.
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
