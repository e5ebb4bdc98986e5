"""The next command removes what a killed one left in the repository. A finished command leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.lab import Lab
from tests.support.rebases import MERGED, conflicting, rebase, three_patches
from tool.git import tempdir


def left(lab: Lab) -> list[Path]:
    return list(lab.home.repository.rglob(f"{tempdir.PREFIX}*"))


def test_commands_work_below_the_repository_and_leave_nothing(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nowhere = tmp_path / "nowhere"
    three_patches(lab)
    monkeypatch.setattr("tempfile.tempdir", str(nowhere))  # a temporary folder elsewhere would fail
    path = conflicting(lab)
    path.write_text(MERGED)
    rebase(lab, "--continue")
    lab.tool("check", "--offline")
    lab.apply(tmp_path / "fork")
    assert left(lab) == [] and not nowhere.exists()


def test_the_next_command_removes_what_a_kill_left(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = conflicting(three_patches(lab))
    git = lab.home.open_repository()
    admin = Path((path.parents[3] / ".git").read_text().removeprefix("gitdir: ").strip())
    for place in (git.git_dir, admin):
        folder = place / f"{tempdir.PREFIX}killed"
        (folder / "cwd").mkdir(parents=True)
        (folder / "index").write_bytes(b"half")
    assert len(left(lab)) == 2
    lab.tool("check", "--offline")
    assert left(lab) == []
    assert (admin / "ada-token").is_file(), "the worktree's own entry stays"
