"""What a caller may ask for, and what of a provider's own fields is refused as having no price beforehand."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
from anthropic.types import ImageBlockParam, TextBlockParam
from anthropic.types.beta.message_create_params import MessageCreateParamsBase as BetaMessages
from anthropic.types.message_create_params import MessageCreateParamsBase as Messages
from openai.types.chat import ChatCompletionContentPartImageParam, ChatCompletionContentPartTextParam
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as Chat
from openai.types.responses import ResponseInputImageParam, ResponseInputTextParam
from openai.types.responses.response_create_params import ResponseCreateParamsBase as Responses

from celeriac.errors import Unpriceable
from celeriac.jobs.request import UNPRICEABLE, ImagePart, InputMessage, Submission, TextPart, read_submission

#: Of the providers' own fields, those that no job has and that make no call dearer: most say who asks or how the answer
#: is chosen; `prompt` and `image` are what somebody may write by mistake for a job's input.
HARMLESS = {
    "citations", "diagnostics", "file_id", "frequency_penalty", "function_call", "image", "image_url", "include",
    "instructions", "logit_bias", "logprobs", "max_completion_tokens", "max_tool_calls", "messages",
    "parallel_tool_calls", "presence_penalty", "prompt", "prompt_cache_key", "response_format", "safety_identifier",
    "seed", "source", "stop", "stop_sequences", "stream_options", "system", "temperature", "text", "tool_choice",
    "top_logprobs", "top_p", "truncation", "user", "user_profile_id", "verbosity", "workspace_id",
}  # fmt: skip
REQUESTS = (Chat, Responses, Messages, BetaMessages)
PARTS = (
    TextBlockParam,
    ImageBlockParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionContentPartImageParam,
    ResponseInputTextParam,
    ResponseInputImageParam,
)


def test_each_field_of_a_provider_is_decided_on() -> None:
    """One that a new version of an SDK adds fails here."""
    ours = {*Submission.model_fields, *InputMessage.model_fields, *TextPart.model_fields, *ImagePart.model_fields}
    theirs = {name for kind in (*REQUESTS, *PARTS) for name in get_type_hints(kind)}
    assert len(theirs) > 60
    # Of OpenAI's older API, and of the SDKs themselves.
    others = {"best_of", "extra_body", "extra_headers", "extra_query"}
    assert theirs - ours - HARMLESS | others == UNPRICEABLE
    assert not UNPRICEABLE & {*ours, *HARMLESS}


@pytest.mark.parametrize("field", sorted(UNPRICEABLE))
def test_what_cannot_be_priced_is_refused_by_name(field: str) -> None:
    """Of the job, of a message, and of a part."""
    text, image = {"type": "text", "text": "hi"}, {"type": "image", "url": "https://files.example/a.png"}
    message = {"role": "user", "content": [text, image]}
    more = {field: {"type": "ephemeral"}}
    wrong: list[tuple[str, dict[str, Any]]] = [
        (field, {"input": "hi"} | more),
        (f"input.0.{field}", {"input": [message | more]}),
        (f"input.0.content.0.{field}", {"input": [message | {"content": [text | more, image]}]}),
        (f"input.0.content.1.{field}", {"input": [message | {"content": [text, image | more]}]}),
    ]
    for where, request in wrong:
        with pytest.raises(Unpriceable, match=f"^{where}: what a call costs with it"):
            read_submission({"agent": "assistant"} | request)
