"""Everything an operator may set, read once from the environment and frozen.

Names are `CELERIAC_` plus the field in capitals; a field of a section is joined by two underscores, as in
`CELERIAC_SHIM__PORT=8000`. A `.env` file in the working directory is read too; the environment wins. An empty value
is as good as none. `.env.example` lists every name with its default.

Durations are seconds (`15`, `0.5`), `HH:MM:SS` or ISO 8601 (`PT15S`). Lists are JSON or separated by commas. A mapping
is JSON, `CELERIAC_SHIM__API_KEYS={"acme": "its-key"}`, or an entry a variable, `CELERIAC_SHIM__API_KEYS__ACME=its-key`:
names are then in lower case, because the environment does not keep theirs.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import difflib
import json
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_origin
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from celeriac.errors import Misconfigured

PREFIX = "CELERIAC_"
SHIPPED_AGENTS = Path(__file__).parent / "agents" / "agents.toml"

#: Dollars that a job may cost where nobody says anything else: there is always a highest cost to quote.
MAX_JOB_USD: Final = Decimal(10)
#: Names that end up in Redis keys, logs and metrics.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]


#: The task that runs a job whose bell was rung.
RUN_JOB = "celeriac.run_job"
#: The task that takes jobs from Celery's own callers, and the queue that carries it.
SUBMIT = "celeriac.submit"
#: Jobs that crashed their workers are rung for on a queue of their own, which only a quarantined worker consumes.
SUSPECTS = ".suspects"


def is_reserved(queue: str) -> bool:
    """Whether the queue carries something else than jobs, or suspects only."""
    return queue == SUBMIT or queue.endswith(SUSPECTS)


def _url(url: SecretStr, schemes: tuple[str, ...]) -> SecretStr:
    # What it begins with is not repeated either: somebody may have pasted a password alone.
    if not url.get_secret_value().startswith(tuple(f"{scheme}://" for scheme in schemes)):
        raise ValueError(f"does not begin with {'://, '.join(schemes)}://")
    try:
        urlsplit(url.get_secret_value()).port  # noqa: B018  # looking at it is the check
    except ValueError:
        raise ValueError("has no valid port; a password must be percent-encoded") from None
    return url


def _http_url(url: SecretStr) -> SecretStr:
    if not urlsplit(_url(url, ("http", "https")).get_secret_value()).hostname:
        raise ValueError("names no host; write it as https://api.example.com/v1")
    return url


def _signing_secret(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if text.startswith("whsec_"):
        try:
            base64.b64decode(text.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            raise ValueError("has no base64 after whsec_") from None
    if len(text) < 24:
        raise ValueError('is shorter than 24 characters; `echo "whsec_$(openssl rand -base64 24)"` makes one')
    return secret


def _redis_url(url: SecretStr) -> SecretStr:
    from redis.asyncio import BlockingConnectionPool
    from redis.exceptions import RedisError

    parts = urlsplit(_url(url, ("redis", "rediss", "unix")).get_secret_value())
    if parts.scheme != "unix" and not re.fullmatch(r"/?\d*/?", parts.path):
        raise ValueError("its path is no number of a database; write it as redis://HOST:PORT/0")
    try:
        # As it will be used, short of connecting.
        BlockingConnectionPool.from_url(url.get_secret_value()).make_connection()  # type: ignore[no-untyped-call]  # redis-py's
    except (TypeError, ValueError, RedisError):
        # Which one is not repeated: it may hold a password.
        raise ValueError("has an option after ? that is unknown, or whose value is wrong") from None
    return url


def _broker_url(url: SecretStr) -> SecretStr:
    return _url(url, ("redis", "rediss", "amqp", "amqps", "pyamqp"))


def _dsn(dsn: SecretStr) -> SecretStr:
    parts = urlsplit(_url(dsn, ("http", "https")).get_secret_value())
    if not (parts.username and parts.hostname and parts.path.rpartition("/")[2]):
        raise ValueError("is no DSN; copy it from Sentry's project settings, as https://KEY@HOST/PROJECT")
    return dsn


def _base_url(url: str) -> str:
    return _http_url(SecretStr(url)).get_secret_value()


BaseUrl = Annotated[str, AfterValidator(_base_url)]
Url = Annotated[SecretStr, AfterValidator(_http_url)]
SigningSecret = Annotated[SecretStr, AfterValidator(_signing_secret)]
Dsn = Annotated[SecretStr, AfterValidator(_dsn)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
BrokerUrl = Annotated[SecretStr, AfterValidator(_broker_url)]

_timedelta = TypeAdapter(timedelta)


def _duration(value: object) -> timedelta:
    # pydantic takes numbers as seconds, but not numbers in text, which is all the environment has.
    with contextlib.suppress(ValueError):
        value = float(value) if isinstance(value, str) else value
    try:
        duration = _timedelta.validate_python(value)
    except ValidationError as error:
        raise ValueError("is not a duration; use seconds (15), HH:MM:SS or ISO 8601 (PT15S)") from error
    if duration < timedelta(0):
        raise ValueError("is a negative duration")
    return duration


def _list(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _json(value)
    return [part.strip() for part in value.split(",") if part.strip()]


def _json(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError("is not valid JSON") from error


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("is no time zone; write it as Europe/Berlin, or UTC") from None
    return name


#: By its IANA name.
Zone = Annotated[str, AfterValidator(_zone)]
#: From here the field's own bounds apply.
Duration = Annotated[timedelta, BeforeValidator(_duration)]
#: NoDecode: the settings library would fail on a bad value without naming its variable.
Names = Annotated[tuple[Name, ...], NoDecode, BeforeValidator(_list)]
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_list)]
Limits = Annotated[dict[Name, Annotated[int, Field(gt=0)]], NoDecode, BeforeValidator(_json)]
Labels = Annotated[
    dict[Name, Annotated[tuple[Name, ...], BeforeValidator(_list)]],
    Field(max_length=4),
    NoDecode,
    BeforeValidator(_json),
]
Secrets = Annotated[dict[Name, SecretStr], NoDecode, BeforeValidator(_json)]

#: What every client sends in a header alike: of letters beyond ASCII some send UTF-8, some Latin-1, some nothing.
SENDABLE = re.compile(r"[\x21-\x7e]*")
#: In prod a shorter API key is refused: it can be guessed.
SHORTEST_KEY = 16
#: A key that signs can be guessed by whoever holds one receipt, at any speed.
SHORTEST_SIGNING_KEY = 32


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShimSettings(Section):
    host: str = Field("127.0.0.1", description="Address the shim listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port the shim listens on; 0 takes a free one.")
    max_body_bytes: int = Field(1024 * 1024, gt=0, description="A larger request body is refused with 413.")
    max_wait: Duration = Field(timedelta(seconds=60), description="Longest `?wait=`; a longer one is cut to it.")
    cors_origins: Origins = Field((), description="Origins a browser may call from, or `*`.")
    cors_credentials: bool = Field(False, description="Whether a browser may send credentials.")
    api_keys: Secrets = Field(
        default_factory=dict,
        description="Tenant to key. With none, everybody is the tenant `default`: for one machine only.",
    )
    operators: Names = Field(
        (),
        description="Tenants whose key may change budgets and look at everybody's money. Without API keys, everybody.",
    )
    redis_connections: int = Field(10, gt=0, description="More let more requests reach Redis at once.")


class WorkerSettings(Section):
    concurrency: int = Field(1000, gt=0, description="Jobs in flight in one process; each costs about 70 KiB.")
    queues: Names = Field(("celeriac",), min_length=1, description="Queues that the worker serves.")
    redis_connections: int | None = Field(None, gt=0, description="Default: one for 32 jobs in flight, at least 8.")
    grace: Duration = Field(timedelta(seconds=30), description="How long SIGTERM waits for jobs in flight.")
    stall: Duration = Field(
        timedelta(seconds=2),
        ge=timedelta(seconds=0.2),
        description="A task that blocks the loop for this long is named in the log.",
    )
    health_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the worker's own /livez, /readyz and /metrics; 0 takes a free one. "
        "Default: none, as two workers on one machine cannot share it; set it in containers.",
    )
    health_host: str = Field(
        "127.0.0.1",
        description="Address of that port, which asks for no key; 0.0.0.0 lets probes from outside in.",
    )


class JobSettings(Section):
    result_ttl: Duration = Field(
        timedelta(hours=24), ge=timedelta(seconds=60), description="How long an ended job can be asked for."
    )
    dead_ttl: Duration = Field(
        timedelta(days=7), ge=timedelta(seconds=60), description="How long a dead letter is kept for replay."
    )
    unknown_agent_ttl: Duration = Field(
        timedelta(hours=1),
        ge=timedelta(seconds=10),
        description="How long a job waits for a worker that knows its agent, while a deploy rolls; then it fails.",
    )
    celery_results: bool = Field(
        False,
        description="Whether jobs over HTTP have a Celery result as well, for two more commands to Redis each; jobs "
        "that come through Celery always have one.",
    )
    chord_ttl: Duration = Field(
        timedelta(days=7),
        ge=timedelta(seconds=1),
        description="How long a Celery chord waits for a member that is parked; one that would wait longer is refused.",
    )
    max_running_per_tenant: int | None = Field(
        None, gt=0, description="Jobs of one tenant at once. Lower keeps room for the others. Default: no limit."
    )
    tenant_limits: Limits = Field(
        default_factory=dict, description="Tenant to its own limit, where it is not that of the others."
    )
    lease: Duration = Field(
        timedelta(seconds=15),
        ge=timedelta(seconds=1),
        description="A worker silent for this long has lost its jobs. Lower recovers sooner, higher forgives pauses.",
    )


class ContextSettings(Section):
    ttl: Duration = Field(
        timedelta(hours=24), ge=timedelta(seconds=60), description="A conversation ages from the end of its last job."
    )
    max_messages: int = Field(200, ge=2, description="Older turns are dropped beyond this.")
    max_bytes: int = Field(1024 * 1024, ge=1024, description="Older turns are dropped beyond this.")


class CostSettings(Section):
    time_zone: Zone = Field(
        "UTC",
        description="Whose midnights begin the days, weeks and months of budgets and reports. A change begins new "
        "windows, of which nothing is used yet.",
    )
    labels: Labels = Field(
        default_factory=dict,
        description="Names of metadata that budgets and reports look at, each with the values that it may have; any "
        "other value counts as `other`.",
    )
    entries_ttl: Duration = Field(
        timedelta(days=45),
        ge=timedelta(days=1),
        le=timedelta(days=3650),
        description="How long each call's entry in the ledger, and the usage by the hour, is kept.",
    )
    totals_ttl: Duration = Field(
        timedelta(days=400),
        ge=timedelta(days=35),
        le=timedelta(days=3650),
        description="How long the usage by the day is kept.",
    )
    strict: bool = Field(
        False,
        description="Whether a lane is left alone, until an operator opens it, once a call of it cost more than its "
        "bound.",
    )
    alert_url: Url | None = Field(
        None, description="Where alerts about budgets are posted as JSON, signed. Default: nowhere."
    )
    alert_secret: SigningSecret | None = Field(
        None,
        description="Signs them, as Standard Webhooks has it: `whsec_` and base64, or a text of 24 characters or more.",
    )
    slack_url: Url | None = Field(
        None,
        description="An incoming webhook of Slack, or one that is compatible, which is told of the same.",
    )
    max_job_usd: Annotated[Decimal, Field(gt=0, le=1_000_000, decimal_places=9)] = Field(
        MAX_JOB_USD,
        description="Dollars that a job may cost, with all that work for it, where its agent says nothing of that.",
    )
    receipt_keys: Secrets = Field(
        default_factory=dict,
        description="Name to key: receipts are signed with one of them, and verified with any. With none they are not "
        "signed. Keep an old key for as long as its receipts are to be verified.",
    )
    receipt_key: Name | None = Field(None, description="The name of the key that signs. Default: the only one.")

    @property
    def signs_with(self) -> str | None:
        """The name of the key that signs receipts, None for none."""
        return self.receipt_key or next(iter(self.receipt_keys), None)


class FetchSettings(Section):
    """What the shipped tool `http_fetch` may read."""

    hosts: Origins = Field((), description="Hosts that `http_fetch` may ask, as `example.com` or `*.example.com`.")
    timeout: Duration = Field(timedelta(seconds=20), gt=timedelta(0), description="Longest wait of `http_fetch`.")
    user_agent: str = Field("celeriac", pattern=r"^[\x20-\x7e]{1,200}$", description="How `http_fetch` names itself.")
    private_addresses: bool = Field(
        False, description="Whether `http_fetch` may reach addresses that are not of the public internet, at any port."
    )


class FlowerSettings(Section):
    host: str = Field("127.0.0.1", description="Address Flower listens on.")
    port: int = Field(5555, ge=0, le=65535, description="Port Flower listens on.")
    show_text: bool = Field(
        False, description="Whether Flower's page of a job shows what was asked and answered, to all who may open it."
    )


class LocalSettings(Section):
    """What `celeriac up` starts on this machine besides shim, worker and Flower."""

    directory: Path = Field(Path(".celeriac"), description="State of the embedded parts; survives a restart.")
    redis_port: int = Field(6390, ge=0, le=65535, description="Port of the embedded Valkey.")
    model_port: int = Field(8081, ge=0, le=65535, description="Port of the local model server.")


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_file=".env",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        populate_by_name=True,
    )

    env: Literal["dev", "prod"] = Field("dev", description="`prod` refuses to start with anything unsafe.")
    redis_url: RedisUrl = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        validation_alias=AliasChoices(PREFIX + "REDIS_URL", "REDIS_URL"),
        description="The job store: one Redis >= 7 or Valkey >= 8 with an append-only file and noeviction.",
    )
    broker_url: BrokerUrl | None = Field(None, description="Celery's broker. Default: the job store's own Redis.")
    drill_without: Annotated[tuple[Literal["upkeep", "fencing"], ...], NoDecode, BeforeValidator(_list)] = Field(
        (), description="For the chaos drill alone: safeguards to do without. Refused in prod."
    )
    durability: Literal["process", "disk", "replica"] = Field(
        "process",
        description="What a stored job survives: `process`, the end of Redis; `disk`, the loss of power, for a wait at "
        "each submission and settlement; `replica`, the loss of the primary.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severe event logged.")
    agents_file: Path = Field(SHIPPED_AGENTS, description="The agents of this deployment. Default: those we ship.")
    prices_file: Path | None = Field(None, description="Prices that override the built-in table, as TOML.")
    prices_data_file: Path | None = Field(
        None, description="A newer table of prices, in genai-prices' own JSON. What it lacks is in the built-in one."
    )
    prices_unknown_models: Literal["estimate", "refuse"] = Field(
        "estimate",
        description="A model whose price nobody knows: `estimate` takes its provider's dearest, `refuse` does not ask.",
    )
    openai_api_key: SecretStr | None = Field(
        None, validation_alias=AliasChoices(PREFIX + "OPENAI_API_KEY", "OPENAI_API_KEY"), description="OpenAI's key."
    )
    openai_base_url: BaseUrl | None = Field(None, description="Any OpenAI-compatible endpoint. Default: OpenAI's own.")
    anthropic_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices(PREFIX + "ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY"),
        description="Anthropic's key.",
    )
    anthropic_base_url: BaseUrl | None = Field(None, description="Default: Anthropic's own endpoint.")
    anthropic_region: Literal["global", "us"] = Field(
        "global", description="Where Anthropic runs models that let it be chosen; `us` costs a tenth more."
    )
    scripted: bool = Field(
        False, description="Answer from a script and ask no model: free and the same every time. Refused in prod."
    )
    sentry_dsn: Dsn | None = Field(
        None,
        validation_alias=AliasChoices(PREFIX + "SENTRY_DSN", "SENTRY_DSN"),
        description="Where errors are reported.",
    )
    shim: ShimSettings = ShimSettings()
    worker: WorkerSettings = WorkerSettings()
    jobs: JobSettings = JobSettings()
    contexts: ContextSettings = ContextSettings()
    costs: CostSettings = CostSettings()
    fetch: FetchSettings = FetchSettings()
    flower: FlowerSettings = FlowerSettings()
    local: LocalSettings = LocalSettings()

    @property
    def broker_is_store(self) -> bool:
        """Whether a script that changes a job may ring the worker in the same step."""
        return self.broker_url is None or self.broker_url == self.redis_url

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if mistakes := [*self._unsafe(), *(self._unsafe_in_prod() if self.env == "prod" else ())]:
            raise ValueError("\n".join(mistakes))
        return self

    def _unsafe(self) -> Iterator[str]:
        if self.shim.cors_credentials and "*" in self.shim.cors_origins:
            yield "CELERIAC_SHIM__CORS_ORIGINS: is * while CELERIAC_SHIM__CORS_CREDENTIALS is on; name the origins"
        if len({key.get_secret_value() for key in self.shim.api_keys.values()}) < len(self.shim.api_keys):
            yield "CELERIAC_SHIM__API_KEYS: two tenants have the same key"
        for tenant, key in self.shim.api_keys.items():
            if not SENDABLE.fullmatch(key.get_secret_value()):
                yield (
                    f"CELERIAC_SHIM__API_KEYS: the key of {tenant} has white space, control characters or others than "
                    "ASCII, which clients send in different ways or not at all; make one of visible ASCII characters"
                )
        for tenant in sorted({*self.shim.operators} - self.shim.api_keys.keys()):
            yield f"CELERIAC_SHIM__OPERATORS: {tenant} has no key in CELERIAC_SHIM__API_KEYS"
        keys, current = self.costs.receipt_keys, self.costs.receipt_key
        if current is None and len(keys) > 1:
            yield f"CELERIAC_COSTS__RECEIPT_KEY: is to name the key that signs ({', '.join(sorted(keys))})"
        if current is not None and current not in keys:
            yield f"CELERIAC_COSTS__RECEIPT_KEY: CELERIAC_COSTS__RECEIPT_KEYS has no key {current}"
        if self.costs.alert_url is not None and self.costs.alert_secret is None:
            yield "CELERIAC_COSTS__ALERT_SECRET: is missing; it signs what is posted to CELERIAC_COSTS__ALERT_URL"
        for name, key in keys.items():
            if not key.get_secret_value():
                yield f"CELERIAC_COSTS__RECEIPT_KEYS: the key {name} is empty"
        for queue in filter(is_reserved, self.worker.queues):
            yield f"CELERIAC_WORKER__QUEUES: {queue} is Celeriac's own; workers serve it by themselves"

    def _unsafe_in_prod(self) -> Iterator[str]:
        if not self.shim.api_keys:
            yield "CELERIAC_SHIM__API_KEYS: is empty in prod: anybody could spend your money; set a key for each tenant"
        for tenant, key in self.shim.api_keys.items():
            if len(key.get_secret_value()) < SHORTEST_KEY:
                yield f"CELERIAC_SHIM__API_KEYS: the key of {tenant} is shorter than {SHORTEST_KEY} characters"
        for name, key in self.costs.receipt_keys.items():
            if len(key.get_secret_value()) < SHORTEST_SIGNING_KEY:
                yield (
                    f"CELERIAC_COSTS__RECEIPT_KEYS: the key {name} is shorter than {SHORTEST_SIGNING_KEY} characters; "
                    "`openssl rand -hex 32` makes one"
                )
        if self.drill_without:
            yield "CELERIAC_DRILL_WITHOUT: is set in prod: jobs would be lost"
        if self.scripted:
            yield "CELERIAC_SCRIPTED: is on in prod: callers would be answered from a script"


def variables() -> dict[str, str]:
    """Every environment variable that is read, with what it trades."""
    return {name: field.description or "" for name, field in _fields(Settings, PREFIX)}


def example() -> str:
    """Every variable as a comment with its default, ready to be a `.env` file: it changes nothing as it is."""
    lines = [
        "# Every setting of Celeriac with its default: copy this file to .env and uncomment what you change.",
        "# `celeriac settings` prints it. REDIS_URL, OPENAI_API_KEY, ANTHROPIC_API_KEY and SENTRY_DSN are read too.",
    ]
    for name, field in _fields(Settings, PREFIX):
        lines += ["", f"# {field.description}", f"#{name}={_written(field.get_default(call_default_factory=True))}"]
    return "\n".join(lines) + "\n"


def _written(default: object) -> str:
    """A default as the environment would give it."""
    match default:
        case None:
            return ""
        case SecretStr():
            return default.get_secret_value()
        case timedelta():
            return f"{default.total_seconds():g}"
        case bool():
            return str(default).lower()
        case tuple():
            return ",".join(default)
        case dict():
            return json.dumps(default)
        case Path() if default == SHIPPED_AGENTS:
            return ""
        case _:
            return str(default)


def _fields(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _fields(kind, f"{prefix}{name.upper()}__")
        else:
            yield f"{prefix}{name.upper()}", field


def load_settings(**overrides: Any) -> Settings:
    """Read the environment. Raises `Misconfigured` with one line for each variable that is wrong or unknown.

    overrides: fields and sections that count more than the environment, as in `shim={"port": 0}`.
    """
    given = {name.upper() for name in (*dotenv_values(".env"), *os.environ)}
    mistakes = dict(_unknown(given))
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        # Never the input: it may be a key.
        for e in error.errors(include_url=False, include_input=False, include_context=False):
            message = e["msg"].removeprefix("Value error, ")
            for line in message.splitlines():
                name, _, text = (_variable(e["loc"], given), "", line) if e["loc"] else line.partition(": ")
                mistakes.setdefault(name, text)
    else:
        if not mistakes:
            return settings
    raise Misconfigured("\n".join(f"{name}: {text}" for name, text in mistakes.items()))


def _variable(path: tuple[int | str, ...], given: set[str]) -> str:
    """The variable that set what `path` leads to; of an entry of a list or a mapping, the whole."""
    name = "__".join(str(part) for part in path).upper().removeprefix(PREFIX)
    if name in given and PREFIX + name not in given:
        return name  # one of the usual names, as REDIS_URL
    name = PREFIX + name
    return next((known for known in variables() if name == known or name.startswith(f"{known}__")), name)


def _unknown(given: set[str]) -> Iterator[tuple[str, str]]:
    """Each name of ours that is no setting, and what is wrong with it."""
    known = dict(_fields(Settings, PREFIX))
    mappings = {name for name, field in known.items() if get_origin(field.annotation) is dict}
    for name in sorted(n for n in given - known.keys() if n.startswith(PREFIX)):
        mapping = next((m for m in mappings if name.startswith(f"{m}__")), None)
        if mapping is None:
            close = difflib.get_close_matches(name.removeprefix(PREFIX), [k.removeprefix(PREFIX) for k in known], n=1)
            yield name, "there is no such setting" + (f"; did you mean {PREFIX}{close[0]}?" if close else "")
        elif mapping in given:
            yield name, f"{mapping} is set too; give it whole or entry by entry"
