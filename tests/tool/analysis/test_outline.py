"""Outlines of Python files: duplicate definitions, and the symbol that a line is in."""

from __future__ import annotations

import pytest

from tool.analysis import outline as pycheck

PROPERTY = "class A:\n    @property\n    def x(self): ...\n    @x.setter\n    def x(self, v): ...\n"
OVERLOAD = "@overload\ndef f(x: int): ...\n@overload\ndef f(x: str): ...\ndef f(x): ...\n"
CHOICE = "if FAST:\n    def f(): ...\nelse:\n    def f(): ...\n"
METHOD = "class A:\n    def f(self): ...\n"
TRY = "try:\n    def f(): ...\nexcept ImportError:\n    def f(): ...\n"


@pytest.mark.parametrize("source", [PROPERTY, OVERLOAD, CHOICE, TRY])
def test_ordinary_python_is_no_duplicate(source: str) -> None:
    assert pycheck.find_new_duplicates(None, pycheck.parse_outline(source.encode())) == []


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        ("def f(): ...\n", "def f(): ...\ndef f(): ...\n", ["f"]),
        ("def f(): ...\ndef f(): ...\n", "x = 1\ndef f(): ...\ndef f(): ...\n", []),
        (METHOD, METHOD + "    def f(self): ...\n", ["A.f"]),
        (METHOD, METHOD + METHOD.replace("A", "B"), []),
        ("", "async def f(): ...\nclass f: ...\n", ["f"]),
        (CHOICE, CHOICE.replace("else:", "    def f(): ...\nelse:"), ["f"]),
    ],
)
def test_only_a_new_second_definition_counts(before: str, after: str, names: list[str]) -> None:
    found = pycheck.find_new_duplicates(
        pycheck.parse_outline(before.encode()), pycheck.parse_outline(after.encode())
    )
    assert found == names


def test_symbol_at_is_the_innermost_definition() -> None:
    source = (
        b"import x\n\nclass A:\n    n = 1\n    @deco\n    def f(self):\n"
        b"        def g():\n            return 1\n        return g\n"
    )
    outline = pycheck.parse_outline(source)
    lines = [outline.symbol_at(n) for n in range(1, 10)]
    assert lines == ["<module>", "<module>", "A", "A", "A.f", "A.f", "A.f.g", "A.f.g", "A.f"]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import os\nprint(os.sep, __name__, __file__, len)\n", set()),
        ("def f():\n    from os import sep\n    return sep\n\ndef g():\n    return sep\n", {"sep"}),
        ("def f(a, *b, c=1, **d):\n    e = a\n    return lambda g: (a, b, c, d, e, g)\n", set()),
        ("x = [i for i in range(3) if (y := i)]\nprint(x, y)\n", set()),
        ("class A:\n    n = 1\n    def f(self):\n        return n\n", {"n"}),
        ("class A:\n    n = 1\n    m = n\n    def f(self):\n        return __class__\n", set()),
        ("def f():\n    global late\n    late = 1\n\nprint(late)\n", set()),
        ("try:\n    import fast\nexcept ImportError as err:\n    fast = err\nfast()\n", set()),
        ("def f(a: Wanted) -> None: ...\n", {"Wanted"}),
        ("from os import *\nprint(anything)\n", set()),
        ("for i in range(3):\n    pass\nwith open('x') as f, i:\n    del f\n", set()),
        ("match 1:\n    case int(x) if x:\n        print(x)\n", set()),
    ],
)
def test_a_name_nothing_binds(source: str, names: set[str]) -> None:
    assert pycheck.parse_outline(source.encode()).unbound == names


def test_a_byte_order_mark_and_a_coding_line_are_python() -> None:
    marked = pycheck.parse_outline("\ufeffdef f(): return sep\n".encode())
    assert marked.unbound == {"sep"} and marked.symbol_at(1) == "f"
    latin = "# coding: latin-1\ndef f(): return '\u00e9', sep\n".encode("latin-1")
    assert pycheck.parse_outline(latin).unbound == {"sep"}


@pytest.mark.parametrize(
    "source",
    [
        "(" * 100_000,
        "-" * 100_000 + "1\n",
        "".join(f"{' ' * i}if x:\n" for i in range(99)) + " " * 99 + "pass\n",
        "x = 1\0\n",
        f"if {'0x' + 'f' * 5000}:\n    def f(): ...\n",
        "x = " + "+".join("1" for _ in range(50_000)) + "\n",
        "x = " + ".a" * 50_000 + "\n",
    ],
    ids=["parentheses", "minus", "blocks", "NUL", "digits", "sum", "attributes"],
)
def test_python_that_is_too_deep_is_an_error_of_syntax(source: str) -> None:
    """It may parse or not, by the version of Python: never anything but an outline or SyntaxError."""
    try:
        assert pycheck.parse_outline(source.encode()).spans is not None
    except SyntaxError as error:
        assert str(error)
