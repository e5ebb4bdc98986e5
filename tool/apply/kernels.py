"""The kernels, as one more commit inside sglang's own package.

They live in ``sglang.srt.layers.attention.ada_dsa`` so that the fork is one distribution: no
second package can own the import name or drift from it. ``ada_dsa`` imports only relatively, which
is what lets the same files serve both places. The commit follows from their content alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from tool.apply.engine import COMMIT_ENV, Base, commit_tree
from tool.errors import ConflictError, UsageError
from tool.git import tempdir as scratch
from tool.git.repository import Git

DESTINATION: Final = "python/sglang/srt/layers/attention/ada_dsa"
TREE_TRAILER: Final = "Kernels-Tree"
RELEASE_TRAILER: Final = "Sglang-Release"
REQUIREMENTS: Final = "requirements.txt"
_SUFFIXES: Final = (".py", ".typed")


def kernel_files(folder: Path) -> dict[str, Path]:
    """Bundled files by path relative to ``folder``: Python sources and the requirements.

    Raises:
        UsageError: the folder has no kernels, or holds a link (a bundle must not reach outside
        itself).
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if "__pycache__" in relative.parts or path.is_dir():
            continue
        if path.is_symlink():
            raise UsageError(f"{path} is a link", next_step="replace it by the file it points to")
        if path.suffix in _SUFFIXES or str(relative) == REQUIREMENTS:
            files[relative.as_posix()] = path
    if "__init__.py" not in files:
        raise UsageError(
            f"no kernels in {folder}", next_step="run from a full checkout, or pass --series DIR"
        )
    return files


def commit(git: Git, base: Base, parent: str, folder: Path) -> str:
    """Commit the kernels of ``folder`` on top of ``parent``; returns the commit id.

    Raises:
        ConflictError: upstream has something at the destination.
    """
    files = kernel_files(folder)
    if git.out("ls-tree", "-z", parent, "--", DESTINATION):
        raise ConflictError(
            f"sglang {base.release} has its own {DESTINATION}",
            next_step="choose another destination for the kernels (tool/bundle.py)",
        )
    # One process hashes every file; --no-filters keeps the bytes whatever attributes a tree may carry.
    names = "".join(f"{path}\n" for path in files.values())
    blobs = git.out("hash-object", "-w", "--no-filters", "--stdin-paths", stdin=names.encode())
    with scratch.folder(git) as temp:
        index = replace(git, index_file=Path(temp) / "index", env={**git.env, **COMMIT_ENV})
        index.run("read-tree", parent)
        rows = zip(blobs.split("\n"), files, strict=True)
        entries = "".join(f"100644 {blob}\t{DESTINATION}/{name}\0" for blob, name in rows)
        index.run("update-index", "-z", "--add", "--index-info", stdin=entries.encode())
        tree = index.out("write-tree")
        kernels = index.out("rev-parse", "--verify", f"{tree}:{DESTINATION}")
        return commit_tree(index, tree, parent, _message(base, kernels))


def requirements(folder: Path) -> list[str]:
    """What the kernels need at run time: the lines of ``ada_dsa/requirements.txt`` that are not comments."""
    return list(_requirement_lines(folder / REQUIREMENTS))


def _requirement_lines(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.split("#", 1)[0].strip()
        if text:
            yield text


def _message(base: Base, kernels: str) -> str:
    return (
        "bundle the ada_dsa kernels\n\n"
        "Copied from the ada_dsa folder of the series; edit them there, not here.\n\n"
        f"{RELEASE_TRAILER}: {base.release}\n{TREE_TRAILER}: {kernels}\n"
    )
