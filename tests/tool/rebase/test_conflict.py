"""The worktree of a stopped rebase: only what the rebase made itself is ever deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.lab import Lab, git
from tests.support.rebases import MERGED, conflicting, project, rebase

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def replaced(three: Lab) -> Path:
    """A stopped rebase whose worktree somebody replaced by a folder of theirs."""
    path = conflicting(three)
    folder = next(p for p in path.parents if p.name == "sglang-v0.5.24-rebase")
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.txt").write_text("three years\n")
    return folder


def test_abort_leaves_a_foreign_folder(three: Lab, replaced: Path) -> None:
    envelope = three.json("rebase", "--abort")
    assert str(replaced) in envelope["warnings"][0]
    assert (replaced / "thesis.txt").read_text() == "three years\n"
    assert "no rebase" in rebase(three, "--continue", code=2)["message"]
    assert not list((three.home.repository / "worktrees").glob("*"))


@pytest.mark.parametrize(
    "args", [("--continue",), ("--skip", "--why", "no"), ("--restart", "--offline")]
)
def test_going_on_leaves_a_foreign_folder(
    three: Lab, replaced: Path, args: tuple[str, ...]
) -> None:
    before = project(three)
    assert rebase(three, *args, code=2)["where"] == str(replaced)
    assert (replaced / "thesis.txt").read_text() == "three years\n"
    assert project(three) == before


def test_a_foreign_worktree_is_left_alone(three: Lab, tmp_path: Path) -> None:
    """A repository of the user's own stands where the worktree was."""
    path = conflicting(three)
    folder = next(p for p in path.parents if p.name == "sglang-v0.5.24-rebase")
    shutil.rmtree(folder)
    git(tmp_path, "init", "-q", str(folder))
    three.json("rebase", "--abort")
    assert (folder / ".git").is_dir()


def test_two_projects_rebase_at_once(three: Lab, tmp_path: Path) -> None:
    """A rebase belongs to its project: another one with the same data folder begins its own."""
    path = conflicting(three)
    root = three.root
    three.root = Path(shutil.copytree(root, tmp_path / "second"))
    second = rebase(three, "--onto", "v0.5.24", "--offline", "--into", str(tmp_path / "b"), code=3)
    assert second["worktree"] == str(tmp_path / "b")
    rebase(three, "--abort")
    three.root = root
    path.write_text(MERGED)
    assert rebase(three, "--continue")["state"] == "carried"
