"""Submissions on Redis are taken and given back also when Redis is full.

kombu notes what it has taken and nobody acknowledged yet in two keys, and a full Redis refuses that: Celery's worker
then ends, and the message is gone, since it was popped before. But what is noted was just taken out of a list, so it
needs no room: scripts that a full Redis does not refuse do the same.
"""

from __future__ import annotations

from time import time
from types import MethodType
from typing import Any, Final

from celery import bootsteps
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

from celeriac.connections import ALWAYS

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
