"""The nodes of a syntax tree."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path

from tool.analysis.syntax import list_children


def test_children_are_those_of_the_standard_library_but_for_leaves() -> None:
    leaves = (ast.expr_context, ast.boolop, ast.operator, ast.unaryop)
    text = Path(inspect.__file__).read_text() + Path(dataclasses.__file__).read_text()
    for node in ast.walk(ast.parse(text)):
        wanted = [n for n in ast.iter_child_nodes(node) if not isinstance(n, leaves)]
        assert list_children(node) == wanted
