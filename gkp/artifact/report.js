// The table of claims: words and choices filter it, and the address keeps them: #claims,minutes,descending&verdict=holds
const rows = [...document.querySelectorAll("#claims tbody tr")], fields = [...document.querySelectorAll("form [name]")];
const count = document.querySelector("#count");
function filter() {
  const wanted = fields[0].value.toLowerCase().split(/\s+/).filter(Boolean), choices = fields.slice(1);
  let left = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !(wanted.every(word => text.includes(word))
      && choices.every(choice => !choice.value || row.dataset[choice.name] === choice.value));
    left += !row.hidden;
  }
  count.textContent = `${left} of ${rows.length} claims`;
}
addition = () => {
  const chosen = new URLSearchParams(fields.filter(field => field.value).map(field => [field.name, field.value])).toString();
  return chosen && `${sorted ? "" : "every-claim"}&${chosen}`;
};
function byAddress() {
  const address = location.hash.slice(1), given = new URLSearchParams(address.split("&").slice(1).join("&"));
  for (const field of fields) {
    field.value = given.get(field.name) ?? "";
    if (field.value !== (given.get(field.name) ?? "")) field.value = ""; // a choice that there is none of
  }
  filter();
  const aim = document.getElementById(address.split(/[,&]/)[0]);
  if (aim?.matches("#claims tr")) aim.querySelector("details").open = true;
  if (aim) aim.scrollIntoView();
}
for (const field of fields) field.addEventListener("input", () => { filter(); remember(); });
document.querySelector("form").addEventListener("submit", event => event.preventDefault());
document.querySelector("form").addEventListener("reset", () => setTimeout(() => { filter(); remember(); }));
addEventListener("hashchange", byAddress);
byAddress();
