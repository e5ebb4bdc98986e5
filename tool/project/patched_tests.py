"""Run the project's tests of a patched tree: pytest in a process of its own, on ``tests/patched``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from packaging.version import Version

from tool.errors import EnvironmentFault, Interrupted, UsageError

PATCHED_TESTS: Final = "tests/patched"
_PASSED, _FAILED, _INTERRUPTED, _NONE = 0, 1, 2, 5
"""pytest's exit codes."""


def run_patched_tests(root: Path, releases: Sequence[Version]) -> bool:
    """Did the tests pass on the patched tree of each of ``releases``? pytest's words go to standard error.

    Raises:
        UsageError: the project has no such tests.
        EnvironmentFault: pytest is not installed beside the tool, or cannot run.
        Interrupted: a person pressed Ctrl-C.
    """
    if not (root / PATCHED_TESTS).is_dir():
        raise UsageError(
            f"the project has no folder {PATCHED_TESTS}",
            where=str(root),
            next_step="check the series without its tests: tool check",
        )
    if importlib.util.find_spec("pytest") is None:
        raise EnvironmentFault(
            "pytest is not installed beside the tool",
            where=sys.executable,
            next_step="pip install -e '.[test]' -c tests/constraints.txt, in the project",
        )
    options = [part for release in releases for part in ("--sglang-ref", f"v{release}")]
    # Standard output is for the command's own report.
    code = subprocess.run(
        [sys.executable, "-m", "pytest", PATCHED_TESTS, *options], cwd=root, stdout=2, check=False
    ).returncode
    if code == _INTERRUPTED:
        raise Interrupted("the tests were interrupted", next_step="run the same command again")
    if code == _NONE:
        raise UsageError(
            f"pytest found no test in {PATCHED_TESTS}",
            where=str(root),
            next_step="see what it collects: pytest --collect-only tests/patched",
        )
    if code not in (_PASSED, _FAILED):
        raise EnvironmentFault(
            f"pytest could not run the tests: exit code {code}",
            where=str(root / PATCHED_TESTS),
            next_step="its own message is above",
        )
    return code == _PASSED
