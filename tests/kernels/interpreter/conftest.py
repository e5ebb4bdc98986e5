"""Interpreter tests: ``tests/conftest.py`` runs each file in a process with ``TRITON_INTERPRET=1``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def _repaired_interpreter() -> None:
    # The parent process collects these files too; only the child interprets.
    if os.environ.get("TRITON_INTERPRET") == "1":
        import repair

        repair.install()
