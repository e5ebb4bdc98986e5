"""Which folders are worktrees of the tool, as verification believes it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from packaging.version import Version

from tool.errors import EnvironmentFault, UsageError
from tool.git import Git
from tool.project import Session
from tool.series import LockedWheel
from tool.series.lockfile import Lock
from tool.verify import verify
from tool.verify.verify import verify_tree

V23 = Version("0.5.23")


def test_a_folder_that_is_no_worktree(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no python/sglang below this folder"):
        verify_tree(tmp_path, lock=Lock({}))
    (tmp_path / "python" / "sglang").mkdir(parents=True)
    with pytest.raises(UsageError, match="does not say which release it is"):
        verify_tree(tmp_path, lock=Lock({}))


def test_what_is_neither_a_file_nor_a_folder(tmp_path: Path) -> None:
    session = SimpleNamespace(
        lock=Lock({}), series=SimpleNamespace(kernel_dir=tmp_path / "ada_dsa")
    )
    (tmp_path / "ada_dsa").mkdir()
    (tmp_path / "ada_dsa" / "__init__.py").write_text("")
    with pytest.raises(UsageError, match="is neither a file nor a folder"):
        verify.verify_artifact(cast(Session, session), tmp_path / "gone")


@pytest.fixture
def session(tmp_path: Path) -> Any:
    """A repository with two entries, of which the second is that of ``tree``."""
    (tmp_path / "tree").mkdir()
    for name, folder in (("a", tmp_path / "other"), ("b", tmp_path / "tree")):
        admin = tmp_path / "r.git" / "worktrees" / name
        admin.mkdir(parents=True)
        (admin / "gitdir").write_text(f"{folder}/.git\n")
        (admin / "HEAD").write_text(f"ref: refs/heads/ada/{name}\n")
    git = SimpleNamespace(git_dir=tmp_path / "r.git", resolve=lambda ref: f"tip of {ref}")
    return SimpleNamespace(workspace=SimpleNamespace(find_repository=lambda: git), git=git)


def find(session: Any, folder: Path) -> tuple[Git, Version, str] | None:
    return verify._find_applied(cast(Session, session), folder)


def test_a_worktree_that_apply_made(
    tmp_path: Path, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_read_trailer", lambda *_: "0.5.23")
    found = find(session, tmp_path / "tree")
    assert found is not None and found[1] == V23
    assert found[2] == "tip of refs/ada/landed/ada/b/tip"
    (tmp_path / "link").symlink_to(tmp_path / "tree")
    assert find(session, tmp_path / "link") == found
    assert find(session, tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    ("tip", "release"), [(None, "0.5.23"), ("c", None), ("c", "zero"), (None, None)]
)
def test_a_branch_without_a_tip_or_a_release(
    tmp_path: Path,
    session: Any,
    monkeypatch: pytest.MonkeyPatch,
    tip: str | None,
    release: str | None,
) -> None:
    session.git.resolve = lambda _: tip
    monkeypatch.setattr(verify, "_read_trailer", lambda *_: release)
    assert find(session, tmp_path / "tree") is None


def test_entries_that_say_nothing(
    tmp_path: Path, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_read_trailer", lambda *_: "0.5.23")
    admin = tmp_path / "r.git" / "worktrees" / "b"
    (admin / "HEAD").write_text("c" * 40)
    assert find(session, tmp_path / "tree") is None
    (admin / "HEAD").write_text("ref: refs/heads/a..b\n")  # no name that the tool makes
    assert find(session, tmp_path / "tree") is None
    (admin / "HEAD").write_text("ref: refs/heads/ada/b\n")
    (admin / "gitdir").write_text("")
    assert find(session, tmp_path / "tree") is None
    session.workspace.find_repository = lambda: None
    assert find(session, tmp_path / "tree") is None


def test_the_last_trailer_counts() -> None:
    text = "tree x\n\nbundle\n\nSglang-Release: 0.5.9\nSglang-Release: 0.5.23\n"
    git = cast(Git, SimpleNamespace(out=lambda *_: text))
    assert verify._read_trailer(git, "c", "Sglang-Release") == "0.5.23"
    assert verify._read_trailer(git, "c", "Other") is None


@pytest.mark.parametrize(
    ("cached", "offline", "download", "taken"),
    [
        (True, False, False, "wheel"), (False, True, True, "wheel"), (False, False, True, "wheel"),
        (False, False, False, None),
    ],
)  # fmt: skip
def test_when_the_released_wheel_is_downloaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cached: bool,
    offline: bool,
    download: bool,
    taken: str | None,
) -> None:
    if cached:
        (tmp_path / "w.whl").write_bytes(b"")
    notes: list[str] = []
    held: list[str] = []

    @contextlib.contextmanager
    def exclusive() -> Any:
        held.append("lock")
        yield

    session = SimpleNamespace(
        workspace=SimpleNamespace(wheels=tmp_path), offline=offline, exclusive=exclusive,
        progress=SimpleNamespace(note=notes.append),
    )  # fmt: skip
    monkeypatch.setattr(verify, "fetch_wheel", lambda *_: tmp_path / "w.whl")
    wanted = LockedWheel("w.whl", "a", 1)
    if taken is None:
        with pytest.raises(EnvironmentFault, match="w.whl is not in the cache"):
            verify._fetch(cast(Session, session), cast(Any, None), wanted, download)
        return
    verify._fetch(cast(Session, session), cast(Any, None), wanted, download)
    # Whoever only looks into the cache waits for nobody.
    assert bool(held) is bool(notes) is (not cached and not offline)
