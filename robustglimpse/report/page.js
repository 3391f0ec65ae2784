// Sorting within comparisons and filtering of rows; the page is whole without it.
"use strict";
for (const table of document.querySelectorAll("table[data-sort]")) {
  const bodies = [...table.tBodies];
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    if (head.dataset.type === undefined) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.dataset.type === "number" ? head.ariaSort !== "descending" : head.ariaSort === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.ariaSort = down ? "descending" : "ascending";
      for (const body of bodies) {
        const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
        const key = (row) => {
          const text = row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
          return head.dataset.type === "number" ? (text === "" ? NaN : Number(text)) : text;
        };
        rows.sort((a, b) => {
          const x = key(a), y = key(b);
          if (typeof x === "string") return (down ? -1 : 1) * x.localeCompare(y, "en", { numeric: true });
          if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // holes stay last
          return (down ? -1 : 1) * (x - y);
        });
        body.append(...rows);
      }
    });
  });
  const tools = document.createElement("div");
  tools.className = "tools";
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("output");
  input.type = "search";
  input.placeholder = "model, protocol, data";
  label.append("Filter ", input);
  count.className = "muted";
  tools.append(label, count);
  table.closest(".scroll").before(tools);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0, all = 0;
    for (const body of bodies) {
      const group = body.querySelector("tr.group");
      let here = 0;
      for (const row of body.rows) {
        if (row === group) continue;
        const text = ((group ? group.textContent : "") + " " + row.textContent).toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        here += row.hidden ? 0 : 1;
        all += 1;
      }
      if (group) group.hidden = here === 0;
      shown += here;
    }
    count.textContent = words.length ? `${shown} of ${all} rows` : "";
  });
}
