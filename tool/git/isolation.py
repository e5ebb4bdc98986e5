"""The repository without the settings that people and other programs make in it.

git reads the settings of a repository from its common folder: ``config``, ``info/attributes``, grafts
and shallow marks. A person may change all of those, and many can change a commit id, a patch or an
outcome (``git help --config`` lists several hundred keys). So the tool gives git another common folder
(``GIT_COMMON_DIR`` in gitrepository-layout(5)), made once below the repository: its settings are the
tool's, its objects, refs and worktrees are links to the repository's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tool.errors import EnvironmentFault

FOLDER: Final = "tool"
_SHARED: Final = ("objects", "refs", "packed-refs", "worktrees", "logs")

ATTRIBUTES: Final = (
    "# Written by `tool`. A file in the worktree holds the bytes of its blob, whatever .gitattributes say.\n"
    "* -text !eol !crlf -ident -filter !working-tree-encoding !merge !diff !whitespace"
    " !conflict-marker-size !encoding !export-ignore !export-subst\n"
)
"""Content of ``info/attributes``, which git prefers to every ``.gitattributes`` of a tree."""


def repository_of(git_dir: Path) -> Path:
    """The repository that ``git_dir``, itself or the administrative folder of a worktree, belongs to."""
    return git_dir.parent.parent if git_dir.parent.name == "worktrees" else git_dir


def isolated_folder(git_dir: Path) -> Path | None:
    """The common folder with the tool's settings, made if need be; None where there is no repository yet.

    Raises:
        EnvironmentFault: it cannot be made.
    """
    repository = repository_of(git_dir)
    folder = repository / FOLDER
    if (folder / "config").is_file():
        return folder
    if not (repository / "objects").is_dir():
        return None
    try:
        _create(repository, folder)
    except (OSError, subprocess.CalledProcessError) as err:
        raise EnvironmentFault(
            "the repository of the tool cannot be written", where=str(folder), why=str(err)
        ) from err
    return folder


def _create(repository: Path, folder: Path) -> None:
    temp = Path(tempfile.mkdtemp(dir=repository, prefix=f".{FOLDER}."))
    try:
        # git init writes what it finds out about the file system (core.ignoreCase, core.precomposeUnicode).
        made = temp / "made"
        empty = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        empty |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        command = ["git", "init", "--quiet", "--bare", "--template=", str(made)]
        subprocess.run(command, env=empty, check=True, capture_output=True)
        new = temp / "new"
        (new / "info").mkdir(parents=True)
        (new / "info" / "attributes").write_text(ATTRIBUTES, encoding="utf-8")
        # What a person does not want to see among the changes of a worktree stays the person's choice.
        (new / "info" / "exclude").symlink_to("../../info/exclude")
        for name in _SHARED:
            (new / name).symlink_to(f"../{name}")
        (made / "config").rename(new / "config")
        try:
            new.rename(folder)
        except OSError:
            if (folder / "config").is_file():
                return  # another process was faster, and its folder is as good
            shutil.rmtree(folder)
            new.rename(folder)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
