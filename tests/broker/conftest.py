"""A house whose bells go through RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.processes import Shim
from tests.rabbitmq import RabbitMQ
from tests.story.conftest import House


class TwoServers(House):
    """The jobs are in Valkey, their bells in RabbitMQ."""

    def __init__(self, rabbitmq: RabbitMQ) -> None:
        super().__init__()
        self.rabbitmq = rabbitmq
        self.env["CELERIAC_BROKER_URL"] = rabbitmq.url

    def shim(self, **env: str) -> Shim:
        return super().shim(CELERIAC_BROKER_URL=self.rabbitmq.url, **env)


@pytest.fixture(scope="package")
def rabbitmq() -> Iterator[RabbitMQ]:
    with RabbitMQ() as server:
        yield server


@pytest.fixture
def house(rabbitmq: RabbitMQ) -> Iterator[TwoServers]:
    opened = TwoServers(rabbitmq)
    yield opened
    opened.close()
    if rabbitmq.process is None:
        rabbitmq.start()
