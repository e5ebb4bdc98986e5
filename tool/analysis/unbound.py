"""Names that a Python file uses as globals and that nothing in it binds.

The compiler's own table of symbols tells. Making it for a large file takes as long as parsing it, so for
a change of a file the pieces that differ are looked at first: most often they settle it.
"""

from __future__ import annotations

import builtins
import re
import symtable
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import decode_source
from typing import Final

from tool.analysis.pieces import NOT_READ, Group, Piece, cut_source

_KEPT: Final = 1024
"""Pieces whose names are at hand."""
_STAR: Final = re.compile(rb"^\s*from\s.*\simport\s*\*", re.MULTILINE)
_AT_MARGIN: Final = re.compile(rb"\n(?:(?:async )?def |class )?([A-Za-z_]\w*)")
_PROVIDED: Final = frozenset(dir(builtins)) | {"__file__", "__path__"}


@dataclass(frozen=True)
class _Names:
    """``used`` as globals, ``bound`` in the module, ``members`` bound in a class of it as (class, name), and
    those that are ``declared`` global somewhere."""

    used: frozenset[str]
    bound: frozenset[str]
    members: frozenset[tuple[str, str]]
    declared: frozenset[str]


def find_unbound(source: bytes) -> frozenset[str]:
    """Names that are read as globals and bound nowhere; none where ``import *`` may bind any.

    Raises:
        SyntaxError: a name is declared in a way that cannot be.
    """
    if _STAR.search(source):
        return frozenset()
    names = _read_names(source)
    return names.used - names.bound - _PROVIDED


def may_unbind(before: bytes, after: bytes) -> bool:
    """May a change of a file leave a name unbound that was not so before? False where the pieces that differ
    rule it out."""
    if _STAR.search(before) or _STAR.search(after):
        return True
    try:
        old, new = cut_source(before), cut_source(after)
        return not _is_unique(old) or not _is_unique(new) or bool(_list_suspects(old, new))
    except NOT_READ:
        return True


def _is_unique(groups: Sequence[Group]) -> bool:
    """Is no class that was cut there twice? Its parts could not be told from those of the other."""
    owners = [group[-1].owner for group in groups if group[-1].owner]
    return len(set(owners)) == len(owners)


def _list_suspects(old: Sequence[Group], new: Sequence[Group]) -> set[str]:
    """Names that the pieces of ``new`` which differ use, or those of ``old`` bound, and whose binding was
    not found."""
    was, now = (Counter((p.owner, p.text) for g in groups for p in g) for groups in (old, new))
    gone = _merge(was - now)
    come = _merge(now - was)
    members = {name for _, name in gone.members - come.members}
    suspects = {*come.used, *(gone.bound - come.bound), *members, *gone.declared, *come.declared}
    suspects -= _PROVIDED | come.bound
    for piece in _list_binders(new, suspects):
        suspects -= _read_names(piece.owner + piece.text).bound
    return suspects


def _list_binders(groups: Sequence[Group], suspects: set[str]) -> Iterator[Piece]:
    """Where one of ``suspects`` may be bound: the beginning, which has the imports, and pieces with one of
    them at the margin. ``suspects`` may shrink meanwhile."""
    for at, piece in enumerate(piece for group in groups for piece in group):
        names = {name.decode() for name in _AT_MARGIN.findall(b"\n" + piece.text)}
        if not at or names & suspects:
            yield piece


def _merge(pieces: Counter[tuple[bytes, bytes]]) -> _Names:
    found = [_read_names(owner + text) for owner, text in pieces]
    return _Names(
        frozenset[str]().union(*(names.used for names in found)),
        frozenset[str]().union(*(names.bound for names in found)),
        frozenset[tuple[str, str]]().union(*(names.members for names in found)),
        frozenset[str]().union(*(names.declared for names in found)),
    )


@lru_cache(maxsize=_KEPT)
def _read_names(source: bytes) -> _Names:
    module = symtable.symtable(decode_source(source), "<patched>", "exec")
    used: set[str] = set()
    bound: set[str] = set()
    members: set[tuple[str, str]] = set()
    declared: set[str] = set()
    tables = [module]
    for table in tables:
        inner = table.get_children()
        if table is module:
            classes = {id(child) for child in inner if child.get_type() == "class"}
        tables.extend(inner)
        for symbol in table.get_symbols():
            name = symbol.get_name()
            everywhere = table is module or symbol.is_declared_global()
            if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace():
                if everywhere:
                    bound.add(name)
                elif id(table) in classes:
                    members.add((table.get_name(), name))
            if symbol.is_declared_global():
                declared.add(name)
            if symbol.is_referenced() and (table is module or symbol.is_global()):
                used.add(name)
    return _Names(frozenset(used), frozenset(bound), frozenset(members), frozenset(declared))
