"""What one command holds: the project, the tool's folders, and how it talks to a person meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol

from tool.errors import EnvironmentFault
from tool.git import OFFLINE, Git
from tool.project import checkout, folder, transaction
from tool.project.checkout import Checkout, Publication, describe_checkout, recover_checkout
from tool.project.folder import FolderReplacement, describe_folder, recover_folder
from tool.project.journal import REPAIR, Journal, Recovery
from tool.project.workspace import Workspace
from tool.series import Lock, Series, load_series, lockfile

Step = Callable[[int, int], None]
"""``step(done, total)``."""


class Progress(Protocol):
    """Where a command says what it is doing; never part of its result."""

    @property
    def quiet(self) -> bool:
        """No progress, neither ours nor that of the programs we run."""

    def note(self, text: str) -> None:
        """Say one sentence."""

    def bar(self, title: str) -> AbstractContextManager[Step]:
        """Show how much of ``title`` is done while the block runs."""


class _Silent:
    quiet = True

    def note(self, text: str) -> None:
        pass

    @contextlib.contextmanager
    def bar(self, title: str) -> Iterator[Step]:
        yield lambda done, total: None


SILENT: Final[Progress] = _Silent()


class Session:
    """One command at work on the project in ``root``.

    ``series`` and ``lock`` are read when first asked for, and again after ``exclusive`` or ``write``
    may have changed them. ``offline``: nothing but the cache is used. ``wait``: wait for another command
    that is at work. ``warnings`` holds what a person must be told whatever the result is.
    """

    def __init__(
        self,
        root: Path,
        workspace: Workspace,
        *,
        offline: bool = False,
        wait: bool = True,
        progress: Progress = SILENT,
    ) -> None:
        self.root = root
        self.workspace = workspace
        self.offline = offline
        self.progress = progress
        self.warnings: list[str] = []
        self._wait = wait

    @cached_property
    def series(self) -> Series:
        """Raises UsageError when series.txt does not parse."""
        return load_series(self.root)

    @cached_property
    def lock(self) -> Lock:
        """Raises IntegrityError when series.lock does not parse."""
        return lockfile.load(self.series.lock_path)

    @cached_property
    def git(self) -> Git:
        """The repository that owns the worktrees. Raises EnvironmentFault without a usable git."""
        git = self.workspace.open_repository()
        return Git(git.git_dir, env=OFFLINE) if self.offline else git

    @property
    def folder(self) -> Path:
        """The folder, in the data folder, of what belongs to this project alone."""
        return self.workspace.project_data(self.root)

    @property
    def files_journal(self) -> Journal:
        """Notes a write of the project's files that is under way."""
        return Journal(self.folder, transaction.KIND)

    @property
    def checkout_journal(self) -> Journal:
        """Notes a worktree that is being published."""
        return Journal(self.folder, checkout.KIND)

    @property
    def folder_journal(self) -> Journal:
        """Notes a folder that is being replaced."""
        return Journal(self.folder, folder.KIND)

    def hold(self) -> AbstractContextManager[None]:
        """Hold the project and the data folder as they are; see ``Workspace.exclusive``."""
        return self.workspace.exclusive(self.root, wait=self._wait, note=self.progress.note)

    @contextlib.contextmanager
    def exclusive(self, *, settle: bool = True) -> Iterator[None]:
        """Hold the project and the data folder, after what a killed command left is finished or undone.

        What cannot be recovered becomes a warning; it stops only a command that would write over it.
        ``settle`` False leaves an interrupted write of the project as it is, for a caller that decides
        about it.

        Raises:
            EnvironmentFault: another command holds them, and this one was told not to wait.
        """
        with self.hold():
            self._report(recover_checkout(self.git, self.checkout_journal))
            self._report(recover_folder(self.folder_journal))
            if settle:
                self._report(transaction.recover_files(self.files_journal))
            self._reload()
            yield

    def list_interrupted(self) -> list[Recovery]:
        """Changes that a killed command left unfinished. Reads only.

        A command that is still at work has a journal too; that is no interruption.
        """
        journals = (self.files_journal, self.checkout_journal, self.folder_journal)
        if not any(journal.exists for journal in journals):
            return []
        try:
            with self.workspace.exclusive(self.root, wait=False):
                found = [
                    transaction.describe_files(self.files_journal),
                    describe_folder(self.folder_journal),
                ]
                if self.checkout_journal.exists:
                    found.append(describe_checkout(self.git, self.checkout_journal))
        except EnvironmentFault:
            return []
        return [item for item in found if item is not None]

    @property
    def is_interrupted(self) -> bool:
        """Did a killed command leave a write of the project half done?"""
        return self.files_journal.exists

    def settle(self) -> str | None:
        """Finish an interrupted write of the project; a sentence about it, or None when there is none.

        Raises:
            IntegrityError: a file was edited since, or the journal cannot be read.
        """
        return self._settled(transaction.complete(self.files_journal))

    def roll_back(self) -> str | None:
        """Undo an interrupted write of the project; as ``settle``."""
        return self._settled(transaction.roll_back(self.files_journal))

    def is_writing(self, name: str) -> bool:
        """Does an interrupted write concern the file ``name`` of this project's folder?"""
        return transaction.writes(self.files_journal, self._data_name(name))

    def write(
        self,
        files: Mapping[str, bytes | None],
        *,
        data: Mapping[str, bytes | None] | None = None,
        own: Mapping[str, bytes | None] | None = None,
    ) -> None:
        """Change files of the project, of the data folder (``data``) and of this project's folder in it
        (``own``) together or not at all. None removes a file.

        Raises:
            IntegrityError: an interrupted write is unfinished.
            OSError: a file cannot be written; everything is as it was.
        """
        names = {self._data_name(name): content for name, content in (own or {}).items()}
        transaction.commit(
            self.files_journal,
            self.root,
            files,
            data_root=self.workspace.data,
            data={**(data or {}), **names},
        )
        self._reload()

    def publish(self, target: Checkout, head: str, base: str) -> Publication:
        """Begin to make ``target`` the worktree of ``head``; see ``Publication``."""
        return Publication(
            self.git, self.checkout_journal, self.root, target, head, base, self.warn
        )

    def replace_folder(self, place: Path) -> FolderReplacement:
        """Begin to put a folder of files at ``place``; see ``FolderReplacement``."""
        return FolderReplacement(self.folder_journal, self.root, place, self.warn)

    def warn(self, text: str) -> None:
        """Say what a person must know, whatever the command's result is."""
        self.warnings.append(text)

    def save_lock(self, lock: Lock) -> bool:
        """Write series.lock whole; True when it changed.

        Raises:
            IntegrityError: an interrupted write of the project is unfinished.
        """
        if self.is_interrupted:
            raise self.files_journal.unfinished()
        changed = lockfile.save(self.series.lock_path, lock)
        self.lock = lock
        return changed

    def _data_name(self, name: str) -> str:
        return f"{self.workspace.project_name(self.root)}/{name}"

    def _settled(self, done: str | None) -> str | None:
        if done:
            self.progress.note(done)
            self._reload()
        return done

    def _report(self, found: Recovery | None) -> None:
        if found is None:
            return
        if found.problem:
            self.warn(f"{found}; {REPAIR}")
        else:
            self.progress.note(str(found))

    def _reload(self) -> None:
        for name in ("series", "lock"):
            self.__dict__.pop(name, None)
