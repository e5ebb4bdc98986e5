"""Where the tool keeps things: downloaded wheels (cache) and the repository that owns the
worktrees (data).

Both follow the XDG base directory specification; ``TOOL_CACHE_DIR`` and ``TOOL_DATA_DIR`` override
them. The cache may be deleted at any time. The repository may not: branches and commits of
worktrees live there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tool import atomic
from tool.errors import EnvironmentFault
from tool.git import ATTRIBUTES, Git, require_version, sweep_tempdirs

APP: Final = "ada-dsa"
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

    def project_name(self, root: Path) -> str:
        """The folder, below ``data``, of what belongs to the project in ``root`` alone."""
        return f"projects/{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}"

    def project_data(self, root: Path) -> Path:
        return self.data / self.project_name(root)

    @contextlib.contextmanager
    def exclusive(
        self,
        root: Path | None = None,
        *,
        wait: bool = True,
        note: Callable[[str], None] = lambda text: None,
    ) -> Iterator[None]:
        """Hold the data folder, and the project in ``root``, for one command that writes.

        The project is held too because another user, or another data folder, may be at work on it.
        ``note`` is told when the command has to wait.

        Raises:
            EnvironmentFault: another command holds one of them, and ``wait`` is False.
        """
        self.data.mkdir(parents=True, exist_ok=True)
        path = self.data / "lock"

        def on_busy(holder: str) -> None:
            if not wait:
                raise EnvironmentFault(
                    "another tool command is at work",
                    where=str(path),
                    why=holder or None,
                    next_step="run the same command again without --no-wait: it then waits",
                )
            note(f"waiting for another tool command to end{holder and f' ({holder})'}")

        with contextlib.ExitStack() as stack:
            stack.enter_context(atomic.locked(path, on_busy=on_busy))
            if root is not None:
                with contextlib.suppress(OSError):  # some network file systems lock no folders
                    stack.enter_context(atomic.locked(root, on_busy=on_busy))
            sweep_tempdirs(self.repository)
            yield

    def open_repository(self) -> Git:
        """The bare repository, created whole on first use."""
        require_version()
        if self.find_repository() is None:
            self._create()
        return Git(self.repository)

    def find_repository(self) -> Git | None:
        """The bare repository, if it is there. Nothing is created."""
        return Git(self.repository) if (self.repository / "HEAD").is_file() else None

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


def _folder(own: str, xdg: str, fallback: str) -> Path:
    if value := os.environ.get(own):
        return Path(value).absolute()
    base = os.environ.get(xdg, "")
    if base.startswith("/"):
        return Path(base) / APP
    try:
        return Path.home() / fallback / APP
    except RuntimeError as error:  # neither HOME nor an entry in the password database
        raise EnvironmentFault(
            "there is no home folder for this user",
            why=str(error),
            next_step="set TOOL_DATA_DIR and TOOL_CACHE_DIR to two folders of your own",
        ) from error
