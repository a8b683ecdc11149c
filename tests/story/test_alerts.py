"""Alerts about budgets reach whoever is to hear of them: a log, a signed webhook, a channel."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from tests.processes import Shim, wait_until
from tests.story.conftest import House

AGENTS: Final = '[agents.buyer]\ndescription = "A cent."\nlanes = ["openai/gpt-5-priced"]\nmax_output_tokens = 10\n'
PRICES: Final = '[openai.gpt-5-priced]\ninput = "0"\noutput = "1000"\n'
SECRET: Final = "whsec_" + base64.b64encode(b"a-secret-of-the-receiver").decode()


@dataclass
class Receiver:
    """Somebody's server. statuses: what it answers, one request after the other, 204 from then on."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, body in self.got]


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            status = receiver.statuses.pop(0) if receiver.statuses else 204
            if status:
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook/token-in-its-path"
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as opened:
        yield opened


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "agents.toml").write_text(AGENTS)
    (tmp_path / "prices.toml").write_text(PRICES)
    return {
        "CELERIAC_AGENTS_FILE": str(tmp_path / "agents.toml"),
        "CELERIAC_PRICES_FILE": str(tmp_path / "prices.toml"),
        "CELERIAC_JOBS__LEASE": "2",
    }


def hooked(receiver: Receiver) -> dict[str, str]:
    return {"CELERIAC_COSTS__ALERT_URL": receiver.url, "CELERIAC_COSTS__ALERT_SECRET": SECRET}


def budget(shim: Shim, cap: str, *alert_at: int) -> None:
    caps = [{"window": "ever", "cap_usd": cap, "alert_at": list(alert_at)}]
    assert shim.http.put("/v1/budgets/all", json={"caps": caps}).status_code == 200


def spend(house: House, shim: Shim) -> None:
    """A cent."""
    house.always(usage={"output": 10})
    assert shim.job(shim.submit(agent="buyer")["id"], wait=60)["state"] == "succeeded"


def is_signed(headers: dict[str, str], body: bytes) -> bool:
    """As the receiver's library of Standard Webhooks checks it."""
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    said = b".".join((headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body))
    digest = base64.b64encode(hmac.new(key, said, hashlib.sha256).digest()).decode()
    fresh = abs(time.time() - int(headers["webhook-timestamp"])) < 300
    return fresh and hmac.compare_digest(headers["webhook-signature"], f"v1,{digest}")


def test_who_is_to_hear_of_it_hears_of_it_once(house: House, receiver: Receiver, env: dict[str, str]) -> None:
    """Log, webhook and channel, in a fleet too: of each threshold, and of a cap that soon will be reached."""
    # In a new hour there is no rate until somebody calls, and then it is another one.
    wait_until(lambda: time.time() % 3600 < 3570, "an hour that does not end soon", 40)
    with receiving() as channel:
        more = env | hooked(receiver) | {"CELERIAC_COSTS__SLACK_URL": channel.url}
        shim = house.shim(**more)
        workers = house.workers(("-n", "one@%h"), ("-n", "two@%h"), **more)
        budget(shim, "0.03", 30, 60)
        spend(house, shim)
        wait_until(lambda: len(receiver.got) == len(channel.got) == 2, "two alerts each")
        spend(house, shim)
        wait_until(lambda: len(receiver.got) == len(channel.got) == 3, "a third")
        by_type = [body["type"] for body in receiver.bodies()]
        assert sorted(by_type) == ["budget.burn_rate", "budget.threshold_reached", "budget.threshold_reached"]
        assert all(is_signed(headers, body) for headers, body in receiver.got)
        first, last = (b["data"] for b in receiver.bodies() if b["type"] == "budget.threshold_reached")
        assert (first["percent"], last["percent"], last["use_usd"]) == (30, 60, "0.020000000")
        [rate] = [body["data"] for body in receiver.bodies() if body["type"] == "budget.burn_rate"]
        assert (rate["scope"], rate["window"], rate["rate_usd_per_hour"]) == ("all", "ever", "0.010000000")
        assert rate["reached_at"] > receiver.bodies()[0]["timestamp"]
        texts = [body["text"] for body in channel.bodies()]
        assert "Celeriac: all has reached 60 % of its budget: $0.02 of $0.03." in texts
        assert any("At this rate ($0.01 an hour) the cap is reached at 20" in text for text in texts)
        logs = "".join(worker.output() for worker in workers)
        assert logs.count("budget_threshold_reached") == 2
        assert logs.count("budget_burn_rate") == 1
        assert not [said for said in ("token-in-its-path", SECRET) if said in logs]


def test_who_was_asked_for_in_vain_hears_of_what_comes_later(
    house: House, receiver: Receiver, env: dict[str, str]
) -> None:
    """A worker that has nothing to tell leaves the sinks alone until there is."""
    shim = house.shim(**env)
    house.worker(**env, **hooked(receiver))
    wait_until(
        lambda: house.valkey.client().hlen("celeriac:told_alerts") == 2, "the log and the webhook to be asked for"
    )
    budget(shim, "0.01", 50)
    spend(house, shim)
    wait_until(lambda: receiver.got, "an alert")


@pytest.mark.parametrize("status", [500, 302, 0])
def test_who_does_not_take_it_is_told_again(house: House, receiver: Receiver, env: dict[str, str], status: int) -> None:
    """The same message by the same id, so that a receiver may know it; the log has it meanwhile. No redirect is
    followed. 0: it breaks off.
    """
    receiver.statuses = [status, status]
    shim = house.shim(**env)
    worker = house.worker(**env, **hooked(receiver))
    budget(shim, "1", 1)
    spend(house, shim)
    wait_until(lambda: len(receiver.got) == 3, "the message to be taken")
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert len({body for _, body in receiver.got}) == 1
    assert all(is_signed(headers, body) for headers, body in receiver.got)
    logs = worker.output()
    assert logs.count("budget_threshold_reached") == 1
    assert logs.count("alert_not_told") == 2
    assert "token-in-its-path" not in logs


def test_a_worker_that_dies_while_it_tells_leaves_it_to_the_next(
    house: House, receiver: Receiver, env: dict[str, str]
) -> None:
    """Rather twice than never. The receiver knows the second one by its id."""
    shim = house.shim(**env)
    first = house.worker(**env, **hooked(receiver))
    budget(shim, "1", 1)
    receiver.statuses = [500]
    spend(house, shim)
    wait_until(lambda: receiver.got, "the first try")
    first.kill()
    house.worker(**env, **hooked(receiver))
    wait_until(lambda: len(receiver.got) >= 2, "the second", 90)
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
