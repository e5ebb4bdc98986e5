"""A Python file cut at its functions, classes and methods: what two files have in common is parsed once.

The versions of a file that one patch is about differ in a few definitions of several hundred. Text alone
says where a file may be cut. A cut that is wrong, say inside of a string, leaves a piece that does not
parse; then the file is read whole.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tool.analysis.syntax import parse_syntax

_KEPT: Final = 4096
"""Syntax trees of pieces at hand: those of about a dozen large files."""

_FILES: Final = 16
"""Files cut at hand: about those that one patch is about."""

# Decorators, which may go over several lines, and the definition. The newline before is there for speed:
# `re` looks for a fixed byte first.
_DEFINITION: Final = re.compile(
    rb"\n(?:@[^\n]*\n(?:[ \t)\]#][^\n]*\n|\n)*)*(?:async[ ]+)?(?:def|class)\b"
)
_METHOD: Final = re.compile(
    rb"\n(?:    @[^\n]*\n(?:    [ )\]#][^\n]*\n|\n)*)*    (?:async[ ]+)?(?:def|class)\b"
)
_CLASS: Final = re.compile(rb"(?:[@ )\]#][^\n]*\n|\n)*(class[ ]+\w+)[ ]*[:(]")
_CODING: Final = re.compile(rb"coding[:=]")


@dataclass(frozen=True)
class Piece:
    """Whole statements of a file. ``first`` is the 1-based line that ``text`` begins on.

    ``owner`` is a line ``class NAME:`` where the text is a part of that class, and empty at the margin.
    """

    first: int
    text: bytes
    owner: bytes = b""

    @property
    def shift(self) -> int:
        """What turns a line of the piece as it is parsed into a line of the file."""
        return self.first - 1 - bool(self.owner)

    def parse(self) -> list[ast.stmt]:
        """The statements, parsed alone, below ``owner`` if there is one.

        Nobody may change them: others share them.
        """
        return _parse(self.owner + self.text)

    def place(self) -> list[ast.stmt]:
        """The statements with the lines of the file, in a copy."""
        return parse_syntax(b"\n" * self.shift + self.owner + self.text).body


NOT_READ: Final = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What Python raises for what it cannot read."""

Group = tuple[Piece, ...]
"""Statements at the margin; or the beginning of a class, and then the rest of it in pieces."""


@lru_cache(maxsize=_KEPT)
def _parse(text: bytes) -> list[ast.stmt]:
    return parse_syntax(text).body


@lru_cache(maxsize=_FILES)
def cut_source(source: bytes) -> tuple[Group, ...]:
    """The pieces of a file, which make up the whole of it.

    Raises:
        NOT_READ: it cannot be read in pieces. It may be Python all the same.
    """
    # Python ends a line at a carriage return too, and reads the coding of a file from its first lines.
    if b"\r" in source or any(map(_CODING.search, source.split(b"\n", 2)[:2])):
        raise SyntaxError("only the whole file tells how to read it")
    return tuple(_cut_class(piece) for piece in _split(_DEFINITION, Piece(1, source)))


def _split(pattern: re.Pattern[bytes], whole: Piece, skip: int = 0) -> Iterator[Piece]:
    """``whole``, cut where ``pattern`` begins, but for the first ``skip`` times."""
    starts = [match.start() + 1 for match in pattern.finditer(whole.text)][skip:]
    line = whole.first
    for begin, end in zip([0, *starts], [*starts, len(whole.text)], strict=True):
        piece = Piece(line, whole.text[begin:end])
        yield piece
        line += piece.text.count(b"\n")


def _cut_class(piece: Piece) -> Group:
    """The pieces of a class, if ``piece`` is one that can be cut. Raises as ``cut_source``."""
    if match := _CLASS.match(piece.text):
        # A class has to have something in it: the first method stays with its beginning.
        head, *rest = _split(_METHOD, piece, skip=1)
        methods = [Piece(part.first, part.text, match[1] + b":\n") for part in rest]
        try:
            if methods and _is_class(head, methods):
                return (head, *methods)
        except SyntaxError:
            pass  # a method was found in a string, say
    piece.parse()
    return (piece,)


def _is_class(head: Piece, methods: list[Piece]) -> bool:
    """Are the pieces the body of one class, indented by four spaces?"""
    lines = head.text.split(b"\n")
    match head.parse():
        case [ast.ClassDef(body=[ast.stmt(lineno=line), *_])]:
            indented = re.match(rb" {4}[^\s]", lines[line - 1]) is not None
        case _:
            return False
    # Only what follows the last method may stand at the margin again.
    return indented and all(len(m.parse()) == 1 for m in methods[:-1]) and bool(methods[-1].parse())


def join_syntax(groups: Sequence[Group], lines: Collection[int]) -> ast.Module:
    """The syntax tree of a file, in which what touches ``lines`` has its line numbers.

    Of other statements only the first and the last line are right, and those of decorators.
    """
    body: list[ast.stmt] = []
    for head, *methods in groups:
        near = {piece for piece in (head, *methods) if _touches(piece, lines)}
        nodes = head.place() if near else _move(head.parse(), head.shift)
        for method in methods:
            placed = method.place() if method in near else _move(method.parse(), method.shift)
            ours, part = nodes[0], placed[0]
            assert isinstance(ours, ast.ClassDef) and isinstance(part, ast.ClassDef)
            inner = part.body if method in near else _move(part.body, method.shift)
            ours.body = [*ours.body, *inner]
            ours.end_lineno, ours.end_col_offset = part.end_lineno, part.end_col_offset
            nodes += placed[1:]
        body += nodes
    return ast.Module(body, [])


def _touches(piece: Piece, lines: Collection[int]) -> bool:
    last = piece.first + piece.text.count(b"\n")
    return any(piece.first <= line <= last for line in lines)


def _move(nodes: list[ast.stmt], shift: int) -> list[ast.stmt]:
    """Copies of ``nodes`` at other lines; what is in them stays."""
    moved = []
    for node in nodes:
        node = copy.copy(node)
        _move_node(node, shift)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            node.decorator_list = [copy.copy(d) for d in node.decorator_list]
            for decorator in node.decorator_list:
                _move_node(decorator, shift)
        moved.append(node)
    return moved


def _move_node(node: ast.stmt | ast.expr, shift: int) -> None:
    node.lineno += shift
    node.end_lineno = (node.end_lineno or node.lineno) + shift
