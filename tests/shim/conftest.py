"""A shim over a real Valkey, and no worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Valkey
from tests.processes import Shim, running


@pytest.fixture(scope="package")
def one_shim(valkey_server: Valkey) -> Iterator[Shim]:
    with running(Shim(valkey_server.url)) as shim:
        yield shim


@pytest.fixture
def shim(one_shim: Shim, valkey: Valkey) -> Shim:
    return one_shim
