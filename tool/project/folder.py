"""A folder of files that is replaced whole, or stays as it was.

The new folder is filled under a random name beside its place and moved there by a rename, or by an exchange
where an earlier one is replaced. A journal, written first, holds the random name. So a kill at any moment
leaves the earlier folder or the new one, and the next command removes the rest.

Whether the earlier folder may be replaced is for the caller to decide.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from tool.errors import ToolError
from tool.project.journal import REPAIR, Journal, Recovery, is_token
from tool.project.staging import Replacement, new_token, swap_folders

KIND: Final = "folder"


class FolderReplacement:
    """One replacement under way, as a context manager: leaving without ``finish`` undoes it.

    The caller fills ``staged``. ``warn`` is told what a person must know.
    """

    def __init__(
        self, journal: Journal, project: Path, folder: Path, warn: Callable[[str], None]
    ) -> None:
        self._journal = journal
        self._warn = warn
        self._plan = Replacement(new_token(), str(project), str(folder.resolve()))
        self.staged = self._plan.staged

    def __enter__(self) -> FolderReplacement:
        self._journal.write(asdict(self._plan))
        try:
            self._before = _describe(self._plan.place)
            self.staged.mkdir(parents=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def finish(self) -> None:
        """Move the new folder into its place.

        Files that appeared in the earlier folder, or changed, since the replacement began are kept: the
        earlier folder then becomes a backup.
        """
        plan = self._plan
        if not plan.place.exists():
            plan.staged.rename(plan.place)
            return
        swap_folders(plan.staged, plan.place, plan.old)
        earlier = plan.old if plan.old.exists() else plan.staged
        if _describe(earlier) != self._before:
            earlier.rename(plan.backup)
            self._warn(
                f"{plan.folder} changed while it was replaced; what it held is in {plan.backup}"
            )

    def __exit__(self, *_: object) -> None:
        left = recover_folder(self._journal)
        if left is not None and left.problem:
            self._warn(f"{left}; {REPAIR}")


def recover_folder(journal: Journal) -> Recovery | None:
    """Finish or undo what a stopped command left; None when there is nothing. Raises nothing expected."""
    found = describe_folder(journal)
    if found is None or found.problem:
        return found
    try:
        plan = _read(journal)
        assert plan is not None
        if plan.old.exists() and not plan.place.exists():
            plan.old.rename(plan.place)
        for left in (plan.staged, plan.old):
            if left.exists():
                shutil.rmtree(left)
        journal.remove()
    except (ToolError, OSError) as error:
        return Recovery(found.project, found.what, found.action, str(error))
    return found


def describe_folder(journal: Journal) -> Recovery | None:
    """What ``recover_folder`` would do."""
    try:
        plan = _read(journal)
    except (ToolError, OSError) as error:
        return Recovery("", f"a folder's replacement noted in {journal.path}", "", str(error))
    if plan is None:
        return None
    return Recovery(plan.project, f"an interrupted replacement of {plan.folder}", "cleaned up")


def _read(journal: Journal) -> Replacement | None:
    """The plan in the journal. Raises IntegrityError when this tool did not write it."""
    body = journal.read()
    if body is None:
        return None
    try:
        plan = Replacement(**body)
        if not all(isinstance(value, str) for value in body.values()) or not is_token(plan.token):
            raise ValueError("it holds something else where a token or a folder belongs")
        if not plan.place.is_absolute():
            raise ValueError(f"folder {plan.folder!r}")
    except (TypeError, ValueError) as error:
        raise journal.damaged(error) from error
    return plan


def _describe(folder: Path) -> Mapping[str, tuple[int, int]]:
    """Size and time of change of every file below ``folder``; empty where there is none."""
    return {
        str(path.relative_to(folder)): (status.st_size, status.st_mtime_ns)
        for path in folder.rglob("*")
        if not stat.S_ISDIR((status := path.lstat()).st_mode)
    }
