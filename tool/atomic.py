"""Files that change whole or not at all, and locks that outlive a killed command's children."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

_BUFFER: Final = 1 << 20
_LEFTOVER: Final = ".part"
_PAUSE: Final = 0.05
_HELD: Final[set[int]] = set()


def write(path: Path, data: bytes, *, mode: int = 0o644) -> bool:
    """Replace ``path`` with ``data`` in one rename; True when the content changed.

    A file that already holds ``data`` is left alone, modification time included; what a killed
    writer left beside it goes either way.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == data:
            _remove_leftovers(path)
            return False
    with replacing(path, mode=mode) as out:
        out.write(data)
    return True


def remove(path: Path) -> None:
    """Remove ``path``, if it is there, and what a killed writer left beside it."""
    path.unlink(missing_ok=True)
    _remove_leftovers(path)


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
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
            os.fchmod(fd, mode)
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


@contextlib.contextmanager
def locked(path: Path, *, on_busy: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock on the file or folder ``path``.

    While another process holds it, ``on_busy`` is called once with what is known about the holder, and
    then the lock is waited for. To refuse instead of waiting, ``on_busy`` raises. The kernel drops the
    lock when the last process that inherited it is gone (see ``held_locks``).
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        if not _try_lock(descriptor):
            on_busy(_read_holder(descriptor))
            while not _try_lock(descriptor):
                time.sleep(_PAUSE)
        if flags & os.O_RDWR:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
        _HELD.add(descriptor)
        yield
    finally:
        _HELD.discard(descriptor)
        os.close(descriptor)


def held_locks() -> tuple[int, ...]:
    """Descriptors to hand to every child process (``pass_fds``).

    A child that goes on after the command was killed still holds the lock, so the next command waits
    for it.
    """
    return tuple(_HELD)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_holder(descriptor: int) -> str:
    with contextlib.suppress(OSError):  # a folder cannot be read
        return os.pread(descriptor, 100, 0).decode("utf-8", "replace")
    return ""
