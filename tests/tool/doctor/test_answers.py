"""How the answers of another interpreter are read, without starting one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.tool.doctor.test_diagnose import facts
from tool.doctor import environment
from tool.errors import EnvironmentFault, UsageError

PYTHON = Path("/venv/bin/python")


def answer(
    monkeypatch: pytest.MonkeyPatch, status: int | None, output: str = "", errors: str = ""
) -> None:
    ended = environment._Ended(status, output, errors)
    monkeypatch.setattr(environment, "_run", lambda *_: ended)


def document(**changed: Any) -> str:
    import dataclasses

    return json.dumps(dataclasses.asdict(facts(**changed)))


def test_facts_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, 0, f"words of a .pth file\n{document()}\n")
    assert environment.probe_environment(PYTHON) == environment.parse(json.loads(document()))
    answer(monkeypatch, 0, document(torch=None))
    assert environment.probe_environment(PYTHON).torch is None


@pytest.mark.parametrize(
    ("status", "output", "errors", "error", "message", "why"),
    [
        (
            None,
            "",
            "",
            EnvironmentFault,
            "did not answer in 3 s",
            "importing torch, or the driver, hangs",
        ),
        (None, "", "a\nb\n", EnvironmentFault, "did not answer in 3 s", "b"),
        (-11, "", "x", EnvironmentFault, "while it was examined", "x"),
        (1, "", "SyntaxError", UsageError, "not a Python interpreter of 3.10", "SyntaxError"),
        (0, "[]", "", UsageError, "not a Python interpreter of 3.10", None),
        (0, '{"driver": 1}', "", UsageError, "not a Python interpreter of 3.10", None),
    ],
)
def test_no_facts(
    monkeypatch: pytest.MonkeyPatch,
    status: int | None,
    output: str,
    errors: str,
    error: type[Exception],
    message: str,
    why: str | None,
) -> None:
    answer(monkeypatch, status, output, errors)
    with pytest.raises(error, match=message) as caught:
        environment.probe_environment(PYTHON, 3)
    assert caught.value.why == why  # type: ignore[attr-defined]


def test_what_cannot_be_started() -> None:
    with pytest.raises(UsageError, match="cannot be run: No such file"):
        environment.probe_environment(Path("/nonexistent/python"))


GOOD = {"name": "top-k", "ok": True, "error": 0.0, "bound": 0.0, "seconds": 0.1, "problem": None}


@pytest.mark.parametrize(
    ("status", "records", "skipped", "broken", "checks"),
    [
        (0, [{"sm": 89}, GOOD, {"seconds": 2.0}], None, None, 1),
        (0, [{"unfit": "no GPU"}], "no GPU", None, 0),
        (None, [{"sm": 89}, GOOD], None, "did not end within 9 s", 1),
        (1, [{"sm": 89}, GOOD], None, "words", 1),
        (-9, [], None, "words", 0),
    ],
)
def test_a_self_test(
    monkeypatch: pytest.MonkeyPatch,
    status: int | None,
    records: list[dict[str, Any]],
    skipped: str | None,
    broken: str | None,
    checks: int,
) -> None:
    text = "\n".join(json.dumps(one) for one in records)
    answer(monkeypatch, status, text, "words\n")
    found = environment.run_selftest(PYTHON, Path("/kernels"), 9)
    assert (found.skipped, len(found.checks)) == (skipped, checks)
    assert (found.broken is None) == (broken is None) and (broken or "") in (found.broken or "")
    assert found.sm == (89 if checks else None)
    if status == 0 and checks:
        assert found.seconds == 2.0
    answer(monkeypatch, 1, text.replace('{"seconds": 2.0}', ""), "")
    if broken and status == 1:
        silent = environment.run_selftest(PYTHON, Path("/kernels"), 9)
        assert "it said nothing" in (silent.broken or "")


# -- the process -----------------------------------------------------------------------------------------


class Process:
    """A process that hangs for the first ``hangs`` questions, or is interrupted."""

    pid = 12345
    returncode = 7

    def __init__(self, hangs: int = 0, error: type[BaseException] | None = None) -> None:
        self._hangs = hangs
        self._error = error

    def communicate(self, timeout: float) -> tuple[str, str]:
        if self._error:
            raise self._error
        if self._hangs:
            self._hangs -= 1
            raise subprocess.TimeoutExpired("python", timeout)
        return "out", "err"


@pytest.mark.parametrize(
    ("process", "status", "killed"),
    [(Process(), 7, 0), (Process(hangs=1), None, 1), (Process(hangs=2), None, 1)],
)
def test_a_process_that_hangs_is_killed(
    monkeypatch: pytest.MonkeyPatch, process: Process, status: int | None, killed: int
) -> None:
    kills: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "killpg", lambda *given: kills.append(given))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: process)
    ended = environment._run(["python"], 1)
    assert ended.status == status and kills == [(12345, signal.SIGKILL)] * killed
    assert ("cannot even be killed" in ended.errors) is (ended.output == "")


def test_an_interrupt_kills_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    kills: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pid, _: kills.append(pid))
    process = Process(error=KeyboardInterrupt)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: process)
    with pytest.raises(KeyboardInterrupt):
        environment._run(["python"], 1)
    assert kills == [12345]
