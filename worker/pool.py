"""The asyncio pool: thousands of Celery tasks in one process, on one event loop.

    app.conf.worker_pool = "worker.pool:TaskPool"

Two threads matter. The *hub thread* is Celery's own main thread: it takes messages, acknowledges them, sends events and
runs every callback of a request. The *loop thread* runs an asyncio event loop (uvloop if there is one) and on it
Celery's unchanged tracer, in a greenlet per task (`tasks.base`). An `async def` task costs kilobytes; `-c` limits them.

An ordinary `def` task would stop the loop, so it runs in one of `sync_threads` threads. A thread cannot be interrupted:
its time limits and `revoke(terminate=True)` are not enforced, which is logged. Work that needs them belongs in an
`async def` task or in a prefork worker on another queue.

Who owns the process (stores, lease, health) reaches the pool from a bootstep, and uses what is public here:

    class Lifecycle(bootsteps.StartStopStep):
        requires = ("celery.worker.components:Pool",)

        def __init__(self, worker, **kwargs):
            super().__init__(worker, **kwargs)

        def create(self, worker):
            worker.pool.grace = 30.0
            worker.pool.on_loop_start.append(open_stores)   # async def open_stores(pool)
            worker.pool.on_loop_stop.append(close_stores)
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any, TypeVar

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback  # type: ignore[attr-defined]  # the stubs lack it
from billiard.exceptions import WorkerLostError
from celery import bootsteps
from celery._state import _task_stack  # type: ignore[attr-defined]  # the stubs leave it out
from celery.concurrency.base import BasePool
from celery.exceptions import ImproperlyConfigured, WorkerShutdown, WorkerTerminate
from celery.platforms import EX_FAILURE
from celery.utils.log import get_logger
from celery.worker import state
from kombu.asynchronous import get_event_loop

from celeriac.errors import CeleriacError
from tasks.base import AsyncTask, Run, current_run, ident, in_greenlet

try:
    import uvloop
except ImportError:  # not on Windows
    new_event_loop = asyncio.new_event_loop
else:
    new_event_loop = uvloop.new_event_loop

logger = get_logger("celery.pool")
T = TypeVar("T")
Hook = Callable[["TaskPool"], Awaitable[object]]

#: Seconds between two ticks of the hub, and between two looks at what else the main thread waits for.
HUB_TICK = 0.5
#: Seconds until a change of queues that the broker refused is tried again.
QUEUES_AGAIN = 1.0
#: Seconds that a worker whose loop has crashed gets to leave in good order.
CRASH_GRACE = 10.0


class Job(Run):
    """A task that was handed to the pool. Celery's request holds it weakly and may call `terminate`."""

    def __init__(self, pool: TaskPool, pid: int, task: Any, call: Callable[[], Any], options: dict[str, Any]) -> None:
        self.pool = pool
        self.pid = pid
        self.name: str = task.name
        self.id: str | None = options.get("correlation_id")
        self.is_async = isinstance(task, AsyncTask) and task.is_async
        self.acks_early = not task.acks_late
        self.call = call
        self.accepted = False
        self.on_accept = options.get("accept_callback")
        self.on_success = options.get("callback")
        self.on_error = options.get("error_callback")
        self.on_timeout = options.get("timeout_callback")
        self.soft_limit: float | None = options.get("soft_timeout") or pool.options.get("soft_timeout")
        self.hard_limit: float | None = options.get("timeout") or pool.options.get("timeout")
        self.error: BaseException | None = None
        self.result: Any = None

    def terminate(self, signal: object = None) -> None:
        self.pool.terminate_job(self.pid, signal)

    def __str__(self) -> str:
        return f"{self.name}[{self.id}]"


class TaskPool(BasePool):
    signal_safe = False
    is_green = False
    body_can_be_buffer = True
    task_join_will_block = True
    #: Read by `tasks.base.refuse_wrong_pool`.
    runs_coroutines = True

    #: Seconds that a warm shutdown waits for running tasks; then they are cancelled. None: for ever.
    grace: float | None = None
    #: Seconds that cancelled tasks, and each hook at the end, get to clean up.
    cleanup: float = 5.0
    #: A task that blocks the loop for this many seconds is named in the log.
    stall: float = 2.0
    #: Seconds between two looks at whether the loop is late, at most. Lower notices a blocked loop sooner.
    look: float = 0.5
    #: Threads for `def` tasks. More run more of them at once, fewer save memory.
    sync_threads: int = 16

    #: The event loop; from `start` on.
    loop: asyncio.AbstractEventLoop
    #: Set on the loop when the worker begins to shut down, warm or cold.
    draining: asyncio.Event
    #: `time.monotonic()` of the hub's last tick: twice a second while the broker is connected. 0.0: never.
    hub_ticked: float = 0.0
    #: How often something blocked the loop for longer than `stall`.
    stalls: int = 0
    _ticked = _lag = 0.0

    limit: int
    app: Any
    options: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Awaited on the loop, in order, before the first message is taken. An error ends the worker.
        self.on_loop_start: list[Hook] = []
        #: Awaited on the loop, in reverse order, after the last task has ended. An error is logged.
        self.on_loop_stop: list[Hook] = []
        #: Called with the seconds by which the loop is late, at each look while something blocks it: from two looks on,
        #: thus before `stall`, and until it ends. In the thread that watches, where they may wait for a second or so.
        self.on_stall: list[Callable[[float], object]] = []
        self._jobs: dict[int, Job] = {}
        self._handed_over = self._entered = 0
        self._pids = itertools.count(1)
        # On the loop thread only.
        self._waiting: deque[Job] = deque()
        self._running = 0
        # From the loop to the hub.
        self._callbacks: deque[Callable[[], object]] = deque()
        self._callbacks_due = False
        self._changed = threading.Event()
        self._hub: Any = None
        self._closing = False
        self._cut = False
        self._stopped = False
        self._crashed = False
        self._blind: set[str] = set()
        # The broker's side.
        self._consumer: Any = None
        self._fits_prefetch = False
        self._one_at_a_time = False
        self._acked = 0
        self._paused = False
        self._wanted: frozenset[str] | None = None
        self._before: frozenset[str] | None = None
        self.app.steps["consumer"].add(Slots)

    # What the owner may know and do. Any thread.

    @property
    def running(self) -> int:
        """Tasks that hold a slot."""
        return self._running

    @property
    def waiting(self) -> int:
        """Tasks that were taken and have not begun: the loop is busy, or the broker prefetches."""
        return len(self._waiting) + self._handed_over - self._entered

    @property
    def free(self) -> int:
        """Slots that are free; 0 once the worker drains."""
        return 0 if self._closing else max(0, self.limit - len(self._jobs))

    @property
    def stopping(self) -> bool:
        """From the begin of a shutdown on, warm or cold."""
        return self._closing

    @property
    def loop_lag(self) -> float:
        """Seconds by which the loop was last late, or is now."""
        if not self._ticked or self._stopped:
            return 0.0
        return max(self._lag, self.blocked)

    @property
    def blocked(self) -> float:
        """Seconds by which the loop is late now; 0.0 while it is not, and before its start and after its end."""
        if not self._ticked or self._stopped:
            return 0.0
        return max(0.0, time.monotonic() - self._ticked - self._tick_every)

    def stack(self) -> str:
        """What the loop's thread does at this moment, innermost call last: names and lines, no values."""
        return _stack(sys._current_frames().get(self._thread.ident or 0))

    def consume(self, queues: Collection[str] | None) -> None:
        """From now on take messages of exactly these queues; of none, if there are none. Returns at once.

        None: of those that were consumed before the first call, or before the last that said None.

        Survives reconnects. What was taken before is run. A message that the broker hands out at this very moment from
        a queue that is dropped goes back to where it was (Redis), or counts as taken before (AMQP). On Redis a queue
        that is added is listened to within a second. A queue that the application does not know is declared with the
        options of the first one that it does.
        """
        wanted = None if queues is None else frozenset(queues)
        if wanted != self._wanted:
            self._wanted = wanted
            if self._hub is not None:
                self._hub.call_soon(self._fit_queues)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the loop and wait for its answer. Raises TimeoutError after `timeout` seconds.

        Not for the loop's own thread. A shutdown that is asked for meanwhile ends the wait.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("pool.run would wait for itself: await the coroutine, this is the loop's thread")
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = HUB_TICK if deadline is None else min(HUB_TICK, deadline - time.monotonic())
            try:
                return future.result(max(left, 0.0))
            except TimeoutError:
                if future.done():
                    return future.result()
                if deadline is not None and time.monotonic() >= deadline:
                    future.cancel()
                    raise
                if self._crashed or (threading.current_thread() is threading.main_thread() and not self._closing):
                    state.maybe_shutdown()

    # Start.

    def on_start(self) -> None:
        self._hub = get_event_loop()
        if self._hub is None:
            raise ImproperlyConfigured("worker.pool:TaskPool needs a broker with an event loop: Redis or AMQP")
        self._follow_contexts()
        self._context = contextvars.copy_context()
        self._threads = ThreadPoolExecutor(max(1, self.sync_threads), thread_name_prefix="celery-sync-task")
        self.loop = new_event_loop()
        self.draining = asyncio.Event()
        self._tick_every = min(self.look, self.stall / 4)
        self._ticked = time.monotonic()
        self._thread = threading.Thread(target=self._run_loop, name="celery-loop", daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch, name="celery-loop-watch", daemon=True).start()
        for hook in self.on_loop_start:
            try:
                self.run(_call(hook, self))
            except Exception as error:
                trace = None if isinstance(error, CeleriacError) else error
                name = getattr(hook, "__qualname__", hook)
                logger.critical("Worker cannot start: %s failed: %s", name, str(error) or repr(error), exc_info=trace)
                raise SystemExit(EX_FAILURE) from error

    def _follow_contexts(self) -> None:
        # Celery keys its stacks by greenlet, which is right for the body of a task. Its child tasks (`gather`) and the
        # threads that it awaits have the task's context and not its greenlet. There is no public setting for the key.
        _task_stack.__ident_func__ = ident
        for task in self.app.tasks.values():
            task.request_stack.__ident_func__ = ident

    def _run_loop(self) -> None:
        error: BaseException | None = None
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(self._tick, time.monotonic())
        try:
            self.loop.run_forever()
        except BaseException as crash:
            error = crash
        if not self._stopped:
            self._crash(error)

    def fail(self, reason: str) -> None:
        """End the worker as SIGTERM does, but with an exit status that says that it failed. Any thread."""
        logger.critical("The worker stops: %s", reason)
        # Celery's own flag: its main loop leaves with this exit code, and hands back what was not acknowledged.
        state.should_stop = EX_FAILURE  # type: ignore[assignment]  # the stubs know only its first value
        self._to_hub(_nothing)

    def _crash(self, error: BaseException | None) -> None:
        self._crashed = True
        logger.critical("The event loop ended (%r)", error, exc_info=error)
        self.fail("it could run nothing more")
        time.sleep(CRASH_GRACE)
        logger.critical("The worker did not stop in %s s: it is ended", CRASH_GRACE)
        os._exit(EX_FAILURE)

    def register_with_event_loop(self, hub: Any) -> None:
        # Called again after each reconnect; the consumer drops these timers when it is cut off.
        self._hub = hub
        self._tick_hub()
        hub.call_repeatedly(HUB_TICK, self._tick_hub)

    def _tick_hub(self) -> None:
        self.hub_ticked = time.monotonic()
        self._fit_prefetch()

    # Tasks: taken on the hub thread, run on the loop thread.

    def on_apply(  # type: ignore[override]  # the options of BasePool.apply_async
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Job:
        call = functools.partial(target, *args, **(kwargs or {}))
        job = Job(self, next(self._pids), self.app.tasks[args[0]], call, options)
        self._jobs[job.pid] = job
        self._handed_over += 1
        self.loop.call_soon_threadsafe(self._enqueue, job)
        return job

    def _enqueue(self, job: Job) -> None:
        self._waiting.append(job)
        self._entered += 1
        self._fill()

    def _fill(self) -> None:
        while self._waiting and self._running < self.limit:
            self._begin(self._waiting.popleft())

    def _begin(self, job: Job) -> None:
        self._running += 1
        context = self._context.copy()
        context.run(current_run.set, job)
        future: asyncio.Future[None]
        if job.is_async or job.killed:
            self._accept(job)
            future = job.task = self.loop.create_task(self._run_async(job), name=str(job), context=context)
        else:
            self._warn_of_limits(job)
            future = self.loop.run_in_executor(self._threads, context.run, self._run_sync, job)
        future.add_done_callback(functools.partial(self._ended, job))

    async def _run_async(self, job: Job) -> None:
        if job.killed:
            return
        timers = []
        if job.soft_limit:
            timers.append(self.loop.call_later(job.soft_limit, self._pass_soft_limit, job, job.soft_limit))
        if job.hard_limit:
            timers.append(self.loop.call_later(job.hard_limit, self._pass_hard_limit, job, job.hard_limit))
        try:
            job.result = await in_greenlet(job.call, job)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit too: a task that exits must not take the loop along
            job.error = error
        finally:
            for timer in timers:
                timer.cancel()

    def _run_sync(self, job: Job) -> None:
        self._accept(job)
        try:
            job.result = job.call()
        except BaseException as error:
            job.error = error

    def _accept(self, job: Job) -> None:
        self._to_hub(functools.partial(self._accepted, job, os.getpid(), time.monotonic()))

    def _ended(self, job: Job, future: asyncio.Future[None]) -> None:
        self._running -= 1
        # First the callback, then the entry: a drain must not see the job gone and its callback not yet there.
        self._to_hub(functools.partial(self._settled, job, future.cancelled()))
        self._jobs.pop(job.pid, None)
        self._fill()

    # Limits and endings, on the loop thread.

    def _pass_soft_limit(self, job: Job, seconds: float) -> None:
        if job.remind(seconds) and job.on_timeout:
            self._to_hub(functools.partial(job.on_timeout, True, seconds))

    def _pass_hard_limit(self, job: Job, seconds: float) -> None:
        if not job.killed and self._kill(job) and job.on_timeout:
            self._to_hub(functools.partial(job.on_timeout, False, seconds))

    def _kill(self, job: Job) -> bool:
        """End a job for good: it gets no outcome. Whoever asks for it tells Celery."""
        if not job.kill():
            return False
        if job.task is not None:
            self.loop.call_later(self.cleanup, self._kill_again, job)
        elif job in self._waiting:
            # It begins only to be told to Celery, which is waiting for that.
            self._waiting.remove(job)
            self._begin(job)
        return True

    def _kill_again(self, job: Job) -> None:
        if job.task is not None and not job.task.done():
            logger.warning("Task %s was cancelled %s s ago and has not ended: it is cancelled again", job, self.cleanup)
            self._kill(job)

    def _warn_of_limits(self, job: Job) -> None:
        if (job.soft_limit or job.hard_limit) and job.name not in self._blind:
            self._blind.add(job.name)
            logger.warning("Task %s is not async: its time limits are not enforced by this pool", job.name)

    def terminate_job(self, pid: int, signal: object = None) -> None:
        job = self._jobs.get(pid)
        if job is None or self._crashed:
            return
        if not job.is_async and job.accepted:
            logger.warning("Task %s is not async: it cannot be stopped and runs on", job)
        self.loop.call_soon_threadsafe(self._kill, job)

    def grow(self, n: int = 1) -> None:
        self.limit += n
        self.loop.call_soon_threadsafe(self._fill)

    def shrink(self, n: int = 1) -> None:
        """Running tasks are not touched: the pool has fewer slots as they end."""
        if n >= self.limit:
            raise ValueError(f"a pool of {self.limit} cannot shrink by {n}")
        self.limit -= n

    @property
    def num_processes(self) -> int:
        return self.limit

    # Callbacks, on the hub thread.

    def _to_hub(self, callback: Callable[[], object]) -> None:
        self._callbacks.append(callback)
        self._changed.set()
        if not self._callbacks_due:
            self._callbacks_due = True
            self._hub.call_soon(self._run_callbacks)

    def _run_callbacks(self) -> None:
        self._callbacks_due = False
        while self._callbacks:
            callback = self._callbacks.popleft()
            try:
                callback()
            except (WorkerShutdown, WorkerTerminate):
                self._to_hub(_nothing)
                raise
            except Exception:
                logger.exception("Callback of a task failed")
        self._fit_prefetch()

    def _accepted(self, job: Job, pid: int, when: float) -> None:
        job.accepted = True
        self._acked += job.acks_early
        # A task that a shutdown cut off before Celery knew of it stays unacknowledged.
        if job.on_accept and not (self._cut and job.killed):
            # Celery's name of the process is ours of the job: `terminate_job` is called with it.
            job.on_accept(job.pid, when)

    def _settled(self, job: Job, cancelled: bool) -> None:
        self._acked -= job.acks_early
        if job.error is not None:
            if isinstance(job.error, (WorkerShutdown, WorkerTerminate)):
                raise job.error
            self._failed(job, job.error)
        elif cancelled and not job.killed:
            self._failed(job, WorkerLostError("its asyncio task was cancelled by somebody else"))
        elif not cancelled and not (job.killed and job.is_async and not job.over) and job.on_success:
            job.on_success(job.result)
            _untie(job.result)
        # The asyncio task holds its context, which holds this job.
        job.task = None

    def _failed(self, job: Job, error: BaseException) -> None:
        if job.on_error:
            job.on_error(ExceptionInfo((type(error), error, error.__traceback__)))

    # The broker.

    def consumes(self, consumer: Any) -> None:
        """Called by the consumer each time that it has connected, before it takes messages."""
        conf = self.app.conf
        broker = consumer.connection.transport.driver_type
        self._consumer = consumer
        # There the consumer itself asks for no message while every slot is reserved.
        self._fits_prefetch = not (conf.worker_disable_prefetch and broker == "redis")
        # RabbitMQ's quorum queues: the count of a queue that is consumed is fixed. One at a time is exact, too.
        self._one_at_a_time = broker == "amqp" and consumer.qos_global is False
        self._paused = False
        # Celery begins to consume in a moment.
        self._fit_queues(begin=False)
        self._fit_prefetch()
        consumer.qos.update()

    def _fit_prefetch(self) -> None:
        """Let the broker send as many messages as there are free slots.

        A broker counts what is not acknowledged, and a message is acknowledged as soon as its task begins: left alone,
        it would send as many again as there are slots. So what runs and is acknowledged is taken off the prefetch
        count, and at no free slot, where the count cannot say so (0 means no limit), the queues are not consumed.
        """
        consumer = self._consumer
        if not self._fits_prefetch or consumer.task_consumer is None or self._closing:
            return
        if self._one_at_a_time:
            consumer.qos.value = 1
        elif consumer.initial_prefetch_count:
            scheduled = len(state.scheduled_requests)  # type: ignore[attr-defined]  # the stubs leave it out
            most = self.limit * consumer.prefetch_multiplier + scheduled
            consumer.qos.value = max(1, most - self._acked)
        full = self._acked > 0 and len(self._jobs) >= self.limit
        if full and not self._paused:
            consumer.task_consumer.cancel()
        elif self._paused and not full:
            consumer.task_consumer.consume()
        self._paused = full

    def _fit_queues(self, begin: bool = True) -> None:
        """Bring what is consumed in line with what is wanted. On the hub thread. begin: consume what is added.

        What a broker refuses is tried again: it must not end the worker. One that is lost is connected to anew.
        """
        consumer = self._consumer
        if consumer is None or consumer.task_consumer is None or self._closing:
            return
        try:
            self._change_queues(consumer, begin)
        except consumer.connection_errors:
            raise
        except Exception as error:
            logger.error("The queues could not be changed, and are tried again: %r", error)
            self._hub.call_later(QUEUES_AGAIN, self._fit_queues)

    def _change_queues(self, consumer: Any, begin: bool) -> None:
        wanted, as_before = self._wanted, self._wanted is None
        taken = frozenset(queue.name for queue in consumer.task_consumer.queues)
        if wanted is None:
            wanted = taken if self._before is None else self._before
        elif self._before is None:
            self._before = taken
        for name in sorted(taken - wanted):
            consumer.cancel_task_queue(name)
        added = sorted(wanted - taken)
        for name in added:
            consumer.task_consumer.add_queue(self._select(name))
        # Where the worker is full, `_fit_prefetch` begins when it is not. What is consumed already is left as it is.
        if begin and not self._paused:
            consumer.task_consumer.consume()
        if added:
            logger.info("Consuming from %s", ", ".join(sorted(wanted)))
        if as_before:  # done, and only now forgotten
            self._before = None

    def _select(self, name: str) -> Any:
        """The queue of this name, among those that a new connection consumes."""
        queues = self.app.amqp.queues
        if name in queues:  # asked first: looking it up would make one, with other options
            return queues.select_add(queues[name])
        like = next(iter(queues.values()), None)
        options = {} if like is None else like.as_dict()
        for own in ("name", "exchange", "routing_key", "alias", "bindings"):
            options.pop(own, None)
        kind = "direct" if like is None else like.exchange.type
        return queues.select_add(name, exchange=name, exchange_type=kind, routing_key=name, **options)

    # The end.

    def on_close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._crashed:
                self.loop.call_soon_threadsafe(self.draining.set)

    def on_stop(self) -> None:
        """End of a warm shutdown, and of a cold one, where Celery calls it from a signal handler."""
        if self._stopped:
            return
        self.on_close()
        cold = _is_cold()
        if not cold and not self._wait(self.grace):
            logger.warning("Grace period of %s s is over: %d tasks are cancelled", self.grace, len(self._jobs))
            if self._consumer is not None:
                self._consumer.cancel_active_requests()
        self._finish(cold)

    def on_terminate(self) -> None:
        if not self._stopped:
            self.on_close()
            self._finish(cold=True)

    def _finish(self, cold: bool) -> None:
        if self._stopped:  # by a cold shutdown that came while this thread was waiting
            return
        if self._crashed:
            if self._consumer is not None:
                self._consumer.controller.exitcode = EX_FAILURE
        else:
            self._cut = True
            self.loop.call_soon_threadsafe(self._cut_off)
            if not self._wait(self.cleanup, cold):
                logger.error("Given up: %s", ", ".join(str(job) for job in list(self._jobs.values())[:10]))
            for hook in reversed(self.on_loop_stop):
                try:
                    self.run(_call(hook, self), timeout=self.cleanup)
                except Exception as error:
                    logger.error("%s failed: %r", getattr(hook, "__qualname__", hook), error, exc_info=error)
            self._stopped = True
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(self.cleanup)
        self._stopped = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._run_callbacks()

    def _cut_off(self) -> None:
        while self._waiting:
            self._jobs.pop(self._waiting.popleft().pid, None)
        for job in list(self._jobs.values()):
            if not job.killed:
                self._kill(job)
        self._changed.set()

    def _wait(self, timeout: float | None, cold: bool = False) -> bool:
        """Wait until no job is left. False after `timeout` seconds; a crash or a colder shutdown ends the wait."""
        deadline = None if timeout is None else time.monotonic() + timeout
        hub = None if cold else self._new_turns()
        while self._jobs or self._callbacks:
            if self._crashed or self._stopped or _is_cold() > cold:
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
            hub = self._turn(hub)
        return True

    def _new_turns(self) -> Iterator[None]:
        # Not `hub.loop`: a signal handler may be here while another is at work.
        turns: Iterator[None] = self._hub.create_loop()
        return turns

    def _turn(self, hub: Iterator[None] | None) -> Iterator[None] | None:
        """Let the hub work for a moment: acknowledgements, the broker's heartbeats, our callbacks."""
        if hub is not None:
            try:
                next(hub)
            except StopIteration:
                return self._new_turns()
            except Exception as error:
                logger.warning("The broker is lost while tasks end: %r", error)
            else:
                return hub
        # In a signal handler, or without a broker: acknowledgements are sent, if at all, when the hub closes.
        self._changed.wait(HUB_TICK / 10)
        self._changed.clear()
        self._run_callbacks()
        return None

    # How the loop is doing.

    def _tick(self, expected: float) -> None:
        now = time.monotonic()
        self._lag = max(0.0, now - expected)
        before, self._ticked = self._ticked, now
        if self._lag > self.stall and self._reported != before:
            # What blocked it kept the watching thread from running, too.
            self._report_stall(self._lag, "it held the interpreter's lock, or the process was stopped")
        self.loop.call_later(self._tick_every, self._tick, now + self._tick_every)

    _reported = 0.0

    def _watch(self) -> None:
        while not self._stopped and not self._crashed:
            before = time.monotonic()
            time.sleep(self._tick_every)
            ticked, now = self._ticked, time.monotonic()
            late = now - ticked - self._tick_every
            if late > self.stall and self._reported != ticked:
                self._reported = ticked
                self._report_stall(late, self.stack())
            # This thread overslept as well: the process was stopped, and the loop is about to run like us.
            if late > self._tick_every and now - before < 2 * self._tick_every:
                self._call_stalled(late)

    def _call_stalled(self, late: float) -> None:
        for hook in self.on_stall:
            try:
                hook(late)
            except Exception as error:
                logger.error("%s failed: %r", getattr(hook, "__qualname__", hook), error, exc_info=error)

    def _report_stall(self, seconds: float, stack: str) -> None:
        self.stalls += 1
        logger.error("The event loop has been blocked for %.1f s by %s\n%s", seconds, self._who_runs(), stack)

    def _who_runs(self) -> str:
        task = asyncio.current_task(self.loop)
        if task is None:
            return "a callback of no task"
        job = next((job for job in list(self._jobs.values()) if job.task is task), None)
        if job is None and sys.version_info >= (3, 12):
            run = task.get_context().get(current_run)
            job = run if isinstance(run, Job) else None
        return f"task {job}" if job else f"asyncio task {task.get_name()}"

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),  # type: ignore[misc]  # the stubs leave it out
            "running": self.running,
            "waiting": self.waiting,
            "free": self.free,
            "stalls": self.stalls,
            "loop-lag": round(self.loop_lag, 3),
            "loop": type(self.loop).__module__,
        }

    @property
    def info(self) -> dict[str, Any]:
        return self._get_info()


class Slots(bootsteps.StartStopStep):
    """Introduces the consumer to the pool."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def include_if(self, consumer: Any) -> bool:
        return isinstance(consumer.pool, TaskPool)

    def start(self, consumer: Any) -> None:
        consumer.pool.consumes(consumer)

    def stop(self, consumer: Any) -> None:
        pass


async def _call(hook: Hook, pool: TaskPool) -> None:
    await hook(pool)


def _nothing() -> None:
    pass


def _untie(result: Any) -> None:
    """Let go of a failure at once.

    Celery's account of it holds the exception, whose traceback holds Celery's frame, which holds the account: 60 KB for
    each task that fails, retries or is ignored, until a full garbage collection.
    """
    failed, account, _ = result
    if failed and isinstance(account, ExceptionInfo):
        error: Any = account.exception
        (error.exc if isinstance(error, ExceptionWithTraceback) else error).__traceback__ = None


def _is_cold() -> bool:
    return state.should_terminate is not None and state.should_terminate is not False


def _stack(frame: FrameType | None) -> str:
    return "".join(traceback.format_stack(frame)[-8:]) if frame else "(no stack)"
