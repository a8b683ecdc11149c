"""Whoever is to hear of alerts hears of them: the log (and with it Sentry), a signed webhook, a channel of Slack.

Each is told at least once, in order, by whichever worker does upkeep; where one does not answer, the others are told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

import aiohttp
import orjson

from celeriac.costs.alerts import Alert, Alerts
from celeriac.costs.money import usd
from celeriac.errors import StoreUnavailable
from celeriac.jobs.model import rfc_3339
from celeriac.logs import get_logger
from celeriac.settings import CostSettings
from celeriac.webhooks.signing import signed

log = get_logger(__name__)

#: Of one message. A worker that dies meanwhile leaves it, and what follows, to the next after LEASE.
TIMEOUT: Final = timedelta(seconds=10)
LEASE: Final = timedelta(seconds=30)
#: A sink that does not take a message is asked again after a second, two, and so on up to five minutes; after a day the
#: message is given up.
FIRST_WAIT: Final = timedelta(seconds=1)
LONGEST_WAIT: Final = timedelta(minutes=5)
GIVEN_UP: Final = timedelta(days=1)


class NotTold(Exception):
    """A sink did not take a message. Says why, and repeats nothing of its address, which may hold a secret."""


class Sink(Protocol):
    """hears_old: when it is new, also of what was before."""

    name: str
    hears_old: bool

    async def tell(self, alert: Alert) -> None:
        """Raises NotTold."""


class LogSink:
    """An error in the log each, which Sentry reports."""

    name = "log"
    hears_old = True

    async def tell(self, alert: Alert) -> None:
        facts = {name: value for name, value in as_data(alert).items() if value is not None}
        log.error("budget_threshold_reached" if alert.kind == "threshold" else "budget_burn_rate", **facts)


class WebhookSink:
    """A signed POST of JSON each, as Standard Webhooks has it."""

    name = "webhook"
    hears_old = False

    def __init__(self, url: str, secret: str) -> None:
        self._url, self._secret = url, secret

    async def tell(self, alert: Alert) -> None:
        kind = "budget.threshold_reached" if alert.kind == "threshold" else "budget.burn_rate"
        body = orjson.dumps({"type": kind, "timestamp": rfc_3339(alert.at), "data": as_data(alert)})
        await _post(self._url, body, signed(self._secret, f"alert_{alert.id}", datetime.now(UTC), body))


class SlackSink:
    """A message each, as incoming webhooks of Slack, and what is compatible with them, take it."""

    name = "slack"
    hears_old = False

    def __init__(self, url: str) -> None:
        self._url = url

    async def tell(self, alert: Alert) -> None:
        await _post(self._url, orjson.dumps({"text": as_text(alert)}), {})


class Alerting:
    def __init__(self, alerts: Alerts, sinks: Iterable[Sink]) -> None:
        self._alerts, self._sinks = alerts, tuple(sinks)
        # By another clock than the store's.
        self._since = datetime.now(UTC) - timedelta(minutes=1)
        self._telling: dict[str, asyncio.Task[None]] = {}
        #: By sink: the newest alert when it had been told of all.
        self._told: dict[str, str] = {}

    def look(self, newest: str | None) -> None:
        """Begin to tell what is new. Waits for no sink.

        newest: the id of the newest alert, "" where there is none, None where nobody knows.
        """
        for sink in self._sinks:
            task = self._telling.get(sink.name)
            is_new = newest is None or self._told.get(sink.name) != newest
            if is_new and (task is None or task.done()):
                self._telling[sink.name] = asyncio.create_task(self._tell(sink, newest), name=f"alerts to {sink.name}")

    async def close(self) -> None:
        """What was begun is given up: it is told again by whoever comes next."""
        for task in self._telling.values():
            task.cancel()
        await asyncio.gather(*self._telling.values(), return_exceptions=True)

    async def _tell(self, sink: Sink, newest: str | None) -> None:
        try:
            taken = await self._alerts.take(sink.name, LEASE, since=None if sink.hears_old else self._since)
            if taken.told_all and newest is not None:
                self._told[sink.name] = newest
            for alert in taken.alerts:
                try:
                    await sink.tell(alert)
                except NotTold as error:
                    if datetime.now(UTC) - alert.at < GIVEN_UP:
                        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(taken.tries, 20))
                        log.warning("alert_not_told", sink=sink.name, why=str(error), again_in=wait.total_seconds())
                        await self._alerts.failed(taken, wait)
                        return
                    log.error("alert_given_up", sink=sink.name, why=str(error), **as_data(alert))
                if not await self._alerts.told(taken, alert):
                    return
        except StoreUnavailable as error:
            log.warning("alerts_not_told", sink=sink.name, error=str(error))


def sinks_of(costs: CostSettings) -> list[Sink]:
    sinks: list[Sink] = [LogSink()]
    if costs.alert_url is not None and costs.alert_secret is not None:
        sinks.append(WebhookSink(costs.alert_url.get_secret_value(), costs.alert_secret.get_secret_value()))
    if costs.slack_url is not None:
        sinks.append(SlackSink(costs.slack_url.get_secret_value()))
    return sinks


def as_data(alert: Alert) -> dict[str, Any]:
    """As a webhook has it: amounts in dollars as text."""
    return {
        "scope": alert.scope,
        "window": alert.window,
        "use_usd": usd(alert.use),
        "cap_usd": usd(alert.cap),
        "percent": alert.percent,
        "rate_usd_per_hour": None if alert.rate is None else usd(alert.rate),
        "reached_at": None if alert.reached_at is None else rfc_3339(alert.reached_at),
    }


def as_text(alert: Alert) -> str:
    """For people. Amounts are exact: rounded ones would say of a small budget that it is nothing."""
    window = "" if alert.window == "ever" else f" of the {alert.window}"
    used = f"{_dollars(alert.use)} of {_dollars(alert.cap)}{window}"
    if alert.reached_at is None:
        return f"Celeriac: {alert.scope} has reached {alert.percent} % of its budget: {used}."
    return (
        f"Celeriac: {alert.scope} has used {used}. At this rate ({_dollars(alert.rate or 0)} an hour) the cap is "
        f"reached at {alert.reached_at:%Y-%m-%d %H:%M} UTC."
    )


def _dollars(nanos: int) -> str:
    """1234567000 is "$1.234567", a dollar "$1.00"."""
    whole, _, part = usd(nanos).rstrip("0").partition(".")
    return f"${int(whole):,}.{part:0<2}"


async def _post(url: str, body: bytes, headers: Mapping[str, str]) -> None:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT.total_seconds())
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.post(
                url, data=body, headers={"Content-Type": "application/json", **headers}, allow_redirects=False
            ) as answer,
        ):
            if not 200 <= answer.status < 300:
                raise NotTold(f"it answered {answer.status}")
    except TimeoutError as error:
        raise NotTold(f"no answer within {TIMEOUT.total_seconds():g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        # Its text may hold the address.
        raise NotTold(type(error).__name__) from None
