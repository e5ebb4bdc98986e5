"""A patch that applies cleanly and no longer says enough.

git compares the lines around a change. Two ways in which upstream takes the ground from under a patch
lie outside of them: a place more that does what the patch replaces everywhere (one more import of the
module it swaps), and a name the patch uses that is gone (an attribute it sets and nobody reads any
more). Both show by comparing three versions of a file: what the author had and made, and what the
release has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from tool.analysis import Outlines, decode_line, find_names, format_lines, is_significant
from tool.classify.upstreamed import FileVersions
from tool.classify.vocabulary import has_word
from tool.git import NULL_OID

_WORD: Final = re.compile(rb"[A-Za-z_]\w*")


def find_semantic_conflicts(
    aim: FileVersions, contents: Mapping[str, bytes], outlines: Outlines
) -> Iterator[str]:
    """Evidence that what the author of a patch meant for a file is not all it takes in the release.

    ``contents`` holds the three blobs of ``aim`` by id. Nothing is said of a file that is added or
    removed, or that the release has as the author had it.
    """
    if NULL_OID in (aim.before, aim.result, aim.current) or aim.before == aim.current:
        return
    yield from _left_over(aim, contents)
    if aim.path.endswith(".py"):
        yield from _nameless(aim, contents, outlines)


def _left_over(aim: FileVersions, contents: Mapping[str, bytes]) -> Iterator[str]:
    """Lines the author replaced wherever they stood, of which the release has more."""
    before, result, current = (contents[blob] for blob in (aim.before, aim.result, aim.current))
    replaced = {line.strip() for b in aim.intended for line in b.removed if is_significant([line])}
    for words in sorted(replaced):
        if any(_find_lines(result, words)):
            continue
        lines, known = list(_find_lines(current, words)), len(list(_find_lines(before, words)))
        if len(lines) > known:
            yield (
                f"{aim.path}: the release has this at {len(lines)} places, its {format_lines(lines)}, "
                f"{len(lines) - known} more than the patch was written for: {decode_line(words)[:80]}"
            )


def _find_lines(source: bytes, words: bytes) -> Iterator[int]:
    """The 1-based lines that read ``words``, whatever white space is around them."""
    at = source.find(words)
    while at >= 0:
        begin, end = source.rfind(b"\n", 0, at) + 1, source.find(b"\n", at)
        end = end if end >= 0 else len(source)
        if source[begin:end].strip() == words:
            yield source.count(b"\n", 0, at) + 1
        at = source.find(words, end)


def _nameless(
    aim: FileVersions, contents: Mapping[str, bytes], outlines: Outlines
) -> Iterator[str]:
    """Names of the author's file that the patch uses and the release's file lacks."""
    before, current = contents[aim.before], contents[aim.current]
    words = {w for b in aim.intended for line in b.added for w in _WORD.findall(line)}
    if not any(word in before and not has_word(current, word) for word in words):
        return  # the common case, without reading any Python
    lost = set(_WORD.findall(before)) - set(_WORD.findall(current))
    added = {n for b in aim.intended for n in range(b.new_line, b.new_line + len(b.added))}
    try:
        names = list(find_names(outlines.syntax(aim.result, added), added))
        # A variable or parameter of the patch is its own; an attribute the author found there is not.
        own = {n.text for n in names if n.binds}
        used = [n for n in names if n.text.encode() in lost and (n.attribute or n.text not in own)]
        if not used:
            return  # spares reading the file as the author had it
        places = _list_lines(before, {n.text.encode() for n in used})
        had = {
            (n.text, n.attribute) for n in find_names(outlines.syntax(aim.before, places), places)
        }
    except SyntaxError:
        return
    for name in dict.fromkeys(n.text for n in used if (n.text, n.attribute) in had):
        yield f"{aim.path}: the patch uses {name}, which this file of the release has not"


def _list_lines(source: bytes, words: set[bytes]) -> set[int]:
    """The 1-based lines that hold one of ``words``."""
    lines = enumerate(source.split(b"\n"), 1)
    return {n for n, line in lines if not words.isdisjoint(_WORD.findall(line))}
