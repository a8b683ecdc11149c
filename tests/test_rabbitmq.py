"""The RabbitMQ that other tests use: a real node, which keeps what it was given over stops and kills."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Connection, Queue

from tests.rabbitmq import HOW_TO_GET_IT, RabbitMQ, program

pytestmark = pytest.mark.rabbitmq

#: AMQP's number for a message that is kept on disk.
PERSISTENT = 2


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitMQ]:
    with RabbitMQ() as server:
        yield server


def publish(server: RabbitMQ, name: str, body: str) -> None:
    """Returns once the broker has it on disk."""
    with Connection(server.url, transport_options={"confirm_publish": True}) as connection:
        queue = Queue(name, durable=True)
        connection.Producer().publish(body, routing_key=name, declare=[queue], delivery_mode=PERSISTENT)


def consume(server: RabbitMQ, name: str) -> str:
    with Connection(server.url) as connection, connection.SimpleQueue(name) as messages:
        message = messages.get(timeout=30)
        message.ack()
        return str(message.payload)


def test_what_is_published_is_consumed(rabbitmq: RabbitMQ) -> None:
    """By kombu, as Celery does it."""
    publish(rabbitmq, "plain", "Paris")
    assert consume(rabbitmq, "plain") == "Paris"


def test_a_node_that_was_stopped_or_killed_comes_back_with_its_messages(rabbitmq: RabbitMQ) -> None:
    """On the same port. In this order: a queue, unlike a message, may take seconds to be safe from a kill."""
    publish(rabbitmq, "kept", "Rome")
    rabbitmq.stop()
    assert not rabbitmq.ready()
    rabbitmq.start()
    publish(rabbitmq, "kept", "Madrid")
    rabbitmq.kill()
    assert not rabbitmq.ready()
    rabbitmq.start()
    assert [consume(rabbitmq, "kept"), consume(rabbitmq, "kept")] == ["Rome", "Madrid"]


def test_a_removed_node_leaves_nothing_behind(rabbitmq: RabbitMQ) -> None:
    """No process, no file; another node at the same time is not its business."""
    with RabbitMQ() as other:
        assert other.port != rabbitmq.port
        directory = str(other.directory)
        assert processes_of(directory)
    assert not Path(directory).exists()
    assert processes_of(directory) == []
    assert rabbitmq.ready()


def processes_of(directory: str) -> list[int]:
    """Those that were started in an environment that names the directory."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if directory in environment.read_text(errors="replace"):
                found.append(int(environment.parent.name))
        except OSError:  # it ended, or is another user's
            continue
    return [pid for pid in found if pid != os.getpid()]


def test_without_the_program_the_failure_says_how_to_get_it() -> None:
    """One line, and no skipped test that nobody notices."""
    with pytest.raises(pytest.fail.Exception) as failure:
        program(("no-such-program",))
    assert str(failure.value) == HOW_TO_GET_IT
