"""Files that change whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

_BUFFER: Final = 1 << 20
_LEFTOVER: Final = ".part"


def write(path: Path, data: bytes) -> bool:
    """Replace ``path`` with ``data`` in one rename; True when the content changed.

    A file that already holds ``data`` is left alone, modification time included; what a killed
    writer left beside it goes either way.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == data:
            _remove_leftovers(path)
            return False
    with replacing(path) as out:
        out.write(data)
    return True


def remove(path: Path) -> None:
    """Remove ``path``, if it is there, and what a killed writer left beside it."""
    path.unlink(missing_ok=True)
    _remove_leftovers(path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes ``path`` in one rename when the block ends well.

    The data is on disk before the name moves, so a crash leaves the old file or the new one. A
    writer that was killed leaves a hidden file beside; the next one removes it. The lock tells
    such a file from one another writer still fills.
    """
    import tempfile  # slow to import, and most commands write nothing

    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    fd, temp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_LEFTOVER)
    try:
        with io.FileIO(fd, "wb") as raw:
            fcntl.flock(fd, fcntl.LOCK_EX)
            out = io.BufferedWriter(raw, _BUFFER)
            yield out
            out.flush()
            os.fchmod(fd, 0o644)
            os.fsync(fd)
            Path(temp).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temp).unlink()
        raise


def _remove_leftovers(path: Path) -> None:
    for leftover in path.parent.glob(f".{path.name}.*{_LEFTOVER}"):
        with contextlib.suppress(OSError), leftover.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()
