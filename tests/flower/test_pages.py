"""Celeriac's pages in Flower, as an operator sees them in a browser: what they say is what the API says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright
from tornado.web import create_signed_value

from tests.flower.conftest import Flower
from tests.flower.town import SECRET, Town, act, aside, data
from tests.processes import running, wait_until

SIZE: Final[Any] = {"width": 1440, "height": 900}
COOKIE: Final = "the secret of the cookies of this test"
CHROMIUM: Final = Path("/usr/bin/chromium")
THEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")
#: Where a run of these tests puts pictures of the pages, if it is asked to: `PICTURES_OF_FLOWER=docs/pictures`.
SHOWN: Final = {"costs-light": 920, "jobs-dark": 560, "job-light": 820, "providers-light": 960}
PICTURES: Final = os.environ.get("PICTURES_OF_FLOWER")


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    with closing(Town()) as town:
        town.live()
        town.past(40)
        yield town


class Flowers:
    """All over one store, started together; the tests here look at them and break none."""

    def __init__(self, town: Town, empty: Path) -> None:
        nobody_is_asked = {"FLOWER_UNAUTHENTICATED_API": ""}
        self.plain = town.flower(empty)
        self.read_only = town.flower(empty, "--read_only=True", "--url_prefix=IDS/flower", prefix="/IDS/flower")
        self.asked = town.flower(empty, "--basic_auth=ann:secret", CELERIAC_FLOWER__SHOW_TEXT="true", **nobody_is_asked)
        self.login = town.flower(
            empty,
            *("--auth=.*@example.com", "--auth_provider=flower.views.auth.GoogleAuth2LoginHandler"),
            *("--oauth2_key=key", "--oauth2_secret=secret", "--oauth2_redirect_uri=http://localhost/login"),
            f"--cookie_secret={COOKIE}",
            **nobody_is_asked,
        )
        for flower in (self.plain, self.read_only, self.asked, self.login):
            flower.up()


@pytest.fixture(scope="module")
def flowers(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Flowers:
    """Started in an empty directory."""
    return Flowers(town, tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="module")
def browser(flowers: Flowers) -> Iterator[Browser]:
    """After the house: where a browser is driven no event loop is run."""
    if not CHROMIUM.exists():
        pytest.fail(f"there is no {CHROMIUM}: install it with .ci/chromium, or with apt-get install chromium")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--headless=new"]
        with playwright.chromium.launch(executable_path=CHROMIUM, args=arguments) as browser:
            yield browser


class Window:
    """A page of a Flower; at the end nothing of it may have failed."""

    def __init__(self, context: BrowserContext, flower: Flower) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(15_000)
        self.flower = flower
        self.faults: list[str] = []
        self.answers: list[tuple[int, str]] = []
        self._closing = False
        self.page.on("console", lambda said: self._fault(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self._fault(str(error)))
        self.page.on("requestfailed", self._failed)
        self.page.on("response", lambda answer: self.answers.append((answer.status, answer.url)))
        self.asked: list[str] = []
        self.page.on("request", lambda asked: self.asked.append(asked.url))

    def _failed(self, asked: Request) -> None:
        # The browser gives up what a page has asked for when it leaves it. Our scripts give up nothing.
        if asked.failure != "net::ERR_ABORTED":
            self._fault(f"{asked.url}: {asked.failure}")

    def _fault(self, what: str) -> None:
        if not self._closing:
            self.faults.append(what)

    def see(self, path: str) -> Page:
        """Once it is live."""
        self.page.goto(self.flower.url + path)
        expect(self.page.locator("#live-text")).to_have_text("Live")
        return self.page

    def fence(self) -> None:
        """Of all that the page has asked for before this, we have heard."""
        self.page.evaluate("fetch('/healthcheck').then(answer => answer.text())")

    def picture(self, name: str) -> None:
        """For the documents, where they are asked for."""
        if PICTURES:
            self.page.set_viewport_size({"width": 1280, "height": SHOWN[name]})
            self.page.screenshot(path=Path(PICTURES) / f"{name}.png")
            self.page.set_viewport_size(SIZE)

    def close(self) -> None:
        self._closing = True
        self.page.close()


@contextmanager
def looking(browser: Browser, flower: Flower) -> Iterator[Window]:
    with browser.new_context(color_scheme="light", viewport=SIZE, reduced_motion="reduce") as context:
        window = Window(context, flower)
        yield window
        window.close()
        assert window.faults == []


@pytest.fixture
def window(browser: Browser, flowers: Flowers) -> Iterator[Window]:
    with looking(browser, flowers.plain) as window:
        yield window


def nanos(amount: str) -> int:
    """Of dollars as they are written, exactly."""
    whole, _, part = amount.strip().lstrip("$").replace(",", "").partition(".")
    return int(whole) * 10**9 + int(part.ljust(9, "0"))


def cells(page: Page, table: str, key: str) -> dict[str, str]:
    """A row of a table by its column's names."""
    names = [name.strip().lower() for name in page.locator(f"{table} thead th").all_text_contents()]
    row = page.locator(f'{table} tbody tr[data-key="{key}"]')
    expect(row).to_be_visible()
    return dict(zip(names, [text.strip() for text in row.locator("th, td").all_text_contents()], strict=True))


def row(page: Page, id: str) -> Any:
    return page.locator(f'#table tbody tr[data-key="{id}"]')


def today() -> str:
    return datetime.now(UTC).date().isoformat()


# Flower's own look, options and protection.


def test_our_tabs_are_on_every_page_of_flower(window: Window) -> None:
    """After its own, with the one marked that is open."""
    theirs, ours = ["Workers", "Tasks", "Broker"], ["Costs", "Jobs", "Providers"]
    for name in (*theirs, *ours):
        path = f"/{name.lower()}"
        page = window.see(path) if name in ours else window.page
        if name in theirs:
            page.goto(window.flower.url + path)
        tabs = page.locator(".app-nav").first.locator(".nav-link").all_text_contents()
        assert [tab.strip() for tab in tabs] == [*theirs, *ours]
        expect(page.locator('.nav-link[aria-current="page"]')).to_have_text(name)
        assert page.title() == f"{name} · Flower"


@pytest.mark.parametrize("name", ["costs", "jobs", "job", "providers"])
def test_a_page_has_no_error_and_keeps_nobody_out(browser: Browser, flowers: Flowers, town: Town, name: str) -> None:
    """In both themes: no failed request, nothing in the console, and no serious finding of axe."""
    paths = {"costs": "/costs", "jobs": "/jobs", "job": f"/job/{town.chief}", "providers": "/providers"}
    with looking(browser, flowers.plain) as window:
        page = window.see(paths[name])
        page.locator("tbody tr[data-key]").first.wait_for()
        for theme in THEMES:
            page.emulate_media(color_scheme=theme)
            expect(page.locator("html")).to_have_attribute("data-bs-theme", theme)
            if name != "providers" and f"{name}-{theme}" in SHOWN:
                window.picture(f"{name}-{theme}")
            page.locator("details").evaluate_all("all => all.forEach(it => { it.open = true })")
            found = Axe().run(page).response["violations"]
            assert [(it["id"], it["nodes"]) for it in found if it["impact"] in ("serious", "critical")] == [], theme
            page.locator("details").evaluate_all("all => all.forEach(it => { it.open = false })")
        assert [url for status, url in window.answers if status >= 400] == []


def test_every_option_of_flower_holds_for_our_pages(browser: Browser, flowers: Flowers, town: Town) -> None:
    """All that a page asks for is under a prefix, whatever that says; read-only, nothing offers or takes an action."""
    flower = flowers.read_only
    with looking(browser, flower) as window:
        for path in ("/costs", "/jobs", f"/job/{town.letter}", "/providers"):
            page = window.see(path)
            page.locator("tbody tr[data-key]").first.wait_for()
            assert page.locator("[data-action], td .btn").count() == 0
        assert all("/IDS/flower/" in url for _, url in window.answers)
        window.see("/jobs?agent=chief").get_by_role("link", name=town.chief).click()
        expect(window.page.locator("h1")).to_have_text(town.chief)
        expect(window.page.locator("#why-not")).to_contain_text("read-only")
    refused = act(flower, {"action": "replay", "ids": [town.letter]})
    assert (refused.status_code, refused.json()["error"]) == (403, "Flower runs read-only")
    assert town.job(town.letter)["dead"] is True


PROTECTED: Final = (
    "/costs",
    "/costs/data",
    "/jobs",
    "/jobs/data",
    "/providers",
    "/providers/data",
    "/job/x",
    "/job/x/data",
)


@pytest.mark.parametrize("path", PROTECTED)
def test_whoever_is_not_let_in_sees_nothing(flowers: Flowers, path: str) -> None:
    """With a password, 401 and the browser asks for it; with a login, pages lead there and data are refused."""
    answer = flowers.asked.http.get(path)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="flower"')
    assert flowers.asked.http.get(path, auth=("ann", "wrong")).status_code == 401
    known = flowers.asked.http.get(path, auth=("ann", "secret"))
    assert known.status_code == (404 if path == "/job/x/data" else 200), known.text
    answer = flowers.login.http.get(path)
    if path.endswith("/data"):
        assert (answer.status_code, answer.json()["error"]) == (403, "Log in again")
    else:
        assert (answer.status_code, answer.headers["Location"].partition("?")[0]) == (302, "/login")


@pytest.mark.parametrize("path", [*PROTECTED, "/metrics", "/jobs/act"])
def test_no_other_site_reads_or_frames_what_we_say(flowers: Flowers, path: str) -> None:
    """Though Flower lets all of them read its own API where it asks nobody who they are."""
    cors = "Access-Control-Allow-Origin"
    assert flowers.plain.http.get("/api/workers").headers[cors] == "*"
    for answer in (flowers.plain.http.get(path), flowers.plain.http.request("OPTIONS", path)):
        assert cors not in answer.headers
        assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'self'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"


def test_only_a_page_of_flower_can_act(flowers: Flowers, town: Town) -> None:
    """Another site's form or script cannot, whoever is logged in."""
    body = {"action": "replay", "ids": [town.letter]}
    for headers, status in (
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ):
        answer = act(flowers.plain, body, **headers)
        assert answer.status_code == status, headers
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert "Access-Control-Allow-Origin" not in flowers.plain.http.get("/costs/data").headers
    assert flowers.plain.http.get("/jobs/act").status_code == 405
    assert act(flowers.asked, body).status_code == 401
    assert act(flowers.login, body, Authorization="Bearer x").status_code == 403
    assert town.job(town.letter)["dead"] is True
    known = flowers.asked.http.post("/jobs/act", json={"action": "cancel", "ids": ["x"]}, auth=("ann", "secret"))
    assert (known.status_code, known.json()["refused"][0]["reason"]) == (200, "there is no job x")


def test_whoever_is_logged_in_acts_with_the_token_of_a_page(flowers: Flowers) -> None:
    """As with Flower's own buttons: a cookie alone is what a browser sends for any site."""
    http = flowers.login.http
    user = create_signed_value(COOKIE, "user", "ann@example.com").decode()
    page = http.get("/jobs", headers={"Cookie": f"user={user}"})
    assert page.status_code == 200
    token = page.cookies["_xsrf"]
    http.cookies.clear()
    cookies = {"Cookie": f"user={user}; _xsrf={token}"}
    body = {"action": "cancel", "ids": ["x"]}
    assert act(flowers.login, body, **cookies).status_code == 403
    assert act(flowers.login, body, **cookies, **{"X-XSRFToken": token}).status_code == 200
    wait_until(lambda: "by=ann@example.com" in flowers.login.output(), "the log to say who it was")
    stranger = create_signed_value(COOKIE, "user", "eve@elsewhere.example").decode()
    assert http.get("/jobs/data", headers={"Cookie": f"user={stranger}"}).status_code == 403


def test_no_prompt_and_no_answer_is_shown_unless_that_is_on(flowers: Flowers, town: Town) -> None:
    """Neither in a page nor in what it asks for; with the setting, on the page of the job."""
    paths = ("/costs/data", "/jobs/data", f"/job/{town.paid[1]}", f"/job/{town.paid[1]}/data", f"/job/{town.asks}/data")
    for path in paths:
        answer = flowers.plain.http.get(path)
        assert answer.status_code == 200
        assert SECRET not in answer.text
        assert "arguments" not in answer.text, "of a tool's neither"
    shown = flowers.asked.http.get(f"/job/{town.paid[1]}/data", auth=("ann", "secret")).json()["text"]
    assert shown["question"][0]["text"] == "Where did the unmistakable question go?"
    assert shown["answer"] == town.job(town.paid[1])["answer"]
    asks = flowers.asked.http.get(f"/job/{town.asks}/data", auth=("ann", "secret")).json()["job"]["approvals"]
    assert '"number"' in asks[0]["arguments"]


# Costs.


def test_the_page_of_costs_agrees_with_the_api_and_the_ledger(window: Window, town: Town) -> None:
    """To the nano-dollar: today is the usage and the sum of the ledger's entries, and the month is the usage."""
    page = window.see("/costs")
    usage = town.api("GET", "/v1/usage", params={"from": today()})["total"]["cost_usd"]
    entries = town.api("GET", "/v1/usage/entries", params={"from": today()}).splitlines()
    ledger = sum(nanos(re.search(r'"cost_usd":"([\d.]+)"', line)[1]) for line in entries)  # type: ignore[index]
    assert nanos(page.locator("#today").inner_text()) == nanos(usage) == ledger > 0
    month = town.api("GET", "/v1/usage")["total"]["cost_usd"]
    assert nanos(page.locator("#month").inner_text()) == nanos(month) > ledger
    spent = data(window.flower, "/costs/data")["spent"]
    assert (spent["today"]["cost_usd"], spent["month"]["cost_usd"]) == (usage, month)
    expect(page.locator("#rate")).to_have_text(re.compile(r"^\$0\.0\d+ an hour$"))


def test_a_budget_says_what_is_used_and_when_it_is_reached(window: Window, town: Town) -> None:
    """As the API has it; thresholds that are reached are marked, and the nearest to its cap comes first."""
    page = window.see("/costs")
    [cap] = town.api("GET", "/v1/budgets/tenant:acme")["caps"]
    said = cells(page, "#budgets", "tenant:acme day")
    assert [nanos(said[name]) for name in ("settled", "in doubt", "reserved", "left", "cap")] == [
        nanos(cap[f"{name}_usd"]) for name in ("settled", "in_doubt", "reserved", "left", "cap")
    ]
    assert nanos(cap["settled_usd"]) > 0
    assert said["alerts"].startswith("50 % reached")
    assert re.fullmatch(r"the cap is reached( at \d\d:\d\d)?|not in this window", said["at this rate"])
    assert cells(page, "#budgets", "tenant:beta day")["at this rate"] == "not in this window"
    bar = page.locator('#budgets tr[data-key="tenant:acme day"] .bar')
    assert "settled" in str(bar.get_attribute("aria-label"))
    width = bar.locator(".settled").evaluate("it => it.getBoundingClientRect().width / it.parentElement.clientWidth")
    assert width == pytest.approx(nanos(cap["settled_usd"]) / nanos(cap["cap_usd"]), abs=0.02)
    shown = data(window.flower, "/costs/data")["budgets"]["shown"]
    assert (shown[0]["scope"], len(shown)) == ("tenant:acme", 4)


@pytest.mark.parametrize(
    ("by", "names"), [("tenant", {"acme", "beta"}), ("agent", {"assistant", "chief"}), ("model", {"openai/gpt-5-mini"})]
)
def test_a_chart_has_its_figures_as_a_table(window: Window, town: Town, by: str, names: set[str]) -> None:
    """Those of the API, day by day; the arrow keys read the chart out."""
    page = window.see("/costs")
    page.select_option("#by", by)
    page.select_option("#over", "month")
    expect(page.locator("#figures tbody tr")).to_have_count(31)
    head = page.locator("#figures thead th")
    expect(head.filter(has_text=re.compile(f"^{min(names)}$"))).to_have_count(1)
    rows = town.api("GET", "/v1/usage", params={"from": days_ago(29), "group_by": f"day,{by}"})["rows"]
    shown = dict(
        zip(
            head.all_text_contents(),
            page.locator("#figures tbody tr").last.locator("th, td").all_text_contents(),
            strict=True,
        )
    )
    assert names <= shown.keys()
    for name in shown.keys() - {"day", "All"}:
        assert nanos(shown[name]) == sum(nanos(row["cost_usd"]) for row in rows if row["group"][by] == name), name
    assert nanos(shown["All"]) == sum(nanos(row["cost_usd"]) for row in rows) > 0
    page.locator("#chart").focus()
    page.keyboard.press("ArrowLeft")
    readout = page.locator("#chart-readout")
    last = page.locator("#figures tbody tr").nth(29).locator("th, td").all_text_contents()
    expect(readout).to_contain_text(f"{last[0]}: {last[-1]}")
    page.keyboard.press("ArrowLeft")
    before = page.locator("#figures tbody tr").nth(28).locator("th, td").all_text_contents()
    expect(readout).to_contain_text(f"{before[0]}: {before[-1]}")
    assert page.locator("#chart canvas").count() == 1


def days_ago(days: int) -> str:
    return datetime.fromtimestamp(datetime.now(UTC).timestamp() - days * 86_400, UTC).date().isoformat()


def test_the_dearest_jobs_lead_to_their_receipts(window: Window, town: Town) -> None:
    """The dearest first, at what the API says; a receipt has each call, and what those below it cost."""
    page = window.see("/costs")
    page.locator("#dearest tbody a").first.wait_for()
    listed = page.locator("#dearest tbody tr").evaluate_all(
        "all => all.map(row => [row.dataset.key, row.lastChild.textContent])"
    )
    costs = {id: nanos(cost) for id, cost in listed}
    assert list(costs.values()) == sorted(costs.values(), reverse=True)
    assert set(town.paid) <= costs.keys()
    for id in town.paid:
        assert costs[id] == nanos(town.job(id)["cost_usd"])
    page.get_by_role("link", name=town.chief).click()
    receipt = town.api("GET", f"/v1/jobs/{town.chief}/receipt")
    expect(page.locator("#calls tbody tr[data-key]")).to_have_count(len(receipt["lines"]))
    for line in receipt["lines"]:
        call = cells(page, "#calls", line["call_id"])
        assert (call["lane"], call["stands"], nanos(call["cost"])) == (line["lane"], "settled", nanos(line["cost_usd"]))
        assert call["tokens out"] == str(line["usage"]["output_tokens"])
    [child] = receipt["children"]["jobs"]
    below = cells(page, "#children", child["job_id"])
    assert (below["agent"], nanos(below["cost of its own"])) == ("assistant", nanos(child["cost_usd"]))
    own, children = page.locator("#sums dd").all_text_contents()[:2]
    assert (nanos(own.split()[0]), nanos(children.split()[0])) == (
        nanos(receipt["own"]["cost_usd"]),
        nanos(child["cost_usd"]),
    )
    page.get_by_role("link", name=child["job_id"]).click()
    expect(page.locator("h1")).to_have_text(child["job_id"])
    expect(page.locator("#facts")).to_contain_text(town.chief)


def test_a_page_changes_without_being_loaded_again(window: Window, town: Town) -> None:
    """What is new is there in seconds; where nothing is, the answer is empty; whoever looks elsewhere asks nothing."""
    page = window.page
    page.clock.install()
    window.see("/costs")
    page.evaluate("window.loaded_once = true")
    before = page.locator("#today").inner_text()
    town.ended(town.submit("beta"), tenant="beta")
    page.clock.run_for(5_000)
    expect(page.locator("#today")).not_to_have_text(before)
    usage = town.api("GET", "/v1/usage", params={"from": today()})["total"]["cost_usd"]
    expect(page.locator("#today")).to_have_text("$" + usage.rstrip("0"))
    with page.expect_response(lambda answer: answer.status == 304):
        page.clock.run_for(5_000)
    asked = len(window.asked)
    hide(page, hidden=True)
    page.clock.run_for(60_000)
    window.fence()
    assert [url.rpartition("/")[2] for url in window.asked[asked:]] == ["healthcheck"]
    with page.expect_response("**/costs/data*"):
        hide(page, hidden=False)
    assert page.evaluate("window.loaded_once") is True


def hide(page: Page, *, hidden: bool) -> None:
    """As a browser says it of a tab that is left, or come back to."""
    page.evaluate(
        "hidden => { Object.defineProperty(document, 'hidden', {configurable: true, get: () => hidden});"
        " document.dispatchEvent(new Event('visibilitychange')) }",
        hidden,
    )


def test_a_restart_of_flower_changes_nothing(flowers: Flowers, town: Town, tmp_path: Path) -> None:
    """Its pages read the store: a Flower that has just started says to the byte what the other says."""
    with running(town.flower(tmp_path, FLOWER_UNAUTHENTICATED_API="")) as another:
        for path in ("/costs/data", "/jobs/data", f"/job/{town.chief}/data"):
            flowers.plain.page(path)  # it has been asked more often than the other

            def same(path: str = path) -> bool:
                # The burn rate is said by the minute, and may fall between the two.
                return bool(flowers.plain.http.get(path).content == another.http.get(path).content)

            wait_until(same, f"both to say the same of {path}", 5)
        # It asks nobody who they are, and was not told that this is meant: Flower's own API refuses then too.
        refused = act(another, {"action": "replay", "ids": [town.letter]})
        assert (refused.status_code, "--basic-auth" in refused.json()["error"]) == (403, True)
        assert "--basic-auth" in another.page("/jobs")


def test_a_store_that_is_away_is_said_and_found_again(browser: Browser, own_valkey: Any, tmp_path: Path) -> None:
    """503 and a message on the page, no traceback; the page goes on by itself once the store is back."""
    with running(Flower(own_valkey.url, tmp_path)) as flower:
        with browser.new_context() as context:
            window = Window(context, flower)
            page = window.see("/costs")
            own_valkey.stop()
            away = page.locator("#away")
            expect(away).to_contain_text("Redis does not answer", timeout=20_000)
            expect(page.locator("#live-text")).to_have_text("Away")
            for path in ("/jobs/data", "/job/x/data"):
                answer = flower.http.get(path)
                assert (answer.status_code, answer.json()["error"]) == (503, "Redis does not answer"), answer.text
                assert flower.http.get("/healthcheck").elapsed.total_seconds() < 2
            own_valkey.start()
            expect(page.locator("#live-text")).to_have_text("Live", timeout=20_000)
            expect(away).to_be_hidden()
            window.close()
        assert "Traceback" not in flower.output()


# Jobs.


def press(window: Window, action: str, *, reason: str = "") -> None:
    """The button of the dialog that asks back."""
    ask = window.page.locator("#ask")
    if reason:
        ask.get_by_label("Reason").fill(reason)
    ask.get_by_role("button", name=action, exact=True).click()


def test_the_jobs_of_all_tenants_are_listed_and_filtered(window: Window, town: Town) -> None:
    """Newest first, as the API has each; by state, agent, tenant and id, and the address keeps what was chosen."""

    def shown(id: str) -> dict[str, str]:
        """Among those of its agent: of all, other tests may have made more than a page since."""
        return cells(window.see(f"/jobs?agent={town.job(id)['agent']}&tenant=acme"), "#table", id)

    asks = shown(town.asks)
    assert (asks["state"], asks["agent"], asks["tenant"]) == ("parked: waiting approval", "clerk", "acme")
    job = town.job(town.broken)
    broken = shown(town.broken)
    assert (broken["state"], broken["attempts"]) == ("failed: bad request", str(job["attempts"]))
    paid = shown(town.paid[1])
    assert nanos(paid["cost"]) == nanos(town.job(town.paid[1])["cost_usd"])
    assert re.fullmatch(r"\d+ ms|\d+(\.\d+)? s", paid["waited"])
    page = window.see("/jobs?what=queued")
    assert cells(page, "#table", town.queued[0])["waited"] == "waits"
    page = window.see("/jobs")
    page.get_by_role("button", name="Dead letters").click()
    expect(page.locator("#table tbody tr")).to_have_count(town.count("dead=true"))
    assert cells(page, "#table", town.letter)["state"] == "dead letter"
    page.get_by_role("button", name="Queued").click()
    expect(row(page, town.queued[0])).to_be_visible()
    expect(page.get_by_role("button", name="Queued").locator(".count")).to_have_text(str(town.count("state=queued")))
    page.get_by_label("Tenant", exact=True).fill("gamma")
    page.keyboard.press("Enter")
    expect(page.locator("#table tbody")).to_have_text("No job matches")
    assert page.url.endswith("/jobs?what=queued&tenant=gamma")
    page.reload()
    expect(page.locator("#table tbody")).to_have_text("No job matches")
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Agent", exact=True).fill("chief")
    page.get_by_role("button", name="Filter", exact=True).click()
    expect(page.locator("#table tbody tr")).to_have_count(1)
    expect(row(page, town.chief)).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Job", exact=True).fill(town.broken)
    page.keyboard.press("Enter")
    expect(page.locator("#table tbody tr")).to_have_count(1)
    expect(row(page, town.broken)).to_be_visible()


def test_a_job_is_cancelled_started_again_and_replayed_from_its_row(window: Window, town: Town) -> None:
    """After it was asked back; a row offers what can be done with its job."""
    waits, failed, letter = town.submit(agent="unserved"), town.submit(agent="broken"), town.dead()
    town.ended(failed)
    page = window.see("/jobs")
    row(page, waits).get_by_role("button", name="Cancel").click()
    press(window, "Leave it")
    window.fence()
    assert not [url for url in window.asked if "/jobs/act" in url]
    row(page, waits).get_by_role("button", name="Cancel").click()
    press(window, "Cancel")
    expect(page.locator("#done")).to_have_text("Cancelled, or asked to stop: 1.")
    expect(row(page, waits)).to_contain_text("cancelled")
    row(page, failed).get_by_role("button", name="Retry").click()
    press(window, "Retry")
    expect(page.locator("#done")).to_have_text("Started again: 1.")
    wait_until(lambda: (job := town.job(failed))["state"] == "failed" and job["replays"] == 1, "it to fail again")
    assert row(page, letter).locator("button").all_text_contents() == ["Replay"]
    row(page, letter).get_by_role("button", name="Replay").click()
    press(window, "Replay")
    expect(row(page, letter)).to_contain_text("queued")
    assert (town.job(letter)["state"], town.job(letter)["dead"]) == ("queued", False)


def test_a_call_that_waits_to_be_allowed_is_decided(window: Window, town: Town) -> None:
    """Approved from its row, declined from its own page with a reason, which the model is told."""
    first, second = town.waiting("beta"), town.waiting("beta")
    page = window.see("/jobs?what=waiting_approval&tenant=beta")
    row(page, first).get_by_role("button", name="Approve").click()
    press(window, "Approve")
    assert town.job(first, "beta", wait=30)["state"] == "succeeded"
    assert "refunded" in aside(town.asked)[-1]["body"]
    page = window.see(f"/job/{second}")
    expect(page.locator("#facts")).to_contain_text("Asks to be allowedrefund")
    page.locator("#actions").get_by_role("button", name="Decline").click()
    press(window, "Decline", reason="Ask the manager first.")
    expect(page.locator("#facts")).to_contain_text("succeeded")
    assert "Ask the manager first." in aside(town.asked)[-1]["body"]
    assert town.job(second, "beta")["state"] == "succeeded"


def test_those_that_are_selected_are_acted_on_together(window: Window, town: Town) -> None:
    """And no other; what the selection has changed to meanwhile is refused with its reason."""
    jobs = [town.submit("beta", agent="unserved") for _ in range(3)]
    page = window.see("/jobs?what=queued&tenant=beta")
    for id in jobs[:2]:
        row(page, id).get_by_role("checkbox").check()
    expect(page.locator("#actions-of")).to_have_text("2 selected")
    expect(page.locator('#actions [data-action="retry"]')).to_be_disabled()
    page.locator('#actions [data-action="cancel"]').click()
    town.api("POST", f"/v1/jobs/{jobs[0]}/cancel", "beta")
    press(window, "Cancel")
    expect(page.locator("#done")).to_have_text(
        re.compile(r"^Cancelled, or asked to stop: 1\. Refused: 1 \(it is cancelled")
    )
    assert [town.job(id, "beta")["state"] for id in jobs] == ["cancelled", "cancelled", "queued"]


def test_all_that_match_are_reached_page_by_page(window: Window, town: Town) -> None:
    """More than one page shows and one request acts on; others are left alone."""
    jobs = [town.submit(agent="unserved") for _ in range(120)]
    other = town.submit("beta", agent="unserved")
    page = window.see("/jobs?what=queued&tenant=acme&agent=unserved")
    expect(page.locator("#table tbody tr")).to_have_count(50)
    expect(row(page, jobs[-1])).to_be_visible()
    page.get_by_role("button", name="Older").click()
    expect(row(page, jobs[69])).to_be_visible()
    expect(page.locator("#pager-text")).to_have_text("Page 2")
    page.get_by_role("button", name="Newer").click()
    expect(row(page, jobs[-1])).to_be_visible()
    page.get_by_label("all that match").check()
    with page.expect_response("**/jobs/act") as first:
        page.locator('#actions [data-action="cancel"]').click()
        press(window, "Cancel")
    assert len(first.value.json()["done"]) == 100
    expect(page.locator("#done")).to_have_text(re.compile(r"^Cancelled, or asked to stop: 12\d\.$"))
    expect(page.locator("#table tbody")).to_have_text("No job matches")
    assert {town.job(id)["state"] for id in jobs} == {"cancelled"}
    assert town.job(other, "beta")["state"] == "queued"


def test_a_row_that_has_the_focus_keeps_it_while_others_come(window: Window, town: Town) -> None:
    """Whoever goes by the keyboard is not sent back to the top by each look."""
    id = town.submit(agent="unserved")
    page = window.see("/jobs")
    row(page, id).get_by_role("button", name="Cancel").focus()
    another = town.submit(agent="unserved")
    expect(row(page, another)).to_be_visible()
    expect(row(page, id).get_by_role("button", name="Cancel")).to_be_focused()
    for job in (id, another):
        town.api("POST", f"/v1/jobs/{job}/cancel", "acme")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        [],
        {},
        {"action": "delete", "ids": []},
        {"action": "cancel", "ids": [7]},
        {"action": "cancel", "ids": ["x"] * 101},
        {"action": "cancel", "match": {"what": "done"}},
        {"action": "cancel", "match": {"tenant": "a:b"}},
        {"action": "cancel", "match": {"colour": "red"}},
        {"action": "cancel", "match": {}, "cursor": "x"},
        {"action": "decline", "ids": [], "reason": "x" * 1001},
    ],
)
def test_what_cannot_be_done_is_refused_with_what_can(flowers: Flowers, body: Any) -> None:
    """400, and nothing was done."""
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = flowers.plain.http.post("/jobs/act", headers={"Content-Type": "application/json"}, **content)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]
    assert answer.json()["remedy"]


# Providers.


def test_the_page_of_providers_says_how_lanes_are(window: Window, town: Town) -> None:
    """Answers and failures of each with how long they took, who came as a fallback, and what the day's calls cost."""
    page = window.see("/providers")
    second = cells(page, "#calls", "anthropic/claude-haiku-5-5")
    rows = town.api("GET", "/v1/usage", params={"from": today(), "group_by": "model"})["rows"]
    [usage] = [row for row in rows if row["group"]["model"] == "anthropic/claude-haiku-5-5"]
    assert (second["calls today"], nanos(second["cost today"])) == (str(usage["calls"]), nanos(usage["cost_usd"]))
    assert (second["answered"], second["as fallback"]) == (str(usage["calls"]), "1")
    assert re.fullmatch(r"\d+ ms|\d+\.\d\d s", second["half within"])
    lane = cells(page, "#lanes", "anthropic/claude-haiku-5-5")
    assert (lane["breaker"], lane["cool-off"], lane["waiting"]) == ("closed", "", "")
    assert "requests" in lane["left of its rates"]
    failing = cells(page, "#calls", "openai/fault-503")
    [failed] = [row for row in rows if row["group"]["model"] == "openai/fault-503"]
    assert (failing["answered"], failing["failed"]) == ("0", f"overloaded {failed['errors']}")
    assert cells(page, "#calls", "openai/fault-400")["failed"].startswith("bad request ")


def test_a_lane_that_is_left_alone_says_why_and_for_how_long(window: Window, town: Town) -> None:
    """Its breaker, its cool-off, who waits for it, and when that changed."""
    redis, now = town.valkey.client(), int(datetime.now(UTC).timestamp() * 1000)
    lanes = {name: f"celeriac:lane:openai/{name}" for name in ("cooled", "opened", "tried", "shut")}
    redis.hset(lanes["cooled"], mapping={"shut": now + 90_000, "span": 90_000, "why": "rate_limited"})
    redis.hset(lanes["opened"], mapping={"shut": now + 90_000, "span": 90_000, "why": "overloaded", "opened": 1})
    redis.hset(lanes["tried"], mapping={"opened": 2})
    redis.hset("celeriac:overruns", "openai/shut", "1500 closed")
    for name in lanes:
        redis.xadd(
            "celeriac:lane_changes", {"lane": f"openai/{name}", "state": "open", "why": "overloaded", "ms": 90_000}
        )
    try:
        page = window.see("/providers")
        cooled, opened, tried, shut = [cells(page, "#lanes", f"openai/{name}") for name in lanes]
        assert cooled["breaker"] == "closed"
        assert re.fullmatch(r"(89|90|8\d) s: rate limited|2 min: rate limited|1 min: rate limited", cooled["cool-off"])
        assert re.fullmatch(r"open for .+: overloaded", opened["breaker"])
        assert tried["breaker"] == "half open: one call tries the lane out"
        assert (shut["breaker"], shut["overrun"]) == ("shut until an operator opens the lane", "bounds times 1.5")
        expect(page.locator("#changes tbody tr")).to_have_count(4)
        expect(page.locator("#changes tbody tr").first).to_contain_text("openai/shutopened for 2 minoverloaded")
        window.picture("providers-light")
    finally:
        redis.delete("celeriac:overruns", "celeriac:lane_changes", *lanes.values())


def test_lanes_that_cost_more_than_their_bound_come_first_with_what_is_done_about_it(
    window: Window, town: Town
) -> None:
    """Whoever else knows of them: no agent names them, no job waits for them, and their changes were long ago."""
    redis = town.valkey.client()
    redis.hset("celeriac:overruns", mapping={"zed/shut": "1500 closed", "zed/raised": "1300 raised"})
    try:
        page = window.see("/providers")
        raised, shut = [cells(page, "#lanes", f"zed/{name}") for name in ("raised", "shut")]
        assert (raised["breaker"], raised["overrun"]) == ("closed", "bounds times 1.3")
        assert (shut["breaker"], shut["overrun"]) == ("shut until an operator opens the lane", "bounds times 1.5")
        assert page.locator("#lanes tbody th").all_text_contents()[:2] == ["zed/raised", "zed/shut"]
        expect(page.locator("section", has=page.locator("#lanes"))).to_contain_text("celeriac lanes --open LANE")
    finally:
        redis.delete("celeriac:overruns")


def test_a_breaker_that_changed_says_what_it_became(window: Window, town: Town) -> None:
    """A lane whose bounds an operator took back was open before and after."""
    redis = town.valkey.client()
    changes = [("open", 90_000), ("half_open", 0), ("open", 0), ("closed", 0), ("reset", 0)]
    for state, ms in changes:
        redis.xadd("celeriac:lane_changes", {"lane": "zed/z", "state": state, "why": "operator", "ms": ms})
    try:
        page = window.see("/providers")
        expect(page.locator("#changes tbody tr")).to_have_count(len(changes))
        told = page.locator("#changes tbody tr td:nth-child(3)").all_text_contents()
        became = ["opened for 2 min", "tried out by one call", "shut until an operator opens the lane", "closed"]
        became.append("its bounds were taken back")
        assert told == became[::-1]
    finally:
        redis.delete("celeriac:lane_changes")


def test_of_many_lanes_those_of_the_agents_and_the_busiest_are_shown(window: Window, town: Town) -> None:
    """How many are left out is said. Calls that are counted together are no lane; without any they have no row."""
    start = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    redis, day = town.valkey.client(), f"celeriac:usage:day.{int(start.timestamp())}"
    many = {f"acme,assistant,another,{n:03}": f"{n + 1} 0 0 0 0 0 0 0 0 0" for n in range(250)}
    folded = "acme,assistant,openai,other"
    page = window.see("/providers")
    expect(page.locator("#lanes-note")).to_be_hidden()
    lanes = page.locator("#lanes tbody th").all_inner_texts()
    assert "other" not in page.locator("#calls tbody th").all_inner_texts()
    redis.hset(day, mapping=many | {"other": "3 0 0 0 0 0 0 0 2000000 0", folded: "4 0 0 0 0 0 0 0 3000000 0"})
    try:
        page = window.see("/providers")
        expect(page.locator("#lanes tbody tr")).to_have_count(200)
        shown = page.locator("#lanes tbody th").all_inner_texts()
        assert {lane for lane in lanes if not lane.startswith("openai/fault")} < set(shown)
        assert {"another/249", "another/248"} < set(shown)
        assert "another/000" not in shown
        left_out = len(lanes) + 250 - 200
        expect(page.locator("#lanes-note")).to_have_text(re.compile(f"^{left_out} more, "))
        others = cells(page, "#calls", "other")
        said = [others[name] for name in ("calls today", "cost today", "answered", "as fallback")]
        assert said == ["7", "$0.005", "", ""]
        assert not {"other/other", "openai/other"} & set(shown)
    finally:
        redis.hdel(day, *many, "other", folded)
