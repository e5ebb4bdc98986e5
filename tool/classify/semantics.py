"""A patch that applies cleanly and no longer says enough.

git compares the lines around a change. Two ways in which upstream takes the ground from under a patch
lie outside of them: a place more that does what the patch replaces everywhere (one more import of the
module it swaps), and a name the patch uses that is gone (an attribute it sets and nobody reads any
more). Both show by comparing three versions of a file: what the author had and made, and what the
release has.
"""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tool.analysis import decode_line, is_significant
from tool.classify.upstreamed import FileVersions
from tool.git import NULL_OID

_WORD: Final = re.compile(rb"[A-Za-z_]\w*")
_OPENING: Final = frozenset("([{")
_CLOSING: Final = frozenset(")]}")
_LAYOUT: Final = frozenset(
    {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT}
)


def find_semantic_conflicts(aim: FileVersions, contents: Mapping[str, bytes]) -> Iterator[str]:
    """Evidence that what the author of a patch meant for a file is not all it takes in the release.

    ``contents`` holds the three blobs of ``aim`` by id. Nothing is said of a file that is added or
    removed, or that the release has as the author had it.
    """
    if NULL_OID in (aim.before, aim.result, aim.current) or aim.before == aim.current:
        return
    yield from _left_over(aim, contents)
    if aim.path.endswith(".py"):
        yield from _nameless(aim, contents)


def _left_over(aim: FileVersions, contents: Mapping[str, bytes]) -> Iterator[str]:
    """Lines the author replaced wherever they stood, of which the release has more."""
    before, result, current = (
        [line.strip() for line in contents[blob].split(b"\n")]
        for blob in (aim.before, aim.result, aim.current)
    )
    replaced = {line.strip() for b in aim.intended for line in b.removed if is_significant([line])}
    for words in sorted(replaced - set(result)):
        more = current.count(words) - before.count(words)
        if more > 0:
            lines = [str(n) for n, line in enumerate(current, 1) if line == words]
            yield (
                f"{aim.path}: the release has {more} more of what the patch replaces, at one of the "
                f"lines {', '.join(lines)}: {decode_line(words)[:80]}"
            )


def _nameless(aim: FileVersions, contents: Mapping[str, bytes]) -> Iterator[str]:
    """Names of the author's file that the patch uses and the release's file lacks."""
    lost = set(_WORD.findall(contents[aim.before])) - set(_WORD.findall(contents[aim.current]))
    if not any(lost.intersection(_WORD.findall(line)) for b in aim.intended for line in b.added):
        return  # the common case, without reading any Python
    added = {n for b in aim.intended for n in range(b.new_line, b.new_line + len(b.added))}
    names = [n for n in _names(contents[aim.result]) if n.line in added]
    # A variable or parameter of the patch is its own; an attribute the author found there is not.
    own = {n.text for n in names if n.binds}
    used = [n for n in names if n.text.encode() in lost and (n.attribute or n.text not in own)]
    if not used:
        return  # spares reading the file as the author had it
    had = {(n.text, n.attribute) for n in _names(contents[aim.before])}
    for name in dict.fromkeys(n.text for n in used if (n.text, n.attribute) in had):
        yield f"{aim.path}: the patch uses {name}, which this file of the release has not"


@dataclass(frozen=True)
class _Name:
    """A name in code; ``attribute`` where it stands after a dot, ``binds`` where it is a variable
    assigned to, or a parameter."""

    text: str
    line: int
    attribute: bool
    binds: bool


def _names(source: bytes) -> Iterator[_Name]:
    """Every name in Python code, but for the keywords of calls, and for imports: modules come from
    other files."""
    try:
        tokens = list(tokenize.tokenize(io.BytesIO(source).readline))
    except (tokenize.TokenError, SyntaxError):
        return
    starts, first, depth = True, "", 0
    for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if token.type in _LAYOUT:
            starts = starts or token.type == tokenize.NEWLINE
            continue
        depth += (token.string in _OPENING) - (token.string in _CLOSING)
        if starts:
            starts, first = token.string == "async", token.string
        if (
            first in ("from", "import")
            or token.type != tokenize.NAME
            or keyword.iskeyword(token.string)
        ):
            continue
        attribute, assigned = before.string == ".", after.string == "="
        if assigned and depth and not attribute and first != "def":
            continue  # a keyword of a call
        parameter = first == "def" and depth == 1 and before.string in ("(", ",", "*", "**")
        binds = parameter or (assigned and not depth and not attribute)
        yield _Name(token.string, token.start[0], attribute, binds)
