"""Celery tasks whose body is `async def`.

    @shared_task(base=AsyncTask, bind=True)
    async def fetch(self, url: str) -> str: ...

Celery's tracer is synchronous. `worker.pool` runs it inside a greenlet on an event loop; the task's coroutine runs in
the same greenlet, and each future that it waits for is handed to the loop while the greenlet sleeps. So `self.request`,
`current_task`, nested `.apply()` and the rest of Celery find themselves where they expect to be.

In the body, `apply_async` of an `AsyncTask` (thus `delay` and `retry`) and the writes of its result backend run in a
thread while the loop goes on: they look synchronous, and other tasks may run meanwhile. They are not interrupted; a
cancellation that arrives during one is delivered at the next `await`. In a child task (`gather`, `TaskGroup`)
`self.request` works too, but those calls block the loop: use `asyncio.to_thread`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
from asyncio import CancelledError
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextvars import ContextVar, copy_context
from types import coroutine
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from celery import Celery, Task, bootsteps, current_task
from celery.backends.base import DisabledBackend
from celery.exceptions import SoftTimeLimitExceeded
from celery.platforms import EX_FAILURE
from celery.utils.log import get_logger
from celery.worker.request import Request
from greenlet import getcurrent, greenlet

if TYPE_CHECKING:
    CeleryTask = Task[..., Any]
else:
    CeleryTask = Task

logger = get_logger(__name__)
T = TypeVar("T")

#: Threads for Celery's own blocking calls. Not the loop's default executor: a result backend that is down must not hold
#: up the name lookups of HTTP clients, nor they the results.
IO_THREADS = 8

WRONG_POOL = "is an async task and runs on worker.pool:TaskPool only: set worker_pool = 'worker.pool:TaskPool'"


class Run:
    """One run of a task on an event loop: what the pool tells the bridge, and the other way round."""

    #: The asyncio task that runs it. None: it has not begun, or runs in a thread.
    task: asyncio.Task[Any] | None = None
    #: It was told to end: a hard time limit, a revocation, a shutdown. Its body has no outcome any more.
    killed = False
    #: The body has ended: what remains is Celery's bookkeeping, which is not interrupted.
    over = False
    _soft_limit: float | None = None
    _postponed = False
    _depth = 0

    def kill(self) -> bool:
        """Cancel the body, again if it was before. False: too late, it has ended."""
        if self.over:
            return False
        self.killed = True
        if self.task is not None:
            self.task.cancel()
        return True

    def remind(self, seconds: float) -> bool:
        """Raise SoftTimeLimitExceeded where the body waits. False: too late."""
        if self.over or self.killed or self.task is None:
            return False
        self._soft_limit = seconds
        self.task.cancel()
        return True

    def _cancellation(self, error: CancelledError) -> CancelledError:
        """What a cancellation looks like to the body."""
        if self._soft_limit is None or self.killed or self.task is None:
            return error
        seconds, self._soft_limit = self._soft_limit, None
        self.task.uncancel()
        return _SoftLimit(seconds)

    def _postpone(self) -> None:
        if self.task is not None:
            self.task.uncancel()
        self._postponed = True

    def _resume(self) -> None:
        # Cancelling a task from within takes effect as soon as it waits, and cancels what it waits for.
        if self._postponed and self.task is not None:
            self._postponed = False
            self.task.cancel()


class _SoftLimit(SoftTimeLimitExceeded, CancelledError):
    """Also a cancellation, so that TaskGroup and its like clean up behind it as they do for one."""


#: The run to which the present code belongs; inherited by child tasks and `asyncio.to_thread`.
current_run: ContextVar[Run | None] = ContextVar("current_run", default=None)


def ident() -> object:
    """Whose request stack is meant, for Celery's greenlet-aware locals."""
    return current_run.get() or getcurrent()


class _Greenlet(greenlet):  # type: ignore[misc]  # greenlet has no types
    def __init__(self, function: Callable[[], Any], run: Run) -> None:
        super().__init__(function, getcurrent())
        self.run_state = run
        # The asyncio task and its greenlet are one thing to whoever reads a context variable.
        self.gr_context = getcurrent().gr_context


@coroutine
def in_greenlet(function: Callable[[], T], run: Run) -> Generator[Any, Any, T]:
    """Run synchronous code that may reach an async body; awaited by the asyncio task of the run."""
    inner = _Greenlet(function, run)
    waits_for = inner.switch()
    while not inner.dead:
        try:
            value = yield waits_for
        except BaseException as error:
            waits_for = inner.throw(error)
        else:
            waits_for = inner.switch(value)
    return waits_for  # type: ignore[no-any-return]  # a dead greenlet's last answer is its function's


def _drive(body: Coroutine[Any, Any, T], here: _Greenlet) -> T:
    run, to_loop = here.run_state, here.parent.switch
    error: BaseException | None = None
    while True:
        try:
            waits_for = body.send(None) if error is None else body.throw(error)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # what the coroutine returned
        error = None
        run._resume()
        try:
            to_loop(waits_for)
        except CancelledError as cancelled:
            error = run._cancellation(cancelled)
        except BaseException as other:
            error = other


def run_body(body: Coroutine[Any, Any, T]) -> T:
    """Run an async body to its end from synchronous code.

    Raises SoftTimeLimitExceeded; CancelledError of asyncio if the run was told to end, whatever its body made of that;
    CancelledError of concurrent.futures, an ordinary failure, if the body was cancelled by its own code.
    """
    here = getcurrent()
    if not isinstance(here, _Greenlet):
        return _run_eagerly(body)
    run = here.run_state
    if run.killed:
        body.close()
        raise CancelledError
    run._depth += 1
    try:
        return _drive(body, here)
    except _SoftLimit as error:
        # Callers know the type by its name, and need not be able to import ours.
        raise SoftTimeLimitExceeded(*error.args).with_traceback(error.__traceback__) from None
    except CancelledError as error:
        raise concurrent.futures.CancelledError("cancelled by its own code") from error
    finally:
        run._depth -= 1
        run.over = run._depth == 0
        if run.killed:
            raise CancelledError


def _run_eagerly(body: Coroutine[Any, Any, T]) -> T:
    if current_task and not (current_task.request.is_eager or current_task.request.called_directly):
        body.close()
        raise RuntimeError(f"{current_task.name} {WRONG_POOL}")
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(body)
    body.close()
    raise RuntimeError("an async task cannot be called or applied inside a running event loop: use apply_async")


@functools.cache
def _io_threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(IO_THREADS, thread_name_prefix="celery-io")


def in_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call what blocks. In a run on an event loop, in a thread while the loop goes on, and to its end."""
    here = getcurrent()
    if not isinstance(here, _Greenlet):
        return function(*args, **kwargs)
    call = functools.partial(copy_context().run, function, *args, **kwargs)
    future = asyncio.get_running_loop().run_in_executor(_io_threads(), call)
    while not future.done():
        try:
            for waits_for in asyncio.wait({future}).__await__():
                here.parent.switch(waits_for)
        except CancelledError:
            here.run_state._postpone()
    return future.result()


#: What talks to the server of the result backend, called by the tracer or by `Task`.
BLOCKING = frozenset(
    {
        "store_result",
        "mark_as_started",
        "mark_as_done",
        "mark_as_failure",
        "mark_as_retry",
        "mark_as_revoked",
        "fail_from_current_stack",
        "on_chord_part_return",
        "add_to_chord",
        "set_chord_size",
        "get_task_meta",
        "get_state",
        "get_result",
        "forget",
    }
)


class _ThreadedBackend:
    """A task's result backend as its body and the tracer see it on the loop."""

    def __init__(self, task: AsyncTask, backend: Any) -> None:
        self._task = task
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        if name in BLOCKING:
            return functools.partial(in_thread, self._call, name)
        return getattr(self._backend, name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        # Looked up anew: a backend that is not thread-safe has one instance a thread.
        return getattr(self._task.backend, name)(*args, **kwargs)

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        nothing_to_tell = not store_result and not (request and request.chord)
        call = (
            self._backend.mark_as_done if nothing_to_tell else functools.partial(in_thread, self._call, "mark_as_done")
        )
        return call(task_id, result, request, store_result, *args, **kwargs)


class AsyncRequest(Request):
    """Spares a message of a `no_ack` queue its acknowledgement: on Redis a round trip that finds nothing."""

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        # In the default exchange, and only there, the routing key is the queue.
        if not message.delivery_info.get("exchange"):
            queue = options["app"].amqp.queues.get(message.delivery_info.get("routing_key"))
            self.acknowledged = queue is not None and queue.no_ack


class AsyncTask(CeleryTask):
    """Base of tasks that are `async def`. A subclass with an ordinary `def` is an ordinary task.

    queues: the queues that carry this task's messages; a worker that consumes one of them with another pool refuses to
    start. None, the default: the queue to which `task_routes` sends it.
    """

    Request = AsyncRequest  # type: ignore[assignment]  # a class is as good as its name
    queues: ClassVar[Iterable[str] | None] = None
    #: Whether the body is a coroutine.
    is_async: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "backend" in cls.__dict__ and not isinstance(cls.__dict__["backend"], property):
            # Celery's task option would hide the property.
            cls._backend = cls.__dict__["backend"]
            del cls.backend
        run = cls.__dict__.get("run")
        function = run.__func__ if isinstance(run, staticmethod) else run
        # Below Celery's pydantic wrapper there is the caller's own function.
        if function is None or not inspect.iscoroutinefunction(inspect.unwrap(function)):
            return
        dumps = _pydantic_dump(function) if cls.__dict__.get("_dump_pydantic_arguments") else None

        @functools.wraps(function)
        def run_async(*args: Any, **kwargs: Any) -> Any:
            answer = run_body(function(*args, **kwargs))
            return answer if dumps is None else dumps(answer)

        cls.is_async = True
        cls.run = staticmethod(run_async) if isinstance(run, staticmethod) else run_async  # type: ignore[method-assign]  # autoretry wraps `run` the same way

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        super().on_bound(app)
        app.steps["worker"].add(RightPool)

    @property
    def backend(self) -> Any:
        backend = super().backend
        if isinstance(getcurrent(), _Greenlet) and not isinstance(backend, DisabledBackend):
            return _ThreadedBackend(self, backend)
        return backend

    @backend.setter
    def backend(self, value: Any) -> None:
        self._backend = value

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        return in_thread(super().apply_async, *args, **kwargs)


class Application(Celery):
    """What a task on an event loop sends, and the tracer for it (callbacks, chains), a thread publishes."""

    def send_task(self, *args: Any, **kwargs: Any) -> Any:
        return in_thread(super().send_task, *args, **kwargs)


def _pydantic_dump(wrapper: Callable[..., Any]) -> Callable[[Any], Any]:
    """What Celery's pydantic wrapper does with a model that is returned: it only ever sees our coroutine."""
    from pydantic import BaseModel

    options = inspect.getclosurevars(wrapper).nonlocals.get("dump_kwargs", {"mode": "json"})

    def dump(answer: Any) -> Any:
        return answer.model_dump(**options) if isinstance(answer, BaseModel) else answer

    return dump


class RightPool(bootsteps.Step):
    """Refuses the start of a worker that would take messages of async tasks and cannot run them."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        refuse_wrong_pool(worker.app, worker.pool_cls)


def refuse_wrong_pool(app: Celery, pool: type) -> None:
    """Exit with one clear line if a queue that this process consumes carries async tasks and `pool` cannot run them."""
    if getattr(pool, "runs_coroutines", False):
        return
    consumed = set(app.amqp.queues.consume_from)
    for _, task in sorted(app.tasks.items()):
        if isinstance(task, AsyncTask) and task.is_async and (shared := consumed & _queues_of(app, task)):
            logger.critical("Worker cannot start: %s on queue %s %s", task.name, ", ".join(sorted(shared)), WRONG_POOL)
            raise SystemExit(EX_FAILURE)


def _queues_of(app: Celery, task: AsyncTask) -> set[str]:
    if task.queues is not None:
        return set(task.queues)
    # Not `router.route`: it would declare a queue that is missing, and the worker would consume it.
    route = app.amqp.router.lookup_route(task.name) or {}
    queue = route if isinstance(route, str) else route.get("queue") or app.conf.task_default_queue
    return {getattr(queue, "name", queue)}
