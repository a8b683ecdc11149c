"""What came of a drill: a row for each scenario, the violations under the table, the same as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from celeriac.drill.history import KINDS, History, Violation, recoveries, violations

#: Violations of one scenario that the table names; JSON has them all.
SHOWN: Final = 10
COLUMNS: Final = ("scenario", "jobs", "lost", "twice", "in doubt", "p50 s", "p95 s", "max s", "")


@dataclass(frozen=True)
class Result:
    """One scenario. not_run: why, or "". recovery: seconds, sorted. forgotten: jobs that went with a history that the
    store lost, outside the promise. kept: where logs and state are, if anything was violated.
    """

    scenario: str
    seconds: float = 0.0
    jobs: int = 0
    refused: int = 0
    in_doubt: int = 0
    calls: int = 0
    states: dict[str, int] = field(default_factory=dict)
    recovery: tuple[float, ...] = ()
    forgotten: tuple[str, ...] = ()
    violations: tuple[Violation, ...] = ()
    not_run: str = ""
    kept: str = ""

    def count(self, *kinds: str) -> int:
        return sum(violation.kind in kinds for violation in self.violations)

    @property
    def in_short(self) -> str:
        if self.not_run:
            return f"not run: {self.not_run}"
        found = f"{len(self.violations)} violations" if self.violations else "in order"
        return f"{found}, {self.jobs} jobs in {self.seconds:.0f} s"

    def as_json(self) -> dict[str, Any]:
        return {
            "scenario": self.scenario,
            "not_run": self.not_run or None,
            "seconds": round(self.seconds, 1),
            "jobs": self.jobs,
            "lost": self.count("lost"),
            "twice": self.count("twice", "doubled"),
            "in_doubt": self.in_doubt,
            "recovery_seconds": {
                name: part(self.recovery, share) for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))
            },
            "affected": len(self.recovery),
            "refused": self.refused,
            "provider_calls": self.calls,
            "states": self.states,
            "forgotten": list(self.forgotten),
            "violations": [{"kind": v.kind, "subject": v.subject, "what": v.what} for v in self.violations],
            "kept": self.kept or None,
        }


def part(values: Sequence[float], share: float) -> float | None:
    """The value below which this share of the sorted values is; None of none."""
    return round(values[min(len(values) - 1, int(share * len(values)))], 2) if values else None


def result_of(scenario: str, history: History, seconds: float, *, kept: str = "") -> Result:
    found = tuple(violations(history))
    return Result(
        scenario,
        seconds=seconds,
        jobs=len(history.accepted),
        refused=sum(post.outcome == "refused" for post in history.posts),
        in_doubt=sum(job.doubts for job in history.final.values()),
        calls=len(history.billed or ()),
        states=dict(Counter(str(job.state) for job in history.final.values())),
        recovery=tuple(recoveries(history)),
        forgotten=tuple(history.forgotten()),
        violations=found,
        kept=kept if found else "",
    )


def table(results: Sequence[Result]) -> Iterator[str]:
    """Line by line."""
    yield row(*COLUMNS)
    for result in results:
        yield line(result)
    for result in results:
        yield from details(result)
    broken = sum(len(result.violations) for result in results)
    jobs = sum(result.jobs for result in results)
    yield ""
    yield (
        f"{jobs} jobs, {broken} violations"
        if broken
        else f"{jobs} jobs, nothing lost, nothing twice, nothing left behind"
    )


def line(result: Result) -> str:
    if result.not_run:
        return row(result.scenario, *["-"] * 7, f"not run: {result.not_run}")
    times = [part(result.recovery, share) for share in (0.5, 0.95, 1.0)]
    said = f"{len(result.violations)} violations" if result.violations else ""
    return row(
        result.scenario,
        *map(str, (result.jobs, result.count("lost"), result.count("twice", "doubled"), result.in_doubt)),
        *("-" if time is None else f"{time:.1f}" for time in times),
        said,
    )


def details(result: Result) -> Iterator[str]:
    if result.forgotten:
        yield f"\n{result.scenario}: {len(result.forgotten)} answered jobs went with the history that Redis lost"
    if not result.violations:
        return
    counted = Counter(violation.kind for violation in result.violations)
    yield f"\n{result.scenario}: " + ", ".join(f"{n} {kind} ({KINDS[kind]})" for kind, n in counted.items())
    for violation in result.violations[:SHOWN]:
        yield f"    {violation}"
    if len(result.violations) > SHOWN:
        yield f"    and {len(result.violations) - SHOWN} more"
    if result.kept:
        yield f"    logs and state: {result.kept}"


def row(name: str, *cells: str) -> str:
    *numbers, said = cells
    return f"{name:<22}" + "".join(f"{cell:>9}" for cell in numbers) + (f"  {said}" if said else "")
