"""A command that is killed at a moment of its run, and the project as it was before."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from tests.support.lab import Lab
from tests.support.rebases import project
from tool.cli.app import main

POINTS = 100
"""Kills of each stage; a sample of them runs by default."""
SAMPLE = 6


def kill_after(lab: Lab, delay: float, *args: str) -> None:
    """Run the command in a child, a fork so that no time goes into imports, and SIGKILL it."""
    child = os.fork()
    if child == 0:
        os.setsid()
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        os.environ |= lab.environ
        with contextlib.suppress(SystemExit):
            main([*args, "-q", "--series", str(lab.root)])
        os._exit(0)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)


def timed(lab: Lab, *args: str, code: int) -> float:
    """The seconds that the command takes undisturbed."""
    start = time.monotonic()
    lab.json(*args, "-q", code=code)
    return time.monotonic() - start


def read_project(lab: Lab) -> dict[str, bytes]:
    """The bytes of every file of the project, by path."""
    return {name: (lab.root / name).read_bytes() for name in project(lab)}


def restore(lab: Lab, contents: dict[str, bytes]) -> None:
    """Restore the project before the command and forget resolutions, so that a rebase stops again."""
    for path in (lab.home.data / "resolutions").glob("*"):
        path.unlink()
    for name in project(lab).keys() - contents.keys():
        (lab.root / name).unlink()
    for name, data in contents.items():
        (lab.root / name).parent.mkdir(exist_ok=True)
        (lab.root / name).write_bytes(data)
