"""The folder of a project that keeps a series, and the names of what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tool.errors import UsageError

SERIES_FILE: Final = "series.txt"
LOCK_FILE: Final = "series.lock"
PATCH_DIR: Final = "patches"
KERNEL_DIR: Final = "ada_dsa"


def find_root(start: Path) -> Path:
    """The nearest folder at or above ``start`` that holds series.txt.

    Raises:
        UsageError: there is none.
    """
    for folder in (start, *start.parents):
        if (folder / SERIES_FILE).is_file():
            return folder
    raise UsageError(
        f"no {SERIES_FILE} in {start} or any folder above it",
        next_step="change into a checkout of this project, or pass --series DIR",
    )
