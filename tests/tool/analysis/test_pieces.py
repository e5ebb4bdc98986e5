"""Files read in pieces: the same outline and the same syntax tree as of the whole file."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import typing
from pathlib import Path
from types import ModuleType

import pytest

from tool.analysis import outline, parse_outline
from tool.analysis.pieces import NOT_READ, cut_source, join_syntax

HEAD = "class A(B, metaclass=M):\n    'about'\n    x: int = 1\n\n"
METHODS = (
    "    @one(\n        1,\n    )\n    # why\n    @two\n    def f(self): return 1\n\n"
    "    async def g(self):\n        def h(): ...\n        return h\n\n"
    "    if x:\n        def i(self): ...\n    else:\n        def i(self): ...\n"
    "    @f.setter\n    def f(self, v): ...\n"
)
CUT = {
    "class": HEAD + METHODS,
    "after it": HEAD + METHODS + "A.x = 2\nclass A: ...\nfor a in b:\n    def c(): ...\n",
    "decorators": "import a\n@a.b(\n    1,\n)\n\n# why\n@c\nclass D: ...\n@e\nasync def f(): ...\n",
    "no end": "x = 1\ndef f():\n    return 1",
    "classes": "class A: ...\n" + "class B:\n    def f(self): ...\n    def g(self): ...\n" * 2,
    "deeper": "class A:\n    class B:\n        def f(self): ...\n        def g(self): ...\n    y = 1\n",
    "two spaces": "class A:\n  def f(self): ...\n  if x:\n    def g(self): ...\n    def h(self): ...\n",
    "tabs": "class A:\n\tdef f(self): ...\n\tdef g(self): ...\n",
    "method in a string": HEAD + METHODS + "    T = '''\n    def a():\n    def b():\n    '''\n",
    "mark": "\ufeffx = 1\ndef f(): ...\n",
    "letters": "class Caf\u00e9:\n    def f(self): ...\n    def g(self): ...\n",
    "brackets": "x = [\n    1,\n]; y = (\ndef_\n)\n@(\n  z\n\n)\ndef f(): ...\n",
    "nothing": "",
}
WHOLE = {
    "function in a string": "X = '''\ndef f():\n    pass\ndef g():\n    pass\n'''\ndef h(): ...\n",
    "carriage return": "x = 1\r\ndef f(): ...\r\n",
    "coding": "# coding: utf-8\ndef f(): ...\n",
}
WRONG = {
    "deeper body": "class A:\n        x = 1\n        def e(): ...\n    def f(): ...\n    def g(): ...\n",
    "deeper methods": "class A:\n        x = 1\n    def f(self): ...\n    def g(self): ...\n",
    "margin between": "class A:\n    def f(self): ...\n    def g(self): ...\nx = 1\n    def h(self): ...\n",
    "one line": "class A: x = 1\n    def f(self): ...\n    def g(self): ...\n",
    "backslash": "x = 1 \\\ndef f(): ...\n",
    "bracket": "x = (\ndef f(): ...\n)\n",
    "string": "x = '''\ndef f(): ...\n",
    "decorator": "@a\n\nx = 1\ndef f(): ...\n",
    "no body": "if x:\ndef f(): ...\n",
    "try": "try:\n    x = 1\ndef f(): ...\n",
    "zero": "x = 1\n\0\ndef f(): ...\n",
}


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> typing.Callable[[bytes], outline.Outline]:
    """``parse_outline`` of the whole file."""

    def parse(source: bytes) -> outline.Outline:
        def refuse(_: bytes) -> typing.NoReturn:
            raise SyntaxError

        with monkeypatch.context() as patch:
            patch.setattr(outline, "cut_source", refuse)
            return parse_outline(source)

    return parse


@pytest.mark.parametrize("text", [*CUT.values(), *WHOLE.values()], ids=[*CUT, *WHOLE])
def test_the_outline_is_that_of_the_whole_file(
    text: str, whole: typing.Callable[[bytes], outline.Outline]
) -> None:
    assert parse_outline(text.encode()) == whole(text.encode())


@pytest.mark.parametrize("text", CUT.values(), ids=CUT)
def test_the_syntax_tree_is_that_of_the_whole_file(text: str) -> None:
    source = text.encode()
    groups = cut_source(source)
    assert b"".join(piece.text for group in groups for piece in group) == source
    tree = join_syntax(groups, range(1, source.count(b"\n") + 2))
    assert ast.dump(tree, include_attributes=True) == ast.dump(
        ast.parse(source), include_attributes=True
    )


@pytest.mark.parametrize("text", WHOLE.values(), ids=WHOLE)
def test_a_file_that_only_the_whole_of_tells_how_to_read(text: str) -> None:
    with pytest.raises(NOT_READ):
        cut_source(text.encode())
    ast.parse(text.encode())


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_pieces_do_not_make_python_of_what_is_none(text: str) -> None:
    with pytest.raises(NOT_READ):
        ast.parse(text.encode())
    with pytest.raises(NOT_READ):
        cut_source(text.encode())
    with pytest.raises(SyntaxError):
        parse_outline(text.encode())


@pytest.mark.parametrize("module", [argparse, ast, dataclasses, inspect, typing])
def test_modules_of_python(
    module: ModuleType, whole: typing.Callable[[bytes], outline.Outline]
) -> None:
    source = Path(str(module.__file__)).read_bytes()
    assert parse_outline(source) == whole(source)
    groups = cut_source(source)
    assert sum(map(len, groups)) > 20
    plain = ast.parse(source)
    for line in range(1, source.count(b"\n"), 499):
        tree = join_syntax(groups, {line})
        assert list(_near(tree, line)) == list(_near(plain, line))
        assert ast.dump(tree) == ast.dump(plain)


def _near(node: ast.AST, line: int) -> typing.Iterator[str]:
    """The nodes around ``line``, from outside to inside, each with its place."""
    for child in ast.iter_child_nodes(node):
        first, last = getattr(child, "lineno", line), getattr(child, "end_lineno", line)
        first = min([first, *(d.lineno for d in getattr(child, "decorator_list", ()))])
        if first <= line <= last:
            yield f"{type(child).__name__} {first} {last} {getattr(child, 'col_offset', None)}"
            yield from _near(child, line)


def test_pieces_that_two_files_share_are_not_moved_by_one_of_them() -> None:
    one, two = f"{HEAD}{METHODS}".encode(), f"import x\n\n{HEAD}{METHODS}".encode()
    before = ast.dump(ast.parse(one), include_attributes=True)
    for source in (two, one, two):
        join_syntax(cut_source(source), {3})
    every = range(1, one.count(b"\n") + 1)
    assert ast.dump(join_syntax(cut_source(one), every), include_attributes=True) == before
