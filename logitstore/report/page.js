"use strict";
// Sorting of tables, a filter for long ones, and the values of the frame under the pointer or the arrow keys.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const value = (row, i) => {
    const cell = row.cells[i];
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    return cell.classList.contains("n") ? -Infinity : cell.textContent;
  };
  for (const th of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = th.textContent;
    th.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = th.getAttribute("aria-sort") !== "descending";
      const rows = [...body.rows].sort((a, b) => {
        const x = value(a, th.cellIndex), y = value(b, th.cellIndex);
        const order = typeof x === "number" ? (x > y) - (x < y) : x.localeCompare(y);
        return down ? -order : order;
      });
      for (const other of th.parentNode.cells) other.removeAttribute("aria-sort");
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows);
    });
  }
  if (body.rows.length > 5) {
    const input = document.createElement("input");
    input.type = "search";
    input.className = "filter";
    input.placeholder = "Filter " + body.rows.length + " lines";
    input.setAttribute("aria-label", "Filter the lines of the table");
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
    const region = table.closest(".wide") || table;
    region.before(input);
  }
}

for (const scroll of document.querySelectorAll(".scroll[data-frames]")) {
  const frames = Number(scroll.dataset.frames);
  const tracks = scroll.querySelector(".tracks");
  const next = scroll.nextElementSibling;
  const table = next && next.querySelector("table.frames");
  const rows = table ? [...table.tBodies[0].rows] : [];
  const heads = table ? [...table.tHead.rows[0].cells].map((cell) => cell.textContent) : [];
  const readout = document.createElement("output");
  readout.className = "readout";
  readout.textContent = "Point at a picture, or focus it and use the arrow keys, to read a frame.";
  scroll.after(readout);
  let at = -1;
  const show = (frame) => {
    at = Math.max(0, Math.min(frames - 1, frame));
    tracks.classList.add("here");
    tracks.style.setProperty("--at", (100 * at) / frames + "%");
    tracks.style.setProperty("--step", 100 / frames + "%");
    let row = null;
    for (const candidate of rows) {
      if (Number(candidate.dataset.f) > at) break;
      row = candidate;
    }
    const parts = heads.map((head, i) => {
      const span = document.createElement("span"), name = document.createElement("b");
      name.textContent = row ? row.cells[i].textContent : at;
      span.append(head + " ", name, " ");
      return span;
    });
    if (!parts.length) parts.push("frame " + at);
    readout.replaceChildren(...parts);
  };
  tracks.addEventListener("pointermove", (event) => {
    const plot = event.target.closest(".plot");
    if (!plot) return;
    const box = plot.getBoundingClientRect();
    show(Math.floor(((event.clientX - box.left) / box.width) * frames));
  });
  tracks.addEventListener("pointerleave", () => tracks.classList.remove("here"));
  scroll.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: frames - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(to);
    const plot = tracks.querySelector(".plot");
    const x = plot.offsetLeft + (plot.offsetWidth * at) / frames;
    if (x < scroll.scrollLeft + 130 || x > scroll.scrollLeft + scroll.clientWidth) scroll.scrollLeft = x - scroll.clientWidth / 2;
  });
}
