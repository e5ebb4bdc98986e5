"""Words that the older release has somewhere in the package and the newer one has nowhere.

An attribute that upstream renamed everywhere is such a word. Finding one takes a search of the whole
tree, so the files where it most likely is are read first: almost every word is in one of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from tool.analysis import PACKAGE, Modules
from tool.git import NULL_OID, Git, find_blobs
from tool.series import ROOT

_IMPORT = re.compile(rb"^\s*(?:from|import)\s+(%s[\w.]*)" % PACKAGE.encode(), re.MULTILINE)

_WORD = re.compile(rb"\w+")
_ATTRIBUTE = r"(\.|def |^    |[\"']){}\b"
"""Read or set on an object, a method, a field of a class, or a name in quotes."""


class Vocabulary:
    """The words of the trees of two releases. ``old`` None: nothing is known of the older one."""

    def __init__(self, git: Git, old: str | None, new: str) -> None:
        self._git = git
        self._old = old
        self._new = new
        self._modules = Modules(git, new)

    def find_gone(self, words: Collection[str], paths: Collection[str]) -> set[str]:
        """Those of ``words`` that no Python file has any more; the files ``paths`` are looked into
        first, and then what they import."""
        if self._old is None:
            return set()
        left = set(words)
        for source in self._list_near(paths):
            left = {word for word in left if not has_word(source, word.encode())}
            if not left:
                return left
        left -= self._grep(left, self._new, "-w", "{}")
        # A variable of the older release that had the name is no attribute of anything.
        return left & self._grep(left, self._old, _ATTRIBUTE) if left else left

    def _list_near(self, paths: Collection[str]) -> Iterator[bytes]:
        sources = []
        for blob in find_blobs(self._git, self._new, list(paths)).values():
            if blob != NULL_OID:
                sources.append(self._git.blobs([blob])[blob])
                yield sources[-1]
        for module in dict.fromkeys(m for s in sources for m in _IMPORT.findall(s)):
            if (source := self._modules.source(module.decode())) is not None:
                yield source

    def _grep(self, words: Iterable[str], tree: str, *form: str) -> set[str]:
        """Those of ``words`` that a Python file of ``tree`` has in the ``form`` of an expression."""
        *flags, pattern = form
        patterns = [part for word in sorted(words) for part in ("-e", pattern.format(word))]
        found = self._git.run(
            "grep", "-I", "-h", "-o", "-E", *flags, *patterns, tree, "--", ROOT, check=False
        ).stdout
        return {word.decode() for line in set(found.splitlines()) for word in _WORD.findall(line)}


def has_word(source: bytes, word: bytes) -> bool:
    """Is ``word`` somewhere in ``source`` with no letter, digit or underscore at its side?"""
    at = source.find(word)
    while at >= 0:
        sides = source[max(0, at - 1) : at], source[at + len(word) : at + len(word) + 1]
        if not any(side.isalnum() or side == b"_" for side in sides):
            return True
        at = source.find(word, at + 1)
    return False
