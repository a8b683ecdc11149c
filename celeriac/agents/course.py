"""Where a job stands: its conversation so far, rebuilt from the steps that are stored of it.

A step is an answer of the model, what was found of one that was stored unjudged, the result of a tool, the note that
tools were started whose calls must not be made twice, or which jobs answer for the parts of a long question, and then
what stands in its place. Each is stored before anything is built on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from celeriac.llm.model import Answer, Message, ToolCall, Usage

#: Providers take no empty message back.
SILENCE: Final = "(no answer)"


def spoken(message: Message) -> Message:
    """As providers take it back: of an assistant's message without words its calls alone, or that it had none."""
    if message.role != "assistant" or message.text.strip():
        return message
    return replace(message, text="" if message.calls else SILENCE)


class Course:
    """messages: as the model is to be shown them. text, model, usage: of the answers so far. asked: how often the model
    was. seconds: that the steps took. pending: calls whose results are not there yet. started: those that were begun by
    a run, this one or one that is gone. children: of calls that ask another agent, the jobs that do it. parts: of the
    question, while they are asked for: where each begins and ends, by its job. split_in_this_life: it was this life of
    the job that named those. for_parts: all jobs that were asked for one in it. is_joined: what was answered for its
    parts stands in the question's place. is_cut: the newest answer met its limit. handed_over: the answer of the one
    that this job was handed over to. unjudged: why the model stopped, where nobody has found out yet whether its last
    answer will do, else "". repaired_for: the digest of the schema for which the model was last asked to answer again,
    "" where it was not. refused: what is wrong with the last answer, where that ends this life of the job, else "".
    life: how often the job was started anew.
    """

    def __init__(self, conversation: Sequence[Message], follow_ups: Sequence[str] = (), life: int = 0) -> None:
        self.messages = [spoken(message) for message in conversation]
        self.text = self.model = ""
        self.usage = Usage()
        self.steps = self.asked = 0
        self.seconds = 0.0
        self.pending: dict[str, ToolCall] = {}
        self.started: set[str] = set()
        self.children: dict[str, str] = {}
        self.parts: dict[str, tuple[int, int]] = {}
        self.for_parts: set[str] = set()
        self.split_in_this_life = self.is_joined = False
        self.is_cut = False
        self.handed_over: str | None = None
        self.unjudged = self.repaired_for = self.refused = ""
        self._life = life
        self._question = len(self.messages) - 1
        self._left = list(follow_ups)
        self._is_answered = False
        self._repaired_at: int | None = None

    @property
    def repair(self) -> int:
        """How many of the last messages began with an answer that would not do; 0 where there was none."""
        return 0 if self._repaired_at is None else len(self.messages) - self._repaired_at

    @property
    def question(self) -> Message:
        """The caller's, or what stands in its place."""
        return self.messages[self._question]

    @property
    def given(self) -> list[Message]:
        """The conversation up to the question, as the model is shown it."""
        return self.messages[: self._question + 1]

    @property
    def part_texts(self) -> dict[str, str]:
        """What each of the jobs for its parts is asked."""
        text = self.question.text
        return {job: text[begin:end] for job, (begin, end) in self.parts.items()}

    @property
    def would_be_done(self) -> bool:
        """Whether the next answer that wants no calls is the last one."""
        return not self._left

    def take(self, step: Mapping[str, Any]) -> None:
        """A step that is stored."""
        self.steps += 1
        self.seconds += step.get("seconds", 0.0)
        match step.get("kind", "answer"):
            case "answer":
                calls = tuple(ToolCall(*call) for call in step.get("calls", ()))
                self.is_cut = bool(step.get("cut"))
                self.answered(step["text"], step["model"], Usage.from_dict(step["usage"]), calls)
                self.unjudged = step.get("unjudged", "")
                if wrong := step.get("wrong"):
                    self._repair(wrong, step.get("schema", ""))
                if self._is_answered and self._left:
                    self.messages.append(Message("user", self._left.pop(0)))
                    self._is_answered = False
            case "judged":
                if wrong := step.get("wrong"):
                    self._repair(wrong, step["schema"])
                elif step.get("life") == self._life:
                    # It ends the job, also where a run died before it could write that.
                    self.refused = step["place"]
                    return
                elif self.unjudged:
                    # It ended the job. Whoever retries that asks for it anew.
                    self.messages.pop()
                    self._is_answered = False
                self.unjudged, self.handed_over = "", None
            case "started":
                self.started |= set(step["calls"])
            case "children":
                self.children.update(step["jobs"])
            case "split":
                self.parts = dict(step["jobs"])
                self.split_in_this_life = step.get("life") == self._life
                if self.split_in_this_life:
                    self.for_parts |= self.parts.keys()
            case "joined":
                self.messages[self._question] = self.question.reworded(step["text"])
                self.parts, self.is_joined = {}, True
            case "result":
                del self.pending[step["call"]]
                self.messages.append(Message("tool", step["text"], call_id=step["call"], failed=step["failed"]))
                if step.get("final"):
                    self.handed_over = step["text"]

    def _repair(self, wrong: str, schema: str) -> None:
        """The answer would have been the last one, and is not what it has to be. This happens once for each schema."""
        self.repaired_for = schema
        self._repaired_at = len(self.messages) - 1
        self.messages.append(Message("user", wrong))
        self._is_answered = False

    def answered(self, text: str, model: str, usage: Usage, calls: tuple[ToolCall, ...]) -> None:
        """The model has said this. It goes on when the calls that it wants are made."""
        self.text, self.model = text or self.text if calls else text, model
        self.usage += usage
        self.asked += 1
        self.messages.append(spoken(Message("assistant", text, calls=calls)))
        self.pending = {call.id: call for call in calls}
        self.started = set()
        self.children, self.parts = {}, {}
        self._is_answered = not calls


def answer_step(answer: Answer, seconds: float, **facts: str) -> dict[str, Any]:
    """As it is stored. facts: `wrong_with` it, or that it is `unjudged`, with why the model stopped."""
    return {
        "kind": "answer",
        "text": answer.text,
        "model": answer.model,
        "usage": answer.usage.as_dict(),
        "calls": [(call.id, call.name, call.arguments) for call in answer.calls],
        "call": answer.call,
        "cut": answer.stop_reason == "length",
        "seconds": round(seconds, 3),
        **facts,
    }


def wrong_with(wrong: str, schema: str) -> dict[str, str]:
    """An answer. wrong: what the model is to hear of it. schema: the digest of the one that it does not fit."""
    return {"wrong": wrong, "schema": schema}
