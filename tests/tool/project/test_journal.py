"""Journals and the changes they describe: what is finished, undone, refused or left to a person."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, cast

import pytest

from tool.errors import EnvironmentFault, IntegrityError
from tool.project import repair, transaction, workspace
from tool.project.journal import Journal, Recovery, is_token, set_aside
from tool.project.session import Session
from tool.project.workspace import Workspace


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "data" / "projects" / "p", transaction.KIND)


def begin(journal: Journal, root: Path, **files: tuple[str | None, str | None]) -> None:
    """Write down a change of files, as a killed command leaves it."""
    root.mkdir(parents=True, exist_ok=True)
    packed = {
        name: [None if text is None else base64.b64encode(text.encode()).decode() for text in pair]
        for name, pair in files.items()
    }
    data_root = str(journal.folder.parent.parent)
    body = {"project": str(root), "data_root": data_root, "files": packed, "data": {}}
    journal.write(body)


def test_one_change_at_a_time(journal: Journal) -> None:
    assert journal.read() is None and not journal.exists
    journal.write({"project": "/p"})
    assert journal.read() == {"project": "/p"}
    with pytest.raises(IntegrityError, match="interrupted change of this project is unfinished"):
        journal.write({"project": "/p"})
    journal.remove()
    journal.remove()
    assert not journal.exists


@pytest.mark.parametrize("content", ["", "[", "[]", "1", "{}", '{"format": 2}', "[" * 200_000])
def test_what_is_no_journal(journal: Journal, content: str) -> None:
    journal.folder.mkdir(parents=True)
    journal.path.write_text(content)
    with pytest.raises(IntegrityError, match="cannot be read") as caught:
        journal.read()
    assert caught.value.why and caught.value.where == str(journal.path)
    found = transaction.describe_files(journal)
    assert found is not None and (found.project, found.action) == ("", "set aside")


def test_a_file_set_aside_takes_no_place(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        path = tmp_path / "x.json"
        path.write_text(str(number))
        assert set_aside(path).name == f"x.json.damaged-{number}"
        assert not path.exists()


def test_what_is_said_of_a_change() -> None:
    assert str(Recovery("/p", "a change", "undone")) == "a change: undone"
    assert str(Recovery("/p", "a change", "", "it is not")) == "a change is unfinished: it is not"


def test_tokens() -> None:
    assert is_token("a" * 32)
    for other in ("a" * 31, "a" * 33, "g" * 32, "", None, 1):
        assert not is_token(other)


# -- files ---------------------------------------------------------------------------------------------


def test_all_or_nothing(journal: Journal, tmp_path: Path) -> None:
    root, data = tmp_path / "root", tmp_path / "data"
    root.mkdir()
    (root / "old").write_text("old")
    transaction.commit(
        journal, root, {"new": b"new", "old": None}, data_root=data, data={"kept": b"data"}
    )
    assert (root / "new").read_text() == "new" and not (root / "old").exists()
    assert (data / "kept").read_text() == "data" and not journal.exists
    (root / "folder").mkdir()
    with pytest.raises(OSError):
        transaction.commit(journal, root, {"new": b"newer", "folder/": b"x"}, data_root=data)
    assert (root / "new").read_text() == "new" and not journal.exists


def test_an_interrupted_change_is_finished_or_undone(journal: Journal, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert transaction.complete(journal) is None and transaction.roll_back(journal) is None
    assert transaction.recover_files(journal) is None and transaction.undo_unedited(journal) is None
    begin(journal, root, a=(None, "new"))
    assert transaction.complete(journal) == f"finished an interrupted change of {root}"
    assert (root / "a").read_text() == "new" and not journal.exists
    begin(journal, root, a=(None, "new"))
    assert transaction.roll_back(journal) == f"undid an interrupted change of {root}"
    assert not (root / "a").exists()
    begin(journal, root, a=(None, "new"))
    found = transaction.recover_files(journal)
    assert found is not None and (found.action, found.problem) == ("finished", None)
    assert (root / "a").read_text() == "new"


def test_a_file_that_was_edited_since_is_kept(journal: Journal, tmp_path: Path) -> None:
    root = tmp_path / "root"
    begin(journal, root, a=("old", "new"), b=("old", "new"))
    (root / "a").write_text("mine")
    (root / "b").write_text("new")
    for settle in (transaction.complete, transaction.roll_back):
        with pytest.raises(IntegrityError, match="was edited after a command") as caught:
            settle(journal)
        assert caught.value.where == str(root / "a") and journal.exists
    found = transaction.recover_files(journal)
    assert found is not None and found.problem == f"{root / 'a'} was edited since"
    undone = transaction.undo_unedited(journal)
    assert undone is not None and f"left as they are: {root / 'a'}" in undone.what
    assert ((root / "a").read_text(), (root / "b").read_text()) == ("mine", "old")
    assert not journal.exists
    begin(journal, root, b=("old", "new"))
    undone = transaction.undo_unedited(journal)
    assert undone is not None and "left as they are" not in undone.what


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside"])
@pytest.mark.parametrize("kind", ["files", "data"])
def test_a_path_that_leads_out(journal: Journal, tmp_path: Path, kind: str, name: str) -> None:
    body: dict[str, Any] = {"project": str(tmp_path), "data_root": str(tmp_path), "files": {}}
    journal.write({**body, "data": {}, kind: {name: [None, None]}})
    with pytest.raises(IntegrityError, match="cannot be read") as caught:
        transaction.complete(journal)
    assert "leads out of the project" in (caught.value.why or "")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"project": 1},
        {"files": []},
        {"files": {"a": 1}},
        {"files": {"a": ["x"]}},
        {"data": None},
    ],
)
def test_a_journal_of_other_values(journal: Journal, tmp_path: Path, body: dict[str, Any]) -> None:
    whole = {"project": str(tmp_path), "data_root": str(tmp_path), "files": {}, "data": {}}
    journal.write({**whole, **body} if body else {})
    with pytest.raises(IntegrityError, match="cannot be read"):
        transaction.complete(journal)


def test_what_a_change_writes(journal: Journal, tmp_path: Path) -> None:
    assert not transaction.writes(journal, "a")
    body: dict[str, Any] = {"project": str(tmp_path), "data_root": str(tmp_path), "files": {}}
    journal.write({**body, "data": {"a": [None, None]}})
    assert transaction.writes(journal, "a") and not transaction.writes(journal, "b")


def test_the_lock_is_not_written_over_an_unfinished_change(tmp_path: Path) -> None:
    session = Session(tmp_path / "root", Workspace(tmp_path / "cache", tmp_path / "data"))
    begin(session.files_journal, tmp_path / "root", a=(None, "new"))
    assert session.is_interrupted
    with pytest.raises(IntegrityError, match="unfinished"):
        session.save_lock(cast(Any, None))


# -- repair --------------------------------------------------------------------------------------------


def test_changes_of_other_projects_are_named(tmp_path: Path) -> None:
    session = Session(tmp_path / "root", Workspace(tmp_path / "cache", tmp_path / "data"))
    projects = tmp_path / "data" / "projects"
    (tmp_path / "other").mkdir()
    for name, kind, content in (
        (session.folder.name, "project", {"project": str(tmp_path)}),
        ("a", "project", {"project": str(tmp_path / "other")}),
        ("b", "checkout", {"project": str(tmp_path / "gone")}),
        ("c", "project", {"project": 1}),
        ("d", "project", {}),
        ("e", "notes", {"project": str(tmp_path / "other")}),
    ):
        (projects / name).mkdir(parents=True, exist_ok=True)
        (projects / name / f"{kind}.json").write_text(json.dumps(content))
    found = list(repair._list_others(session))
    assert [one.problem for one in found] == [
        f"cd {tmp_path / 'other'} && tool repair",
        f"that project is gone; remove {projects / 'b' / 'checkout.json'}",
        "the journal cannot be read",
        "the journal cannot be read",
    ]


@pytest.mark.parametrize("dry", [True, False])
def test_repair_of_files(journal: Journal, tmp_path: Path, dry: bool) -> None:
    root = tmp_path / "root"
    assert repair._repair_files(journal, dry) is None
    begin(journal, root, a=(None, "new"))
    found = repair._repair_files(journal, dry)
    assert found is not None and found.action == "finished" and journal.exists is dry
    journal.remove()
    begin(journal, root, a=("old", "new"))
    (root / "a").write_text("mine")
    found = repair._repair_files(journal, dry)
    assert found is not None and found.action == "undone" and journal.exists is dry
    journal.remove()
    journal.path.write_text("{")
    found = repair._repair_files(journal, dry)
    assert found is not None and found.action == "set aside" and journal.exists is dry
    assert (", as " in found.what) is not dry


# -- folders -------------------------------------------------------------------------------------------


def test_where_the_tool_keeps_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOOL_CACHE_DIR", "TOOL_DATA_DIR", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = workspace.locate_workspace()
    assert found.cache == tmp_path / ".cache" / workspace.APP
    assert found.data == tmp_path / ".local/share" / workspace.APP
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert workspace.locate_workspace().data == found.data
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg")
    assert workspace.locate_workspace().data == Path("/xdg") / workspace.APP
    monkeypatch.setenv("TOOL_DATA_DIR", "/own")
    assert workspace.locate_workspace().data == Path("/own")

    def nowhere() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(EnvironmentFault, match="no home folder"):
        workspace.locate_workspace()


def test_a_repository_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise EnvironmentFault("no space")

    monkeypatch.setattr(workspace.Git, "run", refuse)
    with pytest.raises(EnvironmentFault, match="no space"):
        Workspace(tmp_path / "cache", tmp_path / "data").open_repository()
    assert list((tmp_path / "data").iterdir()) == []
