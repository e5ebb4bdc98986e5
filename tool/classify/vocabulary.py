"""Words that the older release has somewhere in the package and the newer one has nowhere.

An attribute that upstream renamed everywhere is such a word. To find one takes a search of the whole
tree, so the files where it most likely is are read first: almost every word is in one of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from tool.git import NULL_OID, Git
from tool.series import ROOT

_WORD: Final = re.compile(rb"[A-Za-z_]\w*")


class Vocabulary:
    """The words of the trees of two releases. ``old`` None: nothing is known of the older one."""

    def __init__(self, git: Git, old: str | None, new: str) -> None:
        self._git = git
        self._old = old
        self._new = new
        self._present: set[str] = set()
        self._read: set[str] = set()

    def find_gone(self, words: Collection[str], near: Collection[str]) -> set[str]:
        """Those of ``words`` that no Python file has any more; ``near`` are blobs to look into first."""
        if self._old is None:
            return set()
        for blob in near:
            if blob != NULL_OID and blob not in self._read:
                self._read.add(blob)
                found = _WORD.findall(self._git.blobs([blob])[blob])
                self._present.update(word.decode() for word in set(found))
        left = set(words) - self._present
        if left:
            there = self._grep(left, self._new)
            self._present |= there
            left -= there
        return self._grep(left, self._old) if left else left

    def _grep(self, words: Collection[str], tree: str) -> set[str]:
        """Those of ``words`` that a Python file of ``tree`` has."""
        patterns = [part for word in sorted(words) for part in ("-e", word)]
        done = self._git.run(
            "grep", "-I", "-h", "-o", "-w", "-F", *patterns, tree, "--", ROOT, check=False
        )
        return {line.decode("utf-8", "replace") for line in set(done.stdout.split(b"\n"))} & set(
            words
        )
