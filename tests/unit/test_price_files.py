"""Prices of the deployment's own: overrides, and a newer table of the library's format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from celeriac.costs import overrides
from celeriac.costs.prices import Prices
from celeriac.errors import Misconfigured
from celeriac.llm.model import CLASSES, Lane, Message, ModelRequest, Usage

ROOT = Path(__file__).parents[2]
AT = datetime(2026, 11, 1, tzinfo=UTC)
MINI, OURS = Lane("openai", "gpt-5-mini"), Lane("openai", "ours")

Opened = Callable[..., Prices]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """With an override file of that text."""

    def open_(text: str, **facts: Any) -> Prices:
        file = tmp_path / "ours.toml"
        file.write_text(text)
        return Prices(file, **facts)

    return open_


def a_million(**classes: int) -> Usage:
    return Usage(**{name: n * 1_000_000 for name, n in classes.items()})


def dollars(prices: Prices, usage: Usage, lane: Lane) -> int:
    whole, rest = divmod(prices.price(lane, lane.model, usage, AT).nanos, 10**9)
    assert not rest
    return whole


def test_every_class_may_have_a_price_of_its_own(opened: Opened) -> None:
    """What is not named costs what the next of its kind does."""
    prices = opened(
        '[openai.ours]\ninput = "1"\noutput = "10"\ncache_read = "2"\ncache_write = "3"\ncache_write_1h = "4"\n'
        'reasoning = "20"\n[openai.plain]\ninput = "1"\noutput = "10"\n[openai.some]\ninput = "1"\noutput = "10"\n'
        'cache_write = "3"\n'
    )
    names = ("input", "cache_read", "cache_write", "cache_write_1h", "output", "reasoning")
    costs = {
        model: [dollars(prices, a_million(**{name: 1}), Lane("openai", model)) for name in names]
        for model in ("ours", "plain", "some")
    }
    assert costs == {"ours": [1, 2, 3, 4, 10, 20], "plain": [1, 1, 1, 1, 10, 10], "some": [1, 1, 3, 3, 10, 10]}


LONG = """
[openai.ours]
input = "1"
output = "10"
[[openai.ours.steps]]
above = 200000
input = "2"
cache_read = "0.5"
output = "15"
[[openai.ours.steps]]
above = 100000
input = "1.5"
output = "12"
"""


def test_a_long_prompt_costs_more_as_a_whole(opened: Opened) -> None:
    """Cached tokens make it long too; the steps may stand in any order; at the border the lower one counts."""
    prices = opened(LONG)
    assert prices.price(OURS, "ours", Usage(100_000, output=1), AT).nanos == 100_000 * 1000 + 10_000
    assert prices.price(OURS, "ours", Usage(100_001, output=1), AT).nanos == 100_001 * 1500 + 12_000
    of_a_cache = Usage(cache_read=200_000, input=1, output=1)
    assert prices.price(OURS, "ours", of_a_cache, AT).nanos == 200_000 * 500 + 2000 + 15_000


def test_a_tier_has_its_prices_and_its_steps(opened: Opened) -> None:
    """The answer names it; the ordinary one has many names."""
    prices = opened(
        LONG
        + '[openai.ours.tiers.flex]\ninput = "0.5"\noutput = "5"\n[[openai.ours.tiers.flex.steps]]\nabove = 200000\n'
        'input = "1"\noutput = "7"\n[openai.ours.tiers.priority]\ninput = "9"\noutput = "90"\n'
    )
    for tier, nanos in {"flex": 500, "priority": 9000, "": 1000, "default": 1000, "standard": 1000}.items():
        price = prices.price(OURS, "ours", Usage(1), AT, tier=tier)
        assert (price.nanos, price.estimated) == (nanos, False), tier
    assert prices.price(OURS, "ours", Usage(200_001), AT, tier="flex").nanos == 200_001 * 1000
    assert prices.price(OURS, "ours", Usage(1), AT, tier="flex").tier == "flex"


def test_a_region_multiplies(opened: Opened) -> None:
    """As the row says it; what it does not say is as its provider does."""
    prices = opened('[openai.ours]\ninput = "1"\noutput = "10"\nregions = { eu = "1.25", us = "1" }\n')
    costs = {
        region: prices.price(OURS, "ours", Usage(4), AT, region=region) for region in ("", "us", "eu", "jp", "moon")
    }
    assert {region: (price.nanos, price.estimated) for region, price in costs.items()} == {
        "": (4000, False),
        "us": (4000, False),
        "eu": (5000, False),
        "jp": (4400, False),
        "moon": (5000, True),
    }
    assert costs["eu"].region == "eu"


DATED = """
[[openai."gpt-5-mini"]]
from = 2027-01-01
input = "3"
output = "3"
[[openai."gpt-5-mini"]]
from = "2026-12-01"
date = 2026-11-20
input = "2"
output = "2"
"""


@pytest.mark.parametrize(
    ("day", "nanos", "date"),
    [
        ("2026-11-30T23:59:59", 250, ""),
        ("2026-12-01T00:00:00", 2000, "2026-12-01"),
        ("2026-12-31T23:59:59", 2000, "2026-12-01"),
        ("2027-01-01T00:00:00", 3000, "2027-01-01"),
    ],
)
def test_a_price_to_come_is_entered_beforehand(opened: Opened, day: str, nanos: int, date: str) -> None:
    """A call is priced by the row in force when it was sent; before the first one the built-in price counts."""
    price = opened(DATED).price(MINI, "gpt-5-mini", Usage(1), datetime.fromisoformat(day).replace(tzinfo=UTC))
    assert (price.nanos, price.date) == (nanos, date)


def test_a_price_says_where_it_stands(opened: Opened) -> None:
    """Enough to find it again: file or library with its version, its name there, its date, tier and region."""
    prices = opened('[openai."ours*"]\ninput = "1"\noutput = "1"\ndate = 2026-10-31\n')
    price = prices.price(OURS, "ours-7", Usage(1), AT)
    assert (price.source, price.row, price.date) == ("ours.toml", "openai/ours*", "2026-10-31")
    assert (price.tier, price.region) == ("standard", "")
    other = prices.price(Lane("openai", "gpt-5.4"), "gpt-5.4-2026-03-05", Usage(1), AT, tier="flex", region="eu")
    assert other.source.startswith("genai-prices 0.")
    assert (other.row, other.date, other.tier, other.region) == ("openai/gpt-5.4", "2026-10-12", "flex", "eu")


def test_an_override_is_that_of_its_snapshots(opened: Opened) -> None:
    """Providers answer with the model of the day: its price is the operator's, and no estimate."""
    prices = opened(
        '[openai."gpt-5-mini"]\ninput = "1"\noutput = "1"\n[anthropic."claude-3-5-haiku-latest"]\ninput = "2"\n'
        'output = "2"\n[openai."*"]\ninput = "9"\noutput = "9"\n[anthropic."claude-sonnet-4-5"]\ninput = "3"\n'
        'output = "3"\n'
    )
    for provider, asked, answered, nanos in (
        ("openai", "gpt-5-mini", "gpt-5-mini-2025-08-07", 1000),
        ("openai", "gpt-5-mini", "gpt-5-mini-2099-01-31", 1000),
        ("anthropic", "claude-3-5-haiku-latest", "claude-3-5-haiku-20241022", 2000),
        ("anthropic", "claude-sonnet-4-5", "claude-sonnet-4-5@20250929", 3000),
        ("openai", "gpt-5-mini", "gpt-5-mini-pro", 9000),
    ):
        price = prices.price(Lane(provider, asked), answered, Usage(1), AT)
        assert (price.nanos, price.estimated) == (nanos, False), answered


BOTH = '[openai.x]\ninput = "1"\noutput = "2"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOTH + 'reasonin = "1"', "there is no reasonin; known are"),
        (BOTH + 'reasoning = "many"', "reasoning is 'many'; write dollars per million tokens as text"),
        (BOTH + "cache_write_1h = 3", 'cache_write_1h is 3; write dollars per million tokens as text, as "0.25"'),
        (BOTH + "from = 2027", "from is 2027; write a day, as 2027-01-31"),
        (BOTH + 'from = "soon"', "from is 'soon'; write a day"),
        (BOTH + "from = 2027-01-01T12:00:00", "from is 2027-01-01 12:00:00; write a day"),
        (BOTH + 'date = "x"', "date is 'x'; write a day"),
        (BOTH + 'tiers = "flex"', "tiers is 'flex'; write a table"),
        (BOTH + '[openai.x.tiers.flex]\ninput = "1"', r"\.tiers\.flex: give input and output"),
        (BOTH + '[openai.x.tiers.flex]\ninput = "1"\noutput = "-2"', r"\.tiers\.flex: output is '-2'"),
        (BOTH + '[openai.x.steps]\nabove = 1\ninput = "1"\noutput = "1"', "header of its own, in two brackets"),
        (BOTH + '[[openai.x.steps]]\ninput = "1"\noutput = "1"', r"\.steps: above is None; write tokens of the prompt"),
        (BOTH + '[[openai.x.steps]]\nabove = true\ninput = "1"\noutput = "1"', "above is True"),
        (BOTH + '[[openai.x.steps]]\nabove = 0\ninput = "1"\noutput = "1"', "above is 0"),
        (BOTH + '[[openai.x.steps]]\nabove = 5\ninput = "1"\noutput = "1"\n' * 2, "two steps begin above the same"),
        (BOTH + "regions = { eu = 1.1 }", r'regions\.eu is 1\.1; write a factor as text, as "1\.1"'),
        (BOTH + 'regions = "eu"', "regions is 'eu'; write a table"),
        ('[[openai.x]]\ninput = "1"\noutput = "2"\n' * 2, "in force since the same day; give each its own `from`"),
        ("[openai]\nx = []", "give each its own `from`"),
    ],
)
def test_a_wrong_row_is_refused_with_the_remedy(opened: Opened, text: str, said: str) -> None:
    """At start, naming the file, the entry, what is wrong with it, and what to write."""
    with pytest.raises(Misconfigured, match=said) as raised:
        opened(text)
    assert "ours.toml: [openai" in str(raised.value)


def data(**model: Any) -> list[dict[str, Any]]:
    """A table in the library's format, of one model."""
    given = {"id": "gpt-9", "match": {"equals": "gpt-9"}, "prices": {"input_mtok": 0.7, "output_mtok": 3}} | model
    return [{"id": "openai", "name": "OpenAI", "api_pattern": "x", "models": [given]}]


def test_a_newer_table_is_looked_at_first_and_the_shipped_one_is_the_floor(tmp_path: Path) -> None:
    """A refresh without a network: a file. Its decimal fractions are exact; what it does not hold is still known."""
    file = tmp_path / "newer.json"
    variant = {"when": {"service_tier": "flex"}, "prices": {"input_mtok": 0.1, "output_mtok": 0.3}}
    file.write_text(json.dumps(data(price_variants=[variant])))
    prices = Prices(data=file)
    nine = Lane("openai", "gpt-9")
    price = prices.price(nine, "gpt-9", Usage(10, output=1), AT)
    assert (price.nanos, price.source, price.row, price.estimated) == (10_000, "newer.json", "openai/gpt-9", False)
    assert prices.price(nine, "gpt-9", Usage(10, output=1), AT, tier="flex").nanos == 1_300
    assert prices.price(MINI, "gpt-5-mini", Usage(1), AT).nanos == 250
    assert Prices().price(nine, "gpt-9", Usage(10), AT).estimated


def test_a_newer_table_counts_before_the_shipped_one_and_after_overrides(tmp_path: Path) -> None:
    """The same model in all three."""
    newer, ours = tmp_path / "newer.json", tmp_path / "ours.toml"
    newer.write_text(json.dumps(data(id="gpt-5-mini", match={"starts_with": "gpt-5-mini"})))
    assert Prices(data=newer).price(MINI, "gpt-5-mini", Usage(1), AT).nanos == 700
    ours.write_text('[openai."gpt-5-mini"]\ninput = "5"\noutput = "5"\n')
    assert Prices(ours, data=newer).price(MINI, "gpt-5-mini", Usage(1), AT).nanos == 5000


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "[1]", json.dumps(data(prices={})), json.dumps([{"id": "openai"}]), "null", '"x"']
)
def test_a_table_that_cannot_be_used_is_refused_at_start(tmp_path: Path, text: str) -> None:
    """Naming the file, and what it should be: a worker must not find out at its first call."""
    file = tmp_path / "newer.json"
    file.write_text(text)
    with pytest.raises(Misconfigured, match=r"newer.json: .*; CELERIAC_PRICES_DATA_FILE names a data file"):
        Prices(data=file)
    with pytest.raises(Misconfigured, match="No such file"):
        Prices(data=tmp_path / "none.json")


def test_the_dearest_is_the_dearest_of_both_tables(tmp_path: Path) -> None:
    """A newer and dearer model is what an unknown one costs."""
    file = tmp_path / "newer.json"
    file.write_text(json.dumps(data(prices={"input_mtok": 1000, "output_mtok": 9000})))
    price = Prices(data=file).price(OURS, "ours", Usage(1), AT)
    assert (price.nanos, price.row, price.estimated) == (1_000_000, "openai/gpt-9", True)


def test_the_bound_holds_where_a_long_prompt_is_cheaper(opened: Opened) -> None:
    """The longest prompt is then not the dearest."""
    prices = opened(
        '[openai.ours]\ninput = "9"\noutput = "9"\n[[openai.ours.steps]]\nabove = 5000\ninput = "1"\noutput = "1"\n'
    )
    request = ModelRequest(OURS, (Message("user", "x" * 20_000),), max_output_tokens=100)
    assert prices.bound(request) >= prices.price(OURS, "ours", Usage(5000, output=100)).nanos


@pytest.mark.parametrize("pinned", [{"openai": ""}, {}], ids=["pinned", "free"])
def test_the_bound_is_that_of_the_tiers_that_an_answer_may_name(opened: Opened, pinned: dict[str, str]) -> None:
    """Who is sent the tier bills it; a gateway may answer in any, and in any region."""
    row = '[openai.ours]\ninput = "1"\noutput = "1"\nregions = { eu = "2" }\n'
    prices = opened(row + '[openai.ours.tiers.priority]\ninput = "3"\noutput = "7"\n', pinned=pinned)
    request = ModelRequest(OURS, (Message("user", "x"),), max_output_tokens=100)
    plain = opened(row.replace('eu = "2"', "")).bound(request)
    dear = prices.price(OURS, "ours", Usage(545, output=100), tier="priority", region="eu").nanos
    if pinned:
        assert prices.bound(request) == plain < dear
    else:
        assert prices.bound(request) >= dear


def test_the_bound_is_that_of_the_region_that_is_sent() -> None:
    """A tenth more where calls are sent to one."""
    request = ModelRequest(Lane("anthropic", "claude-sonnet-4-6"), (Message("user", "x" * 1000),))
    bounds = [Prices(pinned={"anthropic": region}).bound(request) for region in ("global", "us")]
    assert bounds[1] * 10 == bounds[0] * 11


def test_the_example_in_the_docs_is_one(tmp_path: Path) -> None:
    """As it stands there, with every key that there is."""
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "money.md").read_text(), re.DOTALL)
    file = tmp_path / "ours.toml"
    file.write_text(text)
    found = overrides.read(file)
    assert {name: len(rows) for name, rows in found.items()} == {
        ("openai", "gpt-5-mini"): 1,
        ("anthropic", "claude-x"): 2,
    }
    keys = set(re.findall(r"^(\w+) =", text, re.MULTILINE))
    assert keys | {"steps", "tiers"} >= {*CLASSES, *overrides.OTHERS} - {"cache_write"}
