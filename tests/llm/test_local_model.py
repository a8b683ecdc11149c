"""The real local model, through each SDK."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from celeriac.errors import ContextTooLong
from celeriac.local import model as local

from .conftest import WIRES, Case, adapter

needs_model = pytest.mark.skipif(bool(local.missing()), reason="no wheel of the local model for this platform")
COMMAND = [sys.executable, "-m", "celeriac.local.model", "--port", "0"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    yield url
    process.terminate()
    process.wait(5)
    process.stdout.close()


@needs_model
@pytest.mark.parametrize("name", WIRES)
async def test_the_local_model_answers_through_each_sdk(server: str, http: httpx2.AsyncClient, name: str) -> None:
    """Text, and usage that adds up whether or not part of the prompt was cached."""
    case = Case(name, adapter(name, http, server), None)
    sizes = set()
    for _ in range(2):
        answer = await case.answer(text="What is the capital of France?", max_output_tokens=8, deadline=60.0)
        assert answer.text
        assert answer.model == local.MODEL
        assert 1 <= answer.usage.output <= 8
        sizes.add(answer.usage.input + answer.usage.cache_read)
    assert len(sizes) == 1
    assert answer.usage.cache_read > 0


@needs_model
@pytest.mark.parametrize("name", WIRES)
async def test_a_conversation_too_long_for_it_is_named_so(server: str, http: httpx2.AsyncClient, name: str) -> None:
    """Another lane may have a longer window."""
    with pytest.raises(ContextTooLong):
        await Case(name, adapter(name, http, server), None).answer(text="hello world " * 9000, deadline=60.0)


@needs_model
def test_it_stops_within_two_seconds_while_it_answers() -> None:
    """`celeriac up` gives each part a deadline. A busy machine may delay one of three; who waits for the answer delays
    each.
    """
    assert any(seconds_to_stop() < 2 for _ in range(3))


def seconds_to_stop() -> float:
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2000, "ignore_eos": True}
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body | {"stream": True}, timeout=30) as answer:
        next(answer.iter_bytes())  # it is answering now
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    process.stdout.close()
    return time.monotonic() - began


def test_without_its_packages_it_says_so_in_one_line() -> None:
    """Exit code 3: whoever started it goes on without."""
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'xllamacpp' else find(name, *a)\n"
        "from celeriac.local import model; model.main(['--port', '0'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == local.NOT_AVAILABLE
    assert ran.stderr.count("\n") == 1
    assert "xllamacpp" in ran.stderr


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise ImportError('libgomp.so.1: cannot open shared object file')", "libgomp.so.1"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "it ended with -4"),
    ],
    ids=["a library is missing", "made for another processor"],
)
def test_a_wheel_that_does_not_load_here_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, why: str
) -> None:
    """It fits the platform by its name, and that is all: who asks lives on, and knows why."""
    (tmp_path / "xllamacpp.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(local, "not_installed", str)
    said = local.missing()
    assert said.startswith("no local model: xllamacpp does not load here (")
    assert why in said
    assert ("install libgomp1" in said) == ("libgomp" in why)
