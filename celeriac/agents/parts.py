"""A question that is too long for one model: another agent is asked for each part of it, by a job of its own, and what
they answer takes its place. They are asked for its text; its images stay with the one that asks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Awaitable, Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

from celeriac.agents.agent import MOST_OTHERS, MOST_PARTS, Agent
from celeriac.agents.children import Children
from celeriac.agents.course import SILENCE, Course
from celeriac.errors import Conflict, InputTooLong, PartFailed
from celeriac.jobs.model import Finding, State
from celeriac.jobs.store import new_id

#: How the jobs for the parts ended, in their order; None for one that has not.
Findings = Mapping[str, Finding | None]

#: After which a text is cut, the best first.
BORDERS: Final = (
    re.compile(r"\n\s*\n"),  # paragraphs
    re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？]|\n"),  # sentences, and lines
    re.compile(r"\s+"),  # words
)
#: A part ends in the last so-manieth of what it should have: cut earlier, there would be more of them to pay for.
LOOK_BACK: Final = 4
#: Code points that one character has at most, as far as anybody looks.
ONE: Final = 64
#: What makes one emoji of those on either side of it.
JOINER: Final = "\u200d"


class Parts:
    """Of the question of one job. to: whom its agent asks for them. life: how often the job was started anew."""

    def __init__(self, longest: int, to: Agent, children: Children, life: int) -> None:
        self._longest = longest
        self._to = to
        self._children = children
        self._life = life

    def are_asked(self, course: Course) -> bool:
        """Whether the question has to be shortened before the model is asked."""
        return bool(course.parts) or (course.asked == 0 and len(course.question.text) > self._longest)

    async def shorten(self, course: Course, store: Callable[[dict[str, Any]], Awaitable[None]]) -> bool:
        """Whether it is shorter now; else it waits for jobs. It may still be too long.

        Raises PartFailed, InputTooLong, and what `Children.submit` does.
        """
        if not course.parts:
            if not course.question.text.strip():
                await store({"kind": "joined", "text": SILENCE})
                return True
            await store(self._split({new_id(): part for part in self._cut(course)}))
        elif not course.split_in_this_life:
            await store(self._split(await self._named_anew(course)))
        texts = course.part_texts
        findings = await self._children.findings(list(texts))
        ended = {job: finding for job, finding in findings.items() if finding is not None}
        if len(ended) < len(texts):
            # Also those that were submitted before: the store may have lost one.
            await self._submit({job: text for job, text in texts.items() if job not in ended}, course, findings)
            return False
        if not all(map(_is_answered, ended.values())):
            raise PartFailed(self._why_not(ended), partial=_so_far(course, findings))
        joined = _joined(findings)
        if len(joined) >= len(course.question.text):
            raise InputTooLong(
                f"the input is too long: {self._to.name} was asked for its {len(course.question.text)} characters in "
                f"{len(ended)} parts, and answered with {len(joined)}",
                partial=joined,
            )
        await store({"kind": "joined", "text": joined or SILENCE})
        return True

    def _split(self, jobs: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
        return {"kind": "split", "jobs": jobs, "life": self._life}

    async def _named_anew(self, course: Course) -> dict[str, tuple[int, int]]:
        """The parts as they were, when the job was started again: those that nobody answers get other jobs."""
        texts = course.part_texts
        findings = await self._children.findings(list(texts))
        # What this one was told of the others may be over: somebody may have started them again too.
        unanswered = {job: text for job, text in texts.items() if not _is_answered(findings[job])}
        await self._submit(unanswered, course, findings)
        findings = await self._children.findings(list(texts))
        open_or_answered = {job for job, finding in findings.items() if finding is None or _is_answered(finding)}
        return {job if job in open_or_answered else new_id(): part for job, part in course.parts.items()}

    async def _submit(self, texts: Mapping[str, str], course: Course, findings: Findings) -> None:
        others = tuple(texts)
        try:
            for job, text in texts.items():
                await self._children.submit(job, self._to, (("user", text),), others=others[1:])
                others = ()
        except Conflict as error:
            raise InputTooLong(
                f"the input is too long, and nobody may be asked for its parts: {error}",
                partial=_so_far(course, findings),
            ) from error

    def _cut(self, course: Course) -> list[tuple[int, int]]:
        """Where each part begins and ends. Nobody is asked for one without a word: providers take no such question."""
        question, left = course.question.text, MOST_OTHERS - len(course.for_parts)
        most = left if course.is_joined else MOST_PARTS
        least = -(-len(question) // self._longest)
        if least > most:
            raise InputTooLong(
                f"the input is too long: {len(question)} characters are {least} parts, and the job may ask for {most}",
                partial=question if course.is_joined else "",
            )
        # Not all, for the sake of borders alone: what they answer may have to be split in turn.
        cut = list(parts(question, self._longest, max(least, left * MOST_PARTS // MOST_OTHERS)))
        return [
            (end - len(part), end) for part, end in zip(cut, accumulate(map(len, cut)), strict=True) if part.strip()
        ]

    def _why_not(self, ended: Mapping[str, Finding]) -> str:
        """Of the first part that was not answered."""
        number, first = next((n, one) for n, one in enumerate(ended.values(), 1) if not _is_answered(one))
        why = f"{first.error.code}: {first.error.message}" if first.error else str(first.state)
        return f"{self._to.name} did not answer for part {number} of {len(ended)} of the input: {why}"


def _is_answered(finding: Finding | None) -> bool:
    return finding is not None and finding.state == State.SUCCEEDED


def _joined(findings: Findings) -> str:
    said = [(finding.answer or "").strip() for finding in findings.values() if finding and _is_answered(finding)]
    return "\n\n".join(filter(None, said))


def _so_far(course: Course, findings: Findings) -> str:
    """What there is, where the job fails."""
    return _joined(findings) or (course.question.text if course.is_joined else "")


def parts(text: str, longest: int, most: int) -> Iterator[str]:
    """Together the text: of at most `longest` characters each, and about equal; at most `most`, where it fits into so
    many.
    """
    begin = 0
    while (left := len(text) - begin) > longest:
        most -= 1
        equal = -(-left // -(-left // longest))
        end = begin + equal
        # Not so early that what is left would not fit into the parts that are left.
        cut = _border(text, max(end - equal // LOOK_BACK, len(text) - most * longest), end)
        yield text[begin:cut]
        begin = cut
    yield text[begin:]


def _border(text: str, least: int, end: int) -> int:
    for border in BORDERS:
        for cut in reversed([found.end() for found in border.finditer(text, least, end)]):
            if not _is_inside(text, cut):
                return cut
    for cut in range(end, max(least, end - ONE) - 1, -1):
        if not _is_inside(text, cut):
            return cut
    return end


def _is_inside(text: str, cut: int) -> bool:
    """Whether what stands there is one character with what stands before it: an accent, a part of an emoji."""
    return (
        JOINER in text[cut - 1 : cut + 1]
        or unicodedata.category(text[cut]).startswith("M")
        or "\U0001f3fb" <= text[cut] <= "\U0001f3ff"  # the colour of a skin
    )
