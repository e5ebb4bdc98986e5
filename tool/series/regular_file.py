"""Reading a file of the project that anybody may have put there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tool.errors import UsageError


def read_regular_file(path: Path, limit: int) -> bytes:
    """The content of ``path``, a regular file of at most ``limit`` bytes.

    A pipe or a device is never read: it may have no end, or nobody who writes to it.

    Raises:
        OSError: the file is missing or cannot be read.
        UsageError: it is not a regular file, or it is larger.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UsageError(
                "is not a regular file", where=str(path), next_step="put a regular file there"
            )
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UsageError(
            f"is larger than {limit >> 20} MiB",
            where=str(path),
            next_step="restore the file from version control",
        )
    return content
