"""What an operator may write into the environment, and what they are told when it is wrong."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from celeriac import settings
from celeriac.errors import Misconfigured
from celeriac.settings import Settings, load_settings, variables

EXAMPLE = Path(__file__).parents[2] / ".env.example"
USUAL = ("REDIS_URL", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "SENTRY_DSN")


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this machine's environment nor a .env file of the working directory counts."""
    for name in os.environ:
        if name.upper().startswith("CELERIAC_") or name in USUAL:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refusal() -> list[str]:
    with pytest.raises(Misconfigured) as caught:
        load_settings()
    return str(caught.value).splitlines()


def test_everything_has_a_default() -> None:
    """One machine needs no configuration."""
    assert load_settings().env == "dev"


def test_an_unknown_name_is_refused_with_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt setting would otherwise be silently without effect."""
    monkeypatch.setenv("CELERIAC_SHIM__PROT", "9000")
    assert refusal() == ["CELERIAC_SHIM__PROT: there is no such setting; did you mean CELERIAC_SHIM__PORT?"]


def test_an_unknown_name_in_the_env_file_is_refused_too() -> None:
    """The file is read like the environment."""
    Path(".env").write_text("CELERIAC_NO_SUCH_THING_AT_ALL=1\n")
    assert refusal() == ["CELERIAC_NO_SUCH_THING_AT_ALL: there is no such setting"]


def test_every_mistake_is_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nobody repairs them one start at a time."""
    monkeypatch.setenv("CELERIAC_SHIM__PORT", "80000")
    monkeypatch.setenv("CELERIAC_LOG_LEVEL", "loud")
    monkeypatch.setenv("CELERIAC_ENVIRONMENT", "prod")
    assert [line.partition(":")[0] for line in refusal()] == [
        "CELERIAC_ENVIRONMENT",
        "CELERIAC_LOG_LEVEL",
        "CELERIAC_SHIM__PORT",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CELERIAC_SHIM__PORT", "no port"),
        ("CELERIAC_SHIM__MAX_WAIT", "a while"),
        ("CELERIAC_SHIM__MAX_WAIT", "-5"),
        ("CELERIAC_SHIM__MAX_WAIT", "inf"),
        ("CELERIAC_JOBS__LEASE", "0.5"),
        ("CELERIAC_JOBS__RESULT_TTL", "0"),
        ("CELERIAC_JOBS__DEAD_TTL", "0"),
        ("CELERIAC_JOBS__CHORD_TTL", "0"),
        ("CELERIAC_CONTEXTS__TTL", "0"),
        ("CELERIAC_WORKER__STALL", "0"),
        ("CELERIAC_OPENAI_BASE_URL", "not-a-url"),
        ("CELERIAC_ANTHROPIC_BASE_URL", "https://"),
        ("CELERIAC_WORKER__QUEUES", '["open'),
        ("CELERIAC_WORKER__QUEUES", "two words"),
        ("CELERIAC_WORKER__QUEUES", ","),
        ("CELERIAC_REDIS_URL", "http://:s3cret@redis:6379"),
        ("REDIS_URL", "s3cret"),
        ("REDIS_URL", "s3cret:word"),
        ("REDIS_URL", "redis://:s3cret/word@redis:6379"),
        ("REDIS_URL", "redis://redis/s3cret"),
        ("REDIS_URL", "redis://redis?socket_timeout=s3cret"),
        ("REDIS_URL", "redis://redis?db=s3cret"),
        ("REDIS_URL", "rediss://redis?nonsense=s3cret"),
        ("REDIS_URL", "rediss://redis?ssl_cert_reqs=s3cret"),
        ("CELERIAC_BROKER_URL", "s3cret"),
        ("CELERIAC_SHIM__API_KEYS", "s3cret"),
        ("CELERIAC_SHIM__API_KEYS", '{"acme": ["s3cret"]}'),
        ("CELERIAC_SHIM__API_KEYS", '{"no tenant": "s3cret"}'),
        ("CELERIAC_SHIM__API_KEYS", '["s3cret"]'),
    ],
)
def test_a_wrong_value_names_its_variable_and_is_not_repeated(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The value may be a key, and the message goes to a log."""
    monkeypatch.setenv(name, value)
    [line] = refusal()
    assert line.startswith(f"{name}: ")
    assert "s3cret" not in line


def test_a_wrong_value_leaves_no_secret_in_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error that pydantic raised would show its input: it is not chained."""
    monkeypatch.setenv("CELERIAC_REDIS_URL", "http://:s3cret@redis:6379")
    with pytest.raises(Misconfigured) as caught:
        load_settings()
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("name", "field"),
    [("OPENAI_API_KEY", "openai_api_key"), ("ANTHROPIC_API_KEY", "anthropic_api_key"), ("SENTRY_DSN", "sentry_dsn")],
)
def test_the_usual_names_are_read(name: str, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the providers' own tools do."""
    monkeypatch.setenv(name, "https://value@sentry/1")
    assert getattr(load_settings(), field) == SecretStr("https://value@sentry/1")


@pytest.mark.parametrize(
    "url",
    [
        "redis://redis",
        "redis://redis:6379/0/",
        "redis://user:word@redis:6379/3",
        "redis://redis/?db=2&socket_timeout=3.5&max_connections=7&timeout=5",
        "rediss://redis:6380/0?ssl_cert_reqs=none&ssl_ca_certs=/etc/ca.pem",
        "unix:///run/redis.sock?db=1",
        "unix://user:word@/run/redis.sock",
    ],
)
def test_the_urls_that_redis_clients_take_are_taken(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their options."""
    monkeypatch.setenv("REDIS_URL", url)
    assert load_settings().redis_url == SecretStr(url)


def test_our_own_name_wins_over_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who sets it means us."""
    monkeypatch.setenv("REDIS_URL", "redis://theirs")
    assert load_settings().redis_url == SecretStr("redis://theirs")
    monkeypatch.setenv("CELERIAC_REDIS_URL", "redis://ours")
    assert load_settings().redis_url == SecretStr("redis://ours")


def test_the_environment_wins_over_the_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not in the environment is read from the file."""
    Path(".env").write_text("CELERIAC_SHIM__PORT=1111\nCELERIAC_FLOWER__PORT=2222\n")
    monkeypatch.setenv("CELERIAC_SHIM__PORT", "3333")
    loaded = load_settings()
    assert (loaded.shim.port, loaded.flower.port) == (3333, 2222)


def test_an_empty_value_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files write NAME=${NAME:-} for what may be missing."""
    monkeypatch.setenv("CELERIAC_SHIM__PORT", "")
    monkeypatch.setenv("OPENAI_API_KEY", "")
    loaded = load_settings()
    assert (loaded.shim.port, loaded.openai_api_key) == (8000, None)


@pytest.mark.parametrize("written", ["90", "90.0", "00:01:30", "PT90S", "PT1M30S"])
def test_a_duration_may_be_plain_seconds(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or HH:MM:SS, or ISO 8601."""
    monkeypatch.setenv("CELERIAC_WORKER__GRACE", written)
    assert load_settings().worker.grace == timedelta(seconds=90)


@pytest.mark.parametrize("written", ["fast, slow", '["fast", "slow"]', "fast,slow,"])
def test_a_list_is_json_or_separated_by_commas(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are common."""
    monkeypatch.setenv("CELERIAC_WORKER__QUEUES", written)
    assert load_settings().worker.queues == ("fast", "slow")


def test_api_keys_are_a_json_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tenants keep their spelling."""
    monkeypatch.setenv("CELERIAC_SHIM__API_KEYS", '{"Acme": "one", "b-2": "two"}')
    assert load_settings().shim.api_keys == {"Acme": SecretStr("one"), "b-2": SecretStr("two")}


def test_api_keys_may_be_given_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As secret stores hand them out. Names are in lower case then."""
    monkeypatch.setenv("CELERIAC_SHIM__API_KEYS__acme", "one")
    monkeypatch.setenv("CELERIAC_SHIM__API_KEYS__OTHER", "2")
    assert load_settings().shim.api_keys == {"acme": SecretStr("one"), "other": SecretStr("2")}


def test_api_keys_cannot_be_given_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the two would silently not count."""
    monkeypatch.setenv("CELERIAC_SHIM__API_KEYS", '{"acme": "one"}')
    monkeypatch.setenv("CELERIAC_SHIM__API_KEYS__ACME", "two")
    assert "CELERIAC_SHIM__API_KEYS is set too" in refusal()[0]


def test_two_tenants_cannot_share_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could tell who pays."""
    monkeypatch.setenv("CELERIAC_SHIM__API_KEYS", '{"acme": "same", "other": "same"}')
    assert refusal() == ["CELERIAC_SHIM__API_KEYS: two tenants have the same key"]


@pytest.mark.parametrize("wrong", ["ключ", "s\u00e9cret", "two words", "tab\tbed", "ending\n", "nothing\x00", "\x7f"])
def test_a_key_that_not_every_client_can_send_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, by its tenant; not at each request, and to some clients only. The key is not repeated."""
    monkeypatch.setenv("CELERIAC_SHIM__API_KEYS", json.dumps({"acme": f"s3cret-{wrong}-0123456789", "b": "!~"}))
    [line] = refusal()
    assert line.startswith("CELERIAC_SHIM__API_KEYS: the key of acme has ")
    assert "s3cret" not in line


GOOD_KEYS = '{"acme": "0123456789abcdef"}'


def test_prod_starts_when_it_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusals below are about what they name."""
    monkeypatch.setenv("CELERIAC_ENV", "prod")
    monkeypatch.setenv("CELERIAC_SHIM__API_KEYS", GOOD_KEYS)
    assert load_settings().env == "prod"


@pytest.mark.parametrize(
    ("unsafe", "said"),
    [
        ({}, "CELERIAC_SHIM__API_KEYS: is empty in prod"),
        (
            {"CELERIAC_SHIM__API_KEYS": '{"acme": "short"}'},
            "CELERIAC_SHIM__API_KEYS: the key of acme is shorter than 16",
        ),
        ({"CELERIAC_SHIM__API_KEYS": GOOD_KEYS, "CELERIAC_SCRIPTED": "1"}, "CELERIAC_SCRIPTED: is on in prod"),
    ],
)
def test_prod_refuses_what_is_unsafe(unsafe: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open doors, keys that can be guessed, and answers that nobody gave."""
    for name, value in {"CELERIAC_ENV": "prod", **unsafe}.items():
        monkeypatch.setenv(name, value)
    [line] = refusal()
    assert line.startswith(said)


SIGNING = "CELERIAC_COSTS__RECEIPT_KEYS"
LONG = "0123456789abcdef0123456789abcdef"


def test_a_key_alone_signs_receipts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several the one that is named; without any nobody signs."""
    assert load_settings().costs.signs_with is None
    monkeypatch.setenv(SIGNING, '{"2025-07": "x"}')
    assert load_settings().costs.signs_with == "2025-07"
    monkeypatch.setenv(SIGNING, '{"2025-07": "x", "2026-11": "y"}')
    monkeypatch.setenv("CELERIAC_COSTS__RECEIPT_KEY", "2026-11")
    assert load_settings().costs.signs_with == "2026-11"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {SIGNING: '{"a": "s3cret-1", "b": "s3cret-2"}'},
            "CELERIAC_COSTS__RECEIPT_KEY: is to name the key that signs (a, b)",
        ),
        (
            {SIGNING: '{"a": "s3cret-1"}', "CELERIAC_COSTS__RECEIPT_KEY": "b"},
            "CELERIAC_COSTS__RECEIPT_KEY: CELERIAC_COSTS__RECEIPT_KEYS has no key b",
        ),
        ({SIGNING: '{"a": ""}'}, "CELERIAC_COSTS__RECEIPT_KEYS: the key a is empty"),
        (
            {SIGNING: '{"a": "s3cret-0123456789abcdef"}', "CELERIAC_SHIM__API_KEYS": GOOD_KEYS, "CELERIAC_ENV": "prod"},
            "CELERIAC_COSTS__RECEIPT_KEYS: the key a is shorter than 32 characters",
        ),
    ],
)
def test_keys_that_sign_nothing_or_badly_are_refused(
    given: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without repeating them. In prod a short one can be guessed by whoever holds a receipt."""
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    [line] = refusal()
    assert line.startswith(said)
    assert "s3cret" not in line


def test_prod_signs_with_a_long_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 32 characters: as many as the digest has bytes."""
    for name, value in {"CELERIAC_ENV": "prod", "CELERIAC_SHIM__API_KEYS": GOOD_KEYS}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(SIGNING, f'{{"a": "{LONG}"}}')
    assert load_settings().costs.signs_with == "a"


def test_credentials_from_anywhere_are_refused_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any page could then act for whoever visits it."""
    monkeypatch.setenv("CELERIAC_SHIM__CORS_ORIGINS", "*")
    monkeypatch.setenv("CELERIAC_SHIM__CORS_CREDENTIALS", "true")
    assert refusal()[0].startswith("CELERIAC_SHIM__CORS_ORIGINS: is *")


def test_submissions_are_no_queue_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its messages would be lost with their worker."""
    monkeypatch.setenv("CELERIAC_WORKER__QUEUES", "celeriac,celeriac.submit")
    with pytest.raises(Misconfigured, match=r"CELERIAC_WORKER__QUEUES: celeriac\.submit is Celeriac"):
        load_settings()


def test_settings_are_frozen() -> None:
    """Sections too."""
    loaded = load_settings()
    with pytest.raises(ValidationError):
        loaded.env = "prod"
    with pytest.raises(ValidationError):
        loaded.shim.port = 1


def test_no_secret_is_in_what_settings_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """They end up in logs and error reports."""
    monkeypatch.setenv("REDIS_URL", "redis://:s3cret-1@redis")
    monkeypatch.setenv("CELERIAC_BROKER_URL", "amqp://u:s3cret-2@rabbit")
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret-3")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "s3cret-4")
    monkeypatch.setenv("SENTRY_DSN", "https://s3cret-5@sentry/1")
    monkeypatch.setenv("CELERIAC_SHIM__API_KEYS", '{"acme": "s3cret-6"}')
    loaded = load_settings()
    assert "s3cret" not in f"{loaded!r} {loaded} {loaded.model_dump()} {loaded.model_dump_json()}"


def test_overrides_count_more_and_leave_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A section is merged, not replaced."""
    monkeypatch.setenv("CELERIAC_SHIM__HOST", "::1")
    monkeypatch.setenv("CELERIAC_SHIM__PORT", "1")
    loaded = load_settings(shim={"port": 2})
    assert (loaded.shim.host, loaded.shim.port) == ("::1", 2)


def test_every_setting_says_what_it_trades() -> None:
    """None is described by its name alone."""
    assert [name for name, description in variables().items() if len(description) < 10] == []


def test_the_example_file_is_what_the_settings_say() -> None:
    """Every variable, its description and its default, and nothing else: `celeriac settings > .env.example`."""
    assert EXAMPLE.read_text() == settings.example()


def test_the_example_file_changes_nothing_as_it_is() -> None:
    """Copied to .env, it leaves every default, and leaves Redis unnamed."""
    Path(".env").write_text(EXAMPLE.read_text())
    assert load_settings() == Settings(_env_file=None)
    assert "redis_url" not in load_settings().model_fields_set


def test_the_example_file_uncommented_is_the_defaults() -> None:
    """Each default is written as the environment would give it."""
    lines = EXAMPLE.read_text().splitlines()
    Path(".env").write_text("\n".join(line.removeprefix("#") for line in lines if line.startswith("#CELERIAC_")))
    assert load_settings() == Settings(_env_file=None)
