// The page of one job: its receipt, call by call.
(function () {
  "use strict";

  const C = window.Celeriac, A = window.CeleriacAct;
  const canAct = C.root.dataset.act !== "";
  let offered = null;

  const KINDS = { settled: "good", doubt: "warn", open: "warn", released: "muted" };
  const STANDS = { settled: "settled", doubt: "in doubt", open: "under way", released: "not billed" };
  const tokens = (usage, names) => (usage ? names.reduce((sum, name) => sum + (usage[name] || 0), 0).toLocaleString("en") : "");

  function actions(job) {
    const said = job.may.join();
    if (!canAct || said === offered) return;
    offered = said;
    document.getElementById("actions").replaceChildren(...job.may.map((action) => C.el("button", {
      type: "button", class: "btn btn-sm btn-outline-secondary", "data-action": action,
      on: { click: async () => { await A.act(action, { ids: [job.id] }, "this job", () => true); look(); } },
    }, A.NAMES[action])));
  }

  function drawJob(job, receipt) {
    actions(job);
    const asked = job.approvals.map((call) => `${call.tool}${call.arguments === undefined ? "" : ` ${call.arguments}`}`).join(", ");
    const parent = receipt.parent_id;
    C.facts(document.getElementById("facts"), [
      ["State", [job.dead ? "dead letter" : job.stopping ? "stopping" : job.state, (job.reason || "").replaceAll("_", " ")].filter(Boolean).join(": ")],
      ["Agent", job.agent], ["Tenant", job.tenant], ["Model", job.model || ""], ["Priority", job.priority], ["Queue", job.queue],
      ["Submitted", C.when(job.created_at)], ["Started", C.when(job.started_at)], ["Ended", C.when(job.ended_at)],
      ["Attempts", String(job.attempts)],
      ...(job.replays ? [["Started anew", `${job.replays} times`]] : []),
      ...(job.resume_at ? [["Goes on", C.when(job.resume_at)]] : []),
      ...(job.deadline ? [["Deadline", C.when(job.deadline)]] : []),
      ...(job.context_id ? [["Context", job.context_id]] : []),
      ...(asked ? [["Asks to be allowed", asked]] : []),
      ...(job.error ? [["Error", `${job.error}: ${job.error_message}`]] : []),
      ...(parent ? [["Asked for by", C.link(parent)]] : []),
    ]);
  }

  function drawSums(receipt) {
    const { own, children } = receipt;
    C.facts(document.getElementById("sums"), [
      ["Own calls", `${C.usd(own.cost_usd)} settled, ${C.usd(own.in_doubt_usd)} in doubt, ${C.usd(own.reserved_usd)} reserved`],
      ["Jobs below it", `${C.usd(children.cost_usd)} settled, ${C.usd(children.in_doubt_usd)} in doubt, ${C.usd(children.reserved_usd)} reserved`],
      ["Final", receipt.final ? "yes" : "no: its sums can still change"],
      ["Revision", String(receipt.revision)],
    ]);
  }

  function call(line) {
    const what = [STANDS[line.stands], line.error && line.error.replaceAll("_", " "), line.late && "late", line.estimated && "estimated", line.overrun && "over its bound"];
    const amount = line.stands === "settled" ? C.usd(line.cost_usd) : line.stands === "released" ? "" : `at most ${C.usd(line.bound_usd)}`;
    return [C.el("th", { scope: "row" }, C.when(line.started_at)), C.cell(line.attempt === null ? "" : String(line.attempt), "number"),
      C.cell(String(line.step), "number"), C.cell(line.lane), C.cell(C.text("span", what.filter(Boolean).join(", "), KINDS[line.stands])),
      C.cell(line.seconds === null ? "" : C.seconds(Number(line.seconds)), "number"),
      C.cell(tokens(line.usage, ["input_tokens", "cache_read_tokens", "cache_write_tokens"]), "number"),
      C.cell(tokens(line.usage, ["output_tokens"]), "number"), C.cell(amount, "number")];
  }

  function child(job) {
    const known = job.state !== null;
    return [C.el("th", { scope: "row" }, C.link(job.job_id)), C.cell(job.agent), C.cell(known ? job.state : "aged out"),
      C.cell(known ? C.usd(job.cost_usd) : "", "number"), C.cell(known ? C.usd(job.children_cost_usd) : "", "number"),
      C.cell(known ? C.usd(job.in_doubt_usd) : "", "number")];
  }

  function drawText(text) {
    document.getElementById("text-panel").hidden = !text;
    if (!text) return;
    const said = (what) => C.el("pre", {}, what);
    C.facts(document.getElementById("text"), [...text.question.map((part) => [part.by, said(part.text)]), ["answer", said(text.answer === null ? "" : text.answer)]]);
  }

  const look = C.live(() => C.root.dataset.url, (said) => {
    drawJob(said.job, said.receipt);
    drawSums(said.receipt);
    C.rows(document.querySelector("#calls tbody"), said.receipt.lines, (line) => line.call_id, call, "It has made no call");
    document.getElementById("children-panel").hidden = !said.receipt.children.jobs.length;
    C.rows(document.querySelector("#children tbody"), said.receipt.children.jobs, (job) => job.job_id, child, "None");
    drawText(said.text);
  });
}());
