"""What a model writes is computed on the event loop: whatever it writes, little is computed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.agents import arithmetic
from celeriac.agents.arithmetic import DEEPEST, LARGEST, LONGEST, compute
from celeriac.agents.tools import ToolFailed


class Work:
    """What was computed. bits: of the largest whole number that went in or came out."""

    def __init__(self) -> None:
        self.steps = self.bits = 0

    def counted(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*numbers: Any) -> Any:
            made = compute(*numbers)
            self.steps += 1
            self.bits = max([self.bits, *(n.bit_length() for n in (*numbers, made) if isinstance(n, int))])
            return made

        return counting


@pytest.fixture(scope="module")
def work() -> Iterator[Work]:
    made = Work()
    with pytest.MonkeyPatch.context() as patched:
        for table in (arithmetic.OPERATORS, arithmetic.FUNCTIONS):
            for name in list(table):
                patched.setitem(table, name, made.counted(table[name]))  # type: ignore[index]
        yield made


#: Of any number that is made, also of one that is refused then.
MOST_BITS = 2 * LARGEST.bit_length()

numbers = st.sampled_from(["0", "1", "2", "3", "7", "150", "999", "1000", "0.5", "1e308", "pi", "10**300", "9" * 300])
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%", "**"]), inner).map(
            "({0[0]}{0[1]}{0[2]})".format
        ),
        inner.map("-{}".format),
        st.tuples(st.sampled_from(sorted(arithmetic.FUNCTIONS)), st.lists(inner, min_size=1, max_size=3)).map(
            lambda call: f"{call[0]}({', '.join(call[1])})"
        ),
    ),
    max_leaves=30,
)


@settings(max_examples=500, deadline=None)
@given(expressions)
def test_no_number_becomes_large_on_the_way(work: Work, expression: str) -> None:
    """Not even one that is refused as soon as it is there; and there are no more steps than characters."""
    work.steps = work.bits = 0
    try:
        made = compute(expression)
    except ToolFailed:
        pass
    else:
        assert abs(made) <= LARGEST
    assert work.bits <= MOST_BITS
    assert work.steps <= LONGEST


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("round(7, -10000000)", "rounded to 300 digits at most"),
        ("round(7, 10**300)", "rounded to 300 digits at most"),
        ("max(" + ",".join(["(10**300)**1000"] * 55) + ")", "a number is too large"),
        ("(10**300)**1000 % 7", "a number is too large"),
        ("(-9)**999", "a number is too large"),
        ("10**300 * 10**300 / 10**300", "a number is too large"),
        ("10**300 + 10**300", "a number is too large"),
        ("9" * 302, "a number is too large"),
        ("0x" + "f" * 300, "a number is too large"),
        ("ceil(1e308)", "a number is too large"),
        ("f'{1:999999999}'", "more than numbers, names, brackets"),
        ("'a'*3", "more than numbers, names, brackets"),
        ("[1]*3", "more than numbers, names, brackets"),
        ("(" * (DEEPEST + 1) + "1" + ")" * (DEEPEST + 1), "nested too deep"),
        ("-" * (DEEPEST + 1) + "1", "nested too deep"),
        ("1" + "**1" * (DEEPEST + 2), "nested too deep"),
        ("not 1", "an operator that is none of"),
        ("1 if 1 else 2", "an operator that is none of"),
        ("max(*1)", "an operator that is none of"),
        ("max(1, key=abs)", "more than numbers, names, brackets"),
        ("open(1)", "there is no open, or it is used otherwise"),
        ("True", "only real numbers"),
        ("1j", "only real numbers"),
        ("1 +\n2", "invalid syntax"),
        ("1" + "+1" * LONGEST, "more than 1000 characters"),
    ],
)  # fmt: skip
def test_what_would_take_long_is_refused_before_it_is_computed(work: Work, expression: str, why: str) -> None:
    work.bits = 0
    with pytest.raises(ToolFailed, match=re.escape(why)):
        compute(expression)
    assert work.bits <= MOST_BITS


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("200 * 15% + 3", "write 15/100 for 15%"),
        ("80 * 20% + 5", "write 15/100 for 15%"),
        ("1200 + 15% - 30", "write 15/100 for 15%"),
        ("100 - 20%-5", "write 15/100 for 15%"),
        ("(1200 + 15%) * 2", "write 15/100 for 15%"),
        ("max(15%, 3)", "write 15/100 for 15%"),
        ("50% * 2", "write 15/100 for 15%"),
        ("15% of 200", "write 15/100 for 15%"),
        ("50% \n", "write 15/100 for 15%"),
        ("max(1,200, 3,400)", "write 1200, without commas; of two arguments, 1, 200 with a space"),
        ("round(1,234)", "write 1234, without commas"),
        ("3,000", "write 3000, without commas"),
        ("max(1,234.50, 7)", "write 1234, without commas"),
        ("12,34,567 * 2", "write 34567, without commas"),
        ("1e308*10", "a number is too large: they go up to 10**300"),
        ("1e200*1e200 - 1e200*1e200", "a number is too large"),
        ("1e999", "a number is too large"),
        ("1e300/1e-300", "a number is too large"),
        ("1e200 ** 2", "a number is too large"),
        ("exp(1000)", "a number is too large"),
        ("2^3", "write ** instead of ^"),
        ("2 × 3", "write * instead of ×"),
        ("6 ÷ 3", "write / instead of ÷"),
        ("5 \N{MINUS SIGN} 3", "write - instead of \N{MINUS SIGN}"),
        ("5!", "write factorial(5) instead of !"),
        ("$5 + 3", "+ - * / // % **: $"),
        ("avg(1, 2)", "there is no avg, or it is used otherwise; the functions are abs ceil cos exp"),
        ("x", "there is no x, or it is used otherwise"),
        ("pi(2)", "the constants pi e"),
        ("sqrt", "sqrt is a function: write sqrt(...)"),
        ("2(3 + 4)", "write * between a number and a bracket"),
        ("1,5 + 2", "a fraction is written 1.5"),
        ("sqrt(4, 2)", "sqrt takes one argument, and was given 2"),
        ("factorial()", "factorial takes one argument, and was given 0"),
        ("round(1, 2, 3)", "round takes one or two arguments, and was given 3"),
        ("max(5)", "max takes two arguments or more, and was given 1"),
        ("factorial(2.5)", "factorial takes whole numbers there"),
        ("round(1.5, 0.5)", "round takes whole numbers there"),
        ("sqrt(-1)", "sqrt is not defined there"),
        ("(-8) ** 0.5", "only real numbers"),
        ("1 / 0", "division by zero"),
    ],
)
def test_what_may_be_meant_otherwise_is_refused(expression: str, why: str) -> None:
    """A wrong number without an error is the worst answer. The words say how it is written."""
    with pytest.raises(ToolFailed, match=re.escape(why)):
        compute(expression)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("7 % 4", 3),
        ("7%4 + 1", 4),
        ("17 % (2 + 3)", 2),
        ("7 % pi", 7 % math.pi),
        ("max(1, 200)", 200),
        ("max(1,20) + max(1,2000)", 2020),
        ("1_000 * 2", 2000),
        ("200 * 15/100 + 3", 33.0),
        ("log(8, 2)", 3.0),
        ("round(2.345, 2)", 2.35),
    ],
)
def test_what_is_meant_as_it_is_written_is_computed(expression: str, result: float) -> None:
    """The remainder, and arguments beside each other."""
    assert compute(expression) == result


def test_a_long_sum_is_not_deep() -> None:
    """As long as it may be; and brackets up to their bound are none too many."""
    assert compute("+".join(["1"] * 500)) == 500
    assert compute("(" * DEEPEST + "1" + ")" * DEEPEST) == 1
    assert compute("10**300") == LARGEST
    assert compute("round(-1.2375e-200, 202)") == -1.24e-200


def test_a_fraction_before_a_comma_is_an_argument() -> None:
    """And no thousands."""
    assert compute("max(1.5,200)") == 200
