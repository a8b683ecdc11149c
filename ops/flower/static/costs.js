// The page of costs.
(function () {
  "use strict";

  const C = window.Celeriac;
  const chosen = { by: document.getElementById("by"), over: document.getElementById("over"), days: document.getElementById("days") };
  const place = document.getElementById("chart");
  let chart = null, drawn = null, at = -1;

  const plural = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

  function spent(name, sums) {
    C.set(name, C.usd(sums.cost_usd));
    C.set(`${name}-more`, `${plural(sums.calls, "call")}, ${sums.errors} without an answer`);
  }

  function drawSpent(said) {
    spent("today", said.today);
    spent("month", said.month);
    C.set("rate", `${C.about(said.usd_an_hour)} an hour`);
    C.set("rate-more", `at this rate about ${C.about(said.month_expected_usd)} by the end of the month`);
    C.set("doubt", C.usd(said.month.in_doubt_usd));
    C.set("doubt-more", `it may have been billed; ${C.usd(said.month.reserved_usd)} reserved`);
  }

  // A share of the bar. Numbers are for drawing alone.
  function part(kind, amount, cap) {
    return C.el("span", { class: kind, style: `width:${Math.min(100, (100 * Number(amount)) / Math.max(Number(cap), 1e-9))}%` });
  }

  function budget(b) {
    const used = `${C.usd(b.settled_usd)} settled, ${C.usd(b.in_doubt_usd)} in doubt, ${C.usd(b.reserved_usd)} reserved of ${C.usd(b.cap_usd)}`;
    const bar = C.el("div", { class: "bar", role: "img", "aria-label": used },
      part("settled", b.settled_usd, b.cap_usd), part("in-doubt", b.in_doubt_usd, b.cap_usd), part("reserved", b.reserved_usd, b.cap_usd),
      b.alert_at.filter((percent) => percent < 100).map((percent) => C.el("span", { class: "alert-at", style: `left:${percent}%` })));
    const alerts = b.alert_at.map((percent) => C.el("span", { class: b.alerted.includes(percent) ? "bad" : "muted" },
      `${percent} %${b.alerted.includes(percent) ? " reached" : ""} `));
    const forecast = b.is_reached ? C.text("span", "the cap is reached", "bad")
      : b.reached_at ? C.text("span", `the cap is reached at ${C.soon(b.reached_at)}`, "warn")
        : C.text("span", b.ends_at ? "not in this window" : "not within a year", "muted");
    if (b.ends_at) forecast.title = `The window ends at ${C.soon(b.ends_at)}`;
    return [C.el("th", { scope: "row" }, b.scope), C.cell(b.window), C.cell(bar, "bar-column"), C.cell(C.usd(b.settled_usd), "number"),
      C.cell(C.usd(b.in_doubt_usd), "number"), C.cell(C.usd(b.reserved_usd), "number"), C.cell(C.usd(b.left_usd), "number"),
      C.cell(C.usd(b.cap_usd), "number"), C.cell(alerts.length ? C.el("span", {}, alerts) : ""), C.cell(forecast, "words")];
  }

  function drawBudgets(said) {
    C.rows(document.querySelector("#budgets tbody"), said.shown, (b) => `${b.scope} ${b.window}`, budget, "No budget");
    const note = document.getElementById("budgets-note");
    if (said.shown.length) note.textContent = said.more ? `${said.more} more, which have more left: celeriac budgets list` : "";
    note.hidden = said.shown.length > 0 && !said.more;
  }

  const colour = (index) => getComputedStyle(C.root).getPropertyValue(`--series-${index}`).trim();
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const label = (said, time) => (said.step === "hour" ? `${C.day.format(new Date(time))}, ${C.minute.format(new Date(time))}` : C.day.format(new Date(time)));

  function readout(index) {
    if (!drawn || index === null || index === undefined || index < 0 || index >= drawn.times.length) return;
    at = index;
    const parts = drawn.series.filter((its) => Number(its.cost_usd[index]) > 0).map((its) => `${its.name} ${C.usd(its.cost_usd[index])}`);
    C.set("chart-readout", `${label(drawn, drawn.times[index])}: ${C.usd(drawn.sums_usd[index])}${parts.length ? ` (${parts.join(", ")})` : ""}`);
  }

  // Each series stands on those after it: the highest is drawn first, the others over it.
  function stacked(said) {
    const times = said.times.map((time) => Date.parse(time) / 1000);
    const sums = times.map(() => 0), data = [];
    for (let i = said.series.length - 1; i >= 0; i--) {
      said.series[i].cost_usd.forEach((amount, n) => { sums[n] += Number(amount); });
      data.unshift([...sums]);
    }
    return [times, ...(data.length ? data : [sums])];
  }

  function plot() {
    if (chart) chart.destroy();
    const said = drawn, grid = { stroke: ink("--bs-border-color"), width: 1 }, axis = { stroke: ink("--flower-text-muted"), grid, ticks: grid };
    const half = said.step === "hour" ? 1800 : 43200, bars = window.uPlot.paths.bars({ size: [0.8, 60] });
    const names = said.series.length ? said.series.map((its) => its.name) : ["nothing"];
    chart = new window.uPlot({
      width: Math.max(200, place.clientWidth - 32),
      height: 260,
      legend: { show: false },
      tzDate: (seconds) => window.uPlot.tzDate(new Date(seconds * 1000), C.root.dataset.zone),
      cursor: { y: false, drag: { x: false, y: false } },
      scales: { x: { range: (_, from, to) => [from - half, to + half] }, y: { range: (_, __, most) => [0, most > 0 ? most * 1.05 : 1] } },
      axes: [
        { ...axis, values: (_, splits) => splits.map((s) => label({ step: said.step }, s * 1000).split(", ").pop()), incrs: said.step === "hour" ? [3600, 7200, 10800, 21600] : [86400, 172800, 604800, 1209600] },
        { ...axis, size: 72, values: (_, splits) => splits.map((value) => `$${Number(value.toPrecision(6))}`) },
      ],
      series: [{}, ...names.map((name, i) => ({ label: name, fill: colour(i), stroke: colour(i), width: 0, points: { show: false }, paths: bars }))],
      hooks: { setCursor: [(u) => { if (u.cursor.event) readout(u.cursor.idx); }] },
    }, stacked(said), place);
  }

  function drawChart(said) {
    const is = JSON.stringify(said);
    if (drawn && JSON.stringify(drawn) === is) return;
    drawn = said;
    plot();
    document.getElementById("legend").replaceChildren(...said.series.map((its, i) => C.el("li", {},
      C.el("span", { class: "swatch", style: `background:var(--series-${i})` }), `${its.name} ${C.usd(its.total_usd)}`)));
    const head = C.el("tr", {}, C.el("th", { scope: "col" }, said.step), said.series.map((its) => C.el("th", { scope: "col", class: "number" }, its.name)),
      C.el("th", { scope: "col", class: "number" }, "All"));
    document.querySelector("#figures thead").replaceChildren(head);
    const lines = said.times.map((time, n) => [time, ...said.series.map((its) => its.cost_usd[n]), said.sums_usd[n]]);
    C.rows(document.querySelector("#figures tbody"), [...lines, ["Together", ...said.series.map((its) => its.total_usd), said.total_usd]], (line) => line[0],
      ([time, ...amounts]) => [C.el("th", { scope: "row" }, time === "Together" ? time : label(said, time)), ...amounts.map((amount) => C.cell(C.usd(amount), "number"))], "");
    if (at < 0) C.set("chart-readout", `${C.usd(said.total_usd)} in all`); else readout(Math.min(at, said.times.length - 1));
  }

  function drawDearest(said) {
    C.rows(document.querySelector("#dearest tbody"), said, (job) => job.job_id,
      (job) => [C.el("th", { scope: "row" }, C.link(job.job_id)), C.cell(job.agent), C.cell(job.tenant), C.cell(C.usd(job.cost_usd), "number")],
      "No job that ended then cost anything");
  }

  const look = C.live(() => `${C.root.dataset.url}?by=${chosen.by.value}&over=${chosen.over.value}&days=${chosen.days.value}`, (said) => {
    drawSpent(said.spent);
    drawBudgets(said.budgets);
    drawChart(said.chart);
    drawDearest(said.dearest);
  });
  for (const choice of Object.values(chosen)) choice.addEventListener("change", () => { at = -1; look(); });

  place.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !chart) return;
    event.preventDefault();
    const next = at < 0 ? drawn.times.length - 1 : Math.max(0, Math.min(drawn.times.length - 1, at + step));
    readout(next);
    chart.setCursor({ left: chart.valToPos(chart.data[0][next], "x"), top: 10 });
  });
  new ResizeObserver(() => { if (chart) chart.setSize({ width: Math.max(200, place.clientWidth - 32), height: 260 }); }).observe(place);
  new MutationObserver(() => { if (drawn) plot(); }).observe(document.documentElement, { attributes: true, attributeFilter: ["data-bs-theme"] });
}());
