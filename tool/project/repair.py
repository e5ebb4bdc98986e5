"""Deal with what a killed command left, also where the next command could not do it by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tool.errors import ToolError
from tool.project import checkout, folder, transaction
from tool.project.checkout import describe_checkout, recover_checkout
from tool.project.folder import describe_folder, recover_folder
from tool.project.journal import Journal, Recovery
from tool.project.session import Session

_KINDS: Final = (transaction.KIND, checkout.KIND, folder.KIND)


def repair_project(session: Session, *, dry_run: bool) -> list[Recovery]:
    """Finish or undo the interrupted changes of this project, and set aside journals that nobody can read.

    An interrupted apply or publish is finished or undone. An interrupted change of the project's files is
    finished; where a file was edited since, the other files go back to what they were. The list also has
    what is interrupted in other projects of the data folder; that is dealt with from there, so it has a
    problem.
    ``dry_run``: nothing is changed, and the list says what would be done.
    """
    with session.hold():
        found = [
            _repair_files(session.files_journal, dry_run),
            _repair_checkout(session, session.checkout_journal, dry_run),
            _repair_folder(session.folder_journal, dry_run),
        ]
        done = [item for item in found if item is not None]
        return [*done, *_list_others(session)]


def _repair_files(journal: Journal, dry_run: bool) -> Recovery | None:
    found = transaction.describe_files(journal)
    if found is None:
        return None
    if not found.project:
        return _set_aside(journal, found, dry_run)
    if found.problem is None:
        return found if dry_run else transaction.recover_files(journal)
    if dry_run:
        kept = f"{found.what}, but not in what was edited: {found.problem}"
        return Recovery(found.project, kept, "undone")
    return transaction.undo_unedited(journal)


def _repair_checkout(session: Session, journal: Journal, dry_run: bool) -> Recovery | None:
    if not journal.exists:
        return None
    found = describe_checkout(session.git, journal)
    if found is not None and not found.project:
        return _set_aside(journal, found, dry_run)
    return found if dry_run else recover_checkout(session.git, journal)


def _repair_folder(journal: Journal, dry_run: bool) -> Recovery | None:
    found = describe_folder(journal)
    if found is not None and not found.project:
        return _set_aside(journal, found, dry_run)
    return found if dry_run else recover_folder(journal)


def _set_aside(journal: Journal, found: Recovery, dry_run: bool) -> Recovery:
    where = "" if dry_run else f", as {journal.set_aside()}"
    return Recovery(
        "",
        f"{found.what}, which cannot be read{where}; look for folders .tool-* beside your worktrees, and "
        "compare the project with version control",
        "set aside",
    )


def _list_others(session: Session) -> Iterator[Recovery]:
    for path in sorted((session.workspace.data / "projects").glob("*/*.json")):
        if path.parent == session.folder or path.stem not in _KINDS:
            continue
        root = _read_root(path)
        if root is None:
            yield Recovery("", f"a change noted in {path}", "", "the journal cannot be read")
        elif root.is_dir():
            yield Recovery(
                str(root), f"a change of another project, {root}", "", f"cd {root} && tool repair"
            )
        else:
            yield Recovery(
                str(root), f"a change of {root}", "", f"that project is gone; remove {path}"
            )


def _read_root(path: Path) -> Path | None:
    try:
        return Path(json.loads(path.read_bytes())["project"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ToolError):
        return None
