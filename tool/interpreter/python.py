"""Another environment's Python: how it is found, what it inherits, and how its process ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tool.errors import UsageError


def find_interpreter(python: Path | None) -> Path:
    """An absolute path, links left as they are: a virtual environment's Python is one.

    A name without a folder is looked up on PATH. None: the interpreter that runs the tool.

    Raises:
        UsageError: ``python`` is a folder.
    """
    if python is None:
        return Path(sys.executable)
    if python.parent == Path() and (found := shutil.which(str(python))):
        return Path(found).absolute()
    path = python.expanduser().absolute()
    if path.is_dir():
        raise UsageError(
            "is a folder", where=str(path), next_step=f"name its Python: {path / 'bin' / 'python'}"
        )
    return path


def make_variables(*, bytecode: bool = False) -> dict[str, str]:
    """This process's environment. An empty entry of PYTHONPATH does not put the current folder on the
    path, and unless ``bytecode`` none is written into the other environment."""
    env = os.environ | ({} if bytecode else {"PYTHONDONTWRITEBYTECODE": "1"})
    path = [entry for entry in env.pop("PYTHONPATH", "").split(os.pathsep) if entry]
    return env | {"PYTHONPATH": os.pathsep.join(path)} if path else env


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a process that was started in a session of its own, and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def describe_ending(status: int) -> str:
    """``-11`` → ``was ended by SIGSEGV``."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def last_line(text: str) -> str | None:
    """The last line: of a traceback, the exception."""
    lines = text.strip().splitlines()
    return lines[-1].strip()[:300] if lines else None
