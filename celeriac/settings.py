"""Everything an operator may set, read once from the environment and frozen.

Names are `CELERIAC_` plus the field in capitals; a field of a section is joined by two underscores, as in
`CELERIAC_SHIM__PORT=8000`. A `.env` file in the working directory is read too; the environment wins. `.env.example`
lists every name with its default.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic import model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from celeriac.errors import Misconfigured

PREFIX = "CELERIAC_"
SHIPPED_AGENTS = Path(__file__).parent / "agents" / "agents.toml"

#: Names that end up in Redis keys, logs and metrics.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]


def _redis_url(url: SecretStr) -> SecretStr:
    scheme = urlsplit(url.get_secret_value()).scheme
    if scheme not in {"redis", "rediss", "unix"}:
        raise ValueError(f"begins with {scheme or 'no scheme'}://; use redis://, rediss:// or unix://")
    return url


def _broker_url(url: SecretStr) -> SecretStr:
    scheme = urlsplit(url.get_secret_value()).scheme
    if scheme not in {"redis", "rediss", "amqp", "amqps", "pyamqp"}:
        raise ValueError(f"begins with {scheme or 'no scheme'}://; use redis://, rediss://, amqp:// or amqps://")
    return url


RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
BrokerUrl = Annotated[SecretStr, AfterValidator(_broker_url)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShimSettings(Section):
    host: str = Field("127.0.0.1", description="Address the shim listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port the shim listens on; 0 takes a free one.")
    max_body_bytes: int = Field(1024 * 1024, gt=0, description="A larger request body is refused with 413.")
    max_wait: timedelta = Field(timedelta(seconds=60), description="Longest `?wait=`; a longer one is cut to it.")
    cors_origins: tuple[str, ...] = Field((), description="Origins a browser may call from, or `*`.")
    cors_credentials: bool = Field(False, description="Whether a browser may send credentials.")
    api_keys: dict[Name, SecretStr] = Field(
        default_factory=dict,
        description="Tenant to key, as JSON. With none, everybody is the tenant `default`: for one machine only.",
    )
    redis_connections: int = Field(10, gt=0, description="More let more requests reach Redis at once.")


class WorkerSettings(Section):
    concurrency: int = Field(1000, gt=0, description="Jobs in flight in one process; each costs about 60 KiB.")
    queues: tuple[Name, ...] = Field(("celeriac",), min_length=1, description="Queues that the worker serves.")
    redis_connections: int | None = Field(None, gt=0, description="Default: one for 32 jobs in flight, at least 8.")
    grace: timedelta = Field(timedelta(seconds=30), description="How long SIGTERM waits for jobs in flight.")
    stall: timedelta = Field(
        timedelta(seconds=2), description="A task that blocks the loop for this long is named in the log."
    )


class JobSettings(Section):
    result_ttl: timedelta = Field(timedelta(hours=24), description="How long an ended job can be asked for.")
    lease: timedelta = Field(
        timedelta(seconds=15),
        ge=timedelta(seconds=1),
        description="A worker silent for this long has lost its jobs. Lower recovers sooner, higher forgives pauses.",
    )


class ContextSettings(Section):
    ttl: timedelta = Field(timedelta(hours=24), description="A conversation ages from the end of its last job.")
    max_messages: int = Field(200, ge=2, description="Older turns are dropped beyond this.")
    max_bytes: int = Field(1024 * 1024, ge=1024, description="Older turns are dropped beyond this.")


class FlowerSettings(Section):
    host: str = Field("127.0.0.1", description="Address Flower listens on.")
    port: int = Field(5555, ge=0, le=65535, description="Port Flower listens on.")


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
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severe event logged.")
    agents_file: Path = Field(SHIPPED_AGENTS, description="The agents of this deployment. Default: those we ship.")
    prices_file: Path | None = Field(None, description="Prices that override the built-in table, as TOML.")
    openai_api_key: SecretStr | None = Field(
        None, validation_alias=AliasChoices(PREFIX + "OPENAI_API_KEY", "OPENAI_API_KEY"), description="OpenAI's key."
    )
    openai_base_url: str | None = Field(None, description="Any OpenAI-compatible endpoint. Default: OpenAI's own.")
    anthropic_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices(PREFIX + "ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY"),
        description="Anthropic's key.",
    )
    anthropic_base_url: str | None = Field(None, description="Default: Anthropic's own endpoint.")
    sentry_dsn: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices(PREFIX + "SENTRY_DSN", "SENTRY_DSN"),
        description="Where errors are reported.",
    )
    shim: ShimSettings = ShimSettings()  # type: ignore[call-arg]  # every field has a default
    worker: WorkerSettings = WorkerSettings()  # type: ignore[call-arg]
    jobs: JobSettings = JobSettings()  # type: ignore[call-arg]
    contexts: ContextSettings = ContextSettings()  # type: ignore[call-arg]
    flower: FlowerSettings = FlowerSettings()  # type: ignore[call-arg]
    local: LocalSettings = LocalSettings()  # type: ignore[call-arg]

    @property
    def broker_is_store(self) -> bool:
        """Whether a script that changes a job may ring the worker in the same step."""
        return self.broker_url is None or self.broker_url == self.redis_url

    @model_validator(mode="after")
    def _safe_in_prod(self) -> Self:
        if self.shim.cors_credentials and "*" in self.shim.cors_origins:
            raise ValueError("shim.cors_origins is * while shim.cors_credentials is on; name the origins")
        if self.env == "prod" and not self.shim.api_keys:
            raise ValueError(
                "shim.api_keys is empty and env is prod: anybody could spend your money; set a key a tenant"
            )
        return self


def variables() -> dict[str, str]:
    """Every environment variable that is read, with what it trades."""
    return dict(_variables(Settings, PREFIX))


def _variables(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _variables(kind, f"{prefix}{name.upper()}__")
        else:
            yield f"{prefix}{name.upper()}", field.description or ""


def load_settings(**overrides: Any) -> Settings:
    """Read the environment. Raises `Misconfigured` with one line for each mistake, unknown names included."""
    mistakes = [*_unknown_names()]
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        # Never the input: it may be a key.
        for e in error.errors(include_url=False, include_input=False, include_context=False):
            path = "__".join(str(part) for part in e["loc"]).upper()
            name = path if path.startswith(PREFIX) or not path or path in os.environ else PREFIX + path
            mistakes.append(f"{name or 'settings'}: {e['msg'].removeprefix('Value error, ')}")
    else:
        if not mistakes:
            return settings
    raise Misconfigured("\n".join(mistakes))


def _unknown_names() -> Iterator[str]:
    known = variables()
    given = {name.upper() for name in (*os.environ, *dotenv_values(".env")) if name.upper().startswith(PREFIX)}
    for name in sorted(given - known.keys()):
        if any(name.startswith(f"{section}__") or section == name for section in _mappings()):
            continue
        close = difflib.get_close_matches(name, known, n=1)
        yield f"{name}: there is no such setting" + (f"; did you mean {close[0]}?" if close else "")


def _mappings() -> set[str]:
    """Settings whose value is a mapping, and sections: both may be given as JSON or entry by entry."""
    sections = {PREFIX + n.upper() for n, f in Settings.model_fields.items() if isinstance(f.default, Section)}
    return sections - {s for s in sections} | {PREFIX + "SHIM__API_KEYS"}
