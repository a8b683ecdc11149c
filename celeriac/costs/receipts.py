"""A receipt as a document: the bytes that are signed, who signed them, and whether its lines add up.

In a receipt are texts, whole numbers, true, false and null, and no fraction: every reader of JSON makes the same of it.
Amounts are texts, dollars exact to the nano-dollar.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

from pydantic import SecretStr

from celeriac.costs.money import NANO, usd
from celeriac.errors import Invalid

#: What a document of this kind says that it is. A key that signs other things too signs none that says this.
FORMAT: Final = "celeriac-receipt/1"
ALGORITHM: Final = "HMAC-SHA256"

AMOUNT: Final = re.compile(r"-?\d{1,12}\.\d{9}", re.ASCII)
#: Whole numbers beyond this are not the same for every reader of JSON (RFC 7493).
MOST_WHOLE: Final = 2**53 - 1

#: Where a call stands -> the total that its amount is part of, and under which name it stands in its line.
TOTALS: Final[Mapping[str, tuple[str, str]]] = {
    "settled": ("cost_usd", "cost_usd"),
    "doubt": ("in_doubt_usd", "bound_usd"),
    "open": ("reserved_usd", "bound_usd"),
}
#: Of these, what is booked and is on no line or job of the receipt is named.
UNLISTED: Final[Mapping[str, str]] = {"cost_usd": "unlisted_cost_usd", "in_doubt_usd": "unlisted_in_doubt_usd"}


def canonical(value: Any) -> bytes:
    """By RFC 8785: members in the order of their names, no white space. Raises TypeError for what no receipt holds, a
    fraction above all, and UnicodeEncodeError, RecursionError.
    """
    return _spelt(value).encode()


def _spelt(value: Any) -> str:
    match value:
        case None | bool() | str():
            # Escapes what has to be, and as RFC 8785 wants it.
            return json.dumps(value, ensure_ascii=False)
        case int() if abs(value) <= MOST_WHOLE:
            return str(value)
        case list() | tuple():
            return f"[{','.join(map(_spelt, value))}]"
        case dict() if all(isinstance(name, str) for name in value):
            # In the order of UTF-16, as the RFC has it.
            names = sorted(value, key=lambda name: name.encode("utf-16-be"))
            return f"{{{','.join(f'{_spelt(name)}:{_spelt(value[name])}' for name in names)}}}"
        case _:
            raise TypeError(f"a receipt holds no {type(value).__name__} like this")


class Signing:
    """Keys by their names. current: the one that signs, None for none. The others still verify."""

    def __init__(self, keys: Mapping[str, SecretStr], current: str | None) -> None:
        self._keys = keys
        self._current = current

    def signed(self, receipt: Mapping[str, Any]) -> dict[str, Any]:
        """The same with its signature, which is None where nobody signs."""
        if self._current is None:
            return {**receipt, "signature": None}
        signature = {"algorithm": ALGORITHM, "key": self._current}
        made = _mac(self._keys[self._current], {**receipt, "signature": signature})
        return {**receipt, "signature": {**signature, "value": made}}

    def verify(self, receipt: Mapping[str, Any]) -> str:
        """The name of the key that signed it. Raises Invalid where none of ours did, saying why that is known."""
        signature = receipt.get("signature")
        if signature is None:
            raise Invalid("it is not signed", remedy="a shim signs where CELERIAC_COSTS__RECEIPT_KEYS is set")
        if not isinstance(signature, dict) or signature.keys() != {"algorithm", "key", "value"}:
            raise Invalid("its signature is none of ours: it has other members than algorithm, key and value")
        if signature["algorithm"] != ALGORITHM:
            raise Invalid(f"its signature is not made by {ALGORITHM}, as all of ours are")
        name, value = signature["key"], signature["value"]
        if not isinstance(name, str) or name not in self._keys:
            known = ", ".join(sorted(self._keys)) or "none"
            raise Invalid(
                f"it is signed with the key {name!r}, which is not known here (known: {known})",
                remedy="name that key in CELERIAC_COSTS__RECEIPT_KEYS",
            )
        made = _mac(self._keys[name], {**receipt, "signature": {"algorithm": ALGORITHM, "key": name}})
        if not isinstance(value, str) or not hmac.compare_digest(made.encode(), value.encode(errors="replace")):
            raise Invalid(f"it was changed after it was signed, or the key {name!r} is another one here")
        return name


def _mac(key: SecretStr, receipt: Mapping[str, Any]) -> str:
    """Of all that the receipt says, its signature's own key and algorithm included."""
    return hmac.new(key.get_secret_value().encode(), canonical(dict(receipt)), hashlib.sha256).hexdigest()


def read(text: bytes) -> dict[str, Any]:
    """Raises Invalid for what is no receipt, or might be read in two ways."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise Invalid("this is no receipt: it names a member twice")
        return found

    try:
        # orjson takes the last of two members with one name, and says nothing.
        found = json.loads(text.decode(), object_pairs_hook=members)
    except (ValueError, RecursionError) as error:
        raise Invalid("this is no receipt: it is no JSON") from error
    try:
        canonical(found)
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid("this is no receipt: it holds what none does, as a number that is not whole") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise Invalid(f"this is no receipt: it does not say that its format is {FORMAT}")
    return found


def check_sums(receipt: Mapping[str, Any]) -> None:
    """Whether the lines make the totals. Raises Invalid, naming what does not add up."""
    try:
        wrong = list(_wrong_sums(receipt))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Invalid("this is no receipt: a member is missing, or is no amount") from error
    if wrong:
        raise Invalid("; ".join(wrong))


def _wrong_sums(receipt: Mapping[str, Any]) -> Iterator[str]:
    own, lines = receipt["own"], receipt["lines"]
    if own["calls"] != len(lines):
        yield f"it counts {own['calls']} calls, and has {len(lines)} lines"
    if own["usage"] != sum_usage(line["usage"] for line in lines if line["stands"] == "settled"):
        yield "the tokens of its lines are not those of its total"
    for stands, (total, amount) in TOTALS.items():
        made = sum(nanos(line[amount]) for line in lines if line["stands"] == stands)
        yield from _compare("its lines", own, total, made)
    for line in lines:
        by_class = line["cost_by_class_usd"]
        if by_class is not None and sum(map(nanos, by_class.values())) != nanos(line["cost_usd"]):
            yield f"the parts of call {line['call_id']} do not make its cost"
    children = receipt["children"]
    known = [job for job in children["jobs"] if job["state"] is not None]
    for total in UNLISTED:
        made = sum(nanos(job[total]) + nanos(job[f"children_{total}"]) for job in known)
        yield from _compare("the jobs that it asked for", children, total, made)


def _compare(what: str, totals: Mapping[str, Any], total: str, made: int) -> Iterator[str]:
    if total in UNLISTED:
        made += nanos(totals[UNLISTED[total]])
    if made != nanos(totals[total]):
        yield f"{what} make {total} {usd(made)}, and not {totals[total]}"


def sum_usage(usages: Iterable[Mapping[str, int] | None]) -> dict[str, int]:
    """Tokens by class, of all of them."""
    total: dict[str, int] = {}
    for usage in usages:
        for name, count in (usage or {}).items():
            total[name] = total.get(name, 0) + count
    return total


def nanos(amount: str) -> int:
    """An amount of a receipt in nano-dollars. Raises ValueError for what is none."""
    if not AMOUNT.fullmatch(amount):
        raise ValueError("no amount")
    return int(Decimal(amount) * NANO)
