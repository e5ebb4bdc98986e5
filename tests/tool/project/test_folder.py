"""A folder is replaced whole: stopped anywhere, the old one or the new one is there, nothing beside it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.support.lab import Lab
from tool.project import folder as folder_module
from tool.project import staging
from tool.project.folder import KIND, FolderReplacement, recover_folder
from tool.project.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "data", KIND)


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "work" / "place"
    path.mkdir(parents=True)
    (path / "old.txt").write_text("old")
    return path


class Killed(BaseException):
    """Nothing that runs afterwards may help: the process is gone."""


def replace(journal: Journal, place: Path, warnings: list[str]) -> None:
    with FolderReplacement(journal, place.parent, place, warnings.append) as replacement:
        (replacement.staged / "new.txt").write_text("new")
        replacement.finish()


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_old_or_new_and_nothing_beside(journal: Journal, place: Path, warnings: list[str]) -> None:
    replace(journal, place, warnings)
    assert names(place) == ["new.txt"] and names(place.parent) == ["place"]
    assert not journal.exists and not warnings
    with (
        pytest.raises(ZeroDivisionError),
        FolderReplacement(journal, place.parent, place, warnings.append) as replacement,
    ):
        (replacement.staged / "newer.txt").write_text("newer")
        raise ZeroDivisionError
    assert names(place) == ["new.txt"] and names(place.parent) == ["place"]


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("at", range(1, 8))
def test_killed_at_each_system_call(
    journal: Journal,
    place: Path,
    warnings: list[str],
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    exchange: bool,
) -> None:
    """The calls that change something are counted; the process dies before the one with this number."""
    calls = 0

    def counted(function: object) -> object:
        def call(*args: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls >= at:
                raise Killed
            return function(*args, **options)  # type: ignore[operator]

        return call

    with monkeypatch.context() as patched:
        if not exchange:
            patched.setattr(staging, "_exchange", lambda a, b: False)
        else:
            patched.setattr(staging, "_exchange", counted(staging._exchange))
        for name in ("mkdir", "rename", "unlink"):
            patched.setattr(Path, name, counted(getattr(Path, name)))
        patched.setattr(folder_module.shutil, "rmtree", counted(folder_module.shutil.rmtree))
        try:
            replace(journal, place, warnings)
        except Killed:
            pass
        else:
            assert calls < at
    found = recover_folder(journal)
    assert found is None or found.problem is None
    assert names(place) in (["new.txt"], ["old.txt"])
    assert [n for n in names(place.parent) if n.startswith((".tool-", "place."))] == []
    assert not journal.exists


def test_a_file_saved_meanwhile_is_kept(journal: Journal, place: Path, warnings: list[str]) -> None:
    with FolderReplacement(journal, place.parent, place, warnings.append) as replacement:
        (place / "mine.txt").write_text("mine")
        replacement.finish()
    (backup,) = place.parent.glob("place.backup-*")
    assert names(backup) == ["mine.txt", "old.txt"] and str(backup) in warnings[0]


@pytest.mark.parametrize(
    "body",
    [
        {"token": "../../x", "project": "/p", "folder": "/f"},
        {"token": "0" * 32, "project": "/p", "folder": "relative"},
        {"token": "0" * 32, "project": "/p", "folder": 7},
        {"token": "0" * 32},
    ],
)
def test_a_journal_of_somebody_else_moves_nothing(
    journal: Journal, body: dict[str, object]
) -> None:
    journal.write(body)
    found = recover_folder(journal)
    assert found is not None and found.problem and journal.exists


def test_the_next_command_cleans_up_and_status_only_tells(lab: Lab, tmp_path: Path) -> None:
    lab.patch("demo/answer.patch", {"python/sglang/version.py": '__version__ = "x"\n'})
    lab.relock()
    journal = Journal(lab.folder, KIND)
    token = staging.new_token()
    journal.write({"token": token, "project": str(lab.root), "folder": str(tmp_path / "release")})
    left = staging.staged_path(tmp_path / "release", token)
    left.mkdir()
    (left / "half.whl").write_text("half")
    assert "replacement" in lab.tool("status").stderr and left.exists()
    assert "cleaned up" in lab.tool("repair", "--dry-run", code=None).output and left.exists()
    lab.tool("repair")
    assert not left.exists() and not journal.exists


def test_a_system_without_an_exchange_renames_twice(
    journal: Journal, place: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ctypes

    class Library:
        def __init__(self, name: None, use_errno: bool) -> None:
            pass

        def renameat2(self, *_: object) -> int:
            ctypes.set_errno(errno.EINVAL)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", Library)
    replace(journal, place, warnings)
    assert names(place) == ["new.txt"] and names(place.parent) == ["place"]
