for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
  const column = head.cellIndex, text = head.classList.contains("text");
  const down = head.getAttribute("aria-sort") === (text ? "ascending" : null) ||
    (!text && head.getAttribute("aria-sort") !== "descending");
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[column].dataset.value;
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return (text ? x.localeCompare(y) : x - y) * (down ? -1 : 1);
  };
  body.append(...[...body.rows].sort(compare));
});
