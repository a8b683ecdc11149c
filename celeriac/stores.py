"""Everything we remember. The only module that names the concrete stores; shim, worker and operators all open it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from celeriac.connections import ALWAYS, CLOCK, Redis, answering, open_redis
from celeriac.contexts import store as contexts
from celeriac.contexts.store import ContextStore
from celeriac.costs import books
from celeriac.costs.alerts import Alerts
from celeriac.costs.budgets import Budgets
from celeriac.costs.dearest import Dearest
from celeriac.costs.doubts import Doubts
from celeriac.costs.ledger import Ledger
from celeriac.costs.usage import Totals
from celeriac.errors import Misconfigured
from celeriac.gate import lanes
from celeriac.gate.lanes import Lanes
from celeriac.jobs.census import Census
from celeriac.jobs.dispatch import InScript, Produced, open_ringer
from celeriac.jobs.events import Channels, Ends, Events
from celeriac.jobs.journal import Journal, OnBooked
from celeriac.jobs.lease import Fleet
from celeriac.jobs.scripts import HERE, scripts
from celeriac.jobs.store import JobStore, Keep
from celeriac.jobs.watchdog import Watchdog
from celeriac.logs import get_logger
from celeriac.settings import Settings

log = get_logger(__name__)


@dataclass(frozen=True)
class Stores:
    redis: Redis
    jobs: JobStore
    census: Census
    journal: Journal
    contexts: ContextStore
    lanes: Lanes
    budgets: Budgets
    alerts: Alerts
    doubts: Doubts
    ledger: Ledger
    usage: Totals
    dearest: Dearest
    channels: Channels
    ends: Ends
    events: Events
    ringer: InScript | Produced

    def on_booked(self, tell: OnBooked) -> None:
        """Whom to tell of each call whose outcome this process has booked. It must not raise."""
        self.journal.on_booked = self.jobs.on_booked = tell

    async def close(self) -> None:
        await self.channels.close()
        if isinstance(self.ringer, Produced):
            await self.ringer.close()
        await self.redis.aclose()


def open_stores(
    settings: Settings,
    *,
    connections: int | None = None,
    name: str = "celeriac",
    clock: str = CLOCK,
    within: float | None = None,
) -> Stores:
    """Open on a running event loop, close there. Connects when first used. connections: default, the shim's.

    within: seconds after which a store that does not answer is away; None for as long as the client tries.
    """
    redis = open_redis(
        settings.redis_url.get_secret_value(), connections=connections or settings.shim.redis_connections, name=name
    )
    ringer = open_ringer(settings)
    fenced = "fencing" not in settings.drill_without
    channels = Channels(redis)
    made = scripts(
        redis, contexts.LUA, books.lua(settings.costs), clock, settings.durability, fenced=fenced, within=within
    )
    return Stores(
        redis=redis,
        jobs=JobStore(
            redis,
            made,
            ringer,
            keep=keep(settings),
            max_messages=settings.contexts.max_messages,
            max_bytes=settings.contexts.max_bytes,
            lanes=lanes.LUA,
            celery_results=settings.jobs.celery_results,
        ),
        census=Census(redis, made),
        journal=Journal(made, lanes.LUA),
        contexts=ContextStore(redis, made),
        lanes=Lanes(redis, made),
        budgets=Budgets(redis, made, settings.costs.time_zone),
        alerts=Alerts(redis, made),
        doubts=Doubts(redis, made),
        ledger=Ledger(redis, settings.costs.entries_ttl),
        usage=Totals(redis, settings.costs.time_zone),
        dearest=Dearest(redis),
        channels=channels,
        ends=Ends(channels),
        events=Events(redis, channels),
        ringer=ringer,
    )


def keep(settings: Settings) -> Keep:
    jobs = settings.jobs
    return Keep(jobs.result_ttl, jobs.dead_ttl, settings.contexts.ttl, jobs.unknown_agent_ttl)


def open_fleet(settings: Settings, stores: Stores, *, name: str, clock: str = CLOCK) -> tuple[Fleet, Redis]:
    """A worker's own line to the store: one connection, answers within a third of the lease, nothing resent."""
    redis = open_redis(
        settings.redis_url.get_secret_value(),
        connections=1,
        timeout=settings.jobs.lease.total_seconds() / 3,
        retries=0,
        name=name,
    )
    fleet = Fleet(
        redis,
        scripts(redis, contexts.LUA, books.lua(settings.costs), clock),
        stores.ringer,
        lease=settings.jobs.lease,
        keep=keep(settings),
        lanes=lanes.LUA,
        upkeep="upkeep" not in settings.drill_without,
    )
    return fleet, redis


def open_watchdog(settings: Settings, stores: Stores, *, clock: str = CLOCK) -> Watchdog:
    """For a thread beside the worker's event loop. Connects when first needed, which may be never."""
    text = scripts(stores.redis, contexts.LUA, books.lua(settings.costs), clock).text(HERE / "extend.lua", ALWAYS)
    return Watchdog(settings.redis_url.get_secret_value(), text, lease=settings.jobs.lease)


async def check_redis(redis: Redis, settings: Settings) -> None:
    """Refuse a Redis that cannot keep the promises. In dev a risky one is a warning.

    Raises Misconfigured, StoreUnavailable.
    """
    async with answering():
        info = await redis.info()
        try:
            config: dict[Any, Any] = await redis.config_get("maxmemory-policy", "min-replicas-*")
        except RedisError:  # managed services close CONFIG; INFO says the same in other words
            config = {}
    if info.get("cluster_enabled"):
        raise Misconfigured(
            "Redis Cluster is not supported: a script touches several keys; use one primary with replicas"
        )
    major = int(str(info.get("valkey_version") or info["redis_version"]).partition(".")[0])
    if major < (8 if "valkey_version" in info else 7):
        raise Misconfigured("this Redis is too old: use Redis >= 7 or Valkey >= 8")
    if mistakes := list(_not_durable(settings, info, config)):
        raise Misconfigured("\n".join(mistakes))
    risks = []
    policy = _text(config.get(b"maxmemory-policy") or info.get("maxmemory_policy"))
    if policy != "noeviction":
        risks.append(f"maxmemory-policy is {policy}: Redis may evict jobs; set noeviction")
    if not int(info.get("aof_enabled", 0)):
        risks.append("appendonly is off: a restart of Redis loses jobs; turn it on")
    if risks and settings.env == "prod":
        raise Misconfigured("\n".join(risks))
    for risk in risks:
        log.warning("redis_is_risky", risk=risk)


def _not_durable(settings: Settings, info: Mapping[str, Any], config: Mapping[Any, Any]) -> Iterator[str]:
    """What keeps this Redis from promising what `durability` says."""
    if settings.durability == "process":
        return
    name = f"CELERIAC_DURABILITY is {settings.durability}"
    version = str(info["redis_version"]).split(".")
    if (int(version[0]), int(version[1])) < (7, 2):
        yield f"{name}: WAITAOF needs Redis >= 7.2 or Valkey"
    if not int(info.get("aof_enabled", 0)):
        yield f"{name}: the store has no append-only file; set appendonly yes"
    if settings.durability == "replica":
        half = settings.jobs.lease.total_seconds() / 2
        wanted, lag = (
            int(_text(config.get(key) or "0")) for key in (b"min-replicas-to-write", b"min-replicas-max-lag")
        )
        # Else a primary that is cut off from its replicas goes on taking work, which the failover then loses.
        if wanted < 1 or not 0 < lag <= half:
            yield f"{name}: set min-replicas-to-write 1 and min-replicas-max-lag to at most {half:g} (half a lease)"


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
