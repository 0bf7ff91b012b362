// The list of claims: filtered and sorted in the browser. Without this file it is complete, in the order of the
// chapters.
document.addEventListener("DOMContentLoaded", () => {
  const table = document.querySelector("table.ledger");
  if (!table) {
    return;
  }
  const form = document.querySelector("form.ledger-filter");
  const { verdict, chapter, words } = form.elements;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

  function show() {
    const wanted = words.value.toLowerCase().split(/\s+/);
    const counts = {};
    for (const row of rows) {
      const fits =
        (!verdict.value || row.dataset.verdict === verdict.value) &&
        (!chapter.value || row.dataset.chapter === chapter.value) &&
        wanted.every((word) => texts.get(row).includes(word));
      row.hidden = !fits;
      counts[row.dataset.verdict] = (counts[row.dataset.verdict] || 0) + fits;
    }
    const found = [...verdict.options].map((option) => option.value).filter((name) => counts[name]);
    const total = found.reduce((sum, name) => sum + counts[name], 0);
    const told = found.map((name) => `${counts[name]} ${name}`).join(", ");
    form.querySelector("output").textContent =
      total === rows.length ? `All ${total} claims` : `${total} of ${rows.length} claims` + (told && `: ${told}`);
  }

  function sort(head, column) {
    const falling = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) {
      other.setAttribute("aria-sort", "none");
    }
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const words = (one, two) => one.localeCompare(two, "en", { numeric: true });
    const compare = head.dataset.sort === "number" ? (one, two) => one - two : words;
    const inOrder = [...rows].sort((one, two) => {
      const [first, second] = [value(one), value(two)];
      if (!first || !second) {
        return !first - !second; // what has no value comes last either way
      }
      return falling ? compare(second, first) : compare(first, second);
    });
    body.append(...inOrder);
  }

  // A link to a claim, such as #claim-7, shows and opens it, whatever the filters hide.
  function follow() {
    const row = rows.find((one) => `#${one.id}` === location.hash);
    if (row) {
      if (row.hidden) {
        form.reset();
        show();
      }
      row.querySelector("details").open = true;
      row.scrollIntoView({ block: "center" });
    }
  }

  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(head, column));
    head.replaceChildren(button);
    head.setAttribute("aria-sort", column ? "none" : "ascending");
  });
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", follow);
  form.hidden = false;
  show();
  follow();
});
