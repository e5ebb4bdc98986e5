"""A kill at a random moment or a full disk leaves the old state or the new one; the next command recovers."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lab import EDITED, TREE, UTILS, Lab, git

POINTS = 100
"""Kills of each kind; a sample of them runs by default."""
SAMPLE = 6


@pytest.fixture
def ready(lab: Lab) -> Lab:
    # Enough files for the checkout to take a good part of the run.
    bulk = {f"sglang/bulk/m{i}.py": f"x = {i}\n" * 50 for i in range(150)}
    lab.release("0.5.23", TREE | bulk)
    lab.patch("demo/answer.patch", {UTILS: EDITED})
    lab.relock()
    return lab


def command(lab: Lab, into: Path) -> list[str]:
    return [
        sys.executable, "-m", "tool", "apply", "--offline", "-q",
        "--into", str(into), "--series", str(lab.root),
    ]  # fmt: skip


def kernels(lab: Lab, text: str) -> None:
    (lab.root / "ada_dsa" / "__init__.py").write_text(f'"""{text}."""\n')


def state(tree: Path) -> str | None:
    """HEAD of a complete, clean worktree, or None if there is none. Any other state fails the test."""
    if not tree.exists():
        return None
    assert git(tree, "status", "--porcelain") == "", "the worktree is torn"
    return git(tree, "rev-parse", "HEAD")


def kill_after(lab: Lab, tree: Path, delay: float) -> None:
    """Start an apply and SIGKILL it and everything it started after ``delay`` seconds."""
    process = subprocess.Popen(
        command(lab, tree),
        env=lab.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def duration(lab: Lab, tree: Path) -> float:
    start = time.monotonic()
    subprocess.run(command(lab, tree), env=lab.environ, check=True, capture_output=True)
    return time.monotonic() - start


@pytest.mark.parametrize("kind", ["first", "update"])
@pytest.mark.parametrize("points", [SAMPLE, pytest.param(POINTS, marks=pytest.mark.exhaustive)])
def test_kill_at_random_points(ready: Lab, tmp_path: Path, kind: str, points: int) -> None:
    """SIGKILL at moments spread over a first apply, or over an update."""
    tree = tmp_path / "place" / "fork"
    kernels(ready, "new")
    whole = duration(ready, tree)
    new = state(tree)
    kernels(ready, "old")
    ready.apply(tree)
    old = state(tree)
    assert old and new and old != new
    seen = {old: 0, new: 0, None: 0}
    rng = random.Random(kind)
    for _ in range(points):
        if kind == "first":
            _forget(ready, tree)
        before = state(tree)
        kernels(ready, "new")
        kill_after(ready, tree, rng.uniform(0.2 * whole, whole))
        found = state(tree)
        assert found in (before, new)
        seen[found] += 1
        result = ready.apply(tree)["result"]  # the next run recovers
        assert state(tree) == new == result["head"]
        assert not list(tree.parent.glob(".tool-*"))
        assert not (ready.folder / "checkout.json").exists()
        if kind == "update":
            kernels(ready, "old")
            ready.apply(tree)
    git(ready.home.repository, "fsck", "--no-dangling")
    assert len(list((ready.home.repository / "worktrees").iterdir())) == 1, "stale worktree entries"
    assert seen[new] < points, "no kill came before the end: the test measured nothing"


def _forget(lab: Lab, tree: Path) -> None:
    if tree.exists():
        shutil.rmtree(tree)
        git(lab.home.repository, "worktree", "prune")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_state(ready: Lab, small_disk: Path) -> None:
    tree = small_disk / "fork"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 1_200_000)
    error = ready.apply(tree, code=6)["error"]
    assert "space" in f"{error['message']} {error['why']}" and error["next"]
    assert sorted(p.name for p in small_disk.iterdir()) == ["ballast"]
    ballast.unlink()
    ready.apply(tree)
    old = state(tree)
    ballast.write_bytes(b"x" * 300_000)
    kernels(ready, "x" * 200_000)
    ready.apply(tree, code=6)
    assert state(tree) == old


@pytest.mark.parametrize("limit", [1_000, 20_000, 60_000])
def test_a_file_size_limit_leaves_the_old_state(ready: Lab, tmp_path: Path, limit: int) -> None:
    """No file may grow past ``limit`` bytes, which looks like a full disk to every program."""
    tree = tmp_path / "fork"
    ready.apply(tree)
    old = state(tree)
    big = "x = 1\n" * 20_000
    (ready.root / "ada_dsa" / "big.py").write_text(big)

    def shrink() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        command(ready, tree),
        env=ready.environ,
        capture_output=True,
        text=True,
        preexec_fn=shrink,
    )
    assert done.returncode == 6, done.stderr
    assert "space" in done.stderr and "next:" in done.stderr
    assert state(tree) == old
    (ready.root / "ada_dsa" / "big.py").unlink()
    assert ready.apply(tree)["result"]["state"] == "unchanged"


def test_two_at_once_wait_for_nobody(ready: Lab, tmp_path: Path) -> None:
    with ready.home.exclusive():
        error = ready.apply(tmp_path / "fork", "--no-wait", code=6)["error"]
    assert "another tool command" in error["message"]
