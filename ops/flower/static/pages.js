// What Celeriac's pages share: a look every few seconds, and tables of which only what has changed is made anew.
(function () {
  "use strict";

  const EVERY = 3000;
  const root = document.querySelector(".celeriac");

  // Attributes that are null are left out; children that are text stay text, whatever is in them.
  function el(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "on") for (const [event, heard] of Object.entries(value)) made.addEventListener(event, heard);
      else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return made;
  }

  // An exact amount, without the zeros at its end. It stays text: no number holds it.
  function usd(amount) {
    const [whole, part] = amount.split(".");
    const digits = part.replace(/0+$/, "").padEnd(2, "0");
    const minus = whole.startsWith("-") ? "-" : "";
    return minus + "$" + whole.replace("-", "").replace(/\B(?=(\d{3})+$)/g, ",") + "." + digits;
  }

  // About that much, for what is an estimate.
  function about(amount) {
    const value = Number(amount);
    return "$" + (value >= 1 ? value.toFixed(2) : value.toLocaleString("en", { maximumSignificantDigits: 2, useGrouping: false }));
  }

  const clock = (options) => new Intl.DateTimeFormat("en-GB", { timeZone: root.dataset.zone, ...options });
  const full = clock({ year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const minute = clock({ hour: "2-digit", minute: "2-digit" });
  const day = clock({ day: "numeric", month: "short" });

  function when(at) {
    if (!at) return "";
    const parts = Object.fromEntries(full.formatToParts(new Date(at)).map((part) => [part.type, part.value]));
    return `${parts.year}-${parts.month}-${parts.day} ${parts.hour}:${parts.minute}:${parts.second}`;
  }

  // "15:40" today, else with its day.
  function soon(at) {
    const date = new Date(at);
    const text = minute.format(date);
    return day.format(date) === day.format(new Date()) ? text : `${day.format(date)}, ${text}`;
  }

  function seconds(value) {
    if (value === null || value === undefined) return "";
    if (value < 1) return `${Math.round(value * 1000)} ms`;
    if (value < 60) return `${value < 10 ? Number(value).toFixed(2) : Math.round(value)} s`;
    if (value < 5400) return `${Math.round(value / 60)} min`;
    return value < 172800 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86400)} d`;
  }

  // Rows by their keys: those that say what they said stay, and with them focus and selection.
  function rows(body, things, keyOf, cellsOf, empty) {
    const known = new Map(Array.from(body.children, (row) => [row.dataset.key, row]));
    const focused = document.activeElement;
    const wanted = [];
    for (const thing of things) {
      const key = String(keyOf(thing)), said = JSON.stringify(thing);
      let row = known.get(key);
      if (!row || row.dataset.said !== said) {
        const made = el("tr", { "data-key": key, "data-said": said }, cellsOf(thing));
        if (row && row.contains(focused)) made.dataset.focus = focused.dataset.name || "";
        row = made;
      }
      wanted.push(row);
    }
    if (!wanted.length) wanted.push(el("tr", { "data-key": "" }, el("td", { class: "empty-table-message", colspan: 20 }, empty)));
    const isSame = wanted.length === body.children.length && wanted.every((row, i) => row === body.children[i]);
    if (isSame) return;
    body.replaceChildren(...wanted);
    for (const row of wanted) {
      if (row.dataset.focus === undefined) continue;
      const name = row.dataset.focus;
      delete row.dataset.focus;
      const again = Array.from(row.querySelectorAll("[data-name]")).find((child) => child.dataset.name === name);
      if (again) again.focus();
    }
    if (focused && body.contains(focused) && document.activeElement !== focused) focused.focus();
  }

  function facts(list, pairs) {
    const said = JSON.stringify(pairs.map(([name, value]) => [name, value instanceof Node ? value.outerHTML : value]));
    if (list.dataset.said === said) return;
    list.dataset.said = said;
    list.replaceChildren(...pairs.map(([name, value]) => el("div", { class: "detail-row" }, el("dt", {}, name), el("dd", {}, value))));
  }

  const text = (tag, value, kind) => el(tag, { class: kind || null }, value);
  const cell = (value, kind) => el("td", { class: kind || null }, value === null || value === undefined ? "" : value);

  function link(id) {
    return el("a", { href: root.dataset.job.replace(/ID$/, () => encodeURIComponent(id)), "data-name": "link" }, id);
  }

  function set(id, value) {
    const node = document.getElementById(id);
    if (node.textContent !== value) node.textContent = value;
  }

  function say(problem) {
    const away = document.getElementById("away");
    away.hidden = !problem;
    if (away.textContent !== problem) away.textContent = problem;
    document.querySelector("#live .status-dot").className = "status-dot " + (problem ? "status-dot-error" : "status-dot-live");
    set("live-text", problem ? "Away" : "Live");
  }

  // Look now, and every few seconds while somebody sees the page. address: where, as chosen on the page. Answers a function
  // that looks at once.
  function live(address, draw) {
    let etag = null, of = null, timer = null, round = 0;

    async function look() {
      clearTimeout(timer);
      if (document.hidden) return;
      const mine = ++round, url = address();
      if (url !== of) etag = null;
      of = url;
      try {
        const answer = await fetch(url, { headers: etag ? { "If-None-Match": etag } : {}, cache: "no-store" });
        const body = await answer.text(), said = body ? JSON.parse(body) : null;
        if (mine !== round) return;
        if (answer.ok) {
          etag = answer.headers.get("ETag");
          draw(said);
        }
        say(answer.ok || answer.status === 304 ? "" : [said.error, said.remedy].filter(Boolean).join("; "));
      } catch (error) {
        if (mine !== round) return;
        etag = null;
        say("Flower does not answer");
      }
      timer = setTimeout(look, EVERY);
    }

    document.addEventListener("visibilitychange", look);
    look();
    return look;
  }

  window.Celeriac = { root, el, usd, about, when, soon, minute, day, seconds, rows, facts, text, cell, link, set, live };
}());
