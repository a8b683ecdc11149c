"""A receipt as a document: its bytes, its signature, its sums, and the parts of a call's cost."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from celeriac.accounts import by_class, receipt
from celeriac.costs.money import shares
from celeriac.costs.prices import Prices
from celeriac.costs.receipts import Signing, canonical, check_sums, nanos, read
from celeriac.errors import Invalid
from celeriac.jobs.model import Account, Call, Child, Job, State
from celeriac.llm.model import Lane, Usage

AT = datetime(2026, 11, 1, 12, 30, tzinfo=UTC)
USAGE = {"input_tokens": 1_000, "cache_read_tokens": 400, "cache_write_tokens": 0, "output_tokens": 100}
FACTS = {
    "lane": "openai/gpt-5-mini", "model": "gpt-5-mini", "attempt": 1, "step": 1, "waited": 0.0, "seconds": 1.25,
    "error": None, "request_id": "req_1", "usage": USAGE, "tier": "default", "price_source": "genai-prices gpt-5-mini",
}  # fmt: skip
COST = 1_000 * 250 + 400 * 25 + 100 * 2_000
FAILED = FACTS | {"usage": None, "model": None, "error": "timeout", "seconds": 60.0}
KEYS = {
    "2025-07": SecretStr("old-secret-old-secret-old-secret"),
    "2026-11": SecretStr("new-secret-new-secret-new-secret"),
}
NEW, OLD = Signing(KEYS, "2026-11"), Signing(KEYS, "2025-07")


def job(id: str = "j1", **facts: Any) -> Job:
    return Job(id, "default", "assistant", State.SUCCEEDED, "celeriac", "normal", AT, **({"ended_at": AT} | facts))


def account(**facts: Any) -> Account:
    """A job that timed out, was answered elsewhere, and asked for two others, one of which is forgotten."""
    calls = (Call("c1", "doubt", 9_000_000, AT, FAILED, 9_000_000), Call("c2", "settled", COST, AT, FACTS, 8_000_000))
    child = job("j2", cost_nanos=70, children_cost_nanos=5, revision=2)
    whole = {
        "calls": calls, "cost_nanos": COST, "in_doubt_nanos": 9_000_000, "children_cost_nanos": 100, "revision": 8,
    }  # fmt: skip
    children = (Child("j2", child, at_work=False), Child("j3", None, at_work=False))
    return Account(job(**(whole | facts)), children)


@pytest.fixture(scope="module")
def prices() -> Prices:
    return Prices()


@pytest.fixture
def made(prices: Prices) -> dict[str, Any]:
    return receipt(account(), prices)


def test_the_bytes_that_are_signed_are_those_of_rfc_8785() -> None:
    """Escapes and names in the order of its sections 3.2.2 and 3.2.3, whose examples these are: others compute the
    same."""
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\x80", "\xf6"]
    value = {"string": '\u20ac$\x0f\nA\'B"\\\\"/', "literals": [None, True, False], "names": dict.fromkeys(names, 1)}
    inside = ",".join(f'"{name}":1' for name in ["\\r", "1", "\x80", "\xf6", "\u20ac", "\U0001f600", "\ufb33"])
    string = '"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'
    assert canonical(value) == f'{{"literals":[null,true,false],"names":{{{inside}}},"string":{string}}}'.encode()


@pytest.mark.parametrize("value", [1.0, float("nan"), 2**53, {1: "x"}, b"x", AT])
def test_what_readers_would_take_in_different_ways_is_not_signed(value: object) -> None:
    """Fractions above all."""
    with pytest.raises(TypeError):
        canonical({"own": [value]})


def test_a_receipt_holds_nothing_that_cannot_be_signed(made: dict[str, Any]) -> None:
    """Not a fraction in it, though calls are stored with their seconds; it comes back as it was."""
    assert read(canonical(made)) == made
    assert made["lines"][0]["seconds"] == "60.000"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value that holds no other."""
    if isinstance(value, dict | list) and value:
        for name in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[name], (*path, name))
    else:
        yield path


def changed(receipt: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    receipt = copy.deepcopy(receipt)
    *above, name = path
    within: Any = receipt
    for step in above:
        within = within[step]
    was = within[name]
    within[name] = not was if isinstance(was, bool) else was + 1 if isinstance(was, int) else f"{was or ''}0"
    return receipt


def test_whatever_is_changed_the_signature_is_refused(made: dict[str, Any]) -> None:
    """Each value, and the signature's own."""
    signed = NEW.signed(made)
    assert NEW.verify(signed) == "2026-11"
    paths = list(leaves(signed))
    assert len(paths) > 80
    for path in paths:
        with pytest.raises(Invalid):
            NEW.verify(changed(signed, path))
    for name in signed:
        with pytest.raises(Invalid):
            NEW.verify({member: value for member, value in signed.items() if member != name})
    with pytest.raises(Invalid, match="changed after it was signed"):
        NEW.verify(signed | {"note": "paid"})
    with pytest.raises(Invalid, match="changed after it was signed"):
        # The other one's key is known, and did not sign this.
        NEW.verify(signed | {"signature": signed["signature"] | {"key": "2025-07"}})


def test_the_order_of_members_and_white_space_change_nothing(made: dict[str, Any]) -> None:
    """Whoever stores a receipt may print it as they like."""
    signed = NEW.signed(made)
    assert NEW.verify(read(json.dumps(dict(reversed(signed.items())), indent=4).encode())) == "2026-11"


def test_receipts_of_older_keys_are_verified_and_the_current_one_signs(made: dict[str, Any]) -> None:
    """Until their key is taken away: then it is named as not known."""
    assert NEW.verify(OLD.signed(made)) == "2025-07"
    assert NEW.signed(made)["signature"]["key"] == "2026-11"
    rotated = Signing({"2026-11": KEYS["2026-11"]}, "2026-11")
    with pytest.raises(Invalid, match=r"signed with the key '2025-07', which is not known here \(known: 2026-11\)"):
        rotated.verify(OLD.signed(made))


def test_without_a_key_nothing_is_signed(made: dict[str, Any]) -> None:
    """And nobody can verify it."""
    unsigned = Signing({}, None).signed(made)
    assert unsigned["signature"] is None
    with pytest.raises(Invalid, match="not signed"):
        NEW.verify(unsigned)


MADE = {"algorithm": "HMAC-SHA256", "key": "2026-11", "value": ""}


@pytest.mark.parametrize(
    "signature", ["x", {}, MADE | {"algorithm": "none"}, MADE | {"key": ["2026-11"]}, MADE | {"value": 7},
                  MADE | {"value": "\u00e4"}, MADE | {"more": 1}],
)  # fmt: skip
def test_a_signature_that_is_none_is_refused(made: dict[str, Any], signature: object) -> None:
    """Of whatever shape it is."""
    with pytest.raises(Invalid):
        NEW.verify(made | {"signature": signature})


def test_no_key_is_told_to_whoever_is_refused(made: dict[str, Any]) -> None:
    """Nor can one be found in what prints a signer's keys."""
    with pytest.raises(Invalid) as refused:
        NEW.verify(NEW.signed(made) | {"final": True})
    assert "secret" not in str(refused.value) + repr(vars(NEW))


@pytest.mark.parametrize("text", [
    b"", b"\xff", b"[]", b"{}", b'{"format": "celeriac-receipt/2"}', b'{"format": "celeriac-receipt/1", "own": 1.5}',
    b'{"format": "celeriac-receipt/1", "own": NaN}', b'{"format": "celeriac-receipt/1", "own": 9007199254740993}',
    b'{"format": "celeriac-receipt/1", "own": "\\ud800"}', b'{"format": "celeriac-receipt/1", "own": 1, "own": 2}',
    b"[" * 100_000,
])  # fmt: skip
def test_what_is_no_receipt_or_could_be_read_in_two_ways_is_refused(text: bytes) -> None:
    """A member that is named twice is another one for each reader."""
    with pytest.raises(Invalid, match="this is no receipt"):
        read(text)


def test_own_and_childrens_amounts_are_told_apart(made: dict[str, Any]) -> None:
    """The children's calls are no lines; of those that are forgotten the rest of the sum is told."""
    assert [line["call_id"] for line in made["lines"]] == ["c1", "c2"]
    assert (nanos(made["own"]["cost_usd"]), nanos(made["own"]["in_doubt_usd"])) == (COST, 9_000_000)
    assert (made["own"]["calls"], made["own"]["usage"]) == (2, USAGE)
    assert made["own"]["unlisted_cost_usd"] == "0.000000000"
    children = made["children"]
    assert (nanos(children["cost_usd"]), nanos(children["unlisted_cost_usd"])) == (100, 25)
    known, forgotten = children["jobs"]
    assert (known["job_id"], known["cost_usd"], known["final"]) == ("j2", "0.000000070", True)
    assert forgotten == {"job_id": "j3"} | dict.fromkeys(known.keys() - {"job_id"})
    check_sums(made)


@pytest.mark.parametrize("path", [
    ("own", "cost_usd"), ("own", "in_doubt_usd"), ("own", "reserved_usd"), ("own", "calls"),
    ("own", "usage", "input_tokens"), ("lines", 0, "bound_usd"), ("lines", 1, "cost_usd"),
    ("lines", 1, "cost_by_class_usd", "output"), ("children", "cost_usd"), ("children", "in_doubt_usd"),
    ("children", "jobs", 0, "cost_usd"), ("children", "jobs", 0, "children_cost_usd"),
])  # fmt: skip
def test_sums_that_do_not_add_up_are_named(made: dict[str, Any], path: tuple[Any, ...]) -> None:
    """Whoever signed them."""
    within: Any = made
    for step in path[:-1]:
        within = within[step]
    was = within[path[-1]]
    within[path[-1]] = was + 1 if isinstance(was, int) else f"{was[:-1]}{(int(was[-1]) + 1) % 10}"
    with pytest.raises(Invalid, match=r"make|count|are not those"):
        check_sums(made)


@pytest.mark.parametrize("own", [None, {}, {"calls": 2}, {"calls": 2, "usage": USAGE, "cost_usd": "1e3"}])
def test_sums_that_are_none_are_refused(made: dict[str, Any], own: object) -> None:
    """As no receipt."""
    with pytest.raises(Invalid, match="this is no receipt"):
        check_sums(made | {"own": own})


def test_what_the_store_lost_is_named_beside_the_lines(prices: Prices) -> None:
    """It knows what was spent, and not on what: the total is the truth, and still adds up."""
    made = receipt(account(cost_nanos=COST + 12, in_doubt_nanos=9_000_034), prices)
    assert made["own"]["unlisted_cost_usd"] == "0.000000012"
    assert made["own"]["unlisted_in_doubt_usd"] == "0.000000034"
    check_sums(made)


@pytest.mark.parametrize(("facts", "is_final"), [
    ({"in_doubt_nanos": 0}, True),
    ({}, False),
    ({"in_doubt_nanos": 0, "reserved_nanos": 1}, False),
    ({"in_doubt_nanos": 0, "children_in_doubt_nanos": 1}, False),
    ({"in_doubt_nanos": 0, "children_reserved_nanos": 1}, False),
    ({"in_doubt_nanos": 0, "state": State.RUNNING}, False),
])  # fmt: skip
def test_a_receipt_is_final_once_nothing_more_can_come(prices: Prices, facts: dict[str, Any], is_final: bool) -> None:
    """The job has ended, and nothing of it or of its children is under way or in doubt."""
    state = facts.pop("state", State.SUCCEEDED)
    asked = account(**facts)
    whole = Job(**({name: getattr(asked.job, name) for name in Job.__slots__} | {"state": state}))
    assert receipt(Account(whole, asked.children), prices)["final"] is is_final
    at_work = (Child("j2", job("j2"), at_work=True),)
    assert receipt(Account(whole, at_work), prices)["final"] is False


def test_a_calls_cost_is_told_by_class_of_tokens(prices: Prices, made: dict[str, Any]) -> None:
    """gpt-5-mini: $0.25 in, $0.025 cached, $2 out a million. A call in doubt has no parts."""
    parts = made["lines"][1]["cost_by_class_usd"]
    assert {name: nanos(amount) for name, amount in parts.items()} == {
        "input": 250_000, "cache_read": 10_000, "cache_write": 0, "cache_write_1h": 0, "output": 200_000,
        "reasoning": 0,
    }  # fmt: skip
    assert made["lines"][0]["cost_by_class_usd"] is None


@pytest.mark.parametrize("facts", [{"usage": None}, {"model": None}, {"lane": ""}])
def test_a_cost_that_todays_prices_do_not_make_is_not_told_by_class(prices: Prices, facts: dict[str, Any]) -> None:
    """Rather nothing than parts that somebody made up."""
    assert by_class(Call("c", "settled", COST, AT, FACTS, 0), prices) is not None
    assert by_class(Call("c", "settled", COST + 1, AT, FACTS, 0), prices) is None
    assert by_class(Call("c", "settled", COST, AT, FACTS | facts, 0), prices) is None


@pytest.mark.parametrize(("read", "step"), [(90_000, 1), (140_000, 2)], ids=["below", "above"])
def test_a_long_prompt_is_told_by_class_in_its_step(prices: Prices, read: int, step: int) -> None:
    """Above 200,000 tokens all that is read costs twice as much: what was cached counts for that, too."""
    lane, used = Lane("anthropic", "claude-sonnet-4-5"), Usage(110_000, cache_read=read, output=100)
    facts = FACTS | {"lane": str(lane), "model": lane.model, "usage": used.as_dict()}
    cost = prices.price(lane, lane.model, used, AT, tier="default").nanos
    parts = by_class(Call("c", "settled", cost, AT, facts, 0), prices)
    assert parts is not None
    assert (parts["input"], parts["cache_read"]) == (110_000 * 3_000 * step, read * 300 * step)
    assert sum(parts.values()) == cost


@given(st.lists(st.fractions(min_value=0, max_value=10**12, max_denominator=10**9), max_size=8))
def test_parts_make_up_their_sum_and_are_next_to_what_they_are(exact: list[Fraction]) -> None:
    """By largest remainder: whole numbers stay, no other part is more than one away, and who lost more gets more."""
    parts = {str(number): part for number, part in enumerate(exact)}
    total = ceil(sum(exact))
    made = shares(total, parts)
    assert sum(made.values()) == total
    assert made.keys() == parts.keys()
    for name, part in parts.items():
        assert abs(made[name] - part) < 1
    raised = [part - int(part) for name, part in parts.items() if made[name] > part]
    lowered = [part - int(part) for name, part in parts.items() if made[name] < part]
    assert min(raised, default=1) >= max(lowered, default=0)


@pytest.mark.parametrize("total", [2, 4])
def test_parts_of_another_total_are_refused(total: int) -> None:
    """They would be nobody's."""
    with pytest.raises(ValueError, match=re.escape("not those of this total")):
        shares(total, {"input": Fraction(5, 2), "output": Fraction(1, 10)})


def test_fractions_of_a_nano_dollar_go_to_whoever_lost_most() -> None:
    """Cached input of small models costs 2.5 nano-dollars a token."""
    assert shares(3, {"input": Fraction(5, 2), "output": Fraction(0)}) == {"input": 3, "output": 0}
    assert shares(4, {"input": Fraction(1, 4), "cached": Fraction(5, 2), "output": Fraction(1)}) == {
        "input": 0, "cached": 3, "output": 1,
    }  # fmt: skip
