"""The kernels, as one more commit inside sglang's own package.

They live in ``sglang.srt.layers.attention.ada_dsa`` so that the fork is one distribution: no
second package can own the import name or drift from it. ``ada_dsa`` imports only relatively, which
is what lets the same files serve both places. The commit follows from their content alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tool.errors import ConflictError
from tool.git import Git, add_blobs, commit_tree, private_index
from tool.series import RELEASE_TRAILER, TREE_TRAILER, find_kernels
from tool.upstream import Base

DESTINATION: Final = "python/sglang/srt/layers/attention/ada_dsa"


def commit_kernels(git: Git, base: Base, parent: str, folder: Path) -> str:
    """Commit the kernels of ``folder`` on top of ``parent``; returns the commit id.

    Raises:
        ConflictError: upstream has something at the destination.
    """
    files = find_kernels(folder)
    if git.out("ls-tree", "-z", parent, "--", DESTINATION):
        raise ConflictError(
            f"sglang {base.release} has its own {DESTINATION}",
            next_step="choose another destination for the kernels (tool/apply/kernels.py)",
        )
    # One process hashes every file; --no-filters keeps the bytes whatever attributes a tree may carry.
    names = "".join(f"{path}\n" for path in files.values())
    blobs = git.out("hash-object", "-w", "--no-filters", "--stdin-paths", stdin=names.encode())
    rows = zip(files, blobs.split("\n"), strict=True)
    with private_index(git, parent) as index:
        add_blobs(index, {f"{DESTINATION}/{name}": blob for name, blob in rows})
        tree = index.out("write-tree")
        kernels = index.out("rev-parse", "--verify", f"{tree}:{DESTINATION}")
        return commit_tree(index, tree, parent, _message(base, kernels))


def _message(base: Base, kernels: str) -> str:
    return (
        "bundle the ada_dsa kernels\n\n"
        "Copied from the ada_dsa folder of the series; edit them there, not here.\n\n"
        f"{RELEASE_TRAILER}: {base.release}\n{TREE_TRAILER}: {kernels}\n"
    )
