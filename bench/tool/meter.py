"""Wall time and peak memory of commands, and the tables of them."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
TOOL: Final = (sys.executable, "-m", "tool")

# A small process starts the measured one: on Linux the peak of a new program is at least the size of
# the process that started it.
_METER = """
import os, sys, time
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
begin = time.perf_counter()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - begin
print(seconds, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True)
class Measurement:
    """What a process and its children took.

    Attributes:
        seconds: wall time.
        peak: largest resident size in MiB.
    """

    seconds: float
    peak: float


def measure(command: Sequence[str]) -> Measurement:
    """Run ``command`` to its end and discard its output.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    meter = [sys.executable, "-I", "-S", "-c", _METER, *command]
    done = subprocess.run(meter, check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak, code = done.stdout.split()
    if int(code):
        raise subprocess.CalledProcessError(int(code), list(command))
    return Measurement(float(seconds), int(peak) / 1024)


def output(command: Sequence[str], allowed: Sequence[int] = (0,)) -> str:
    """The output of ``command``.

    Raises:
        subprocess.CalledProcessError: its exit code is not ``allowed``.
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in allowed:
        raise subprocess.CalledProcessError(done.returncode, list(command))
    return done.stdout


def typical(rounds: Sequence[Measurement]) -> Measurement:
    """The median time and the largest peak."""
    return Measurement(statistics.median(m.seconds for m in rounds), max(m.peak for m in rounds))


def table(rounds: Mapping[str, Sequence[Measurement]], reference: str) -> str:
    """A Markdown table of commands, each with its time over that of the one named ``reference``."""
    base = typical(rounds[reference]).seconds
    lines = ["| command | seconds | ratio | peak MiB |", "|---|---:|---:|---:|"]
    for name, measured in rounds.items():
        m = typical(measured)
        lines.append(f"| {name} | {m.seconds:.2f} | {m.seconds / base:.2f} | {m.peak:.0f} |")
    return "\n".join(lines)
