"""Run a script of this folder in a flavour's environment and read the JSON lines that it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flavours import HOME, Flavour

HERE: Final = Path(__file__).parent


@dataclass(frozen=True)
class Lines:
    """``rows`` are the JSON objects other than the marks ``begin`` and ``end``.

    ``fault`` says how the child ended where it did not reach its ``end``, and in the middle of what;
    empty where it did.
    """

    rows: tuple[dict[str, Any], ...]
    fault: str


def missing(flavour: Flavour) -> str | None:
    """Why the flavour cannot be run here, or None."""
    for site in (flavour.site, "deps"):
        if not (HOME / site).is_dir():
            return (
                f"{HOME / site} is missing: python tests/gpu/stage.py install PART ..., "
                "or install --index"
            )
    return None


def run(
    script: str, arguments: Sequence[str], environment: Mapping[str, str], timeout: float
) -> Lines:
    """Run to the end, or for ``timeout`` seconds; what it printed until then is kept either way."""
    command = [sys.executable, str(HERE / script), *arguments]
    try:
        done = subprocess.run(
            command, env=dict(environment), capture_output=True, text=True, timeout=timeout
        )
        return parse(done.stdout, done.stderr, f"exit code {done.returncode}", done.returncode == 0)
    except subprocess.TimeoutExpired as late:
        out, err = (_text(stream) for stream in (late.stdout, late.stderr))
        return parse(out, err, f"no end after {timeout:.0f} s", False)


def parse(out: str, err: str, ending: str, good: bool) -> Lines:
    """Lines that are no JSON objects are other people's prints."""
    rows: list[dict[str, Any]] = []
    begun, ended = "its start", False
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
    if ended and good:
        return Lines(tuple(rows), "")
    return Lines(tuple(rows), f"{ending}, last begun: {begun}\n{err[-3000:]}")


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
