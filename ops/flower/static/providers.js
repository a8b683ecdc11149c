// The page of providers.
(function () {
  "use strict";

  const C = window.Celeriac;

  // Calls that are not counted by lane.
  const OTHERS = "other";
  const words = (code) => code.replaceAll("_", " ");

  function breaker(lane) {
    switch (lane.breaker) {
      case "shut": return C.text("span", "shut until an operator opens the lane", "bad");
      case "open": return C.text("span", `open for ${C.seconds(lane.wait_seconds)}: ${words(lane.why)}`, "bad");
      case "half-open": return C.text("span", "half open: one call tries the lane out", "warn");
      default: return C.text("span", "closed", "good");
    }
  }

  function period(seconds) {
    if (seconds > 3600) return "a day";
    const minutes = Math.round(seconds / 60);
    return minutes <= 1 ? "a minute" : `in ${minutes} minutes`;
  }

  function lane(known) {
    const rates = known.rates.map((rate) => `${words(rate.name)} ${rate.left.toLocaleString("en")} of ${rate.most.toLocaleString("en")} ${period(rate.seconds)}`);
    return [C.el("th", { scope: "row" }, known.lane), C.cell(breaker(known), "words"),
      C.cell(known.cools ? C.text("span", `${C.seconds(known.wait_seconds)}: ${words(known.why)}`, "warn") : ""),
      C.cell(known.waiting ? String(known.waiting) : "", "number"), C.el("td", {}, rates.map((rate) => C.el("div", {}, rate))),
      C.cell(known.bounds_times > 1 ? C.text("span", `bounds times ${known.bounds_times}`, "warn") : "")];
  }

  function today(known) {
    return [C.cell(known.calls_today.toLocaleString("en"), "number"), C.cell(known.fallbacks_today ? known.fallbacks_today.toLocaleString("en") : "", "number"),
      C.cell(C.usd(known.cost_today_usd), "number")];
  }

  function calls(known) {
    if (known.lane === OTHERS) return [C.el("th", { scope: "row" }, OTHERS), ...Array.from({ length: 4 }, () => C.cell("")), ...today(known)];
    const errors = Object.entries(known.errors).map(([code, count]) => `${words(code)} ${count}`);
    return [C.el("th", { scope: "row" }, known.lane),
      C.cell(known.answered.toLocaleString("en"), "number"), C.el("td", {}, errors.map((error) => C.el("div", { class: "bad" }, error))),
      C.cell(C.seconds(known.median_seconds), "number"), C.cell(C.seconds(known.slow_seconds), "number"), ...today(known)];
  }

  function became(changed) {
    switch (changed.state) {
      case "closed": return "closed";
      case "half_open": return "tried out by one call";
      case "reset": return "its bounds were taken back";
      default: return changed.seconds ? `opened for ${C.seconds(changed.seconds)}` : "shut until an operator opens the lane";
    }
  }

  function change(changed) {
    return [C.el("th", { scope: "row" }, C.when(changed.at)), C.cell(changed.lane), C.cell(became(changed)), C.cell(words(changed.why))];
  }

  C.live(() => C.root.dataset.url, (said) => {
    C.rows(document.querySelector("#lanes tbody"), said.lanes, (known) => known.lane, lane, "No lane is known");
    const note = document.getElementById("lanes-note");
    note.textContent = said.more ? `${said.more} more, with fewer calls today and jobs that wait than these` : "";
    note.hidden = !said.more;
    const called = said.others ? [...said.lanes, { lane: OTHERS, ...said.others }] : said.lanes;
    C.rows(document.querySelector("#calls tbody"), called, (known) => known.lane, calls, "No lane is known");
    C.rows(document.querySelector("#changes tbody"), said.changes, (changed) => `${changed.at} ${changed.lane} ${changed.state}`, change, "None has");
  });
}());
