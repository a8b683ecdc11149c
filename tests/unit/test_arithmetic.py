"""What a model writes is computed on the event loop: whatever it writes, little is computed."""

from __future__ import annotations

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
            lambda call: f"{call[0]}({','.join(call[1])})"
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
        assert isinstance(made, float) or abs(made) <= LARGEST
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
        ("True", "only numbers"),
        ("1j", "only numbers"),
        ("1 +\n2", "invalid syntax"),
        ("1" + "+1" * LONGEST, "more than 1000 characters"),
    ],
)  # fmt: skip
def test_what_would_take_long_is_refused_before_it_is_computed(work: Work, expression: str, why: str) -> None:
    work.bits = 0
    with pytest.raises(ToolFailed, match=why.replace("+", r"\+")):
        compute(expression)
    assert work.bits <= MOST_BITS


def test_a_long_sum_is_not_deep() -> None:
    """As long as it may be; and brackets up to their bound are none too many."""
    assert compute("+".join(["1"] * 500)) == 500
    assert compute("(" * DEEPEST + "1" + ")" * DEEPEST) == 1
    assert compute("10**300") == LARGEST
    assert compute("round(-1.2375e-200, 202)") == -1.24e-200
