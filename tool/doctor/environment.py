"""What ``tool doctor`` knows of an environment: the facts as data, and the two processes that find them.

An environment is a Python interpreter with what is installed for it. ``probe.py`` runs in it, so that torch
and the driver are asked where sglang would meet them, and so that a hang or a crash there is a fact like
any other. What the facts mean is decided in ``diagnose``.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tool.errors import EnvironmentFault, UsageError
from tool.interpreter import describe_ending, kill_group, last_line, make_variables

PROBE: Final = Path(__file__).with_name("probe.py")
PROBE_SECONDS: Final = 180.0
"""For importing torch from a cold disk and for a driver that wakes up."""
SELFTEST_SECONDS: Final = 600.0
"""For compiling every kernel, some thirty variants at seconds each, on a slow host."""

_DEATH_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Owner:
    """An installed distribution that ships ``sglang/``; ``location`` is its folder on ``sys.path``."""

    name: str
    version: str
    location: str


@dataclass(frozen=True)
class Gpu:
    """``sm``: capability as ``major * 10 + minor``; ``memory`` and ``shared`` (most shared memory that a
    block may opt in to) in bytes."""

    index: int
    name: str
    sm: int
    memory: int
    shared: int


@dataclass(frozen=True)
class Driver:
    """``release`` as nvidia-smi has it; ``cuda`` the newest CUDA it serves, 13000 for 13.0. None where
    there is none; ``error`` then says what was met."""

    release: str | None
    cuda: int | None
    error: str | None
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class Torch:
    """``cuda``: what it was built for, None for a CPU build; ``error``: why it can use no GPU."""

    version: str | None
    cuda: str | None
    error: str | None


@dataclass(frozen=True)
class Environment:
    """``package`` is the folder ``import sglang`` would take and ``package_version`` what it states;
    ``kernels`` the folder of the ada_dsa that would run; ``requires`` the Requires-Dist of sglang and
    torch; ``markers`` what those are evaluated in; ``variables`` those of the process environment that
    change what runs."""

    python: str
    executable: str
    markers: Mapping[str, str]
    owners: tuple[Owner, ...]
    package: str | None
    package_version: str | None
    kernels: str | None
    installed: Mapping[str, str]
    requires: Mapping[str, Sequence[str]]
    driver: Driver
    torch: Torch | None
    variables: Mapping[str, str]


@dataclass(frozen=True)
class Check:
    """One kernel against its oracle, as ``ada_dsa.selftest`` reports it."""

    name: str
    ok: bool
    error: float | None
    bound: float
    seconds: float
    problem: str | None


@dataclass(frozen=True)
class SelfTest:
    """``skipped`` says why there are no checks. ``broken`` says how the process ended that did not
    end by itself, after the checks that are here. ``sm``: what the kernels were compiled for."""

    checks: tuple[Check, ...] = ()
    sm: int | None = None
    seconds: float | None = None
    skipped: str | None = None
    broken: str | None = None


def parse(document: Mapping[str, Any]) -> Environment:
    """The facts of what ``probe.py environment`` prints.

    Raises:
        KeyError, TypeError: it printed something else.
    """
    driver, torch = document["driver"], document["torch"]
    return Environment(
        **{
            **document,
            "owners": tuple(Owner(**one) for one in document["owners"]),
            "driver": Driver(**{**driver, "gpus": tuple(Gpu(**one) for one in driver["gpus"])}),
            "torch": Torch(**torch) if torch else None,
        }
    )


def probe_environment(python: Path, seconds: float = PROBE_SECONDS) -> Environment:
    """Ask ``python`` for the facts.

    Raises:
        UsageError: it is no Python interpreter of 3.10 or later.
        EnvironmentFault: it did not answer in time, or crashed.
    """
    try:
        ended = _run([str(python), str(PROBE), "environment", "--end-with-parent"], seconds)
    except OSError as err:
        raise UsageError(
            f"cannot be run: {err.strerror}",
            where=str(python),
            next_step="name the interpreter of an environment: --python ~/venv/bin/python",
        ) from err
    if ended.status is None:
        raise EnvironmentFault(
            f"the environment did not answer in {seconds:.0f} s",
            where=str(python),
            why=last_line(ended.errors) or "importing torch, or the driver, hangs",
            next_step="see whether this returns: nvidia-smi",
        )
    try:
        return parse(json.loads(ended.output.rstrip().rpartition("\n")[2]))
    except (ValueError, KeyError, TypeError) as err:
        if ended.status < 0:
            raise EnvironmentFault(
                f"the environment {describe_ending(ended.status)} while it was examined",
                where=str(python),
                why=last_line(ended.errors),
                next_step=f"see whether this works: {python} -c 'import torch; torch.cuda.init()'",
            ) from err
        raise UsageError(
            "this is not a Python interpreter of 3.10 or later",
            where=str(python),
            why=last_line(ended.errors),
            next_step="name the interpreter of an environment: --python ~/venv/bin/python",
        ) from err


def run_selftest(python: Path, kernels: Path, seconds: float = SELFTEST_SECONDS) -> SelfTest:
    """Run the self-test of the kernels in the folder ``kernels``."""
    ended = _run([str(python), str(PROBE), "selftest", str(kernels), "--end-with-parent"], seconds)
    records = list(_records(ended.output))
    checks = tuple(Check(**one) for one in records if "ok" in one)
    unfit = next((one["unfit"] for one in records if "unfit" in one), None)
    if unfit is not None:
        return SelfTest(skipped=str(unfit))
    head = next((one for one in records if "sm" in one), {})
    tail = next((one for one in records if set(one) == {"seconds"}), {})
    broken = None
    if ended.status is None:
        broken = f"did not end within {seconds:.0f} s"
    elif not tail:
        broken = f"{describe_ending(ended.status)}: {last_line(ended.errors) or 'it said nothing'}"
    return SelfTest(checks, head.get("sm"), tail.get("seconds"), broken=broken)


@dataclass(frozen=True)
class _Ended:
    """``status``: as of :class:`subprocess.Popen`; None when it was stopped."""

    status: int | None
    output: str
    errors: str


def _run(command: Sequence[str], seconds: float) -> _Ended:
    """Run ``command`` in a process group of its own, all of which is killed after ``seconds``: a
    compiler that a killed parent leaves behind would keep the pipes open. Nothing is ever written to its
    standard input; the input ends when this process does, however that ends."""
    reading, writing = os.pipe()
    try:
        return _run_with_input(command, seconds, reading)
    finally:
        os.close(writing)


def _run_with_input(command: Sequence[str], seconds: float, reading: int) -> _Ended:
    try:
        process = subprocess.Popen(
            command,
            stdin=reading,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=make_variables(),
            start_new_session=True,
        )
    finally:
        os.close(reading)
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill_group(process)
        try:
            return _Ended(None, *process.communicate(timeout=_DEATH_SECONDS))
        except subprocess.TimeoutExpired:
            return _Ended(None, "", "it cannot even be killed: it waits inside the driver")
    except BaseException:  # an interrupt reaches the terminal's group, not this one
        kill_group(process)
        raise
    return _Ended(process.returncode, output, errors)


def _records(output: str) -> list[dict[str, Any]]:
    """The JSON objects among the lines; a kernel's compiler may print lines of its own."""
    found = []
    for line in output.splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                found.append(record)
    return found
