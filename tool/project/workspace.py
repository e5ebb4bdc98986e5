"""Where the tool keeps things: downloaded wheels (cache) and the repository that owns the
worktrees (data).

Both follow the XDG base directory specification; ``TOOL_CACHE_DIR`` and ``TOOL_DATA_DIR`` override
them. The cache may be deleted at any time. The repository may not: branches and commits of
worktrees live there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tool.errors import EnvironmentFault
from tool.git import ATTRIBUTES, Git, require_version, sweep_tempdirs

APP: Final = "ada-dsa"
PATIENCE: Final = 2.0
_EXCLUDE = "# written by `tool`: running the tests must not make a worktree dirty\n__pycache__/\n"


@dataclass(frozen=True)
class Workspace:
    cache: Path
    data: Path

    @property
    def wheels(self) -> Path:
        return self.cache / "wheels"

    @property
    def repository(self) -> Path:
        return self.data / "sglang.git"

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the data folder for one mutating command; the kernel drops the lock if we die.

        Raises:
            EnvironmentFault: another command holds it.
        """
        self.data.mkdir(parents=True, exist_ok=True)
        path = self.data / "lock"
        with path.open("ab") as handle:
            if not _acquired(handle.fileno()):
                raise EnvironmentFault(
                    "another tool command is at work",
                    where=str(path),
                    next_step="wait for it to end, then run the same command again",
                )
            sweep_tempdirs(self.repository)
            yield

    def open_repository(self) -> Git:
        """The bare repository, created whole on first use."""
        require_version()
        if not (self.repository / "HEAD").is_file():
            self._create()
        return Git(self.repository)

    def _create(self) -> None:
        import shutil
        import tempfile

        self.data.mkdir(parents=True, exist_ok=True)
        temp = Path(tempfile.mkdtemp(dir=self.data, prefix=".sglang.git."))
        try:
            Git(temp).run(
                "init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(temp)
            )
            (temp / "info").mkdir(exist_ok=True)
            (temp / "info" / "exclude").write_text(_EXCLUDE, encoding="utf-8")
            (temp / "info" / "attributes").write_text(ATTRIBUTES, encoding="utf-8")
            temp.rename(self.repository)
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise


def locate_workspace() -> Workspace:
    """The folders for this user. Nothing is created here."""
    return Workspace(
        cache=_folder("TOOL_CACHE_DIR", "XDG_CACHE_HOME", ".cache"),
        data=_folder("TOOL_DATA_DIR", "XDG_DATA_HOME", ".local/share"),
    )


def _acquired(descriptor: int) -> bool:
    """Try for PATIENCE seconds: a killed command's last child may take a moment to be gone."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)


def _folder(own: str, xdg: str, fallback: str) -> Path:
    if value := os.environ.get(own):
        return Path(value).absolute()
    base = os.environ.get(xdg, "")
    root = Path(base) if base.startswith("/") else Path.home() / fallback
    return root / APP
