"""The house of the stories, seen from below: what is in Redis, what a worker says to probes, what holds it up."""

from __future__ import annotations

from tests.story.conftest import home as home
from tests.story.conftest import house as house
from tests.story.conftest import one_home as one_home
