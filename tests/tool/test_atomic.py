"""Writes that replace a whole file, and what a killed writer leaves."""

import os
import signal
from pathlib import Path

import pytest

from tool import atomic


def kill_writer(path: Path, data: bytes) -> None:
    """SIGKILL a process between writing the new content and renaming it into place."""
    child = os.fork()
    if child == 0:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        atomic.write(path, data)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file alone in a folder."""
    (tmp_path / "project").mkdir()
    return tmp_path / "project" / "series.txt"


@pytest.mark.parametrize("then", [b"old", b"new"])
def test_next_write_removes_what_a_killed_writer_left(path: Path, then: bytes) -> None:
    """The leftover goes even if the next write changes nothing, as after a transaction was rolled back."""
    path.write_bytes(b"old")
    kill_writer(path, b"new")
    assert path.read_bytes() == b"old"
    assert len(list(path.parent.iterdir())) == 2
    assert atomic.write(path, then) is (then == b"new")
    assert path.read_bytes() == then
    assert list(path.parent.iterdir()) == [path]


def test_remove_takes_what_a_killed_writer_left(path: Path) -> None:
    kill_writer(path, b"new")
    assert not path.exists()
    atomic.remove(path)
    assert not list(path.parent.iterdir())


def test_a_file_another_writer_fills_is_left_alone(path: Path) -> None:
    with atomic.replacing(path) as out:
        atomic.write(path, b"quick")
        out.write(b"slow")
    assert path.read_bytes() == b"slow"
    assert list(path.parent.iterdir()) == [path]
