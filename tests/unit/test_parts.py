"""A question that is too long for an agent's model: cut into parts, which another agent answers for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.agents.course import SILENCE
from celeriac.agents.intake import Intake
from celeriac.agents.parts import parts
from celeriac.agents.registry import Registry
from celeriac.connections import unpack
from celeriac.errors import BadModelRequest, ContextTooLong, Fenced, Invalid, ProviderFailed
from celeriac.jobs.canvas import Canvas
from celeriac.jobs.model import Job, NewJob, State, as_retried
from celeriac.jobs.store import new_id, new_nonce
from celeriac.llm.images import Image
from celeriac.llm.model import Message
from celeriac.settings import load_settings
from celeriac.stores import Stores, open_fleet
from tests.conftest import Valkey
from tests.unit.test_children import LANE, Office, agent, wants

LONGEST = 1000
#: Three parts, each a paragraph of its own.
PARTS = {letter: f"{letter * size}.\n\n" for letter, size in (("a", 850), ("b", 850), ("c", 870))}
LONG = "".join(PARTS.values())
REFUSED = BadModelRequest("no", provider=LANE.provider, model=LANE.model)
#: Borders of all kinds, none, and characters of several code points.
PIECES = st.sampled_from(
    ["\n\n", "\n \r\n", ". ", "! ", "。", "\n", " ", "word", "x" * 30, "e\u0301", "👩🏽\u200d🚀", "\t"]
)

TEXTS = st.builds(
    lambda pieces, times: "".join(pieces) * times, st.lists(PIECES | st.text(max_size=3)), st.integers(1, 30)
)


@settings(deadline=None)
@given(TEXTS, st.integers(1, 30), st.integers(0, 2))
def test_a_text_is_cut_into_parts_that_are_the_whole(text: str, most: int, spare: int) -> None:
    """None is empty or too long; and they are no more than there may be, wherever the text has its borders."""
    longest = max(4, -(-len(text) // most) + spare)
    found = list(parts(text, longest, most))
    assert "".join(found) == text
    assert len(found) <= most
    assert all(0 < len(part) <= longest for part in found) or found == [""]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("a" * 15 + "\n\nA. Two", "a" * 15 + "\n\n"),
        ("a" * 15 + ". One two\n\nthree", "a" * 15 + ". "),
        ("a" * 15 + "\nOne two\n\nthree", "a" * 15 + "\n"),
        ("a" * 15 + "。\u4e00\u4e8c three", "a" * 15 + "。"),
        ("a" * 15 + " b c and more", "a" * 15 + " b c "),
        ("one. two\n\n" + "a" * 20, "one. two\n\n" + "a" * 10),  # too early for a border to count
        ("a" * 30, "a" * 20),
        ("a" * 19 + "e\u0301" + "a" * 9, "a" * 19),
        ("a" * 18 + "👩🏽\u200d🚀" + "a" * 9, "a" * 18),
        ("a" * 17 + "👩🏽\u200d🚀" + "a" * 9, "a" * 17),
    ],
)
def test_it_is_cut_where_it_makes_sense(text: str, first: str) -> None:
    """After a paragraph, else a sentence or a line, else a word, else anywhere but inside a character."""
    assert next(parts(text.ljust(40, "a"), 20, 9)) == first


@pytest.mark.parametrize(("size", "sizes"), [(24_001, [12_001, 12_000]), (60_000, [20_000] * 3), (24_000, [24_000])])
def test_parts_are_about_as_long_as_one_another(size: int, sizes: list[int]) -> None:
    """None is left with a last word alone, and there are no more than there have to be."""
    assert [len(part) for part in parts("x" * size, 24_000, 200)] == sizes
    words = ("word " * size)[:size]
    found = [len(part) for part in parts(words, 24_000, 200)]
    assert (len(found), max(found) - min(found) < 20) == (len(sizes), True)
    assert next(parts("a" * 6 + ". " + "a" * 16, 20, 9)) == "a" * 6 + ". " + "a" * 4  # too early for a border to count


def test_a_border_does_not_count_where_the_rest_would_not_fit() -> None:
    """The last parts are not to be more than there may be."""
    text = ("a" * 15 + "\n\n") * 20
    assert max(len(part) for part in parts(text, 20, 20)) == 17
    assert len(list(parts(text, 20, 17))) == 17


class Readers(Office):
    """An agent that has long questions shortened."""

    async def ask(self, text: str = LONG, *before: tuple[str, str], **facts: Any) -> str:
        job = NewJob(new_id(), "default", "chief", "celeriac", (*before, ("user", text)), **facts)
        return (await self.stores.jobs.submit(job)).id

    async def asks(self, *before: tuple[str, str], **facts: Any) -> tuple[str, list[Job]]:
        """A job, and those that it asked for, in the order of its parts."""
        id = await self.ask(LONG, *before, **facts)
        assert (await self.run(id)).state == State.PARKED
        return id, await self.children(id)

    async def fails(self) -> tuple[str, list[Job]]:
        """As `asks`: its second part failed, and so it did."""
        id, children = await self.asks()
        for child, line in zip(children, ("a", REFUSED, "c"), strict=True):
            await self.run(child.id, line)
        assert (await self.run(id)).state == State.FAILED
        return id, children

    async def children(self, id: str) -> list[Job]:
        """Those of its newest parts."""
        steps = [unpack(step) for step in await self.stores.redis.lrange(f"celeriac:journal:{id}", 0, -1)]
        split = next(step for step in reversed(steps) if step.get("kind") == "split")
        return [await self.job(child) for child in split["jobs"]]

    async def answered(self, children: list[Job], *lines: str) -> None:
        for child, line in zip(children, lines, strict=True):
            assert (await self.run(child.id, line)).state == State.SUCCEEDED

    def change(self, name: str, **facts: Any) -> None:
        self.registry = Registry(
            {one.name: replace(one, **facts) if one.name == name else one for one in self.registry}
        )

    async def ring(self, id: str) -> None:
        """As where a job that waits has waited for long."""
        await self.stores.redis.zadd("celeriac:parked", {id: 1})
        fleet, line = open_fleet(load_settings(redis_url=self.url), self.stores, name="upkeep")
        await fleet.upkeep()
        await line.aclose()

    async def dies(self, id: str) -> None:
        """The worker, in the middle of the job; another one of its name comes."""
        with pytest.raises(AssertionError):
            await self.run(id)  # it says nothing
        await self.stores.redis.zadd("celeriac:workers", {"w1": 1})
        fleet, line = open_fleet(load_settings(redis_url=self.url), self.stores, name="upkeep")
        while await self.stores.redis.zscore("celeriac:workers", "w1") is not None:
            await fleet.upkeep()
        await fleet.register("w1", ["celeriac"], 20, (), {"celeriac": ""})
        await line.aclose()


@pytest.fixture
async def readers(stores: Stores, valkey: Valkey) -> AsyncIterator[Readers]:
    fleet, line = open_fleet(load_settings(redis_url=valkey.url), stores, name="line")
    await fleet.register("w1", ["celeriac"], 20, (), {"celeriac": ""})
    chief = agent("chief", split_over=LONGEST, split_to="reader", max_steps=1)
    yield Readers(stores, valkey.url, chief, agent("reader"), agent("boss", asks=("chief", "boss")))
    await line.aclose()


async def test_what_another_agent_says_of_the_parts_takes_the_place_of_a_long_question(readers: Readers) -> None:
    """In their order. Each part is a job like any other that is asked for; none counts as a question to the model."""
    id, children = await readers.asks(("user", "For lawyers:"), metadata={"team": "law"}, priority="high")
    for child, letter in zip(children, "abc", strict=True):
        assert (child.agent, child.parent_id, child.metadata, child.priority) == ("reader", id, {"team": "law"}, "high")
        await readers.run(child.id, f"Many {letter}.\n")
        assert [message.text for message in readers.shown[0]] == [PARTS[letter]]
    assert (await readers.run(id, "Letters.")).state == State.SUCCEEDED
    assert [message.text for message in readers.shown[0]] == ["For lawyers:", "Many a.\n\nMany b.\n\nMany c."]
    job = await readers.job(id)
    assert (job.answer, len(job.calls), job.steps) == ("Letters.", 1, 2)
    assert job.children_cost_nanos == sum([(await readers.job(child.id)).cost_nanos or 0 for child in children]) > 0


async def test_a_question_that_is_just_short_enough_is_asked_as_it_is(readers: Readers) -> None:
    """One character more is too long; what was said before it does not count."""
    id = await readers.ask("x" * LONGEST, ("user", LONG))
    assert (await readers.run(id, "Yes.")).state == State.SUCCEEDED
    assert (await readers.run(await readers.ask("x" * (LONGEST + 1)))).state == State.PARKED


async def test_a_job_goes_on_as_it_began(readers: Readers) -> None:
    """Whatever its agent is told meanwhile: a question that was asked whole stays whole."""
    readers.change("chief", split_over=None, split_to="", asks=("reader",), max_steps=2)
    id = await readers.ask()
    await readers.run(id, wants(("ask_reader", {"question": "What is it?"})))
    [child] = (await readers.job(id)).children
    await readers.run(child, "Letters.")
    readers.change("chief", split_over=LONGEST, split_to="reader")
    assert (await readers.run(id, "Letters.")).state == State.SUCCEEDED
    assert readers.shown[0][0].text == LONG


async def test_an_agent_that_splits_no_more_asks_for_the_whole(readers: Readers) -> None:
    """As where two releases of its file are at work: once it has, the parts that were asked for are forgotten."""
    readers.change("chief", follow_ups=("Sure?",), max_steps=2)
    id, _ = await readers.asks()
    readers.change("chief", split_over=None, split_to="")
    await readers.ring(id)
    away = ProviderFailed("away", provider=LANE.provider, model=LANE.model)
    assert (await readers.run(id, "Letters.", *[away] * 2)).state == State.PARKED
    readers.change("chief", split_over=LONGEST, split_to="reader")
    await readers.ring(id)
    assert (await readers.run(id, "Yes.")).state == State.SUCCEEDED
    assert [message.text for message in readers.shown[0]] == [LONG, "Letters.", "Sure?"]


async def test_the_conversation_keeps_what_the_model_was_shown(readers: Readers) -> None:
    """The next job in it would not find room for the long text."""
    id, children = await readers.asks(context_id="letters")
    await readers.answered(children, "a", "b", "c")
    await readers.run(id, "Letters.")
    context = await readers.stores.contexts.get("default", "letters")
    assert context is not None
    assert [message.text for message in context.messages] == ["a\n\nb\n\nc", "Letters."]


async def test_the_images_of_a_long_question_stay_with_whoever_asks(readers: Readers) -> None:
    """Its parts are read without them; they stand before what was said of those, also in the conversation."""
    images = (Image("https://x/a.png", 3), Image("https://x/b.png", len(LONG)))
    question = Message("user", LONG, images=images)
    job = NewJob(new_id(), "default", "chief", "celeriac", (question.said(),), context_id="leeks")
    id = (await readers.stores.jobs.submit(job)).id
    assert (await readers.run(id)).state == State.PARKED
    for child in await readers.children(id):
        await readers.run(child.id, "Many.")
        assert not readers.shown[0][0].images
    assert (await readers.run(id, "Letters.")).state == State.SUCCEEDED
    shortened = Message("user", "Many.\n\nMany.\n\nMany.", images=tuple(replace(image, at=0) for image in images))
    assert readers.shown[0] == (shortened,)
    context = await readers.stores.contexts.get("default", "leeks")
    assert context is not None
    assert context.messages == (shortened, Message("assistant", "Letters."))


async def test_what_is_handed_over_is_what_the_model_was_shown(readers: Readers) -> None:
    """The other one would not find room for the long text either."""
    readers.change("chief", hands_over_to=("reader",), max_steps=2)
    id, children = await readers.asks(("user", "For lawyers:"))
    await readers.answered(children, "a", "b", "c")
    await readers.run(id, wants(("hand_over_to_reader", {"note": "be brief"})))
    [child] = set((await readers.job(id)).children) - {child.id for child in children}
    await readers.run(child, "Letters.")
    note = "[This conversation is handed over to you. be brief]"
    assert [message.text for message in readers.shown[0]] == ["For lawyers:", "a\n\nb\n\nc", note]
    assert (await readers.run(id)).state == State.SUCCEEDED
    assert (await readers.job(id)).answer == "Letters."


async def test_follow_ups_and_trimming_come_after_it(readers: Readers) -> None:
    """The question stays in its shorter form, whatever else is left out of the conversation."""
    readers.change("chief", follow_ups=("Sure?",), too_long="trim", max_steps=2)
    id, children = await readers.asks(("user", "Hello."), ("assistant", "Hello."))
    await readers.answered(children, "a", "b", "c")
    too_long = ContextTooLong("too long", provider=LANE.provider, model=LANE.model)
    assert (await readers.run(id, too_long, "Letters.", "Yes.")).state == State.SUCCEEDED
    assert [message.text for message in readers.shown[1]] == ["a\n\nb\n\nc"]
    assert [message.text for message in readers.shown[2]][2:] == ["a\n\nb\n\nc", "Letters.", "Sure?"]


async def test_no_part_is_asked_for_twice_wherever_a_worker_dies(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first, between two, when all are, and when their answers are in place: they are named beforehand. They
    are cut as they were, whatever the agent says by now; one that the store lost is asked for again."""
    submit, commit = readers.stores.jobs.submit, readers.stores.journal.commit
    id = await readers.ask()
    for most in (0, 2):

        async def dies_after(job: NewJob, most: int = most) -> Any:
            if len((await readers.job(id)).children) == most:
                raise Fenced("gone")
            return await submit(job)

        with monkeypatch.context() as patched:
            patched.setattr(readers.stores.jobs, "submit", dies_after)
            await readers.dies(id)
        readers.change("chief", split_over=LONGEST - 50 + most)
    assert (await readers.run(id)).state == State.PARKED
    children = await readers.children(id)
    lost, redis = children[1].id, readers.stores.redis
    await redis.delete(f"celeriac:job:{lost}")
    await redis.hdel(f"celeriac:children:{id}", lost)
    await redis.srem(f"celeriac:awaits:{id}", lost)
    await readers.ring(id)
    assert (await readers.run(id)).state == State.PARKED
    for child, letter in zip(children, "abc", strict=True):
        await readers.run(child.id, letter)
        assert readers.shown[0][0].text == PARTS[letter]

    async def dies_then(*arguments: Any, **facts: Any) -> None:
        await commit(*arguments, **facts)
        raise Fenced("gone")

    with monkeypatch.context() as patched:
        patched.setattr(readers.stores.journal, "commit", dies_then)
        await readers.dies(id)
    assert (await readers.run(id, "Letters.")).state == State.SUCCEEDED
    assert readers.shown[0] == (Message("user", "a\n\nb\n\nc"),)
    assert sorted((await readers.job(id)).children) == sorted(child.id for child in children)


async def test_what_is_still_too_long_is_split_again(readers: Readers) -> None:
    """As long as each round makes it shorter."""
    id, children = await readers.asks()
    await readers.answered(children, *(f"{letter * 500}." for letter in "abc"))
    assert (await readers.run(id)).state == State.PARKED
    again = await readers.children(id)
    assert len((await readers.job(id)).children) == 5
    await readers.answered(again, "ab", "c")
    assert (await readers.run(id, "Letters.")).state == State.SUCCEEDED
    assert [message.text for message in readers.shown[0]] == ["ab\n\nc"]


@pytest.mark.parametrize("size", [300, 400])
async def test_there_is_room_for_a_later_round_and_no_more(readers: Readers, size: int) -> None:
    """Borders take none of it. What is too long for it fails before anybody is asked, and is kept."""
    id = await readers.ask(("x" * 798 + "\n\n") * 175)  # 140 parts at least, and 175 by its borders
    assert (await readers.run(id)).state == State.PARKED
    children = await readers.children(id)
    assert len(children) == 150
    said = ["y" * size] * 150
    await readers.answered(children, *said)
    summary = await readers.run(id)
    if size == 300:
        assert summary.state == State.PARKED
        return
    assert summary.error is not None
    assert summary.error.code == "input_too_long"
    assert summary.error.message.endswith("60298 characters are 61 parts, and the job may ask for 50")
    job = await readers.job(id)
    assert (len(job.children), job.answer) == (150, "\n\n".join(said))


async def test_a_later_round_that_fails_keeps_what_the_one_before_it_said(readers: Readers) -> None:
    """As long as there is nothing shorter."""
    id, children = await readers.asks()
    said = [f"{letter * 500}." for letter in "abc"]
    await readers.answered(children, *said)
    await readers.run(id)
    for child in await readers.children(id):
        await readers.run(child.id, REFUSED)
    summary = await readers.run(id)
    assert summary.error is not None
    assert (summary.error.code, (await readers.job(id)).answer) == ("part_failed", "\n\n".join(said))


async def test_a_round_that_does_not_make_it_shorter_ends_the_job(readers: Readers) -> None:
    """It would go round for ever. What there is is kept."""
    id, children = await readers.asks()
    said = [f"{letter * 900}" for letter in "abc"]
    await readers.answered(children, *said)
    summary = await readers.run(id)
    assert summary.error is not None
    assert (summary.state, summary.error.code) == (State.FAILED, "input_too_long")
    assert f"its {len(LONG)} characters in 3 parts, and answered with 2704" in summary.error.message
    assert (await readers.job(id)).answer == "\n\n".join(said)


async def test_parts_of_which_there_is_nothing_to_say_leave_no_empty_question(readers: Readers) -> None:
    """Providers take none."""
    id, children = await readers.asks()
    await readers.answered(children, " ", "\n", " ")
    assert (await readers.run(id, "Nothing.")).state == State.SUCCEEDED
    assert readers.shown[0] == (Message("user", SILENCE),)


async def test_nobody_is_asked_for_a_part_without_a_word(readers: Readers) -> None:
    """It would be paid for, and providers take no such question. The others are what they are."""
    id = await readers.ask(PARTS["a"] + " \n" * LONGEST + PARTS["b"])
    assert (await readers.run(id)).state == State.PARKED
    children = await readers.children(id)
    for child, letter in zip(children, "ab", strict=True):
        await readers.run(child.id, letter)
        assert readers.shown[0][0].text.strip() == PARTS[letter].strip()
    assert (await readers.run(id, "Letters.")).state == State.SUCCEEDED
    assert readers.shown[0] == (Message("user", "a\n\nb"),)


async def test_of_a_text_without_a_word_nobody_is_asked_for_parts(readers: Readers) -> None:
    id = await readers.ask(" \n" * LONGEST)
    assert (await readers.run(id, "Nothing.")).state == State.SUCCEEDED
    assert readers.shown[0] == (Message("user", SILENCE),)
    assert (await readers.job(id)).children == ()


async def test_where_a_part_is_not_answered_the_job_fails_and_a_retry_asks_for_that_part_alone(
    readers: Readers,
) -> None:
    """It says which and why, and keeps what it has; what was answered is not paid for again."""
    id, children = await readers.asks()
    await readers.run(children[0].id, "a")
    await readers.stores.jobs.cancel(children[1].id, None)
    assert (await readers.job(id)).state == State.PARKED
    await readers.run(children[2].id, "c")
    summary = await readers.run(id)
    assert summary.error is not None
    assert (summary.state, summary.error.code) == (State.FAILED, "part_failed")
    assert summary.error.message.startswith("reader did not answer for part 2 of 3 of the input: cancelled")
    assert (await readers.job(id)).answer == "a\n\nc"
    assert await readers.stores.jobs.replay(id, "default") is not None
    assert (await readers.run(id)).state == State.PARKED
    one, two, three = await readers.children(id)
    assert (one.id, three.id) == (children[0].id, children[2].id)
    await readers.run(two.id, "b")
    assert readers.shown[0][0].text == PARTS["b"]
    assert (await readers.run(id, "Letters.")).state == State.SUCCEEDED
    assert readers.shown[0] == (Message("user", "a\n\nb\n\nc"),)


@pytest.mark.parametrize("state", ["queued", "running"])
async def test_one_retry_of_a_cancelled_job_is_enough(readers: Readers, state: str) -> None:
    """Its end took the open parts with it, or asked them to stop: they are asked for anew, and those alone."""
    id, children = await readers.asks()
    await readers.run(children[0].id, "a")
    if state == "running":
        await readers.stores.jobs.claim(children[1].id, "w1", new_nonce())
    await readers.stores.jobs.cancel(id, None)
    assert (await readers.job(children[1].id)).state == ("running" if state == "running" else "cancelled")
    await readers.stores.jobs.replay(id, "default")
    assert (await readers.run(id)).state == State.PARKED
    again = await readers.children(id)
    assert again[0].id == children[0].id
    assert len({child.id for child in (*again, *children)}) == 5
    await readers.answered(again[1:], "b", "c")
    assert (await readers.run(id, "Letters.")).state == State.SUCCEEDED
    assert readers.shown[0] == (Message("user", "a\n\nb\n\nc"),)


async def test_a_part_that_is_retried_with_its_job_is_asked_for_once(readers: Readers) -> None:
    """As a retry of all that failed does, though the job goes on at once."""
    id, children = await readers.fails()
    page = await readers.stores.jobs.list("default", state=State.FAILED, limit=9)
    for job in as_retried(page.jobs):
        await readers.stores.jobs.replay(job.id, "default")
        if job.id == id:
            assert (await readers.run(id)).state == State.PARKED
    assert [child.id for child in await readers.children(id)] == [child.id for child in children]
    await readers.run(children[1].id, "b")
    assert (await readers.run(id, "Letters.")).state == State.SUCCEEDED
    assert readers.shown[0] == (Message("user", "a\n\nb\n\nc"),)
    assert len((await readers.job(id)).children) == 3


async def test_a_part_that_works_for_a_retried_job_again_ends_with_it(readers: Readers) -> None:
    """As one that was asked for anew does."""
    id, children = await readers.fails()
    await readers.stores.jobs.replay(children[1].id, "default")
    await readers.stores.jobs.replay(id, "default")
    assert (await readers.run(id)).state == State.PARKED
    await readers.stores.jobs.cancel(id, None)
    assert (await readers.job(children[1].id)).state == State.CANCELLED


async def test_a_part_that_was_retried_by_hand_is_not_asked_for_again(readers: Readers) -> None:
    """Its answer counts for the job when that is retried."""
    id, children = await readers.fails()
    await readers.stores.jobs.replay(children[1].id, "default")
    await readers.run(children[1].id, "b")
    await readers.stores.jobs.replay(id, "default")
    assert (await readers.run(id, "Letters.")).state == State.SUCCEEDED
    assert readers.shown[0] == (Message("user", "a\n\nb\n\nc"),)
    assert len((await readers.job(id)).children) == 3


async def test_a_part_that_failed_is_not_bought_again_because_a_worker_dies(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the job's end: whoever goes on fails as it would have. So too after a retry, with what was named for that."""
    id, children = await readers.asks()
    for life in (0, 1):
        await readers.run((await readers.children(id))[1].id, REFUSED)
        if life == 0:
            await readers.answered([children[0], children[2]], "a", "c")

        async def dies(*_: Any, **__: Any) -> None:
            raise Fenced("gone")

        with monkeypatch.context() as patched:
            patched.setattr(readers.stores.jobs, "finish", dies)
            await readers.dies(id)
        before = await readers.children(id)
        summary = await readers.run(id)
        assert summary.error is not None
        assert summary.error.code == "part_failed"
        assert [child.id for child in await readers.children(id)] == [child.id for child in before]
        await readers.stores.jobs.replay(id, "default")
        assert (await readers.run(id)).state == State.PARKED
        assert len((await readers.job(id)).children) == 4 + life


@pytest.mark.parametrize("fresh", [True, False])
async def test_there_is_room_for_all_parts_after_a_retry(readers: Readers, fresh: bool) -> None:
    """And for those of the next round. Those that were asked for before do not count: all would be too many."""
    id = await readers.ask("x" * 120 * LONGEST)
    assert (await readers.run(id)).state == State.PARKED
    await readers.stores.jobs.cancel(id, None)
    await readers.stores.jobs.replay(id, "default", fresh=fresh)
    assert (await readers.run(id)).state == State.PARKED
    assert [child.state for child in await readers.children(id)] == ["queued"] * 120
    assert len((await readers.job(id)).children) == 240
    await readers.answered(await readers.children(id), *["y" * 400] * 120)
    assert (await readers.run(id)).state == State.PARKED
    assert len((await readers.job(id)).children) > 240 + 48


async def test_where_there_is_no_room_for_all_parts_nobody_is_asked(readers: Readers) -> None:
    """Some alone would be bought for nothing. What was answered before is kept."""
    id = await readers.ask()
    await readers.stores.redis.hset(f"celeriac:job:{id}", "below_jobs", "998")
    summary = await readers.run(id)
    assert summary.error is not None
    assert summary.error.code == "input_too_long"
    assert (await readers.job(id)).children == ()
    id, _ = await readers.fails()
    await readers.stores.jobs.replay(id, "default")
    await readers.stores.redis.hincrby(f"celeriac:job:{id}", "below_jobs", 1000)
    summary = await readers.run(id)
    assert summary.error is not None
    assert (summary.error.code, (await readers.job(id)).answer) == ("input_too_long", "a\n\nc")


async def test_what_would_be_too_many_parts_is_refused_before_anybody_is_asked(readers: Readers) -> None:
    """By the doors already; a job that came before its agent was told to split fails at once."""
    text = "x" * (150 * LONGEST + 1)
    with pytest.raises(Invalid, match=r"the last message has 150001 characters, chief takes at most 150000") as caught:
        readers.registry.check_input(readers.registry["chief"], [("user", text)])
    assert caught.value.field == "input"
    intake = Intake(readers.stores.jobs, readers.registry, chord_ttl=timedelta(days=1))
    with pytest.raises(Invalid, match=r"^input: the last message has 150001 characters"):
        await intake.take(new_id(), {"agent": "chief", "input": text}, Canvas(""))
    id = await readers.ask(text)
    summary = await readers.run(id)
    assert summary.error is not None
    job = await readers.job(id)
    assert (summary.error.code, job.children, job.answer) == ("input_too_long", (), None)
    id = await readers.ask(text[1:])
    assert (await readers.run(id)).state == State.PARKED
    assert len((await readers.job(id)).children) == 150


async def test_four_deep_nobody_is_asked_for_parts(readers: Readers) -> None:
    """As with any question to another agent; whoever asked hears why."""
    id = top = await readers.submit("boss")
    for depth in range(4):
        to = "chief" if depth == 3 else "boss"
        assert (await readers.run(id, wants((f"ask_{to}", {"question": LONG})))).state == State.PARKED
        [id] = (await readers.job(id)).children
    summary = await readers.run(id)
    assert summary.error is not None
    assert summary.error.code == "input_too_long"
    assert summary.error.message.endswith("agents ask each other at most 4 deep")
    assert (await readers.job(top)).state == State.PARKED
