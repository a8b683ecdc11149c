"""The README's commands work as they stand there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT, wait_until


def commands(document: str) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", (ROOT / document).read_text(), re.S)


def test_a_newcomer_gets_an_answer_with_the_readmes_commands(tmp_path: Path) -> None:
    """`celeriac up` as `make run` starts it, its own first job, then the two curl commands, and
    the two that read along; Ctrl-C leaves nothing."""
    log = tmp_path / "up.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CELERIAC_", "OPENAI_", "ANTHROPIC_"))}
    command = [sys.executable, "-m", "celeriac.cli", "up", "--free-ports", "--directory", str(tmp_path / "state")]
    with log.open("w") as output:
        up = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        said = lambda: log.read_text()  # noqa: E731
        wait_until(lambda: "Ctrl-C stops everything" in said() or up.poll() is not None, "the first job", 180)
        assert re.search(r"answer +\S+", said()), said()[-3000:]
        assert re.search(r"tokens +\d+ in, \d+ out", said())
        assert re.search(r"cost +\$0\.\d{9}", said())
        url = re.search(r"shim +(http://[\d.:]+)", said())[1]  # type: ignore[index]  # it is up

        def answer(command: str, **env: str) -> str:
            command = command.replace("http://127.0.0.1:8000", url)
            return subprocess.check_output(command, shell=True, text=True, env=environment | env)  # noqa: S602  # our own

        submit, wait = (command for command in commands("README.md") if command.startswith("curl"))
        job = json.loads(answer(wait, ID=json.loads(answer(submit))["id"]))
        assert job["state"] == "succeeded"
        assert job["answer"]
        assert float(job["cost_usd"]) > 0
        submit, read = commands("docs/streams.md")
        events = re.findall(r"^event: (\w+)$", answer(read, ID=json.loads(answer(submit))["id"]), re.M)
        assert [*dict.fromkeys(events)] == ["state", "start", "delta", "end"]
        up.send_signal(signal.SIGINT)
        assert up.wait(20) in {0, 130}
    finally:
        up.kill()
        up.wait()


def test_documents_name_only_targets_that_exist() -> None:
    """`make x` in a sentence, or at the beginning of a line of a code block, is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        (document.name, target)
        for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
        for target in re.findall(r"(?:`|^(?: {4}|\$ )?)make ([a-z][a-z-]*)", document.read_text(), re.M)
    }
    assert {("README.md", "run"), ("README.md", "test"), ("CONTRIBUTING.md", "check")} <= named
    assert [(document, target) for document, target in sorted(named) if target not in targets] == []


def test_links_in_documents_lead_somewhere() -> None:
    """Every relative link is a file."""
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        for link in re.findall(r"\]\((?!http|#)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
