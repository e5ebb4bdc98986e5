"""Names that a change of a file leaves unbound: the pieces that differ say what the whole files say."""

from __future__ import annotations

import itertools

import pytest

from tool.analysis import find_new_unbound, parse_outline
from tool.analysis.unbound import find_unbound, may_unbind

BASE = (
    "import os\nfrom typing import (\n    Any,\n)\n\nLIMIT = 3\n\n"
    "def first(a: Any) -> int:\n    return second(a, LIMIT)\n\n"
    "class A:\n    size = 1\n\n    def f(self, n=size):\n        return os.sep * n\n\n"
    "    def g(self, n=size):\n        global late\n        late = n\n\n"
    "    def h(self):\n        return late, self.__x\n\n"
    "def second(a, b):\n    return a + b\n"
)
CHANGES = {
    "nothing": ("LIMIT = 3", "LIMIT = 3"),
    "import": ("import os\n", ""),
    "name of an import": ("    Any,\n", "    Dict,\n"),
    "constant": ("LIMIT = 3\n", ""),
    "constant in a function": ("LIMIT = 3\n\n", "def third():\n    LIMIT = 3\n\n"),
    "function": ("def second(", "def third("),
    "use": ("return a + b", "return a + b + other"),
    "use of what is there": ("return a + b", "return a + b + LIMIT + first(os)"),
    "member of the class": ("    size = 1\n", "    other = 1\n"),
    "member between methods": ("    def h(self):", "    size = 2\n\n    def h(self):"),
    "declaration": ("        global late\n", ""),
    "use in an argument": ("def h(self):", "def h(self, n=late, m=none):"),
    "use of a member": ("return late, ", "return late, size, "),
    "method": ("    def g(self, n=size):\n        global late\n        late = n\n\n", ""),
    "name of the class": ("class A:", "class B:"),
    "star": ("import os\n", "import os\nfrom a import *\n"),
    "class twice": ("def second", "class A:\n    def a(): ...\n    def b(): size\n\ndef second"),
    "comprehension": ("LIMIT = 3", "MANY = [LIMIT for LIMIT in ()]"),
    "bound in a block": ("LIMIT = 3", "if os:\n    LIMIT = 3"),
    "deleted": ("LIMIT = 3", "LIMIT = 3\ndel os"),
    "annotation": ("a: Any)", "a: Later)"),
    "class of a name": ("return a + b", "class size: ...\n    return size"),
}


def test_a_change_that_is_ruled_out_leaves_nothing_unbound() -> None:
    files = [BASE.replace(*change).encode() for change in CHANGES.values()]
    files.append(b"x = y\r\n")
    ruled_out = 0
    for before, after in itertools.permutations(files, 2):
        new = sorted(find_unbound(after) - find_unbound(before))
        assert may_unbind(before, after) or not new
        assert find_new_unbound(parse_outline(before), parse_outline(after)) == new
        ruled_out += not may_unbind(before, after)
    assert ruled_out > 50


@pytest.mark.parametrize(
    ("change", "may"),
    [("use of what is there", False), ("bound in a block", False), ("comprehension", True)],
)
def test_an_ordinary_change_is_looked_at_without_the_whole_file(change: str, may: bool) -> None:
    assert may_unbind(BASE.encode(), BASE.replace(*CHANGES[change]).encode()) is may


def test_a_file_that_is_new() -> None:
    assert find_new_unbound(None, parse_outline(b"print(x, y, y)\n")) == ["x", "y"]
