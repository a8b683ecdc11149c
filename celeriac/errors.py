"""Every error that Celeriac raises on purpose. A type exists because somebody does something different about it.

    CeleriacError
    ├── Misconfigured              an operator's mistake: the process does not start
    ├── NotStarted                 what `celeriac up` starts is not of use: it stops what runs, and says why
    ├── Refused                    a caller's mistake: said at once, nothing is stored
    │   ├── Invalid                  the request names something that is not so (422)
    │   │   └── Unpriceable            it asks for something whose price nobody knows beforehand
    │   ├── NotFound                 there is no such job, context or agent (404)
    │   ├── Conflict                 true, but not now (409)
    │   └── KeyReused                the idempotency key stands for another request (422)
    ├── StoreUnavailable           Redis did not answer: try again (503)
    │   └── StoreFull                Redis takes no new work (503)
    ├── Fenced                     the run lost its lease: it may write nothing more
    ├── Stopped                    the job was asked to stop: the run ends it
    ├── LimitReached               the agent may not go on with this job: it ends, with what there is
    │   ├── StepLimit
    │   ├── TokenLimit
    │   ├── CostLimit
    │   ├── TimeLimit
    │   ├── OutputInvalid            its answer, asked for twice, is not what its schema asks for
    │   ├── PartFailed               one of the parts of its input was not answered: a retry asks for that one alone
    │   └── InputTooLong             its input cannot be made short enough: a retry does not help
    └── ModelError                 a call to a model has no usable answer
        ├── RateLimited              429: the provider named, or did not name, a time to wait
        ├── QuotaExhausted           no money left with the provider
        ├── Overloaded               503, 529
        ├── ProviderFailed           500, 502, 504, 408, 409
        ├── ModelTimeout             no answer in time
        ├── Unreachable              the connection failed
        ├── LaneClosed               not asked: the fleet leaves this lane alone, or its rate is used up
        ├── BudgetFull               not asked: a cap has no room for the call
        │   ├── LaneBudgetFull         the cap of its model or its provider: another lane may have room
        │   └── JobBudgetFull          what the job itself may cost: where no lane is cheap enough, CostLimit ends it
        ├── PriceUnknown             not asked: nobody knows what it costs, and such models are refused
        ├── BadAnswer                an answer that is not one
        ├── BadCredentials           401, 403
        ├── BadModelRequest          400, 413, 422: asking again does not help
        │   ├── ContextTooLong         a lane with a longer window may take it
        │   └── UnknownModel           404: another lane may know it
        ├── ContentRefused           the model or its filter declined
        └── LocalFault               our own side failed before a byte was sent

Messages come first and facts are keywords with defaults, so that each error survives pickling and keeps its name in
Celery. A message never holds a prompt, an answer or a key.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Final, Literal

#: As often as patience lasts.
OFTEN: Final = 1_000


class CeleriacError(Exception):
    """code: the stable, machine-readable name of the error, as callers see it."""

    code: ClassVar[str] = "internal"


class Misconfigured(CeleriacError):
    code = "misconfigured"


class NotStarted(CeleriacError):
    """last_words: what the process said before, line by line."""

    code = "not_started"

    def __init__(self, message: str = "", *, last_words: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.last_words = last_words


class Refused(CeleriacError):
    """field: what in the request is meant. remedy: what would be accepted."""

    code = "refused"

    def __init__(self, message: str = "", *, field: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.field = field
        self.remedy = remedy


class Invalid(Refused):
    code = "invalid"


class Unpriceable(Invalid):
    code = "unpriceable_feature"


class NotFound(Refused):
    code = "not_found"


class Conflict(Refused):
    code = "conflict"


class KeyReused(Refused):
    code = "idempotency_key_reused"


class StoreUnavailable(CeleriacError):
    """maybe_accepted: the write may have happened; asking for `job_id` later tells."""

    code = "store_unavailable"

    def __init__(self, message: str = "", *, maybe_accepted: bool = False, job_id: str = "") -> None:
        super().__init__(message)
        self.maybe_accepted = maybe_accepted
        self.job_id = job_id


class StoreFull(StoreUnavailable):
    code = "store_full"


class Fenced(CeleriacError):
    code = "fenced"


class Stopped(CeleriacError):
    code = "stopped"


class LimitReached(CeleriacError):
    """partial: what the model said so far."""

    code = "limit_reached"

    def __init__(self, message: str = "", *, partial: str = "") -> None:
        super().__init__(message)
        self.partial = partial


class StepLimit(LimitReached):
    code = "step_limit"


class TokenLimit(LimitReached):
    code = "token_limit"


class CostLimit(LimitReached):
    code = "cost_limit"


class TimeLimit(LimitReached):
    code = "time_limit"


class OutputInvalid(LimitReached):
    code = "output_invalid"


class PartFailed(LimitReached):
    code = "part_failed"


class InputTooLong(LimitReached):
    code = "input_too_long"


class ModelError(CeleriacError):
    """A failed call to a model.

    provider, model: whom we asked. status: the HTTP status, 0 if there was none. request_id: the provider's own name of
    the request, "" if it gave none. in_doubt: the call may have been billed. retry_after: seconds the provider asked us
    to wait, or None. attempts: where several calls were made, those that failed (`celeriac.llm.model.Attempt`). limits:
    of the provider's rates, as it says them (`celeriac.llm.limits.Limit`). asked: whether the provider was. ours: the
    fault is on our side, whatever the call was up to.
    """

    code = "model_error"
    #: the next lane may do better
    next_lane: ClassVar[bool] = True
    #: how often the same lane may be asked again at once, as far as this error goes
    again: ClassVar[int] = 0

    def __init__(
        self,
        message: str = "",
        *,
        provider: str = "",
        model: str = "",
        status: int = 0,
        request_id: str = "",
        in_doubt: bool = False,
        retry_after: float | None = None,
        attempts: tuple[Any, ...] = (),
        limits: tuple[Any, ...] = (),
        asked: bool = True,
        ours: bool = False,
    ) -> None:
        super().__init__(message)
        self.asked = asked
        self.ours = ours
        self.provider = provider
        self.model = model
        self.status = status
        self.request_id = request_id
        self.in_doubt = in_doubt
        self.retry_after = retry_after
        self.attempts = attempts
        self.limits = limits


class RateLimited(ModelError):
    code = "rate_limited"
    again = OFTEN


class QuotaExhausted(ModelError):
    code = "quota_exhausted"


class Overloaded(ModelError):
    code = "overloaded"
    again = OFTEN


class ProviderFailed(ModelError):
    code = "provider_failed"
    again = OFTEN


class ModelTimeout(ModelError):
    code = "timeout"
    again = OFTEN


class Unreachable(ModelError):
    code = "unreachable"
    again = OFTEN


class LaneClosed(ModelError):
    code = "lane_closed"


class BudgetFull(ModelError):
    """why: "held" until other calls settle, "spent", or "never": the call is above the cap. scope: as keys spell it.

    ends: when its window does, None for never. bound: of the call, in nano-dollars. waits: whether the job would wait
    where it is spent.
    """

    code = "budget_exceeded"
    next_lane = False

    def __init__(
        self,
        message: str = "",
        *,
        why: Literal["held", "spent", "never"] = "spent",
        scope: str = "",
        ends: datetime | None = None,
        bound: int = 0,
        waits: bool = True,
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.waits = waits
        self.why = why
        self.scope = scope
        self.ends = ends
        self.bound = bound


class LaneBudgetFull(BudgetFull):
    next_lane = True


class JobBudgetFull(BudgetFull):
    code = "cost_limit"


class PriceUnknown(ModelError):
    code = "price_unknown"


class BadAnswer(ModelError):
    code = "bad_answer"
    again = 1


class BadCredentials(ModelError):
    code = "bad_credentials"


class BadModelRequest(ModelError):
    code = "bad_request"
    next_lane = False


class ContextTooLong(BadModelRequest):
    code = "context_too_long"
    next_lane = True


class UnknownModel(BadModelRequest):
    code = "unknown_model"
    next_lane = True


class ContentRefused(ModelError):
    """usage: what the refusal cost (`celeriac.llm.model.Usage`); the caller settles it. None if nothing was run, or,
    with `in_doubt`, if the provider did not say. billed_model, tier, region: what it was billed as, as in an answer.
    """

    code = "content_refused"
    next_lane = False

    def __init__(
        self,
        message: str = "",
        *,
        usage: Any = None,
        billed_model: str = "",
        tier: str = "",
        region: str = "",
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.usage = usage
        self.billed_model = billed_model
        self.tier = tier
        self.region = region


class LocalFault(ModelError):
    code = "local_fault"
    again = OFTEN
    next_lane = False
