// Actions on jobs: asked back first, then sent, and what became of them said.
(function () {
  "use strict";

  const C = window.Celeriac;
  const ask = document.getElementById("ask");
  const NAMES = { cancel: "Cancel", retry: "Retry", replay: "Replay", approve: "Approve", decline: "Decline" };
  const DONE = { cancel: "Cancelled, or asked to stop", retry: "Started again", replay: "Replayed", approve: "Approved", decline: "Declined" };

  const cookie = (name) => (document.cookie.match(`\\b${name}=([^;]*)\\b`) || [])[1];

  // Whether it is to be done, and why.
  function asked(action, what) {
    document.getElementById("ask-title").textContent = `${NAMES[action]} ${what}?`;
    document.getElementById("ask-reason-row").hidden = action !== "decline";
    document.getElementById("ask-reason").value = "";
    document.getElementById("ask-yes").textContent = NAMES[action];
    ask.returnValue = "";
    ask.showModal();
    return new Promise((resolve) => {
      ask.addEventListener("close", () => {
        resolve(ask.returnValue === "yes" ? { reason: document.getElementById("ask-reason").value } : null);
      }, { once: true });
    });
  }

  async function send(body) {
    const answer = await fetch(C.root.dataset.act, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...(cookie("_xsrf") ? { "X-XSRFToken": cookie("_xsrf") } : {}) },
      body: JSON.stringify(body),
    });
    const said = await answer.json();
    if (!answer.ok) throw new Error([said.error, said.remedy].filter(Boolean).join("; "));
    return said;
  }

  function report(action, done, refused, end) {
    const why = refused.slice(0, 3).map((it) => it.reason).join("; ");
    C.set("done", `${DONE[action]}: ${done}.${refused.length ? ` Refused: ${refused.length} (${why}).` : ""}${end || ""}`);
  }

  // A page after another until all that match are reached. going: asked before each whether to go on.
  async function act(action, of, what, going) {
    const answer = await asked(action, what);
    if (!answer) return false;
    let done = 0, cursor = null;
    const refused = [];
    try {
      do {
        const said = await send({ action, reason: answer.reason, ...of, ...(of.match ? { cursor } : {}) });
        done += said.done.length;
        refused.push(...said.refused);
        cursor = said.cursor;
        report(action, done, refused, cursor ? " Going on." : "");
      } while (cursor && going());
      report(action, done, refused, cursor ? " Stopped." : "");
    } catch (error) {
      report(action, done, refused, ` Then: ${error.message}.`);
    }
    return true;
  }

  window.CeleriacAct = { act, NAMES };
}());
