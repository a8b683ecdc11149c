"""What a call cost, exactly."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from celeriac.costs.money import nanos, usd
from celeriac.costs.prices import Prices
from celeriac.errors import Misconfigured
from celeriac.llm.model import Lane, Usage

AT = datetime(2026, 11, 1, tzinfo=UTC)
OPENAI, ANTHROPIC = Lane("openai", "gpt-5-mini"), Lane("anthropic", "claude-sonnet-4-5")


def test_each_class_of_tokens_has_its_price() -> None:
    """gpt-5-mini: $0.25 in, $0.025 cached, $2 out a million (genai-prices 0.2.3)."""
    usage = Usage(input=1_000, cache_read=400, output=100)
    price = Prices().price(OPENAI, "gpt-5-mini", usage, AT)
    assert price.nanos == 1_000 * 250 + 400 * 25 + 100 * 2_000
    assert not price.estimated


def test_cached_writes_are_priced_apart_from_reads() -> None:
    """claude-sonnet-4-5: $3 in, $0.30 read, $3.75 written, $15 out a million."""
    usage = Usage(input=10, cache_read=20, cache_write=30, output=40)
    price = Prices().price(ANTHROPIC, "claude-sonnet-4-5", usage, AT)
    assert price.nanos == 10 * 3_000 + 20 * 300 + 30 * 3_750 + 40 * 15_000


def test_the_model_that_answered_is_priced_and_not_the_one_asked() -> None:
    """A provider may answer with another: its name is in the answer."""
    usage = Usage(output=1_000_000)
    assert Prices().price(OPENAI, "gpt-5", usage, AT).nanos > Prices().price(OPENAI, "gpt-5-mini", usage, AT).nanos


def test_an_unknown_model_costs_what_the_dearest_costs_and_says_so() -> None:
    """Never free: an under-estimate would break the budget's promise."""
    usage = Usage(input=1_000_000, output=1_000_000)
    price = Prices().price(OPENAI, "no-such-model-7", usage, AT)
    assert price.estimated
    assert price.nanos >= max(
        Prices().price(OPENAI, model, usage, AT).nanos for model in ("gpt-5", "gpt-5.4", "o1-pro", "gpt-4-32k")
    )


def test_an_override_wins_and_may_hold_a_star(tmp_path: Path) -> None:
    """The operator's file is right; the exact name before the pattern."""
    file = tmp_path / "prices.toml"
    file.write_text(
        '[openai."gpt-5-mini"]\ninput = "1"\noutput = "2"\n[openai."ours-*"]\ninput = "0.0025"\noutput = "3"\n'
        'cache_read = "0.5"\n'
    )
    prices = Prices(file)
    assert prices.price(OPENAI, "gpt-5-mini", Usage(input=1, output=1, cache_read=1), AT).nanos == 1_000 + 2_000 + 1_000
    assert prices.price(OPENAI, "ours-7", Usage(input=1), AT).nanos == 3, "2.5 nano-dollars are rounded up once"
    assert prices.price(OPENAI, "ours-7", Usage(input=2), AT).nanos == 5
    assert prices.price(OPENAI, "ours-7", Usage(cache_read=1), AT).nanos == 500


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[openai.x]\ninput = 1\noutput = 2", "as text"),
        ('[openai.x]\ninput = "-1"\noutput = "2"', "input is '-1'"),
        ('[openai.x]\ninput = "nan"\noutput = "2"', "input is 'nan'"),
        ('[openai.x]\ninput = "1"', "give input and output"),
        ('[openai.x]\ninput = "1"\noutput = "2"\nreasoning = "3"', "give input and output"),
        ('openai = "x"', "give input and output"),
        ("[openai", "Expected"),
    ],
)
def test_a_wrong_price_file_is_refused_with_the_reason(tmp_path: Path, text: str, said: str) -> None:
    """At start, naming the file and the entry."""
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(Misconfigured, match=said) as raised:
        Prices(file)
    assert str(file) in str(raised.value)


def test_money_is_exact_on_the_wire() -> None:
    """Nine digits, never an exponent, never a float; fractions are rounded up."""
    assert usd(1) == "0.000000001"
    assert usd(123_456_789_012_345_678) == "123456789.012345678"
    assert nanos(Decimal("0.0000000001")) == 1
    assert nanos(Decimal("0.3")) == 300_000_000
