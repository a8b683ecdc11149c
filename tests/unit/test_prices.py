"""What a call cost, exactly."""

from __future__ import annotations

import tomllib
import unicodedata
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from genai_prices import Usage as Counted
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.agents.registry import read_agents
from celeriac.costs.library import counted
from celeriac.costs.money import nanos, usd
from celeriac.costs.prices import SHIPPED, Prices
from celeriac.errors import Misconfigured
from celeriac.llm.model import Lane, Message, ModelRequest, Usage
from celeriac.settings import SHIPPED_AGENTS

AT = datetime(2026, 11, 1, tzinfo=UTC)
OPENAI, ANTHROPIC = Lane("openai", "gpt-5-mini"), Lane("anthropic", "claude-sonnet-4-5")
#: Models of one's own, each with another dearest class of input.
OURS = [Lane("openai", "ours-input"), Lane("openai", "ours-cache_read"), Lane("anthropic", "ours-cache_write")]
LANES = [*sorted({lane for agent in read_agents(SHIPPED_AGENTS) for lane in agent.lanes}, key=str), *OURS]


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


def test_every_model_costs_what_the_library_says() -> None:
    """In each tier and for each length of the prompt: what we multiply ourselves is what the library would say."""
    prices = Prices()
    (table,) = prices.tables
    seen = {"flat": 0, "long": 0, "tier": 0, "fee": 0}
    for provider in get_snapshot().providers:
        for model in provider.models:
            # As the library finds it: a name may belong to another of its models.
            found = table.find(provider.id, model.id)
            if found is None or not table.prices_a_token(found, AT):
                continue
            if prices.listed(Lane(provider.id, model.id), AT).row.source != table.source:
                continue
            row = table.row(provider.id, found, AT)
            variants = {next(iter(v.when.items())) for v in found.price_variants or () if len(v.when) == 1}
            contexts = {name: {key: name} for key, name in variants if name in row.tiers}
            seen["fee"] += bool(row.fee)
            for tier, context in {"": None, **contexts}.items():
                theirs = found.get_prices(AT, context)
                seen["tier"] += bool(tier)
                seen["long" if len(row.tiers[tier].steps) > 1 else "flat"] += 1
                for scale in (1, 997, 300_001):
                    usage = Usage(scale, 3 * scale, scale + 1, 2 * scale, 3 * scale, scale + 2)
                    ours = prices.price(Lane(provider.id, model.id), model.id, usage, AT, tier=tier)
                    theirs_of_it = theirs.calc_price(Counted(**counted(usage)))["total_price"]
                    assert ours.nanos == nanos(theirs_of_it), (provider.id, model.id, tier, scale)
    assert min(seen["flat"], seen["long"], seen["tier"]) > 10
    assert seen["fee"] > 0


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


@pytest.mark.parametrize("model", ["omni-moderation-2024", "whisper-1", "tts-1", "text-embedding-3-large"])
def test_a_model_without_a_price_of_its_tokens_is_not_free(model: str) -> None:
    """What is priced by the second or not at all, or for its input alone: an answer of it is none of these."""
    lane, usage = Lane("openai", model), Usage(input=1_000_000, output=1_000_000)
    price = Prices().price(lane, model, usage, AT)
    assert price.estimated
    assert price.nanos == Prices().price(OPENAI, "no-such-model-7", usage, AT).nanos
    assert Prices().bound(ModelRequest(lane, (Message("user", "hi"),))) > 0


def test_a_new_snapshot_costs_what_its_model_does(tmp_path: Path) -> None:
    """Providers answer with the name of the day, which may be newer than the table. It is said to be an estimate."""
    lane, usage = Lane("openai", "gpt-5.4-mini"), Usage(input=1000, output=1000)
    asked = Prices().price(lane, "gpt-5.4-mini", usage, AT)
    price = Prices().price(lane, "gpt-5.4-mini-2099-01-01", usage, AT)
    assert (price.nanos, price.estimated) == (asked.nanos, True)


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


@pytest.fixture(scope="module")
def with_ours(tmp_path_factory: pytest.TempPathFactory) -> Prices:
    """What we ship, and the models of `OURS`."""
    file = tmp_path_factory.mktemp("prices") / "prices.toml"
    texts = []
    for lane in OURS:
        dollars = dict.fromkeys(("input", "cache_read", "cache_write", "output"), "0.7")
        dollars[lane.model.removeprefix("ours-")] = "1.3"
        texts.append(f'[{lane.provider}."{lane.model}"]\n' + "".join(f'{k} = "{v}"\n' for k, v in dollars.items()))
    file.write_text("".join(texts))
    return Prices(file)


def most_input(request: ModelRequest) -> int:
    """A byte is at least a token, also where the tokenizer normalises; around it up to 32 a text and 512 in all."""
    texts = [request.instructions, *(message.text for message in request.messages)]
    forms = [(text, unicodedata.normalize("NFKC", text)) for text in texts]
    return sum(max(len(form.encode()) for form in pair) for pair in forms) + 32 * len(texts) + 512


#: Rounded down, a prompt of 2^17 - 1 tokens would lose almost 4096 of them, and one of 2^17 + 1 a single one.
BORDER = 2**17 - 32 * 2 - 512
#: U+FDFA is a whole sentence: 3 bytes, and 33 after NFKC. A wide letter has 3, and 1 after it.
PROMPTS = {
    "nothing": "",
    "below": "a" * (BORDER - 1),
    "at": "a" * BORDER,
    "above": "a" * (BORDER + 1),
    "grows": "\ufdfa" * 3000,
    "shrinks": "\uff21" * 3000,
}


@pytest.mark.parametrize("kind", ["input", "cache_read", "cache_write"])
@pytest.mark.parametrize("lane", LANES, ids=str)
@pytest.mark.parametrize("text", PROMPTS.values(), ids=PROMPTS)
def test_no_call_costs_more_than_its_bound(with_ours: Prices, text: str, lane: Lane, kind: str) -> None:
    """Booked before it is sent: the most tokens that its bytes can be, all in one class, and the whole output."""
    request = ModelRequest(lane, (Message("user", text),), max_output_tokens=500)
    most = most_input(request)
    bound = with_ours.bound(request)
    assert bound >= with_ours.price(lane, lane.model, Usage(**{kind: most}, output=500)).nanos
    assert bound <= max(
        with_ours.price(lane, lane.model, Usage(**{any_kind: most + most // 16}, output=500)).nanos
        for any_kind in ("input", "cache_read", "cache_write")
    ), "rounded up by more than a sixteenth: what could be paid would wait"


PIECES = st.text(
    st.sampled_from("a \n\0\u00e4\u0301\u4e2d\U0001f600\ufdfa\uff21") | st.characters(exclude_categories=["Cs"])
)
TEXTS = st.builds(lambda piece, times: piece * times, PIECES, st.integers(0, 3000))


@given(
    lane=st.sampled_from(LANES),
    instructions=TEXTS,
    texts=st.lists(TEXTS, min_size=1, max_size=4),
    limit=st.integers(1, 10_000),
    cuts=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    spent=st.floats(0, 1),
)
@settings(deadline=None, derandomize=True)
def test_no_mixture_of_classes_costs_more_than_the_bound(
    with_ours: Prices,
    lane: Lane,
    instructions: str,
    texts: list[str],
    limit: int,
    cuts: tuple[float, float, float],
    spent: float,
) -> None:
    """Whatever part of the prompt was read from a cache or written to one, and however long the answer is."""
    messages = tuple(Message("user", text) for text in texts)
    request = ModelRequest(lane, messages, instructions, max_output_tokens=limit)
    read, written, all_of_it = sorted(int(most_input(request) * cut) for cut in cuts)
    usage = Usage(all_of_it - written, read, written - read, int(limit * spent))
    assert with_ours.bound(request) >= with_ours.price(lane, lane.model, usage).nanos


def test_the_operators_file_wins_over_ours_whatever_the_names(tmp_path: Path) -> None:
    """Under our own pattern, under a wider one, and by the exact name."""
    file = tmp_path / "prices.toml"
    ours = next(model for model in tomllib.loads(SHIPPED.read_text())["openai"] if "*" in model)
    model = ours.replace("*", "-q8")
    assert Prices().price(OPENAI, model, Usage(input=1), AT).nanos != 7_000
    for name in (ours, "*", model):
        file.write_text(f'[openai."{name}"]\ninput = "7"\noutput = "9"\n')
        assert Prices(file).price(OPENAI, model, Usage(input=1), AT).nanos == 7_000, name


def test_of_two_patterns_the_later_one_wins(tmp_path: Path) -> None:
    """Also where the pattern was named before, in our file or in an earlier one of the operator's."""
    wide, narrow = '[openai."*"]\ninput = "1"\noutput = "1"\n', '[openai."smollm2-135m*"]\ninput = "2"\noutput = "2"\n'
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text(wide + narrow)
    assert Prices(first).price(OPENAI, "smollm2-135m", Usage(input=1), AT).nanos == 2_000
    second.write_text(wide)
    assert Prices(first, second).price(OPENAI, "smollm2-135m", Usage(input=1), AT).nanos == 1_000
