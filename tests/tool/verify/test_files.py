"""Files of an installation or a worktree: what is read, and what is named because it cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tool.errors import EnvironmentFault, IntegrityError
from tool.verify import files
from tool.verify.files import FolderFiles

CACHED = "sglang/__pycache__/a.cpython-311.pyc"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for name in ("sglang/a.py", CACHED, "sglang/b.pyc", "x-1.dist-info/RECORD", "single.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def problems(found: FolderFiles) -> dict[str, str]:
    return {one.path: one.problem for one in found.broken}


def test_files_of_folders_and_single_files(site: Path) -> None:
    (site / "x-1.dist-info" / "INSTALLER").write_text("pip")
    (site / "sglang" / "INSTALLER").write_text("a file of the package")
    found = FolderFiles(site, ("sglang", "x-1.dist-info"), ("single.py", "gone.py"), links=False)
    wanted = {
        "sglang/a.py",
        "sglang/b.pyc",
        "sglang/INSTALLER",
        "x-1.dist-info/RECORD",
        "single.py",
    }
    assert set(found.files) == wanted and found.broken == ()
    assert found.bytecode == [CACHED]
    assert found.read("sglang/a.py") == b"sglang/a.py"
    whole = FolderFiles(site, ("",), links=False)
    assert set(whole.files) == wanted and whole.broken == ()


@pytest.mark.parametrize("links", [False, True])
def test_links(site: Path, links: bool) -> None:
    (site / "sglang" / "link.py").symlink_to("a.py")
    (site / "sglang" / "nowhere.py").symlink_to("gone.py")
    (site / "sglang" / "folder").symlink_to(site / "x-1.dist-info")
    (site / "linked").symlink_to(site / "sglang")
    found = FolderFiles(site, ("sglang", "linked"), links=links)
    assert ("sglang/link.py" in found.files) is links
    wanted = {
        "sglang/folder": "a link where a folder should be",
        "linked": "a link where a folder should be",
        "sglang/nowhere.py": "a link that leads to no file"
        if links
        else "a link where a file should be",
    }
    wanted |= {} if links else {"sglang/link.py": "a link where a file should be"}
    assert problems(found) == wanted


def test_what_is_no_file_or_has_no_ordinary_name(site: Path) -> None:
    os.mkfifo(site / "sglang" / "pipe")
    (site / "sglang" / os.fsdecode(b"\xff.py")).write_text("")
    found = problems(FolderFiles(site, ("sglang",), links=False))
    assert found.pop("sglang/pipe") == "not a regular file"
    assert list(found.values()) == ["a name that is not UTF-8"]


@pytest.mark.parametrize(
    ("limit", "value", "problem"),
    [
        ("_MAX_FILES", 2, "more than 2 files"),
        ("_MAX_PATH", 10, "a path that is too long"),
        ("_MAX_BYTES", 20, "larger than the files of any release"),
    ],
)
def test_limits(
    site: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, problem: str
) -> None:
    monkeypatch.setattr(files, limit, value)
    assert problem in problems(FolderFiles(site, ("sglang",), links=False)).values()


def test_limits_that_are_just_kept(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MAX_FILES", 4)  # two files, __pycache__, and what is in it
    monkeypatch.setattr(files, "_MAX_PATH", len(CACHED))
    monkeypatch.setattr(files, "_MAX_BYTES", len("sglang/a.py" + "sglang/b.pyc"))
    assert FolderFiles(site, ("sglang",), links=False).broken == ()


def test_a_file_that_is_too_large_to_read(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = FolderFiles(site, ("sglang",), links=False)
    monkeypatch.setattr(files, "READ_LIMIT", len("sglang/a.py"))
    assert found.read("sglang/a.py")
    monkeypatch.setattr(files, "READ_LIMIT", len("sglang/a.py") - 1)
    with pytest.raises(IntegrityError, match="more than 10 bytes"):
        found.read("sglang/a.py")


def test_what_the_system_does_not_give(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentFault, match="cannot read: No such file"):
        FolderFiles(site, ("gone",), links=False)

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "open_regular", refuse)
    with pytest.raises(EnvironmentFault, match="cannot read: Permission denied") as caught:
        FolderFiles(site, ("sglang",), links=False)
    assert caught.value.where == str(site / "sglang/a.py")


@pytest.mark.parametrize(
    ("expected", "found", "said"),
    [
        (None, None, "a.py: missing"),
        ("1", None, "a.py: missing (expected 1, found none)"),
        (None, "2", "a.py: missing (expected none, found 2)"),
        ("1", "2", "a.py: missing (expected 1, found 2)"),
    ],
)
def test_how_a_difference_is_told(expected: str | None, found: str | None, said: str) -> None:
    assert str(files.Difference("a.py", "missing", expected, found)) == said
