"""Where a worktree may be made, what its journal may say, and how files move from the old one."""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tool.errors import EnvironmentFault, IntegrityError, ToolError, UsageError
from tool.git import blob_id
from tool.project import checkout, staging
from tool.project.checkout import Checkout, Publication, inspect_folder
from tool.project.journal import Journal

PLAN = checkout._Plan(
    token="a" * 32, project="/p", folder="/p/tree", branch="ada/x", head="b" * 40, base="c" * 40,
    branch_before=None, tip_before="d" * 40, base_before=None, old_admin=None,
)  # fmt: skip


class FakeGit:
    """A repository whose refs are in a table; ``fails`` are the commands that do not succeed."""

    git_dir = Path("/data/sglang.git")

    def __init__(self, refs: dict[str, str] | None = None, **fails: bytes) -> None:
        self.refs = refs or {}
        self._fails = {name.replace("_", "-"): words for name, words in fails.items()}

    def resolve(self, ref: str) -> str | None:
        return self.refs.get(ref)

    def run(self, *args: str, **_: Any) -> Any:
        words = self._fails.get(args[0])
        return SimpleNamespace(returncode=words is not None, stdout=b"", stderr=words or b"")


def git(refs: dict[str, str] | None = None, **fails: bytes) -> Any:
    return FakeGit(refs, **fails)


# -- the journal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"token": "a"}, "where a token or an object id belongs"),
        ({"head": "x"}, "where a token or an object id belongs"),
        ({"branch_before": "x"}, "where a token or an object id belongs"),
        ({"head": None}, "head is None"),
        ({"folder": 1}, "folder is 1"),
        ({"old_admin": 1}, "old_admin is 1"),
        ({"folder": "tree"}, "folder 'tree', branch 'ada/x'"),
        ({"branch": "../x"}, "folder '/p/tree', branch '../x'"),
        ({"old_admin": "/elsewhere"}, "is no worktree of"),
        ({"more": 1}, "unexpected keyword argument"),
    ],
)
def test_values_that_the_tool_does_not_write(
    tmp_path: Path, changed: dict[str, Any], why: str
) -> None:
    journal = Journal(tmp_path, checkout.KIND)
    assert checkout._read(git(), journal) is None
    journal.write({**asdict(PLAN), **changed})
    with pytest.raises(IntegrityError, match="cannot be read") as caught:
        checkout._read(git(), journal)
    assert why in (caught.value.why or "")
    found = checkout.describe_checkout(git(), journal)
    assert found is not None and found.action == "set aside"


@pytest.mark.parametrize(
    "changed", [{}, {"old_admin": "/data/sglang.git/worktrees/x"}, {"branch_before": "e" * 40}]
)
def test_values_that_it_writes(tmp_path: Path, changed: dict[str, Any]) -> None:
    journal = Journal(tmp_path, checkout.KIND)
    plan = replace(PLAN, **changed)
    journal.write(asdict(plan))
    assert checkout._read(git(), journal) == plan


# -- the folder ----------------------------------------------------------------------------------------


def test_folders_in_which_nothing_is_made(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    for folder in (file, tmp_path / "full"):
        with pytest.raises(UsageError, match="exists and is not a worktree of this tool"):
            inspect_folder(git(), folder, None, "ada/x")
    with pytest.raises(UsageError, match="control character"):
        inspect_folder(git(), tmp_path / "a\nb", None, "ada/x")


def test_folders_in_which_one_is_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new"):
        found = inspect_folder(git(), folder, None, "ada/x")
        assert found == Checkout(folder, "ada/x", None, None)
    assert inspect_folder(git(), tmp_path / "new", "mine", "ada/x").branch == "mine"


@pytest.mark.parametrize(
    ("current", "wanted", "dirty", "hidden", "says"),
    [
        (None, None, [], [], "is not on a branch"),
        ("ada/x", "mine", [], [], "is on branch ada/x, not mine"),
        ("ada/x", None, ["a.py", "b.py"], [], r"has 2 uncommitted change\(s\), first a.py"),
        ("ada/x", None, [], ["a.py"], r"has 1 change\(s\) that git status does not show"),
        ("ada/x", None, [], [], None),
        ("ada/x", "ada/x", [], [], None),
    ],
)
def test_a_worktree_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
    current: str | None,
    wanted: str | None,
    dirty: list[str],
    hidden: list[str],
    says: str | None,
) -> None:
    admin, folder = Path("/admin"), Path("/tree")
    monkeypatch.setattr(checkout, "read_head", lambda *_: (admin, "h", current))
    monkeypatch.setattr(checkout, "list_changes", lambda *_: dirty)
    monkeypatch.setattr(checkout, "list_hidden_edits", lambda *_: hidden)
    if says is None:
        found = checkout._existing(git(), folder, admin, wanted)
        assert found == Checkout(folder, "ada/x", admin, "h")
        return
    with pytest.raises(UsageError, match=says):
        checkout._existing(git(), folder, admin, wanted)


HEADS, TIP = "refs/heads/ada/x", checkout.tip_ref("ada/x")


@pytest.mark.parametrize(
    ("refs", "elsewhere", "says"),
    [
        ({}, None, None),
        ({HEADS: "1", TIP: "1"}, None, None),
        ({HEADS: "1", TIP: "1"}, "/tree", None),
        ({HEADS: "1", TIP: "1"}, "/other", "is checked out in /other"),
        ({HEADS: "1", TIP: "2"}, None, "has commits of your own"),
        ({HEADS: "1"}, "/tree", "has commits of your own"),
    ],
)
def test_branches(
    monkeypatch: pytest.MonkeyPatch, refs: dict[str, str], elsewhere: str | None, says: str | None
) -> None:
    found = {"ada/x": Path(elsewhere)} if elsewhere else {}
    monkeypatch.setattr(checkout, "list_worktrees", lambda _: found)
    target = Checkout(Path("/tree"), "ada/x", None, None)
    if says is None:
        checkout._check_branch(git(refs), target)
        return
    with pytest.raises(UsageError, match=says):
        checkout._check_branch(git(refs), target)


def test_names_that_are_no_branch() -> None:
    for name, repository in (("-x", git(check_ref_format=b"bad")), ("\udcff", git())):
        with pytest.raises(UsageError, match="is not a branch name"):
            checkout._check_branch(repository, Checkout(Path("/tree"), name, None, None))


def test_refs_that_git_cannot_move() -> None:
    checkout._check_refs(git(), PLAN)
    with pytest.raises(UsageError, match="git cannot make the branch ada/x") as caught:
        checkout._check_refs(git(update_ref=b"fatal: cannot lock ref"), PLAN)
    assert "cannot lock ref" in (caught.value.why or "")
    with pytest.raises(EnvironmentFault, match="no space left"):
        checkout._check_refs(git(update_ref=b"error: No space left on device"), PLAN)


# -- writing the files ---------------------------------------------------------------------------------


def publication(tmp_path: Path, code: int, words: bytes, *, hangs: bool = False) -> Publication:
    class Process:
        returncode = code

        def communicate(self, timeout: float) -> tuple[bytes, bytes]:
            if hangs:
                raise subprocess.TimeoutExpired("git", timeout)
            return b"", words

    target = Checkout(tmp_path / "tree", "ada/x", None, None)
    found = Publication(git(), Journal(tmp_path, "x"), tmp_path, target, "h", "b", print)
    found._process = Process()  # type: ignore[assignment]
    return found


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    publication(tmp_path, 0, b"")._wait()
    with pytest.raises(EnvironmentFault, match="did not finish"):
        publication(tmp_path, 0, b"", hangs=True)._wait()
    with pytest.raises(EnvironmentFault, match="the worktree could not be written") as caught:
        publication(tmp_path, 128, b"error: unable to write file x\nfatal: y")._wait()
    assert "unable to write file x" in (caught.value.why or "")
    with pytest.raises(ToolError, match="git reset failed with exit code 128"):
        publication(tmp_path, 128, b"fatal: odd")._wait()


def test_two_folders_change_places(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / folder.name).write_text("")
    if staging._exchange(one, other):
        assert (one / "other").exists() and (other / "one").exists()
        with pytest.raises(FileNotFoundError):
            staging._exchange(one, tmp_path / "gone")


def test_two_folders_change_places_by_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_exchange", lambda *_: False)
    plan = replace(PLAN, folder=str(tmp_path / "tree"))
    plan.place.mkdir()
    plan.staged.mkdir()
    (plan.staged / "new").write_text("")
    staging.swap_folders(plan.staged, plan.place, plan.old)
    assert (plan.place / "new").exists() and plan.old.is_dir() and not plan.staged.exists()


# -- what the old worktree has -------------------------------------------------------------------------


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_files_move_without_replacing_any(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for name in ("a/b.txt", "folder/x", "folder/y", "taken", "link", "deep/z"):
        write(old / name, "old")
    for name in ("folder/x", "taken"):
        write(new / name, "new")
    write(new / "real" / "w")
    (new / "deep").symlink_to(new / "real")
    (old / "pointer").symlink_to(old / "folder")
    (new / "pointer").mkdir()
    move = checkout._move
    assert list(move(old, new, Path("a/b.txt"))) == [] and (new / "a/b.txt").read_text() == "old"
    assert list(move(old, new, Path("folder"))) == ["folder/x"]
    assert (new / "folder/y").read_text() == "old" and (new / "folder/x").read_text() == "new"
    assert list(move(old, new, Path("taken"))) == ["taken"]
    assert list(move(old, new, Path("pointer"))) == ["pointer"]
    # A folder of the new worktree that is a link leads out of it.
    assert list(move(old, new, Path("deep/z"))) == ["deep/z"] and not (new / "real/z").exists()


def test_what_a_path_holds(tmp_path: Path) -> None:
    write(tmp_path / "file", "x")
    (tmp_path / "link").symlink_to("file")
    assert checkout._blob_on_disk(tmp_path / "file") == blob_id(b"x")
    assert checkout._blob_on_disk(tmp_path / "link") == blob_id(b"file")
    for gone in (tmp_path, tmp_path / "gone", tmp_path / "file" / "below"):
        assert checkout._blob_on_disk(gone) is None


def test_a_system_without_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    assert staging._exchange(tmp_path, tmp_path) is False
    answer = SimpleNamespace(renameat2=lambda *_: -1)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: answer)
    for code in staging._NO_EXCHANGE:
        monkeypatch.setattr(ctypes, "get_errno", lambda code=code: code)
        assert staging._exchange(tmp_path, tmp_path) is False
    monkeypatch.setattr(ctypes, "get_errno", lambda: 28)
    with pytest.raises(OSError, match=os.strerror(28)):
        staging._exchange(tmp_path, tmp_path)


def test_only_an_entry_of_the_repository_is_removed(tmp_path: Path) -> None:
    repository: Any = SimpleNamespace(git_dir=tmp_path / "r.git")
    entry, outside = tmp_path / "r.git" / "worktrees" / "x", tmp_path / "outside"
    for folder in (entry, outside):
        write(folder / "HEAD")
    staging.remove_admin(repository, outside)
    assert outside.is_dir()
    staging.remove_admin(repository, entry)
    assert not entry.exists()
    staging.remove_admin(repository, entry)  # it is gone already


def test_a_worktree_is_deleted_by_its_token(tmp_path: Path) -> None:
    repository: Any = SimpleNamespace(git_dir=tmp_path / "r.git", env={})
    (tmp_path / "r.git" / "worktrees").mkdir(parents=True)
    token = staging.new_token()
    admin = staging.stage_worktree(repository, tmp_path / "tree", token, "c" * 40)
    staged = staging.staged_path(tmp_path / "tree", token)
    assert staged.is_dir() and not staging.carries_token(repository, tmp_path / "tree", token)
    staging.point_admin(admin, tmp_path / "tree")
    staged.rename(tmp_path / "tree")
    assert staging.carries_token(repository, tmp_path / "tree", token)
    assert staging.list_claimants(repository, tmp_path / "tree") == [admin]
    staging.discard_worktree(repository, tmp_path / "tree", staging.new_token())
    assert (tmp_path / "tree").is_dir() and admin.is_dir()
    staging.discard_worktree(repository, tmp_path / "tree", token)
    assert not (tmp_path / "tree").exists() and not admin.exists() and not staged.exists()


# -- undoing ---------------------------------------------------------------------------------------------

NOW = {ref: new for ref, new, _ in PLAN.moves()}
BEFORE = {ref: old for ref, _, old in PLAN.moves() if old}


@pytest.mark.parametrize(
    ("refs", "put_back", "foreign"),
    [
        (NOW, 3, []),  # all three moved
        (BEFORE, 0, []),  # none did
        ({**NOW, HEADS: "f" * 40}, 2, [HEADS]),  # somebody committed on the branch
        ({**BEFORE, TIP: "f" * 40}, 0, [TIP]),
    ],
)
def test_refs_go_back_unless_somebody_moved_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refs: dict[str, str],
    put_back: int,
    foreign: list[str],
) -> None:
    lines: list[str] = []

    class Moving(FakeGit):
        def run(self, *args: str, stdin: bytes = b"", **more: Any) -> Any:
            lines.extend(stdin.decode().splitlines())
            return super().run(*args, **more)

    monkeypatch.setattr(checkout, "discard_worktree", lambda *_: None)
    plan = replace(PLAN, folder=str(tmp_path / "tree"))
    plan.old.mkdir()  # stopped between the two renames
    said = checkout._undo(cast(Any, Moving(refs)), plan)
    assert plan.place.is_dir() and not plan.old.exists()
    assert len(lines) == put_back
    assert all(line.startswith("update" if TIP in line else "delete") for line in lines)
    assert said == (f"{', '.join(foreign)} changed since and stays as it is" if foreign else None)


@pytest.mark.parametrize("same", [True, False])
def test_the_old_worktree_is_on_its_branch_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    asked: list[tuple[str, ...]] = []

    class Old:
        def __init__(self, _: Path) -> None: ...

        def out(self, *_: str) -> str:
            return "c" * 40

        def run(self, *args: str) -> None:
            asked.append(args)

    class Branch(FakeGit):
        def out(self, *_: str) -> str:
            return ("c" if same else "d") * 40

    monkeypatch.setattr(checkout, "discard_worktree", lambda *_: None)
    monkeypatch.setattr(checkout, "Git", Old)
    plan = replace(PLAN, folder=str(tmp_path / "tree"), old_admin=str(tmp_path))
    said = checkout._undo(cast(Any, Branch(BEFORE)), plan)
    assert asked == ([("symbolic-ref", "HEAD", HEADS)] if same else [])
    assert (said is None) is same
    gone = replace(plan, old_admin=str(tmp_path / "gone"))
    assert checkout._undo(cast(Any, Branch(BEFORE)), gone) is None
