"""Models, tiers and regions that nobody has heard of, and what prices and bounds keep to whatever they are."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.agents.registry import read_agents
from celeriac.assembly import check_prices, open_prices, pinned
from celeriac.costs.prices import Prices, most_input
from celeriac.costs.rows import Row, Step, Tier, dearest
from celeriac.errors import Misconfigured, PriceUnknown
from celeriac.llm.model import CLASSES, Endpoint, Lane, Message, ModelRequest, Usage
from celeriac.settings import SHIPPED_AGENTS, load_settings

AT = datetime(2026, 11, 1, tzinfo=UTC)
PRICES, FREE = Prices(), Prices(pinned={})
LONG = Usage(1_000_000, output=1_000_000)
OPUS = Lane("anthropic", "claude-opus-5-5")


@pytest.mark.parametrize(
    ("lane", "answered"),
    [
        (Lane("openai", "gpt-5.4"), "gpt-5.4-max"),
        (Lane("openai", "gpt-5.4-mini"), "gpt-5.4-mini-pro-2026-11-01"),
        (Lane("anthropic", "claude-opus-4-6"), "claude-opus-4-6-max"),
        (Lane("anthropic", "claude-haiku-5-5"), "claude-haiku-5-5-ultra"),
    ],
)
def test_a_dearer_sibling_is_not_priced_as_its_beginning(lane: Lane, answered: str) -> None:
    """A longer name may be that of another model; what nobody knows costs what the dearest does."""
    price = PRICES.price(lane, answered, LONG, AT)
    assert price == PRICES.price(lane, "no-such-model", LONG, AT)
    assert price.estimated
    assert price.nanos > PRICES.price(lane, lane.model, LONG, AT).nanos


@pytest.mark.parametrize("tier", ["scale", "ultrafast", "auto"])
def test_an_unknown_tier_costs_what_the_dearest_does(tier: str) -> None:
    """In each class, and for a long prompt too; it is named, and the estimate is said."""
    lane = Lane("openai", "gpt-5.4")
    price = PRICES.price(lane, lane.model, Usage(10, output=1), AT, tier=tier)
    assert (price.nanos, price.estimated, price.tier) == (10 * 5000 + 30_000, True, tier)
    long = PRICES.price(lane, lane.model, Usage(300_000, output=1), AT, tier=tier)
    assert long.nanos == 300_000 * 5000 + 30_000


def test_a_tier_that_is_not_sold_yet_is_unknown() -> None:
    """The table says since when it knows a tier: before that, nobody knows what was billed."""
    lane, usage = Lane("openai", "gpt-5.4"), Usage(10, output=1)
    before = PRICES.price(lane, lane.model, usage, datetime(2026, 10, 11, tzinfo=UTC), tier="flex")
    assert (before.nanos, before.estimated) == (10 * 5000 + 30_000, True)
    assert not PRICES.price(lane, lane.model, usage, datetime(2026, 10, 12, tzinfo=UTC), tier="flex").estimated


def test_anthropics_priority_has_no_price_of_a_token() -> None:
    """It is bought beforehand, so a call in it costs what the dearest tier does."""
    price = PRICES.price(OPUS, OPUS.model, Usage(10), AT, tier="priority")
    assert (price.nanos, price.estimated) == (PRICES.price(OPUS, OPUS.model, Usage(10), AT, tier="fast").nanos, True)


def test_an_unknown_region_costs_what_the_dearest_does() -> None:
    """A tenth more, as an estimate; nothing is added where nobody says where the model ran."""
    costs = [PRICES.price(OPUS, OPUS.model, Usage(10), AT, region=region) for region in ("global", "us", "mars")]
    assert [(price.nanos, price.estimated) for price in costs] == [(40_000, False), (44_000, False), (44_000, True)]


@pytest.mark.parametrize("lane", [Lane("openai", "no-such-model-7"), Lane("anthropic", "claude-max")], ids=str)
def test_a_model_that_nobody_knows_is_refused_where_that_is_said(lane: Lane) -> None:
    """Before it is asked; a snapshot of a known one is no such model."""
    PRICES.check(lane)
    strict = Prices(refuses_unknown=True)
    with pytest.raises(PriceUnknown, match=f"{lane} was not asked: nobody knows what it costs") as raised:
        strict.check(lane)
    assert not raised.value.asked
    for known in ("gpt-5-mini", "gpt-5-mini-2099-01-01", "smollm2-135m-q8"):
        strict.check(Lane("openai", known))


def test_agents_whose_lanes_nobody_can_price_are_refused_at_start(tmp_path: Path) -> None:
    """Each by its name, with the remedy, where the operator wants that; an override is a price."""
    agents, ours = tmp_path / "agents.toml", tmp_path / "prices.toml"
    agents.write_text('[agents.one]\ndescription = "One."\nlanes = ["openai/gpt-5-mini", "openai/ours-7"]\n')
    registry = read_agents(agents)
    check_prices(registry, open_prices(load_settings(), registry))
    refusing = load_settings(prices_unknown_models="refuse")
    with pytest.raises(Misconfigured, match=r"agent one: nobody knows what openai/ours-7 costs.*CELERIAC_PRICES_FILE"):
        check_prices(registry, open_prices(refusing, registry))
    ours.write_text('[openai."ours-*"]\ninput = "1"\noutput = "2"\n')
    check_prices(registry, open_prices(load_settings(prices_unknown_models="refuse", prices_file=ours), registry))
    shipped = read_agents(SHIPPED_AGENTS)
    check_prices(shipped, open_prices(refusing, shipped))


def test_who_is_sent_tier_and_region_is_known_by_the_address() -> None:
    """A gateway is sent neither, and may bill anything."""
    gateways = {
        "eu": Endpoint("openai", "https://eu.api.openai.com/v1"),
        "mine": Endpoint("openai", "http://127.0.0.1:9/v1"),
        "claude": Endpoint("anthropic", "https://api.anthropic.com"),
    }
    own = pinned(load_settings(anthropic_region="us"), gateways)
    assert own == {"openai": "", "anthropic": "us", "eu": "eu", "claude": "us"}
    elsewhere = load_settings(openai_base_url="http://127.0.0.1:9/v1", anthropic_base_url="http://127.0.0.1:9")
    assert pinned(elsewhere, {}) == {}


LANES = [
    Lane("openai", "gpt-5-nano"),
    Lane("openai", "gpt-5.4"),
    Lane("openai", "gpt-6-sol"),
    Lane("openai", "no-such-model"),
    Lane("anthropic", "claude-sonnet-4-5"),
    Lane("anthropic", "claude-haiku-5-5"),
    OPUS,
    Lane("deepseek", "deepseek-chat"),
    Lane("nobody", "nothing"),
]
TIERS, REGIONS = (
    st.sampled_from(["", "flex", "priority", "batch", "fast", "scale"]),
    st.sampled_from(["", "us", "mars"]),
)
COUNTS = st.one_of(st.integers(0, 10), st.integers(0, 400_000))
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)


@given(lane=st.sampled_from(LANES), usage=USAGES, more=st.integers(1, 300_000), tier=TIERS, region=REGIONS)
@settings(deadline=None, derandomize=True, max_examples=300)
def test_more_tokens_never_cost_less(lane: Lane, usage: Usage, more: int, tier: str, region: str) -> None:
    """In any class, in any tier and region, across the thresholds of long prompts. No amount is negative."""
    nanos = PRICES.price(lane, lane.model, usage, AT, tier=tier, region=region).nanos
    assert type(nanos) is int
    assert nanos >= 0
    for name in CLASSES:
        dearer = usage + Usage(**{name: more})
        assert PRICES.price(lane, lane.model, dearer, AT, tier=tier, region=region).nanos >= nanos, name


@given(
    lane=st.sampled_from(LANES),
    size=st.integers(0, 400_000),
    limit=st.integers(1, 10_000),
    shares=st.lists(st.integers(0, 1000), min_size=5, max_size=5),
    tier=TIERS,
    region=st.sampled_from(["", "us", "eu"]),
)
@settings(deadline=None, derandomize=True, max_examples=300)
def test_no_answer_costs_more_than_its_bound(
    lane: Lane, size: int, limit: int, shares: list[int], tier: str, region: str
) -> None:
    """However its tokens are cached and thought; of a gateway in whichever tier and region it answers."""
    request = ModelRequest(lane, (Message("user", "x" * size),), max_output_tokens=limit)
    most, (fresh, read, thought, part, _) = most_input(request), shares
    cached = most * read // 1000
    new = (most - cached) * fresh // 1000
    made = limit * part // 1000
    reasoning = made * thought // 1000
    usage = Usage(new, cached, most - cached - new, made - reasoning, reasoning)
    assert PRICES.bound(request) >= PRICES.price(lane, lane.model, usage).nanos
    assert FREE.bound(request) >= FREE.price(lane, lane.model, usage, tier=tier, region=region).nanos


RATES = st.tuples(*[st.decimals(0, 1_000_000, places=3) for _ in CLASSES])
STEPS = st.lists(st.integers(1, 1000), max_size=3, unique=True)


@st.composite
def tiers(draw: st.DrawFn) -> Tier:
    starts = [0, *sorted(draw(STEPS))]
    return Tier(tuple(Step(above, draw(RATES)) for above in starts))


@given(tier=tiers(), usage=st.builds(Usage, *[st.integers(0, 500)] * 6), fee=st.decimals(0, 1000, places=2))
def test_a_price_is_exact_and_rounded_up_once(tier: Tier, usage: Usage, fee: Decimal) -> None:
    """As fractions have it, which cannot be inexact."""
    of_it = max((step for step in tier.steps if not step.above or usage.prompt > step.above), key=lambda s: s.above)
    exact = sum(
        (Fraction(rate) * n for rate, n in zip(of_it.rates, usage.classes().values(), strict=True)), Fraction(fee)
    )
    assert tier.nanos(usage, fee) == -(-exact // 1)


@given(
    tier=tiers(),
    prompt=st.integers(0, 2000),
    made=st.integers(0, 500),
    cuts=st.lists(st.integers(0, 2000), min_size=3, max_size=3),
    spent=st.integers(0, 500),
)
def test_a_bound_holds_whatever_the_steps_are(tier: Tier, prompt: int, made: int, cuts: list[int], spent: int) -> None:
    """Also where a longer prompt is cheaper than a shorter one."""
    first, second, third = sorted(min(cut, prompt) for cut in cuts)
    spent = min(spent, made)
    usage = Usage(first, second - first, third - second, spent, made - spent)
    assert tier.most(prompt, made) >= tier.nanos(usage)


@given(one=tiers(), other=tiers(), usage=st.builds(Usage, *[st.integers(0, 500)] * 6))
def test_the_dearest_of_two_tiers_costs_no_less_than_either(one: Tier, other: Tier, usage: Usage) -> None:
    """For each prompt: they may have their steps at different lengths."""
    assert dearest([one, other]).nanos(usage) >= max(one.nanos(usage), other.nanos(usage))


def test_no_rate_is_a_float() -> None:
    """Of any model in the table, in any tier; a float would be inexact from its beginning."""
    (table,) = PRICES.tables
    rows = [
        PRICES.listed(Lane(name, model.id), AT).row for name in ("openai", "anthropic") for model in table.models(name)
    ]

    def rates(row: Row) -> list[object]:
        return [rate for tier in (*row.tiers.values(), row.ceiling) for step in tier.steps for rate in step.rates]

    assert {type(rate) for row in rows for rate in (*rates(row), row.fee)} == {Decimal}
