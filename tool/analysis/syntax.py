"""Python source → syntax tree, safely in several threads."""

from __future__ import annotations

import ast
import threading
from typing import Final

_ONE_AT_A_TIME: Final = threading.Lock()
"""Python 3.11 counts the depth of the tree it builds for all threads together, and raises SystemError
when another thread builds one meanwhile (https://github.com/python/cpython/issues/106905)."""


def parse_syntax(source: bytes) -> ast.Module:
    """Raises SyntaxError when ``source`` is not Python."""
    with _ONE_AT_A_TIME:
        return ast.parse(source)


def last_name(node: ast.expr) -> str:
    """The last name of a decorator, called or not: ``a.b(c)`` → ``b``; empty for another expression."""
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
