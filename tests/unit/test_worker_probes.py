"""What `/livez` of a worker makes of silence: a restart is for what a restart cures."""

from __future__ import annotations

import dataclasses
import socket
import time
from functools import partial

import pytest
from kombu.transport import get_transport_cls

from celeriac.jobs.reach import ask_broker, ask_store
from celeriac.settings import Settings, load_settings
from tests.conftest import Valkey
from tests.processes import free_port, held
from worker.probes import LOOK, RECONNECTED, Health, Signs

WELL = Signs(
    worker="w1",
    registered=True,
    stopping=False,
    hub_silent=0.1,
    blocked=0.0,
    heartbeat_age=0.5,
    loop_lag=0.0,
    stalls=0,
    running=3,
    slots=10,
    taking=True,
)
LEASE = 15.0


class Patient:
    """A worker's health over a real store, which is its broker, too."""

    def __init__(self, valkey: Valkey) -> None:
        settings = load_settings(redis_url=valkey.url)
        self.signs = WELL
        self.health = Health(
            lambda: self.signs, LEASE, store=partial(ask_store, settings, 20), broker=partial(ask_broker, settings, 20)
        )

    def has(self, **signs: object) -> None:
        self.signs = dataclasses.replace(WELL, **signs)

    def dying(self, *, after: float) -> set[str]:
        """After so many seconds in which it stays as it is."""
        for _ in range(round(after / LOOK)):
            self.health.look()
        return set(self.health.dying(self.signs))

    def unready(self) -> set[str]:
        return set(self.health.unready(self.signs))


@pytest.fixture
def patient(own_valkey: Valkey) -> Patient:
    return Patient(own_valkey)


def test_a_worker_that_is_well_is_alive_and_ready(patient: Patient) -> None:
    """For as long as one likes."""
    assert patient.dying(after=10 * RECONNECTED) == set()
    assert patient.unready() == set()


def test_a_worker_that_takes_nothing_while_the_store_is_silent_is_not_ready(patient: Patient) -> None:
    """Long before its lease is over; a restart would not help."""
    patient.has(taking=False, heartbeat_age=6.0)
    assert patient.unready() == {"consuming"}
    assert patient.dying(after=10 * RECONNECTED) == set()


def test_a_deaf_worker_is_dead_a_minute_after_its_broker_answers(patient: Patient, own_valkey: Valkey) -> None:
    """While the broker is away nothing is held against it; then Celery has the time of two tries to come back."""
    patient.has(hub_silent=600.0)
    assert patient.unready() == {"consuming"}
    own_valkey.stop()
    assert patient.dying(after=RECONNECTED + LOOK) == set()
    own_valkey.start()
    assert patient.dying(after=RECONNECTED) == set()
    assert patient.dying(after=LOOK) == {"consuming"}


def test_a_broker_that_comes_and_goes_starts_the_minute_anew(patient: Patient, own_valkey: Valkey) -> None:
    """And so does a worker that took messages in between."""
    patient.has(hub_silent=600.0)
    assert patient.dying(after=RECONNECTED) == set()
    own_valkey.stop()
    assert patient.dying(after=LOOK) == set()
    own_valkey.start()
    assert patient.dying(after=RECONNECTED) == set()
    patient.has(hub_silent=0.2)
    assert patient.dying(after=LOOK) == set()
    patient.has(hub_silent=600.0)
    assert patient.dying(after=RECONNECTED) == set()


def test_a_heart_that_does_not_beat_is_dead_though_the_store_answers(patient: Patient, own_valkey: Valkey) -> None:
    """A lease after the store is back: its heart is not, and its jobs are others'."""
    patient.has(heartbeat_age=LEASE + 1)
    assert patient.unready() == {"heartbeat"}
    own_valkey.stop()
    assert patient.dying(after=4 * LEASE) == set()
    own_valkey.start()
    assert patient.dying(after=LEASE - LOOK) == set()
    assert patient.dying(after=2 * LOOK) == {"heartbeat"}


def test_a_loop_is_dead_when_its_extension_has_ended(patient: Patient) -> None:
    """Not before: until then it has its jobs, and what they paid for."""
    patient.has(blocked=1.4 * LEASE)
    assert patient.dying(after=0) == set()
    assert patient.unready() == {"loop"}
    patient.has(blocked=1.6 * LEASE)
    assert patient.dying(after=0) == {"loop"}


@pytest.mark.parametrize(("signs", "reason"), [({"worker": ""}, "starting"), ({"stopping": True}, "draining")])
def test_who_starts_or_stops_is_not_ready_and_not_dead(patient: Patient, signs: dict[str, object], reason: str) -> None:
    """However long it takes: its silence is in order."""
    patient.has(hub_silent=600.0, heartbeat_age=600.0, **signs)
    assert patient.unready() == {reason}
    assert patient.dying(after=2 * RECONNECTED) == set()


def test_a_worker_that_lost_its_lease_is_not_ready(patient: Patient) -> None:
    """Until it is registered again, under another name."""
    patient.has(registered=False)
    assert patient.unready() == {"heartbeat"}
    assert patient.dying(after=10 * LEASE) == set()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_server_that_says_nothing_does_not_answer(scheme: str) -> None:
    """It takes the connection, and the question has a time limit."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        settings = Settings(redis_url=f"redis://127.0.0.1:{port}", broker_url=f"{scheme}://127.0.0.1:{port}")
        for ask in (ask_store, ask_broker):
            began = time.monotonic()
            with pytest.raises(Exception):  # noqa: B017, PT011  # whatever the client raises
                ask(settings, 0.3)
            assert time.monotonic() - began < 5


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_server_that_is_not_there_does_not_answer(scheme: str) -> None:
    """At once, and it is asked once."""
    get_transport_cls(scheme)  # its import takes a while
    began = held()
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever the client raises
        ask_broker(Settings(broker_url=f"{scheme}://127.0.0.1:{free_port()}"), 5)
    assert held() - began < 2
