"""Child processes of the GPU tests: run one in a flavour's environment, read its output, end its group."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.serving.support.flavours import HOME, Flavour

ROOT: Final = Path(__file__).resolve().parents[3]
"""The repository: children find this package there."""


@dataclass(frozen=True)
class Lines:
    """``rows`` are the JSON objects other than the marks ``begin`` and ``end``.

    ``fault`` is empty if the child reached its ``end``. Otherwise it says how the child ended and what it had
    begun last.
    """

    rows: tuple[dict[str, Any], ...]
    fault: str

    def keep(self, name: str) -> None:
        """Write ``NAME.json`` in the folder that ``ADA_GPU_OUT`` names, if it is set."""
        if where := os.environ.get("ADA_GPU_OUT"):
            found = json.dumps([*self.rows, {"fault": self.fault}], indent=1)
            Path(where, f"{name}.json").write_text(found)


def missing(*sites: str) -> str | None:
    """Say which folders of packages are missing, and the command that makes them; None if none is."""
    lacking = [str(HOME / site) for site in sites if not (HOME / site).is_dir()]
    if not lacking:
        return None
    return (
        f"{', '.join(lacking)} missing: python -m tests.serving.support.stage install PART ..., "
        "or without a PART where there is a package index"
    )


def needs(flavour: Flavour) -> str | None:
    """Why the flavour cannot be run here, or None."""
    return missing(*{flavour.site: None, "stack": None})


def run(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], timeout: float
) -> Lines:
    """Run ``python -m module`` to its end, or for ``timeout`` seconds. Its output is kept either way."""
    out, err, code = capture(["-m", module, *arguments], environment, timeout)
    ending = f"no end after {timeout:.0f} s" if code is None else f"exit code {code}"
    return parse(out, err, ending, code == 0)


def parse(out: str, err: str, ending: str, good: bool) -> Lines:
    """Parse a child's output. It has a fault unless ``good`` is true and the child printed its end."""
    rows, begun, ended = read(out)
    if ended and good:
        return Lines(rows, "")
    return Lines(rows, f"{ending}, last begun: {begun or 'its start'}\n{err[-3000:]}")


def capture(
    arguments: Sequence[str], environment: Mapping[str, str], timeout: float
) -> tuple[str, str, int | None]:
    """Run this Python with ``arguments``. Returns stdout, stderr and exit code (None after ``timeout``)."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as late:
        return _text(late.stdout), _text(late.stderr), None
    return done.stdout, done.stderr, done.returncode


def read(out: str) -> tuple[tuple[dict[str, Any], ...], str, bool]:
    """Rows, what was begun last, and whether the end was reached.

    Lines that are not JSON objects come from libraries and are left out.
    """
    rows: list[dict[str, Any]] = []
    begun, ended = "", False
    for line in out.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict):
            continue
        if "begin" in row:
            begun = row["begin"]
        elif "end" in row:
            ended = True
        else:
            rows.append(row)
    return tuple(rows), begun, ended


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole process group: an engine's scheduler outlives a parent that is killed alone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_of(log: Path, lines: int = 25) -> list[str]:
    """The last lines of a log."""
    return log.read_text(errors="replace").splitlines()[-lines:]


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
