"""The worker as a process: requests go in, answers come out, and it can hang or crash at any moment."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tool.errors import UsageError
from tool.interpreter import describe_ending, kill_group, last_line, make_variables

WORKER: Final = Path(__file__).with_name("worker.py")
_DEATH_SECONDS: Final = 10.0


class Ended(Exception):
    """The worker is gone, or said nothing for too long; the message says how."""


class Worker:
    """``python`` running the worker; what it and its libraries print goes to ``log``.

    Raises:
        UsageError: ``python`` cannot be run.
    """

    def __init__(self, python: Path, log: Path, worker: Path = WORKER) -> None:
        self._log = log
        try:
            with log.open("w") as errors:
                self._process = subprocess.Popen(
                    [str(python), str(worker)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    errors="replace",
                    env=make_variables(bytecode=True),
                    start_new_session=True,
                )
        except OSError as error:
            raise UsageError(
                f"cannot be run: {error.strerror}",
                where=str(python),
                next_step="name the interpreter of an environment: --python ~/venv/bin/python",
            ) from error
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        kill_group(self._process)
        with contextlib.suppress(subprocess.TimeoutExpired):  # it waits inside the driver
            self._process.wait(_DEATH_SECONDS)

    def ask(self, request: Mapping[str, Any]) -> None:
        """Send a request; that the worker is gone is said by ``answer``."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """The next answer; None when there is none within ``seconds``.

        Raises:
            Ended: the process ended, or printed what is no answer.
        """
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            return None
        if line is None:
            status = self._process.wait(_DEATH_SECONDS)
            said = last_line(self._log.read_text(errors="replace"))
            raise Ended(f"it {describe_ending(status)}: {said or 'it said nothing'}")
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Ended(f"it printed what is no answer: {line.strip()[:200]}")
        return found

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)
