"""Errors, reported to Sentry if an operator asks: what happened, where, in which job, not what anybody said."""

from __future__ import annotations

from typing import Any, Final

from celeriac.logs import OURS
from celeriac.settings import Settings

#: Facts of a log line that Sentry may index. All of them are names, ids and amounts of ours.
TAGS: Final = (
    "job_id",
    "agent",
    "context_id",
    "tenant",
    "task",
    "worker",
    "request_id",
    "service",
    "lane",
    "error",
    "scope",
    "window",
    "percent",
    "use_usd",
    "cap_usd",
    "rate_usd_per_hour",
    "reached_at",
)
#: What Sentry takes of a tag's value.
MOST_TAG: Final = 200
#: Events that are an issue for each of these facts: each alert about a budget is, and not each of its windows.
ISSUES: Final = {
    "budget_threshold_reached": ("scope", "window", "percent"),
    "budget_burn_rate": ("scope", "window"),
}


def open_sentry(settings: Settings, service: str) -> None:
    """Report what is logged as an error. Does nothing without a DSN.

    Stack traces go without local variables, errors that are not ours without their message, requests not at all: any of
    them may hold a prompt or a key. Integrations are named here and none is found by itself: some wrap Celery's tracer
    or the provider SDKs, and those send prompts.
    """
    if settings.sentry_dsn is None:
        return
    # Imported late: 0.15 s that only a process which reports should spend.
    import sentry_sdk
    from sentry_sdk.integrations.atexit import AtexitIntegration
    from sentry_sdk.integrations.dedupe import DedupeIntegration
    from sentry_sdk.integrations.excepthook import ExcepthookIntegration
    from sentry_sdk.integrations.logging import LoggingIntegration
    from sentry_sdk.integrations.threading import ThreadingIntegration

    sentry_sdk.init(
        dsn=settings.sentry_dsn.get_secret_value(),
        environment=settings.env,
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[
            LoggingIntegration(),
            ExcepthookIntegration(),
            ThreadingIntegration(propagate_hub=True),
            DedupeIntegration(),
            AtexitIntegration(callback=lambda pending, timeout: None),
        ],
        include_local_variables=False,
        include_source_context=False,
        send_default_pii=False,
        max_request_body_size="never",
        max_breadcrumbs=0,
        before_send=_before_send,
    )
    sentry_sdk.set_tag("service", service)


def _before_send(event: Any, hint: dict[str, Any]) -> Any:
    record = hint.get("log_record")
    facts = record.msg if record is not None and isinstance(record.msg, dict) else {}
    if facts:
        said = str(facts.get("event", ""))
        event["logentry"] = {"message": said}
        event.setdefault("tags", {}).update({name: str(facts[name])[:MOST_TAG] for name in TAGS if facts.get(name)})
        if said in ISSUES:
            event["fingerprint"] = [said, *(str(facts.get(name)) for name in ISSUES[said])]
    elif record is not None:
        # A foreign line: its text before the values were put in.
        event["logentry"] = {"message": str(record.msg)}
    event.pop("extra", None)
    for error in (event.get("exception") or {}).get("values", ()):
        if str(error.get("module") or "").partition(".")[0] not in OURS:
            error["value"] = ""
    return event
