"""A Celery pool that runs tasks on one event loop: thousands of calls in flight in one process.

Celery's own tracer runs unchanged inside a greenlet on the loop (`tasks.base`), and what it reports goes back to the
consumer's thread, so that request state, events and acknowledgements stay there as with any other pool. Nothing in Celery
is patched; `worker_pool = "worker.pool:TaskPool"` selects it.

An `async def` task needs `tasks.base.AsyncTask` as its base. An ordinary task runs in one of a few threads: it may block,
and a time limit frees its slot but cannot stop its thread.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import functools
import itertools
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from billiard.einfo import ExceptionInfo
from celery import _state, bootsteps
from celery.concurrency.base import BasePool
from celery.exceptions import SoftTimeLimitExceeded, WorkerShutdown, WorkerTerminate
from celery.utils import threads as celery_threads
from celery.worker import state as worker_state
from greenlet import getcurrent

from tasks.base import AsyncTask, cancelled_as, run_bridged

log = logging.getLogger("celeriac.pool")

#: Seconds between two looks at the loop's lag.
TICK: Final = 0.25
#: Threads for ordinary tasks and for what an async task hands to `asyncio.to_thread`.
THREADS: Final = 32
#: Seconds that cancelled tasks have to clean up before the loop stops under them.
LAST_WORDS: Final = 6.0
#: As sysexits.h: an internal software error.
EX_SOFTWARE: Final = 70

_current: contextvars.ContextVar[Run | None] = contextvars.ContextVar("celeriac_run", default=None)


def _ident() -> Any:
    # Celery keys its stacks of tasks and requests by greenlet. A coroutine's body runs on the loop's greenlet and the
    # tracer on its own, so both are keyed by the run that they belong to.
    return _current.get() or getcurrent()


class Run:
    """One execution of a task: what Celery calls an apply result."""

    __slots__ = (
        "__weakref__", "accept_callback", "args", "callback", "correlation_id", "dead", "error_callback", "is_async",
        "kwargs", "name", "pid", "pool", "soft_due", "soft_timeout", "target", "task", "timeout", "timeout_callback",
    )  # fmt: skip

    def __init__(self, pool: TaskPool, pid: int, target: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.pool, self.pid, self.target, self.args, self.kwargs = pool, pid, target, args or (), kwargs or {}
        self.task: asyncio.Task[Any] | None = None
        self.dead = False  # whoever killed it has told Celery; what it returns is nobody's business any more
        self.soft_due = False
        self.correlation_id = ""
        self.name = ""
        self.is_async = False
        self.callback: Callable[..., Any] | None = None
        self.accept_callback: Callable[..., Any] | None = None
        self.error_callback: Callable[..., Any] | None = None
        self.timeout_callback: Callable[..., Any] | None = None
        self.soft_timeout: float | None = None
        self.timeout: float | None = None

    def cancelled_as(self) -> BaseException | None:
        """A soft time limit cancels once, and is seen as Celery's own error where the task waits."""
        if not self.soft_due or self.task is None:
            return None
        self.soft_due = False
        self.task.uncancel()
        return SoftTimeLimitExceeded(self.soft_timeout)

    def terminate(self, signal: Any = None) -> None:
        """Part of Celery's protocol: `revoke(terminate=True)` and a cold shutdown call it."""
        self.pool.terminate_job(self.pid, signal)


class TaskPool(BasePool):  # type: ignore[misc]  # Celery's base is untyped
    """See the module. Subclass it to own things that live on the loop: `opened`, `draining`, `cut_off`, `closing`."""

    signal_safe = False
    is_green = False
    body_can_be_buffer = True
    task_join_will_block = True

    #: Seconds that a warm shutdown waits for running tasks; None waits for ever.
    grace: float | None = None
    #: Seconds for which a task may block the loop before it is named in the log.
    stall: float = 2.0

    limit: int
    loop: asyncio.AbstractEventLoop

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if celery_threads.USE_FAST_LOCALS:
            raise SystemExit("USE_FAST_LOCALS is set: this pool cannot keep the requests of its tasks apart; unset it")
        self._runs: dict[int, Run] = {}
        self._waiting: collections.deque[Run] = collections.deque()
        self._busy = 0
        self._pids = itertools.count(1)
        self._reports: collections.deque[tuple[Callable[..., Any], tuple[Any, ...]]] = collections.deque()
        self._reported = threading.Event()
        self._flush_due = False
        self._flush_lock = threading.Lock()
        self._hub: Any = None
        self._hub_ticked = time.monotonic()
        self._beat = time.monotonic()
        self._lag = 0.0
        self._stalls = 0
        self._stopping = False
        self._thread: threading.Thread | None = None

    # What a subclass may say, on the loop.
    async def opened(self) -> None:
        """Before the first message is taken. What it raises ends the process."""

    async def draining(self) -> None:
        """No more messages are taken; running tasks go on."""

    async def cut_off(self) -> None:
        """The tasks that still run are about to be cancelled."""

    async def closing(self) -> None:
        """No task runs any more; the loop stops next."""

    # What an owner may ask.
    @property
    def running(self) -> int:
        """Tasks that hold a slot."""
        return self._busy

    @property
    def loop_lag(self) -> float:
        """Seconds by which the loop was late at its last tick, or has been blocked since."""
        return max(self._lag, time.monotonic() - self._beat - TICK)

    @property
    def hub_silence(self) -> float:
        """Seconds since the consumer's hub last ran a timer: one that is cut off from the broker runs none."""
        return time.monotonic() - self._hub_ticked

    # Celery's side, on the consumer's thread.
    def on_start(self) -> None:
        _state._task_stack.__ident_func__ = _ident
        for task in self.app.tasks.values():
            if task.request_stack is not None:
                task.request_stack.__ident_func__ = _ident
        try:
            import uvloop
        except ImportError:
            self.loop = asyncio.new_event_loop()
        else:
            self.loop = uvloop.new_event_loop()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="celery-task")
        self.loop.set_default_executor(self._threads)
        self._thread = threading.Thread(target=self._run_loop, name="celery-loop", daemon=True)
        self._thread.start()
        try:
            self._wait(self._on_loop(self.opened()), interruptible=True)
        except BaseException:
            self._stop_loop()
            raise
        threading.Thread(target=self._watch, name="celery-watchdog", daemon=True).start()

    def register_with_event_loop(self, hub: Any) -> None:
        self._hub = hub

        def tick() -> None:
            self._hub_ticked = time.monotonic()

        tick()
        # Celery cancels it when the connection breaks and calls us again when a new one stands.
        hub.call_repeatedly(1.0, tick)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        error_callback: Callable[..., Any] | None = None,
        timeout_callback: Callable[..., Any] | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        correlation_id: str = "",
        **_: Any,
    ) -> Run:
        run = Run(self, next(self._pids), target, args, kwargs)
        run.correlation_id = correlation_id
        run.name = args[0] if args else ""
        run.is_async = isinstance(self.app.tasks.get(run.name), AsyncTask)
        run.callback, run.accept_callback = callback, accept_callback
        run.error_callback, run.timeout_callback = error_callback, timeout_callback
        run.soft_timeout = soft_timeout or self.options.get("soft_timeout")
        run.timeout = timeout or self.options.get("timeout")
        self._runs[run.pid] = run
        self.loop.call_soon_threadsafe(self._enter, run)
        return run

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        run = self._runs.get(pid)
        if run is not None and not run.dead:
            run.dead = True
            self.loop.call_soon_threadsafe(self._cancel, run)

    def grow(self, n: int = 1) -> None:
        self.limit += n
        self.loop.call_soon_threadsafe(self._fill)

    def shrink(self, n: int = 1) -> None:
        self.limit = max(1, self.limit - n)

    def on_close(self) -> None:
        if self._alive():
            self._on_loop(self.draining())

    def on_stop(self) -> None:
        """Warm: what runs may finish, within the grace; acknowledgements and events go out meanwhile."""
        until = None if self.grace is None else time.monotonic() + self.grace
        self._drain(until)
        if self._runs:
            log.warning("%d tasks still run after the grace of %g s: cutting them off", len(self._runs), self.grace)
            self._cut_off()
        self._shut()

    def on_terminate(self) -> None:
        """Cold: what runs is cancelled now, and not acknowledged by us."""
        self._cut_off()
        self._shut()

    @property
    def num_processes(self) -> int:
        return self.limit

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),
            "running": self._busy,
            "waiting": len(self._waiting),
            "loop-lag": round(self.loop_lag, 4),
            "stalls": self._stalls,
        }

    # Stopping, on the consumer's thread.
    def _drain(self, until: float | None) -> None:
        while (self._runs or self._reports) and (until is None or time.monotonic() < until) and self._alive():
            self._reported.wait(0.1)
            self._reported.clear()
            self._flush()
            if self._hub is not None:
                # The hub no longer polls, but acknowledgements that were handed to it, and Celery's own heartbeat,
                # still have to go out; it offers no public way to run only these.
                for ready in self._hub._pop_ready():
                    ready()
                self._hub.fire_timers(propagate=(WorkerShutdown, WorkerTerminate))

    def _cut_off(self) -> None:
        if not self._alive():
            return
        self._wait(self._on_loop(self.cut_off()))
        for run in list(self._runs.values()):
            self.terminate_job(run.pid)
        self._drain(time.monotonic() + LAST_WORDS)

    def _shut(self) -> None:
        if self._alive():
            self._wait(self._on_loop(self.closing()))
        self._stop_loop()

    def _stop_loop(self) -> None:
        self._stopping = True
        if self._alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            assert self._thread is not None  # noqa: S101  # it is alive
            self._thread.join(5)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _on_loop(self, coroutine: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def _wait(self, future: Future[None], *, interruptible: bool = False) -> None:
        """Wait for the loop. interruptible: a signal that asks the worker to stop is obeyed meanwhile."""
        while True:
            try:
                return future.result(0.2)
            except TimeoutError:
                if future.done():
                    raise
                if interruptible and (
                    worker_state.should_stop not in (None, False) or worker_state.should_terminate not in (None, False)
                ):
                    future.cancel()
                    worker_state.maybe_shutdown()

    # Reports from the loop to the consumer's thread.
    def _report(self, fun: Callable[..., Any], *args: Any) -> None:
        self._reports.append((fun, args))
        self._reported.set()
        if self._hub is None:
            return  # the consumer has not begun, or never will: on_stop flushes
        with self._flush_lock:
            if self._flush_due:
                return
            self._flush_due = True
        self._hub.call_soon(self._flush)

    def _flush(self) -> None:
        with self._flush_lock:
            self._flush_due = False
        while self._reports:
            fun, args = self._reports.popleft()
            try:
                fun(*args)
            except (WorkerShutdown, WorkerTerminate):
                raise
            except Exception:
                log.exception("a report about a task failed")

    # The loop's side, on its thread.
    def _run_loop(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self._tick()
            self.loop.run_forever()
        except BaseException:
            log.critical("the event loop crashed", exc_info=True)
        finally:
            if not self._stopping:
                # Without its loop the worker would take messages for ever and run none.
                log.critical("the event loop ended: the worker ends too")
                logging.shutdown()
                os._exit(EX_SOFTWARE)

    def _tick(self) -> None:
        now = time.monotonic()
        self._lag = max(0.0, now - self._beat - TICK)
        self._beat = now
        self.loop.call_later(TICK, self._tick)

    def _watch(self) -> None:
        """In a thread of its own: name the task that blocks the loop, once a stall."""
        assert self._thread is not None  # noqa: S101  # started by it
        named = 0.0
        while not self._stopping:
            time.sleep(min(self.stall, 1.0) / 2)
            beat = self._beat
            if time.monotonic() - beat - TICK > self.stall and beat != named:
                named = beat
                self._stalls += 1
                frame = sys._current_frames().get(self._thread.ident or 0)
                stack = "".join(traceback.format_stack(frame)[-8:]) if frame else ""
                blocker = asyncio.current_task(self.loop)
                log.error(
                    "the event loop has been blocked for %.1f s by %s:\n%s",
                    time.monotonic() - beat, blocker.get_name() if blocker else "a callback", stack,
                )  # fmt: skip

    def _enter(self, run: Run) -> None:
        if self._busy >= self.limit:
            self._waiting.append(run)
        else:
            self._begin(run)

    def _fill(self) -> None:
        while self._waiting and self._busy < self.limit:
            self._begin(self._waiting.popleft())

    def _begin(self, run: Run) -> None:
        if run.dead:
            self._runs.pop(run.pid, None)
            return
        self._busy += 1
        context = contextvars.copy_context()
        context.run(_current.set, run)
        if run.soft_timeout:
            context.run(cancelled_as.set, run.cancelled_as)
        run.task = self.loop.create_task(self._trace(run), context=context, name=f"{run.name}[{run.correlation_id}]")
        run.task.add_done_callback(functools.partial(self._ended, run))

    async def _trace(self, run: Run) -> Any:
        if run.accept_callback is not None:
            self._report(run.accept_callback, run.pid, time.monotonic())
        timers = []
        if run.soft_timeout:
            timers.append(self.loop.call_later(run.soft_timeout, self._soft_limit, run))
        if run.timeout:
            timers.append(self.loop.call_later(run.timeout, self._hard_limit, run))
        try:
            if run.is_async:
                return await run_bridged(self._call, run)
            inside = contextvars.copy_context()
            return await self.loop.run_in_executor(self._threads, inside.run, self._call, run)
        finally:
            for timer in timers:
                timer.cancel()

    def _call(self, run: Run) -> Any:
        return run.target(*run.args, **run.kwargs)

    def _ended(self, run: Run, task: asyncio.Task[Any]) -> None:
        self._busy -= 1
        self._runs.pop(run.pid, None)
        self._reported.set()
        self._fill()
        error = None if task.cancelled() else task.exception()
        if run.dead or task.cancelled():
            return
        if error is None:
            if run.callback is not None:
                self._report(run.callback, task.result())
        elif isinstance(error, (WorkerShutdown, WorkerTerminate)):
            self._report(_raise, error)
        elif run.error_callback is not None:
            self._report(run.error_callback, ExceptionInfo((type(error), error, error.__traceback__)))

    def _cancel(self, run: Run) -> None:
        if run.task is not None:
            run.task.cancel()
        else:
            self._runs.pop(run.pid, None)

    def _soft_limit(self, run: Run) -> None:
        if run.task is not None and not run.task.done() and run.is_async:
            run.soft_due = True
            run.task.cancel()
            if run.timeout_callback is not None:
                self._report(run.timeout_callback, True, run.soft_timeout)

    def _hard_limit(self, run: Run) -> None:
        if run.task is not None and not run.task.done() and not run.dead:
            run.dead = True
            run.task.cancel()
            if run.timeout_callback is not None:
                self._report(run.timeout_callback, False, run.timeout)


def _raise(error: BaseException) -> None:
    raise error
