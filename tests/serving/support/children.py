"""Children of the GPU tests: run in a flavour's environment, read, and ended with all they started."""

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

    ``fault`` says how the child ended where it did not reach its ``end``, and in the middle of what;
    empty where it did.
    """

    rows: tuple[dict[str, Any], ...]
    fault: str

    def keep(self, name: str) -> None:
        """Write ``NAME.json`` in the folder that ``ADA_GPU_OUT`` names, if it is set."""
        if where := os.environ.get("ADA_GPU_OUT"):
            found = json.dumps([*self.rows, {"fault": self.fault}], indent=1)
            Path(where, f"{name}.json").write_text(found)


def missing(*sites: str) -> str | None:
    """Which folders of packages are not there, and what makes them; None when all are."""
    lacking = [str(HOME / site) for site in sites if not (HOME / site).is_dir()]
    if not lacking:
        return None
    return (
        f"{', '.join(lacking)} missing: python -m tests.serving.support.stage install PART ..., "
        "or install --index"
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
    """What a child said; a fault unless its end is ``good`` and it said so itself."""
    rows, begun, ended = read(out)
    if ended and good:
        return Lines(rows, "")
    return Lines(rows, f"{ending}, last begun: {begun or 'its start'}\n{err[-3000:]}")


def capture(
    arguments: Sequence[str], environment: Mapping[str, str], timeout: float
) -> tuple[str, str, int | None]:
    """Output, errors and exit code of this Python with ``arguments``; None: stopped at ``timeout``."""
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

    Lines that are no JSON objects are other people's prints.
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
    """The whole group: an engine's scheduler outlives a parent that is killed alone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_of(log: Path, lines: int = 25) -> list[str]:
    """The last lines of a log."""
    return log.read_text(errors="replace").splitlines()[-lines:]


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
