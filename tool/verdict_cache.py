"""Verdicts of earlier commands, so that the same question is not worked out twice.

A verdict follows from the patch, the commit it is tried on, the trees of the two releases, and git,
which merges. What it applied must still be in the repository.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tool import git as gits
from tool import patchfile
from tool.engine import Applied
from tool.git import Git
from tool.lock import FileChange
from tool.series import Patch
from tool.store import Store
from tool.verdict import Kind, Trouble, Verdict

if TYPE_CHECKING:
    from tool.hunks import Block

_BYTES: Final = "latin-1"
"""Every byte is a character of it, so lines of any file survive JSON."""
_SIDES: Final = ("removed", "added")


class VerdictCache:
    """Verdicts in ``store``, on a release whose tree is ``new``, of patches for the one of ``old``."""

    def __init__(self, store: Store, git: Git, old: str | None, new: str) -> None:
        self._store = store
        self._git = git
        self._words = "verdict", gits.version(), old, new

    def get(self, patch: Patch, commit: str, tree: str) -> Verdict | None:
        """What ``put`` was given for the same question, if it still stands."""
        plain = self._store.get(*self._words, patch.name, patch.sha256, commit, tree)
        if plain is None:
            return None
        verdict = _from_plain(plain, patch, tree)
        applied = verdict.applied
        if applied and not all(self._git.has_objects([applied.commit, applied.tree]).values()):
            return None
        return verdict

    def put(self, verdict: Verdict, patch: Patch, commit: str, tree: str) -> None:
        words = (*self._words, patch.name, patch.sha256, commit, tree)
        self._store.put(_to_plain(verdict), *words)


def _to_plain(verdict: Verdict) -> dict[str, Any]:
    applied = verdict.applied
    return {
        "kind": verdict.kind,
        "evidence": verdict.evidence,
        "applied": applied
        and {
            "tree": applied.tree,
            "commit": applied.commit,
            "files": [(f.path, f.before, f.after) for f in applied.files],
            "exact": applied.exact,
        },
        "troubles": [
            {
                **vars(trouble),
                "ours": _block_to_plain(trouble.ours),
                "theirs": [_block_to_plain(block) for block in trouble.theirs],
            }
            for trouble in verdict.troubles
        ],
    }


def _from_plain(plain: dict[str, Any], patch: Patch, parent_tree: str) -> Verdict:
    applied = None
    if made := plain["applied"]:
        applied = Applied(
            patch.name,
            patch.sha256,
            parent_tree,
            made["tree"],
            made["commit"],
            tuple(FileChange(*change) for change in made["files"]),
            made["exact"],
            patchfile.parse(patch.name, patch.content),
        )
    troubles = [
        Trouble(
            **{
                **trouble,
                "ours": _block_from_plain(trouble["ours"]),
                "theirs": tuple(_block_from_plain(block) for block in trouble["theirs"]),
            }
        )
        for trouble in plain["troubles"]
    ]
    evidence = tuple(plain["evidence"])
    return Verdict(patch.name, Kind(plain["kind"]), evidence, applied, tuple(troubles))


def _block_to_plain(block: Block) -> dict[str, Any]:
    lines = {side: [line.decode(_BYTES) for line in getattr(block, side)] for side in _SIDES}
    return vars(block) | lines


def _block_from_plain(plain: dict[str, Any]) -> Block:
    from tool.hunks import Block

    lines = {side: tuple(line.encode(_BYTES) for line in plain[side]) for side in _SIDES}
    return Block(**plain | lines)
