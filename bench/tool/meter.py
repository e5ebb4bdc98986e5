"""Wall time and peak memory of a command, for benchmarks of the fork manager."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

# A small process between this one and the measured one: Linux lets a new program's peak start from
# that of the process that started it.
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
    """Wall time in seconds and the largest resident size in MiB of a process and its children."""

    seconds: float
    peak: float


def measure(command: Sequence[str]) -> Measurement:
    """Run ``command`` to its end, output discarded. Raises CalledProcessError when it fails."""
    meter = [sys.executable, "-I", "-S", "-c", _METER, *command]
    done = subprocess.run(meter, check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak, code = done.stdout.split()
    if int(code):
        raise subprocess.CalledProcessError(int(code), list(command))
    return Measurement(float(seconds), int(peak) / 1024)


def table(rows: Sequence[tuple[str, Measurement]], reference: str) -> str:
    """The rows as Markdown, times as a ratio of the row named ``reference``."""
    base = dict(rows)[reference].seconds
    lines = ["| way | seconds | ratio | peak MiB |", "|---|---:|---:|---:|"]
    lines += [
        f"| {way} | {m.seconds:.2f} | {m.seconds / base:.2f} | {m.peak:.0f} |" for way, m in rows
    ]
    return "\n".join(lines)
