"""Several files of the project and of the data folder, changed together or not at all.

A journal holds the old and the new content of each file. It is written first and removed last, so the
next command finds either no journal, and files that were not touched, or a journal, and completes the
change. A change that fails is undone at once.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tool import atomic
from tool.errors import IntegrityError, ToolError
from tool.project.journal import REPAIR, Journal, Recovery

KIND: Final = "project"
_Versions = tuple[bytes | None, bytes | None]


@dataclass(frozen=True)
class _Change:
    """Old and new content by path; ``files`` lie below ``root``, ``data`` below the data folder."""

    root: Path
    data_root: Path
    files: dict[str, _Versions]
    data: dict[str, _Versions]


def commit(
    journal: Journal,
    root: Path,
    files: Mapping[str, bytes | None],
    *,
    data_root: Path,
    data: Mapping[str, bytes | None] | None = None,
) -> None:
    """Give ``files`` (paths below ``root``) and then ``data`` (paths below ``data_root``) their content;
    None removes one.

    Raises:
        IntegrityError: an earlier change is unfinished.
        OSError: a file cannot be written; everything is as it was.
    """
    journal.write(
        {
            "project": str(root),
            "data_root": str(data_root),
            "files": {name: _versions(root / name, new) for name, new in files.items()},
            "data": {name: _versions(data_root / name, new) for name, new in (data or {}).items()},
        }
    )
    try:
        complete(journal)
    except BaseException:
        with contextlib.suppress(ToolError, OSError):
            roll_back(journal)
        raise


def writes(journal: Journal, name: str) -> bool:
    """Does an unfinished change write or remove ``name`` in the data folder?"""
    change = _read(journal)
    return change is not None and name in change.data


def complete(journal: Journal) -> str | None:
    """Finish an interrupted change; a sentence about it, or None when there is none.

    Raises:
        IntegrityError: a file was edited since; it then keeps what it holds.
    """
    return _settle(journal, back=False)


def roll_back(journal: Journal) -> str | None:
    """Undo an interrupted change; as ``complete``."""
    return _settle(journal, back=True)


def recover_files(journal: Journal) -> Recovery | None:
    """``complete``, with the reason instead of an error when it is not possible."""
    found = describe_files(journal)
    if found is None or found.problem:
        return found
    try:
        complete(journal)
    except (ToolError, OSError) as error:
        return Recovery(found.project, found.what, found.action, str(error))
    return found


def describe_files(journal: Journal) -> Recovery | None:
    """What ``recover_files`` would do."""
    try:
        change = _read(journal)
    except (ToolError, OSError) as error:
        return Recovery(
            "", f"a change of the project noted in {journal.path}", "set aside", str(error)
        )
    if change is None:
        return None
    what = f"an interrupted change of {change.root}"
    edited = _list_edited(change)
    problem = f"{edited[0]} was edited since" if edited else None
    return Recovery(str(change.root), what, "finished", problem)


def undo_unedited(journal: Journal) -> Recovery | None:
    """Undo an interrupted change, except in files that were edited since; these stay as they are."""
    change = _read(journal)
    if change is None:
        return None
    edited = _list_edited(change)
    _apply(journal, change, back=True, keep=edited)
    kept = f"; edited since and left as they are: {', '.join(edited)}" if edited else ""
    return Recovery(str(change.root), f"an interrupted change of {change.root}{kept}", "undone")


def _settle(journal: Journal, *, back: bool) -> str | None:
    change = _read(journal)
    if change is None:
        return None
    if edited := _list_edited(change):
        raise IntegrityError(
            "was edited after a command that was writing it had stopped",
            where=edited[0],
            why="the project is between two states",
            next_step=REPAIR,
        )
    _apply(journal, change, back=back)
    return f"{'undid' if back else 'finished'} an interrupted change of {change.root}"


def _apply(journal: Journal, change: _Change, *, back: bool, keep: Sequence[str] = ()) -> None:
    """Give every file its old or its new content, but for the paths in ``keep``; then end the change."""
    for name, (old, new) in change.files.items():
        if str(change.root / name) not in keep:
            _write(change.root / name, old if back else new)
    for name, (old, new) in change.data.items():
        _write(change.data_root / name, old if back else new)
    journal.remove()


def _list_edited(change: _Change) -> list[str]:
    paths = ((change.root / name, versions) for name, versions in change.files.items())
    return [str(path) for path, versions in paths if _content(path) not in versions]


def _read(journal: Journal) -> _Change | None:
    """Raises IntegrityError when the journal is not one that this tool wrote."""
    body = journal.read()
    if body is None:
        return None
    try:
        change = _Change(
            Path(body["project"]),
            Path(body["data_root"]),
            {name: _unpack(*pair) for name, pair in body["files"].items()},
            {name: _unpack(*pair) for name, pair in body["data"].items()},
        )
        for name in (*change.files, *change.data):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"{name!r} leads out of the project")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise journal.damaged(error) from error
    return change


def _versions(path: Path, new: bytes | None) -> list[str | None]:
    """What ``path`` holds and will hold, as the journal keeps it."""
    return [
        None if data is None else base64.b64encode(data).decode() for data in (_content(path), new)
    ]


def _unpack(old: str | None, new: str | None) -> _Versions:
    first, second = (None if text is None else base64.b64decode(text) for text in (old, new))
    return first, second


def _content(path: Path) -> bytes | None:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def _write(path: Path, data: bytes | None) -> None:
    if data is None:
        atomic.remove(path)
    else:
        atomic.write(path, data)
