"""What one command holds: the project, the tool's folders, and how it talks to a person meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol

from tool.git import OFFLINE, Git
from tool.project import transaction
from tool.project.checkout import recover_checkout
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
    may have changed them. ``offline``: nothing but the cache is used.
    """

    def __init__(
        self,
        root: Path,
        workspace: Workspace,
        *,
        offline: bool = False,
        progress: Progress = SILENT,
    ) -> None:
        self.root = root
        self.workspace = workspace
        self.offline = offline
        self.progress = progress

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

    @contextlib.contextmanager
    def exclusive(self, *, settle: bool = True) -> Iterator[None]:
        """Hold the data folder, after what a killed command left there is finished or undone.

        ``settle`` False leaves an interrupted write of the project as it is, for a caller that decides
        about it.

        Raises:
            EnvironmentFault: another command holds it.
            IntegrityError: an interrupted write cannot be finished, because a file was edited since.
        """
        with self.workspace.exclusive():
            if done := recover_checkout(self.git, self.workspace):
                self.progress.note(done)
            if settle:
                self.settle()
            self._reload()
            yield

    @property
    def is_interrupted(self) -> bool:
        """Did a killed command leave a write of a project half done?"""
        return transaction.pending(self.workspace)

    def settle(self) -> str | None:
        """Finish an interrupted write of the project; a sentence about it, or None when there is none."""
        done = transaction.complete(self.workspace)
        if done:
            self.progress.note(done)
            self._reload()
        return done

    def write(
        self, files: Mapping[str, bytes | None], *, data: Mapping[str, bytes | None] | None = None
    ) -> None:
        """Change files of the project and of the data folder together or not at all."""
        transaction.commit(self.workspace, self.root, files, data=data)
        self._reload()

    def save_lock(self, lock: Lock) -> bool:
        """Write series.lock whole; True when it changed."""
        changed = lockfile.save(self.series.lock_path, lock)
        self.lock = lock
        return changed

    def _reload(self) -> None:
        for name in ("series", "lock"):
            self.__dict__.pop(name, None)
