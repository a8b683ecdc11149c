"""`async def` as the body of a Celery task.

Celery's tracer is synchronous. The worker's pool runs it inside a greenlet on its event loop; where the task's body is a
coroutine, the greenlet hands it to the loop and sleeps until it is done, and the tracer finds an ordinary return value.
It is the bridge that SQLAlchemy's asyncio extension uses. Outside the pool, as in `task.apply()` in a test, the coroutine
runs to its end with `asyncio.run`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from celery import Task
from greenlet import getcurrent, greenlet
from pydantic import BaseModel

T = TypeVar("T")


class _Bridge(greenlet):
    """A greenlet whose parent is a coroutine on a running loop, and which shares that coroutine's context."""

    def __init__(self, fun: Callable[..., Any]) -> None:
        driver = getcurrent()
        super().__init__(fun, driver)
        self.driver = driver
        self.gr_context = driver.gr_context


def bridged() -> bool:
    """Whether the caller is synchronous code that may `await_` on the pool's loop."""
    return isinstance(getcurrent(), _Bridge)


def await_(awaitable: Awaitable[T]) -> T:
    """From synchronous code: sleep until the loop has awaited it. Outside the pool it runs on a loop of its own."""
    current = getcurrent()
    if isinstance(current, _Bridge):
        result: T = current.driver.switch(awaitable)
        return result

    return asyncio.run(_coroutine(awaitable))


#: What a cancellation means to the task that runs in this context: another error in its place, or None for itself.
cancelled_as: ContextVar[Callable[[], BaseException | None] | None] = ContextVar("cancelled_as", default=None)


@types.coroutine
def _driven(coroutine: Coroutine[Any, Any, T], instead: Callable[[], BaseException | None]) -> Generator[Any, Any, T]:
    """Await, but raise what `instead` says where the coroutine waits, in place of a cancellation."""
    value, error = None, None
    while True:
        try:
            waits_for = coroutine.send(value) if error is None else coroutine.throw(error)
        except StopIteration as stop:
            return cast(T, stop.value)
        value, error = None, None
        try:
            value = yield waits_for
        except asyncio.CancelledError as cancelled:
            error = instead() or cancelled
        except BaseException as raised:
            error = raised


async def run_bridged(fun: Callable[..., T], *args: Any) -> T:
    """Run synchronous code on this loop; what it passes to `await_` is awaited here."""
    bridge = _Bridge(fun)
    instead = cancelled_as.get()
    switched = bridge.switch(*args)
    while not bridge.dead:
        try:
            value = await (switched if instead is None else _driven(_coroutine(switched), instead))
        except BaseException:  # cancellation too: it belongs to whoever waits inside
            switched = bridge.throw(*sys.exc_info())
        else:
            switched = bridge.switch(value)
    result: T = switched
    return result


async def _coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable


class _OffLoop:
    """Celery's result backend, asked in a thread: its client is synchronous and would hold up every other job.

    Only while a task of the pool is running, and only where something is to be stored.
    """

    _BLOCKING = frozenset(
        {"store_result", "mark_as_started", "mark_as_done", "mark_as_failure", "mark_as_revoked", "mark_as_retry"}
    )

    def __init__(self, task: AsyncTask) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._task.app.backend, name)
        if name not in self._BLOCKING or not bridged():
            return attribute
        request = self._task.request
        if request.ignore_result and not request.chord and not request.errbacks:
            return attribute  # stores nothing, so it does not block

        def asked(*args: Any, **kwargs: Any) -> Any:
            # The backend's connection belongs to a thread: look it up there.
            return await_(asyncio.to_thread(lambda: getattr(self._task.app.backend, name)(*args, **kwargs)))

        return asked


class AsyncTask(Task):
    """Base of tasks whose body may be `async def`: `@shared_task(base=AsyncTask)`. They need the pool of `worker.pool`."""

    abstract = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Celery makes a class a task. Bridging here keeps retries, pydantic and `bind` working as they are.
        run = cls.__dict__.get("run")
        if run is not None:
            static = isinstance(run, staticmethod)
            body = _bridge(run.__func__ if static else run)
            cls.run = staticmethod(body) if static else body  # type: ignore[method-assign]  # as Celery sets it
        super().__init_subclass__(**kwargs)

    @property
    def backend(self) -> Any:
        return _OffLoop(self)

    @backend.setter
    def backend(self, value: Any) -> None:
        raise AttributeError("an AsyncTask uses the backend of its app")


def _bridge(body: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        result = body(*args, **kwargs)
        if not inspect.isawaitable(result):
            return result
        value = await_(result)
        # Celery turns models into JSON before a coroutine has one to turn.
        return value.model_dump(mode="json") if isinstance(value, BaseModel) else value

    # Celery looks at the body to tell a coroutine from a function; ours is a function.
    run.__wrapped__ = body  # type: ignore[attr-defined]
    return run
