"""What kombu writes into Redis itself, written also when Redis is full: else Celery's worker would end.

It notes which queues there are when a worker starts, reconnects, or begins to consume another queue: a few short names.
And it notes in two keys which submissions it has taken and nobody has acknowledged yet; those were just taken out of a
list, so that they need no room. Scripts that a full Redis does not refuse do the same.
"""

from __future__ import annotations

from time import time
from types import MethodType
from typing import Any, Final

from celery import bootsteps
from kombu.transport import redis as kombus
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis.exceptions import OutOfMemoryError

from celeriac.connections import ALWAYS
from celeriac.logs import get_logger

log = get_logger(__name__)
#: The stubs leave out what is not public there.
redis: Any = kombus

#: KEYS: index, messages. ARGV: tag, now, message.
TAKE: Final = f"""{ALWAYS}
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
"""
#: KEYS: index, messages, queue, ... ARGV: tag, command, message. Nothing where somebody else was first.
GIVE_BACK: Final = f"""{ALWAYS}
redis.call('ZREM', KEYS[1], ARGV[1])
if redis.call('HDEL', KEYS[2], ARGV[1]) == 1 then
  for i = 3, #KEYS do redis.call(ARGV[2], KEYS[i], ARGV[3]) end
end
"""


#: KEYS: sets. ARGV: member.
BIND: Final = f"{ALWAYS}for i = 1, #KEYS do redis.call('SADD', KEYS[i], ARGV[1]) end"


def write_when_full() -> None:
    """For every connection of this process from now on: Celery makes several, and hands out none of them in time."""
    redis.Channel._queue_bind = _queue_bind
    redis.Channel._refresh_binding = property(_refresh_binding)
    redis.QoS.restore_visible = _restore_visible


_bind_with_expiry, _restore_what_is_due = redis.Channel._queue_bind, redis.QoS.restore_visible


def _refresh_binding(channel: Any) -> Any:
    return channel._create_client().register_script(f"{ALWAYS}{redis.REFRESH_BINDING}")


def _restore_visible(qos: Any, *args: Any, **options: Any) -> Any:
    try:
        return _restore_what_is_due(qos, *args, **options)
    except OutOfMemoryError:  # it takes a lock for that
        log.warning("submissions_not_restored", reason="the store is full; tried again in some minutes")


def _queue_bind(channel: Any, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
    if queue in channel._expires:
        _bind_with_expiry(channel, exchange, routing_key, pattern, queue)
        return
    if channel.typeof(exchange).type == "fanout":
        channel._fanout_queues[queue] = (exchange, routing_key.replace("#", "*"))
    sets = (channel.keyprefix_queue % exchange, channel.keyprefix_binding_permanent % exchange)
    with channel.conn_or_acquire() as client:
        client.eval(BIND, 2, *sets, channel.sep.join([routing_key or "", pattern or "", queue or ""]))


class Submissions(bootsteps.StartStopStep):
    """Of a consumer. As Celery does it itself for prefetching, the methods of this one channel are replaced."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        if consumer.connection.transport.driver_type == "redis":
            qos = consumer.task_consumer.channel.qos
            qos.append = MethodType(_append, qos)
            qos.restore_by_tag = MethodType(_restore_by_tag, qos)

    def stop(self, consumer: Any) -> None:
        pass


def _append(qos: Any, message: Any, tag: str) -> None:
    where = message.delivery_info
    noted = dumps([message._raw, where["exchange"], where["routing_key"]])
    with qos.channel.conn_or_acquire() as client:
        client.eval(TAKE, 2, qos.unacked_index_key, qos.unacked_key, tag, time(), noted)
    virtual.QoS.append(qos, message, tag)


class _Pushes:
    """Stands where kombu expects a pipeline, and keeps what would be pushed."""

    def __init__(self) -> None:
        self.queues: list[str] = []
        self.command = self.message = ""

    def _push(self, command: str, queue: str, message: str) -> None:
        self.command, self.message = command, message
        self.queues.append(queue)

    def lpush(self, queue: str, message: str) -> None:
        self._push("LPUSH", queue, message)

    def rpush(self, queue: str, message: str) -> None:
        self._push("RPUSH", queue, message)


def _restore_by_tag(qos: Any, tag: str, client: Any = None, leftmost: bool = False) -> None:
    with qos.channel.conn_or_acquire(client) as redis:
        pushes, noted = _Pushes(), redis.hget(qos.unacked_key, tag)
        if noted:
            message, exchange, routing_key = loads(bytes_to_str(noted))
            qos.channel._do_restore_message(message, exchange, routing_key, pushes, leftmost)
        keys = [qos.unacked_index_key, qos.unacked_key, *pushes.queues]
        redis.eval(GIVE_BACK, len(keys), *keys, tag, pushes.command, pushes.message)
