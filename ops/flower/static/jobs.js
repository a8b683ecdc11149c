// The page of jobs.
(function () {
  "use strict";

  const C = window.Celeriac, A = window.CeleriacAct;
  const canAct = C.root.dataset.act !== "";
  const fields = ["id", "agent", "tenant"].map((name) => document.getElementById(name));
  const body = document.querySelector("#table tbody");
  const all = document.getElementById("all"), pageBox = document.getElementById("page"), stop = document.getElementById("stop");
  const given = new URLSearchParams(location.search);
  const filter = { what: given.get("what") || "", id: given.get("id") || "", agent: given.get("agent") || "", tenant: given.get("tenant") || "" };
  const selected = new Set();
  let cursors = [], next = null, shown = [], busy = false, stopped = false;

  fields.forEach((field) => { field.value = filter[field.id]; });

  function query(more) {
    return new URLSearchParams(Object.entries({ ...filter, ...more }).filter(([, value]) => value)).toString();
  }

  const address = () => `${C.root.dataset.url}?${query({ cursor: cursors[cursors.length - 1] })}`;

  function state(job) {
    const kinds = { succeeded: "good", failed: "bad", expired: "bad", running: "warn" };
    const words = [job.dead ? "dead letter" : job.stopping ? "stopping" : job.state];
    if (job.reason) words.push(job.reason.replaceAll("_", " "));
    if (job.error && job.state === "failed" && !job.dead) words.push(job.error.replaceAll("_", " "));
    return C.el("span", { class: kinds[job.state] || null, title: job.resume_at ? `until ${C.when(job.resume_at)}` : null }, words.join(": "));
  }

  function cells(job) {
    const waited = job.started_at || job.ended_at;
    const box = C.el("input", { type: "checkbox", class: "form-check-input", "aria-label": `Select ${job.id}`, "data-name": "select",
      on: { change: (event) => { if (event.target.checked) selected.add(job.id); else selected.delete(job.id); chosen(); } } });
    box.checked = selected.has(job.id);
    const buttons = job.may.map((action) => C.el("button", { type: "button", class: "btn btn-sm btn-outline-secondary", "data-name": action,
      "aria-label": `${A.NAMES[action]} ${job.id}`, on: { click: () => start(action, { ids: [job.id] }, `job ${job.id}`) } }, A.NAMES[action]));
    return [
      canAct ? C.cell(box) : null, C.el("th", { scope: "row" }, C.link(job.id)), C.cell(state(job), "words"), C.cell(job.agent), C.cell(job.tenant),
      C.cell(C.when(job.created_at)), C.cell(waited ? C.seconds((Date.parse(waited) - Date.parse(job.created_at)) / 1000) : "waits", "number"),
      C.cell(String(job.attempts), "number"),
      C.cell(C.usd(job.cost_usd) + (Number(job.in_doubt_usd) ? ` + ${C.usd(job.in_doubt_usd)} in doubt` : ""), "number"),
      canAct ? C.el("td", { class: "actions-cell" }, buttons.flatMap((button) => [button, " "])) : null,
    ].filter(Boolean);
  }

  function names(id, known) {
    const list = document.getElementById(id), said = known.join(" ");
    if (list.dataset.said === said) return;
    list.dataset.said = said;
    list.replaceChildren(...known.map((name) => C.el("option", { value: name })));
  }

  function draw(said) {
    shown = said.jobs;
    next = said.cursor;
    C.rows(body, said.jobs, (job) => job.id, cells, "No job matches");
    document.querySelectorAll("#whats button").forEach((button) => {
      const count = said.counts[button.dataset.what];
      button.querySelector(".count").textContent = button.dataset.what === "" ? "" : count === undefined ? "" : count.toLocaleString("en");
    });
    names("agents", said.agents);
    names("tenants", said.tenants);
    document.getElementById("older").disabled = !next;
    document.getElementById("newer").disabled = !cursors.length;
    C.set("pager-text", next && !shown.length ? "None of the jobs that were looked at match; older ones may." : `Page ${cursors.length + 1}`);
    chosen();
  }

  // What the buttons above the table are about.
  function chosen() {
    document.querySelectorAll("#whats button").forEach((button) => {
      const is = button.dataset.what === filter.what;
      button.classList.toggle("active", is);
      button.setAttribute("aria-pressed", String(is));
    });
    if (!canAct) return;
    const mine = shown.filter((job) => selected.has(job.id));
    pageBox.checked = shown.length > 0 && mine.length === shown.length;
    C.set("actions-of", all.checked ? "All that match" : mine.length ? `${mine.length} selected` : "None selected");
    document.querySelectorAll("#actions [data-action]").forEach((button) => {
      button.disabled = busy || (!all.checked && !mine.some((job) => job.may.includes(button.dataset.action)));
    });
  }

  async function start(action, of, what) {
    if (busy) return;
    busy = true;
    stopped = false;
    stop.hidden = !of.match;
    chosen();
    try {
      await A.act(action, of, what, () => !stopped);
    } finally {
      busy = false;
      stop.hidden = true;
      selected.clear();
      all.checked = false;
      body.querySelectorAll("input").forEach((box) => { box.checked = false; });
      look();
      chosen();
    }
  }

  function change() {
    cursors = [];
    selected.clear();
    const now = query({});
    history.replaceState(null, "", location.pathname + (now ? `?${now}` : ""));
    chosen();
    look();
  }

  document.getElementById("filters").addEventListener("submit", (event) => {
    event.preventDefault();
    fields.forEach((field) => { filter[field.id] = field.value.trim(); });
    change();
  });
  document.getElementById("clear").addEventListener("click", () => {
    fields.forEach((field) => { field.value = filter[field.id] = ""; });
    filter.what = "";
    change();
  });
  document.querySelectorAll("#whats button").forEach((button) => button.addEventListener("click", () => {
    filter.what = button.dataset.what;
    change();
  }));
  document.getElementById("older").addEventListener("click", () => { if (next) { cursors.push(next); look(); } });
  document.getElementById("newer").addEventListener("click", () => { cursors.pop(); look(); });
  if (canAct) {
    pageBox.addEventListener("change", () => {
      shown.forEach((job) => { if (pageBox.checked) selected.add(job.id); else selected.delete(job.id); });
      body.querySelectorAll("input").forEach((box) => { box.checked = pageBox.checked; });
      chosen();
    });
    all.addEventListener("change", chosen);
    stop.addEventListener("click", () => { stopped = true; });
    document.querySelectorAll("#actions [data-action]").forEach((button) => button.addEventListener("click", () => {
      const action = button.dataset.action;
      if (!all.checked) {
        const ids = shown.filter((job) => selected.has(job.id) && job.may.includes(action)).map((job) => job.id);
        start(action, { ids }, ids.length === 1 ? `job ${ids[0]}` : `${ids.length} jobs`);
      } else if (filter.id) start(action, { ids: [filter.id] }, `job ${filter.id}`);
      else start(action, { match: { what: filter.what, agent: filter.agent, tenant: filter.tenant } }, "all jobs that match and can be");
    }));
  }

  const look = C.live(address, draw);
}());
