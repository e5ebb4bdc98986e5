"""One-place changes to ``tool/``: which there are, and how one is written into a copy of the tree."""

from __future__ import annotations

import ast
import copy
import os
from pathlib import Path

INVERSE = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE,
    ast.LtE: ast.Gt, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


def mutate(node: ast.AST) -> ast.AST | None:
    """The changed form of ``node``, if it is of a kind that is changed."""
    changed = copy.deepcopy(node)
    match changed:
        case ast.Compare(ops=[op]) if type(op) in INVERSE:
            changed.ops = [INVERSE[type(op)]()]
        case ast.BoolOp(op=op):
            changed.op = ast.And() if isinstance(op, ast.Or) else ast.Or()
        case ast.If(test=test) | ast.IfExp(test=test):
            changed.test = ast.UnaryOp(ast.Not(), test)
        case ast.Raise():
            return ast.Pass()
        case _:
            return None
    return changed


def list_places(root: Path, packages: list[str]) -> list[tuple[Path, ast.AST]]:
    """Every place that can be changed, in the order of the files. No package: all of ``tool/``."""
    folders = [root / "tool" / name for name in packages or [""]]
    return [
        (file.relative_to(root), node)
        for folder in folders
        for file in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if mutate(node) is not None
    ]


def span(node: ast.AST) -> range:
    """The lines of a place. Of an ``if``, only those of its condition are changed."""
    assert isinstance(node, ast.expr | ast.stmt)
    last = node.test.end_lineno if isinstance(node, ast.If) else node.end_lineno
    return range(node.lineno, (last or node.lineno) + 1)


def write_changed(root: Path, file: Path, node: ast.AST) -> str:
    """Change the place in the copy ``root``; returns what stands there then. The other lines keep theirs."""
    path = root / file
    lines = path.read_bytes().splitlines(keepends=True)
    place, changed = node, mutate(node)
    if isinstance(node, ast.If) and isinstance(changed, ast.If):
        place, changed = node.test, changed.test
    assert isinstance(place, ast.expr | ast.stmt) and changed is not None
    assert place.end_lineno and place.end_col_offset
    first, last = place.lineno - 1, place.end_lineno - 1
    text = "pass" if isinstance(changed, ast.Pass) else f"({ast.unparse(changed)})"
    blank = "\n" * (last - first)
    written = text + blank if text == "pass" else f"{text[:-1]}{blank})"
    new = lines[first][: place.col_offset] + written.encode() + lines[last][place.end_col_offset :]
    write(path, b"".join([*lines[:first], new, *lines[last + 1 :]]))
    return text


def write(path: Path, content: bytes) -> None:
    """With a time that the file never had, so that no bytecode of another content is taken for its own."""
    earlier = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(earlier, earlier + 2_000_000_000))
