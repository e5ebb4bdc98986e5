"""What git cannot see in a patched Python file: does it parse, is a definition there twice, does
every name mean something, where am I.

A three-way merge can succeed and still leave a function defined twice (upstream added the same one
elsewhere in the file), a hunk in the wrong twin of two similar classes, or a name whose import
upstream has moved into a function. All show in the syntax tree or the symbol table.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import ClassVar, Final

from tool.analysis.pieces import NOT_READ, Group, Piece, cut_source, join_syntax
from tool.analysis.syntax import last_name, parse_syntax
from tool.analysis.unbound import find_unbound, may_unbind
from tool.git import Git, Run, changed_runs

MODULE: Final = "<module>"
_REDEFINES: Final = {"overload", "setter", "getter", "deleter", "register"}
"""Decorators under which a second definition of the same name is ordinary Python."""

_KEPT: Final = 12
"""Syntax trees at hand: about those of the files that one patch changes."""
_PIECES: Final = 8192
"""Outlines of pieces at hand; they are small."""

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Span:
    """A definition's qualified name and its 1-based first and last line, decorators included."""

    name: str
    first: int
    last: int


@dataclass(frozen=True)
class Outline:
    """The definitions of one file, and the names it uses that nothing in it binds."""

    spans: tuple[Span, ...]
    counts: Counter[str]
    source: bytes = field(repr=False)

    @cached_property
    def unbound(self) -> frozenset[str]:
        """Names that are read as globals and bound nowhere; none where ``import *`` may bind any."""
        return find_unbound(self.source)

    def symbol_at(self, line: int) -> str:
        """The qualified name of the innermost definition around ``line``, or ``<module>``."""
        around = [s for s in self.spans if s.first <= line <= s.last]
        return min(around, key=lambda s: s.last - s.first).name if around else MODULE


def parse_outline(source: bytes) -> Outline:
    """Parse ``source``.

    Raises:
        SyntaxError: it is not Python, or nested too deeply to be read.
    """
    try:
        return _join_outline(cut_source(source), source)
    except NOT_READ:
        pass  # as a whole it may be read, and if not, that says why
    spans: list[Span] = []
    counts: Counter[str] = Counter()
    try:
        _collect(parse_syntax(source).body, "", (), spans, counts)
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(str(error) or "it is nested too deeply") from error
    return Outline(tuple(spans), counts, source)


def _join_outline(groups: Sequence[Group], source: bytes) -> Outline:
    spans: list[Span] = []
    counts: Counter[str] = Counter()
    for group in groups:
        at = len(spans)
        for piece in group:
            theirs, more = _outline_piece(piece.owner, piece.text)
            counts.update(more)
            part = [Span(s.name, s.first + piece.shift, s.last + piece.shift) for s in theirs]
            if piece.owner:  # another part of the class that the group began with
                spans[at] = replace(spans[at], last=part[0].last)
                part = part[1:]
            spans += part
    return Outline(tuple(spans), counts, source)


@lru_cache(maxsize=_PIECES)
def _outline_piece(owner: bytes, text: bytes) -> tuple[tuple[Span, ...], Counter[str]]:
    spans: list[Span] = []
    counts: Counter[str] = Counter()
    _collect(Piece(1, text, owner).parse(), "", (), spans, counts)
    if owner:
        counts[f"{spans[0].name}@"] -= 1  # the class is counted where it begins
    return tuple(spans), counts


def find_duplicates(outline: Outline) -> dict[str, int]:
    """What is defined more than once in one block, and how often; a key names both."""
    return {name: count for name, count in outline.counts.items() if count > 1}


def find_new_unbound(before: Outline | None, after: Outline) -> list[str]:
    """Names that are unbound now and were not before."""
    if before is None:
        return sorted(after.unbound)
    if not may_unbind(before.source, after.source):
        return []
    return sorted(after.unbound - before.unbound)


def find_new_duplicates(before: Outline | None, after: Outline) -> list[str]:
    """Names defined more than once in one block now, and more often than before."""
    earlier = before.counts if before else Counter[str]()
    return sorted(n.split("@")[0] for n, c in find_duplicates(after).items() if c > earlier[n])


_COMPOUND: Final = (
    ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match,
)  # fmt: skip
"""Statements, besides definitions, that other statements stand in."""

_Block = tuple[tuple[ast.AST, str], ...]
"""The blocks around a statement, outermost first: the node that opens each and which part it is."""


def _collect(
    body: Sequence[ast.stmt], scope: str, block: _Block, spans: list[Span], counts: Counter[str]
) -> None:
    for node in body:
        if isinstance(node, _Definition):
            name = f"{scope}.{node.name}" if scope else node.name
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            spans.append(Span(name, first, node.end_lineno or node.lineno))
            if not any(last_name(d) in _REDEFINES for d in node.decorator_list):
                # The block is part of the key: `if A: def f` / `else: def f` is one choice, not two.
                counts[f"{name}@{_key(block)}"] += 1
            _collect(node.body, name, (), spans, counts)
        elif isinstance(node, _COMPOUND):
            for opener, part, inner in _blocks(node):
                _collect(inner, scope, (*block, (opener, part)), spans, counts)


def _blocks(node: ast.stmt) -> Iterator[tuple[ast.AST, str, list[ast.stmt]]]:
    for part in ("body", "orelse", "finalbody"):
        inner = getattr(node, part, None)
        if isinstance(inner, list):
            yield node, part, inner
    for handler in getattr(node, "handlers", ()):
        yield handler, "except", handler.body
    for case in getattr(node, "cases", ()):
        yield case, "case", case.body


def _key(block: _Block) -> str:
    """Each block by what selects it, not by a line number, which a patch shifts."""
    return "/".join(f"{_selector(opener)}:{part}" for opener, part in block)


def _selector(opener: ast.AST) -> str:
    match opener:
        case ast.If(test=test) | ast.While(test=test):
            return ast.unparse(test)
        case ast.ExceptHandler(type=ast.expr() as caught):
            return ast.unparse(caught)
        case ast.match_case(pattern=pattern):
            return ast.unparse(pattern)
        case _:
            return type(opener).__name__


def _parse(git: Git, oid: str, lines: frozenset[int]) -> ast.Module:
    source = git.blobs([oid])[oid]
    try:
        return join_syntax(cut_source(source), lines)
    except NOT_READ:
        return parse_syntax(source)


def _compare(git: Git, before: str, after: str) -> tuple[Run, ...]:
    return tuple(changed_runs(git, before, after))


class Outlines:
    """Outlines by blob id, and what differs between two blobs. An id means one content everywhere, so a
    process parses a file once and compares two of them once."""

    _known: ClassVar[dict[str, Outline]] = {}

    def __init__(self, git: Git) -> None:
        self._git = git
        # Not of methods: the cache would keep this object, and with it a process of git, for ever.
        self._syntax = lru_cache(maxsize=_KEPT)(partial(_parse, git))
        self._runs = lru_cache(maxsize=_KEPT)(partial(_compare, git))

    def of(self, oid: str) -> Outline:
        """Raises SyntaxError when the file is not Python."""
        if oid not in self._known:
            self._known[oid] = parse_outline(self._git.blobs([oid])[oid])
        return self._known[oid]

    def syntax(self, oid: str, lines: Collection[int]) -> ast.Module:
        """The syntax tree, in which only what touches ``lines`` is sure to have its line numbers; only the
        last few are kept. Raises SyntaxError when it is not Python."""
        return self._syntax(oid, frozenset(lines))

    def runs(self, before: str, after: str) -> tuple[Run, ...]:
        """The runs of lines that turn one blob into another; only the last few answers are kept."""
        return self._runs(before, after)

    def or_empty(self, oid: str) -> Outline:
        """The outline, or one without symbols for a file that is not Python."""
        try:
            return self.of(oid)
        except SyntaxError:
            return self.nothing

    @cached_property
    def nothing(self) -> Outline:
        """The outline of an empty file."""
        return parse_outline(b"")
