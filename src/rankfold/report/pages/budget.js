"use strict";
{
  const { layers, offers, measured, sought, called } = JSON.parse(document.getElementById("offers").textContent);
  const at = (name) => document.getElementById("budget-" + name);
  const slider = at("slider"), order = at("order"), body = at("rows"), rows = [...body.rows];
  const percent = (share) => (Math.round(1000 * share) / 10 + 0).toFixed(1) + " %";
  const whole = (count) => count.toLocaleString("en-US");

  const show = () => {
    const offer = offers[slider.value];
    at("flops").textContent = percent(offer.flops);
    at("params").textContent = percent(offer.params);
    at("bytes").textContent = percent(offer.bytes);
    at("loss").textContent = offer.loss;
    slider.setAttribute("aria-valuetext", percent(offer[sought]) + " of the " + called);
    const near = measured.filter((point) => Math.abs(point.kept - offer[sought]) < 0.03)
      .sort((a, b) => Math.abs(a.kept - offer[sought]) - Math.abs(b.kept - offer[sought]))[0];
    at("near").textContent = near ? near.text + " at " + percent(near.kept) + " of the " + called : "nothing near";
    rows.forEach((row, index) => {
      const [form, rank, error, params, flops] = offer.layers[index], layer = layers[index];
      const cells = row.cells, saved = Math.abs(layer.flops - flops) < 5e-5 ? 0 : layer.flops - flops;
      row.classList.toggle("whole", rank === null);
      cells[1].textContent = form;
      cells[2].textContent = rank === null ? "" : rank;
      cells[3].textContent = error === null ? "" : error.toFixed(3);
      if (!layer.tied) cells[4].textContent = whole(params);
      cells[5].firstChild.textContent = percent(saved);
      cells[5].querySelector("i").style.width = Math.min(100, 100 * Math.max(0, saved / layer.flops || 0)) + "%";
      row.saved = saved;
    });
    arrange();
  };
  const arrange = () => {
    const keys = {
      network: (index) => index,
      cost: (index) => -layers[index].flops,
      saved: (index) => -rows[index].saved,
    };
    const key = keys[order.value];
    rows.map((row, index) => [key(index), index, row]).sort((a, b) => a[0] - b[0] || a[1] - b[1])
      .forEach(([, , row]) => body.append(row));
  };
  slider.addEventListener("input", show);
  order.addEventListener("change", arrange);
  at("controls").hidden = false;
  show();
}
