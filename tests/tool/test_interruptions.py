"""Every command that writes, killed, signalled and run on a full disk.

After each interruption nothing is torn, commands that only read work, and the same command given again ends
as if it had not been interrupted. A sample runs by default; the numbers of docs/reliability.md with
``-m exhaustive``.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.interruptions import COMMANDS, Disk, Trials

KILLS = 24
"""Of each command; half of them of the tool alone."""
FILLED = 12
SIGNALS = 1
"""Of each kind, to the tool and to its group."""


def each_command(*sample: str) -> pytest.MarkDecorator:
    """The whole of it for every command, and a trial or two for those of ``sample``."""
    marks = pytest.mark.exhaustive
    names = [pytest.param(name, True, marks=marks, id=f"{name}, all") for name in COMMANDS]
    names += [pytest.param(name, False, id=name) for name in sample]
    return pytest.mark.parametrize(("name", "whole"), names)


def conclude(trials: Trials, record: Callable[[str, object], None]) -> None:
    record("tried", trials.tried)
    record("torn states", len(trials.torn))
    record("failed next commands", len(trials.failed))
    record("before anything was written", trials.early)
    record("after everything was done", trials.late)
    assert not trials.torn and not trials.failed, "\n".join([*trials.torn, *trials.failed])


@each_command(
    "apply, an update",
    "new, on a git ref",
    "rebase --continue",
    "rebase --patch",
    "drop, a release",
)
def test_kills(
    tmp_path: Path, name: str, whole: bool, record_property: Callable[[str, object], None]
) -> None:
    trials = Trials.of(tmp_path, name)
    rng = random.Random(f"{name} {whole}")
    for number in range(KILLS if whole else 2):
        trials.kill(rng.uniform(0.3, 1.0) * trials.seconds, group=number % 2 == 0)
    conclude(trials, record_property)


@each_command("drop")
def test_signals(
    tmp_path: Path, name: str, whole: bool, record_property: Callable[[str, object], None]
) -> None:
    trials = Trials.of(tmp_path, name)
    rng = random.Random(f"{name} {whole}")
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if whole else (signal.SIGINT,)
    for number in numbers:
        for group in (True, False) if whole else (True,):
            for _ in range(SIGNALS if whole else 1):
                trials.signal(rng.uniform(0.1, 1.0) * trials.seconds, number, group=group)
    trials.close_output()
    conclude(trials, record_property)


@each_command("apply, an update")
def test_full_disks(
    tmp_path: Path, name: str, whole: bool, record_property: Callable[[str, object], None]
) -> None:
    disk = Disk(tmp_path / "disk")
    try:
        trials = Trials.of(disk.folder, name)
        begun = disk.used()
        trials.scene.run()
        needed = disk.used() - begun
        trials.scene.restore()
        rng = random.Random(f"{name} {whole}")
        for _ in range(FILLED if whole else 1):
            trials.fill(disk, rng.randrange(max(needed, 1 << 16)))
        conclude(trials, record_property)
    finally:
        disk.unmount()
