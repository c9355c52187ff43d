"use strict";
{
  const only = document.getElementById("differing"), order = document.getElementById("order");
  const body = document.getElementById("layers"), rows = [...body.rows];
  const spread = (row) => {
    const kept = [...row.querySelectorAll("td")].map((cell) => parseFloat(cell.dataset.kept)).filter((x) => !isNaN(x));
    return kept.length < 2 ? 0 : Math.max(...kept) - Math.min(...kept);
  };
  const show = () => {
    rows.forEach((row) => { row.hidden = only.checked && row.dataset.differs === "no"; });
    const keys = order.value === "spread" ? rows.map((row) => -spread(row)) : rows.map((_, index) => index);
    rows.map((row, index) => [keys[index], index, row]).sort((a, b) => a[0] - b[0] || a[1] - b[1])
      .forEach(([, , row]) => body.append(row));
    document.getElementById("shown").textContent = rows.filter((row) => !row.hidden).length + " of " + rows.length;
  };
  only.addEventListener("change", show);
  order.addEventListener("change", show);
  document.getElementById("controls").hidden = false;
  show();
}
