"""What a provider says it billed: the answers of OpenAI's and Anthropic's reports, as they were saved.

The formats are those of the providers' API references, 2026-11:

- OpenAI, costs: `GET /v1/organization/costs`, https://platform.openai.com/docs/api-reference/usage/costs
- OpenAI, usage: `GET /v1/organization/usage/completions`, https://platform.openai.com/docs/api-reference/usage/completions
- Anthropic, costs: `GET /v1/organizations/cost_report`, https://platform.claude.com/docs/en/api/admin/cost_report/retrieve
- Anthropic, usage: `GET /v1/organizations/usage_report/messages`,
  https://platform.claude.com/docs/en/api/admin-api/usage-cost/get-messages-usage-report

Their consoles' CSV files have no documented columns, and are not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Final, Literal

from celeriac.errors import Invalid

Kind = Literal["costs", "usage"]

#: The classes of tokens that reports tell apart. `output` is what was said and thought.
REPORTED: Final = ("input", "cache_read", "cache_write", "cache_write_1h", "output")
ACCEPTED: Final = (
    "what is read: answers of OpenAI's /v1/organization/costs (group_by=line_item) and "
    "/v1/organization/usage/completions (group_by=model), and of Anthropic's /v1/organizations/cost_report "
    "(group_by[]=description) and /v1/organizations/usage_report/messages (group_by[]=model), one page or several"
)

#: A line of OpenAI's costs for tokens, as "gpt-5.4-mini-2026-03-01, cached input" or "gpt-image-1 image, output". Its
#: reference says only that it is text; these are lines as its users show them.
_TOKENS: Final = re.compile(r"(\S+)(?: (?:text|image|audio))?, (?:.* )?(?:input|output|cache writes?)(?: .*)?", re.I)
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Line:
    """model: as the provider names it, "" where the line is of none or does not say. item: what the line is called.
    dollars: exactly, in a report of costs. tokens, requests: in one of usage; None where it does not count requests.
    """

    day: date
    model: str
    item: str
    dollars: Fraction = Fraction()
    tokens: Mapping[str, int] = field(default_factory=dict)
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Export:
    """covered: of each UTC day, how much of it the file tells of. more: it ends before the report does."""

    provider: str
    kind: Kind
    lines: Sequence[Line]
    covered: Mapping[date, timedelta]
    more: bool


def read_export(raw: bytes) -> Export:
    """Raises Invalid, which names what is accepted, for anything else."""
    try:
        pages = list(_pages(raw))
        buckets = [bucket for page in pages for bucket in page["data"]]
        read = [_bucket(bucket) for bucket in buckets]
        last = pages[-1].get("has_more") if pages else None
    except (KeyError, TypeError, AttributeError) as error:
        raise _refused(f"it is not as documented: {error}") from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise _refused(str(error) or type(error).__name__) from error
    if not read:
        raise _refused("it is the report of no day")
    forms = {(provider, kind) for provider, kind, *_ in read if kind}
    providers = {provider for provider, *_ in read}
    if len(providers) > 1 or len(forms) > 1:
        raise _refused("it is several reports in one; give them one by one")
    covered: dict[date, timedelta] = {}
    seen: set[datetime] = set()
    for _, _, start, end, _ in read:
        if start in seen:
            raise _refused(f"the time from {start:%Y-%m-%d %H:%M}Z on is in it twice; give each page once")
        seen.add(start)
        covered[start.date()] = covered.get(start.date(), timedelta()) + (end - start)
    # Without a line it bills nothing, in whichever report.
    provider, kind = forms.pop() if forms else (providers.pop(), "costs")
    lines = tuple(line for *_, found in read for line in found)
    if lines and not any(line.model or line.item for line in lines):
        raise _refused("its lines name neither a model nor an item; fetch it by group")
    return Export(provider, kind, lines, covered, bool(last))


def _refused(why: str) -> Invalid:
    return Invalid(f"this is no report of a provider's: {why}", remedy=ACCEPTED)


def _pages(raw: bytes) -> Iterator[Mapping[str, Any]]:
    """Of one page, a list of pages, or pages one after another, as JSON Lines have them."""
    text = raw.decode("utf-8-sig")
    decoder = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_number)
    at = len(text) - len(text.lstrip())
    while at < len(text):
        found, at = decoder.raw_decode(text, at)
        yield from found if isinstance(found, list) else [found]
        at += len(text[at:]) - len(text[at:].lstrip())


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


_Bucket = tuple[str, Kind | None, datetime, datetime, Sequence[Line]]


def _bucket(bucket: Mapping[str, Any]) -> _Bucket:
    if "start_time" in bucket:
        provider = "openai"
        start, end = (datetime.fromtimestamp(_count(bucket[name]), UTC) for name in ("start_time", "end_time"))
    else:
        provider = "anthropic"
        start, end = (_time(bucket[name]) for name in ("starting_at", "ending_at"))
    midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
    if not start < end <= midnight + _DAY:
        raise ValueError(f"from {start:%Y-%m-%d %H:%M}Z to {end:%Y-%m-%d %H:%M}Z is not within one UTC day")
    lines, kinds = [], set()
    for result in bucket["results"]:
        kind, line = _kind(provider, result)
        kinds.add(kind)
        lines.append(line(start.date(), result))
    if len(kinds) > 1:
        raise ValueError("it is several reports in one; give them one by one")
    return provider, kinds.pop() if kinds else None, start, end, lines


def _kind(provider: str, result: Mapping[str, Any]) -> tuple[Kind, Callable[[date, Mapping[str, Any]], Line]]:
    if provider == "openai":
        match result.get("object"):
            case "organization.costs.result":
                return "costs", _openai_cost
            case "organization.usage.completions.result":
                return "usage", _openai_usage
        raise ValueError(f"{result.get('object')!r} is another report")
    if "amount" in result:
        return "costs", _anthropic_cost
    if "uncached_input_tokens" in result:
        return "usage", _anthropic_usage
    raise ValueError("its results have neither an amount nor uncached_input_tokens")


def _openai_cost(day: date, result: Mapping[str, Any]) -> Line:
    amount, item = result["amount"], _text(result.get("line_item"))
    named = _TOKENS.fullmatch(item)
    dollars = _amount(amount["value"], amount["currency"])
    return Line(day, named[1] if named else "", item, dollars)


def _openai_usage(day: date, result: Mapping[str, Any]) -> Line:
    # "including cached and cache-write tokens", as its reference says of `input_tokens`.
    read, written = (_count(result.get(f"input_{name}_tokens") or 0) for name in ("cached", "cache_write"))
    plain = _count(result["input_tokens"]) - read - written
    if plain < 0:
        raise ValueError(f"on {day} more tokens were cached than read")
    tokens = {"input": plain, "cache_read": read, "cache_write": written, "output": _count(result["output_tokens"])}
    model = _text(result.get("model"))
    return Line(day, model, model, tokens=tokens, requests=_count(result["num_model_requests"]))


def _anthropic_cost(day: date, result: Mapping[str, Any]) -> Line:
    model = _text(result.get("model"))
    item = _text(result.get("description")) or _text(result.get("cost_type"))
    # "In lowest currency units (e.g. cents) as a decimal string", as its reference says.
    return Line(day, model, item, _amount(result["amount"], result["currency"]) / 100)


def _anthropic_usage(day: date, result: Mapping[str, Any]) -> Line:
    written = result.get("cache_creation") or {}
    tokens = {
        "input": _count(result["uncached_input_tokens"]),
        "cache_read": _count(result.get("cache_read_input_tokens") or 0),
        "cache_write": _count(written.get("ephemeral_5m_input_tokens") or 0),
        "cache_write_1h": _count(written.get("ephemeral_1h_input_tokens") or 0),
        "output": _count(result["output_tokens"]),
    }
    model = _text(result.get("model"))
    return Line(day, model, model, tokens=tokens)


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{value!r} is no name")
    return value or ""


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _amount(value: Any, currency: Any) -> Fraction:
    """Exactly as it is written; a credit is below 0."""
    if not isinstance(currency, str) or currency.lower() != "usd":
        raise ValueError(f"its currency is {currency!r}, and not USD")
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        raise ValueError(f"{value!r} is no amount")
    try:
        made = Decimal(value)
    except InvalidOperation:
        made = Decimal("nan")
    # No bill has more digits: what is longer would only take long.
    if not made.is_finite() or made.adjusted() > 15 or int(made.as_tuple().exponent) < -100:
        raise ValueError(f"{str(value)[:40]!r} is no amount")
    return Fraction(made)


def _time(value: Any) -> datetime:
    made = datetime.fromisoformat(value)
    if made.tzinfo is None:
        raise ValueError(f"{value!r} says no time zone")
    return made.astimezone(UTC)
