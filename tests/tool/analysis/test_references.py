"""What changed lines of a file refer to, and what a tree of a few modules has or lacks."""

# ruff: noqa: E501  (a row of a table is one line)
from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping, Sequence
from typing import cast

import pytest

from tool.analysis.modules import Bindings, Modules, import_origin
from tool.analysis.references import (
    find_attributes,
    find_defined,
    find_names,
    find_unresolved,
)
from tool.analysis.signatures import read_signature
from tool.git import Git

PATH = "python/sglang/srt/own.py"
TREE = {
    "python/sglang/__init__.py": "",
    "python/sglang/srt/__init__.py": "from sglang.srt.tools import helper\nfrom .tools import *\n",
    "python/sglang/srt/tools.py": (
        "import os\nimport sglang.srt.kinds as kinds\nLIMIT = 3\n\n"
        "def helper(a, b=1):\n    return a\n\n\n"
        "class Base:\n    def __init__(self, size):\n        self.size = size\n"
        "    def run(self, a):\n        return a\n\n\n"
        "class Child(Base):\n    pass\n\n\n"
        "class Plain:\n    x = 1\n    def f(self):\n        self.y = 2\n\n\nplain = Plain()\n"
    ),
    "python/sglang/srt/kinds.py": "from enum import Enum\n\nclass Kind(Enum):\n    FIRST = 1\n",
    "python/sglang/srt/dynamic.py": "def __getattr__(name):\n    return 1\n",
    "python/sglang/srt/written.py": "globals()['made'] = 1\n",
    "python/sglang/srt/late.py": "def set_it():\n    global late\n    late = 1\n",
    "python/sglang/srt/broken.py": "def (:\n",
    "python/sglang/srt/twice.py": "def two(a): ...\nif 1:\n    def two(a, b): ...\n",
    "python/sglang/srt/again.py": "def two(a): ...\ntwo = wrap(two)\n",
    "python/sglang/srt/through.py": "from sglang.srt.tools import helper, Base as Root\n",
    "python/sglang/srt/stars.py": "from sglang.srt.tools import *\nfrom torch import *\n",
    "python/sglang/srt/star.py": "from sglang.srt.tools import *\n",
    "python/sglang/srt/shadow.py": "from sglang.srt.tools import *\nhelper = wrap()\n",
    "python/sglang/srt/ring.py": "from sglang.srt.ring import *\n",
    "python/sglang/srt/decorated.py": (
        "@cache\ndef kept(a):\n    return a\n\n\n@jit\ndef changed(a):\n    return a\n\n\n"
        "@wraps(\n    kept\n)\ndef spread(a):\n    return a\n"
    ),
    "python/sglang/folder/inner.py": "x = 1\n",
    "python/sglang/kernels/__init__.py": "",
}


class MemoryGit:
    """The two questions that ``Modules`` asks of git, answered from a table of files."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._texts = {hashlib.sha1(t.encode()).hexdigest(): t.encode() for t in files.values()}
        self._found = {path: hashlib.sha1(t.encode()).hexdigest() for path, t in files.items()}
        for path in files:
            parts = path.split("/")
            folders = {"/".join(parts[:n]) for n in range(1, len(parts))}
            self._found |= dict.fromkeys(folders, "a tree")

    def find(self, spec: str) -> str | None:
        return self._found.get(spec.removeprefix("TREE:"))

    def blobs(self, oids: Sequence[str]) -> dict[str, bytes]:
        return {oid: self._texts[oid] for oid in oids}


def modules(elsewhere: str | None = None) -> Modules:
    return Modules(cast(Git, MemoryGit(TREE)), "TREE", elsewhere=elsewhere)


def find(source: str, lines: Sequence[int] | None = None) -> list[str]:
    syntax = ast.parse(source)
    every = range(1, len(source.splitlines()) + 1)
    found = find_unresolved(syntax, PATH, every if lines is None else lines, modules())
    return [f"{one.line} {one.message}" for one in found]


HELPER = "from sglang.srt.tools import helper\n"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        # imports
        ("import sglang.srt.gone\n", ["1 imports sglang.srt.gone, and there is no such module"]),
        ("import sglang.folder.inner\nimport sglang.folder\n", []),
        ("import torch.gone\nfrom torch import gone\n", []),
        ("import sglangx.gone\n", []),
        ("from sglang.srt import tools, gone\n", ["1 imports gone from sglang.srt, which has no such name"]),
        ("from . import tools\nfrom .tools import helper\nfrom ..folder import inner\n", []),
        ("from .tools import gone\n", ["1 imports gone from sglang.srt.tools, which has no such name"]),
        ("from .. import gone\n", ["1 imports gone from sglang, which has no such name"]),
        ("from sglang.srt.tools import *\n", []),
        ("from sglang.gone import *\n", ["1 imports sglang.gone, and there is no such module"]),
        ("import sglang.srt._compiled\nfrom sglang._compiled.x import y\n", []),
        ("from sglang.folder import _compiled\n", []),
        ("from sglang.folder import gone\n", ["1 imports gone from sglang.folder, which has no such name"]),
        ("from sglang.srt import _gone\n", ["1 imports _gone from sglang.srt, which has no such name"]),
        ("from sglang.srt.dynamic import what_it_likes\n", []),
        ("from sglang.srt.written import made\n", []),
        ("from sglang.srt.late import late\n", []),
        ("from sglang.srt.late import later\n", ["1 imports later from sglang.srt.late, which has no such name"]),
        ("from sglang.srt.broken import x\n", []),
        ("from sglang.srt.stars import gone\n", []),
        ("from sglang.srt.star import helper, LIMIT\n", []),
        ("from sglang.srt.star import gone\n", ["1 imports gone from sglang.srt.star, which has no such name"]),
        ("from sglang.srt.ring import gone\n", []),
        ("from sglang.srt.tools import os, kinds\n", []),
        # guarded imports
        ("try:\n    import sglang.gone\nexcept ImportError:\n    pass\n", []),
        ("try:\n    import sglang.gone\nexcept (KeyError, ModuleNotFoundError):\n    pass\n", []),
        ("try:\n    import sglang.gone\nexcept:\n    pass\n", []),
        (
            "try:\n    import sglang.gone\nexcept (KeyError, ValueError):\n    pass\n",
            ["2 imports sglang.gone, and there is no such module"],
        ),
        (
            "try:\n    x = 1\nexcept ImportError:\n    import sglang.gone\n",
            ["4 imports sglang.gone, and there is no such module"],
        ),
        # attributes
        ("import sglang.srt.tools as t\nt.helper(1)\nt.LIMIT\n", []),
        ("import sglang.srt.tools as t\nt.gone\n", ["2 uses sglang.srt.tools.gone, and there is none"]),
        ("import sglang.srt.tools as t\nt.gone = 1\n", []),
        ("import sglang.srt.tools as t\nt.helper.gone\n", []),
        ("import sglang.srt.tools\nsglang.srt.tools.gone\n", ["2 uses sglang.srt.tools.gone, and there is none"]),
        ("import sglang.srt.tools as t\ndef f(t):\n    t.gone\n", []),
        ("import sglang.srt.tools as t\ndef f(*t):\n    t.gone\n", []),
        ("import sglang.srt.tools as t\nf = lambda t: t.gone\n", []),
        ("import sglang.srt.tools as t\ndef f():\n    t = 1\n    t.gone\n", []),
        ("import sglang.srt.tools as t\n[t.gone for t in []]\n", []),
        ("import sglang.srt.tools as t\nt = 1\nt.gone\n", []),
        ("import sglang.srt.tools as t\nimport torch as t\nt.gone\n", []),
        ("from sglang.srt.kinds import Kind\nKind.FIRST\nKind.name\nKind.__doc__\n", []),
        (
            "from sglang.srt.kinds import Kind\nKind.SECOND\n",
            ["2 uses Kind.SECOND, and sglang.srt.kinds has no such attribute"],
        ),
        ("from sglang.srt.tools import plain\nplain.x\nplain.y\nplain.f\n", []),
        (
            "from sglang.srt.tools import plain\nplain.z\n",
            ["2 uses plain.z, and sglang.srt.tools has no such attribute"],
        ),
        ("from sglang.srt.tools import Child, helper, LIMIT\nChild.z\nhelper.z\nLIMIT.z\n", []),
        # calls
        (HELPER + "helper(1)\nhelper(1, 2)\nhelper(1, b=2)\nhelper(a=1)\n", []),
        (HELPER + "helper()\n", ["2 calls helper, which needs an argument a"]),
        (HELPER + "helper(1, 2, 3)\n", ["2 calls helper, which takes at most 2 arguments by position"]),
        (HELPER + "helper(1, c=2)\n", ["2 calls helper, which takes no argument c"]),
        (HELPER + "helper(*many)\nhelper(**named)\nhelper(1, *many)\n", []),
        (HELPER + "helper(*many, c=2)\n", ["2 calls helper, which takes no argument c"]),
        (HELPER + "def helper(a): ...\nhelper()\n", []),
        (HELPER + "helper = 1\nhelper()\n", []),
        ("from sglang.srt.through import helper, Root\nhelper()\n", ["2 calls helper, which needs an argument a"]),
        ("from sglang.srt.star import helper\nhelper()\n", ["2 calls helper, which needs an argument a"]),
        # A variable of the module hides what a star brings.
        ("from sglang.srt.shadow import helper\nhelper()\n", []),
        ("from sglang.srt.through import Root\nRoot()\nRoot(1)\n", ["2 calls Root, which needs an argument size"]),
        ("from sglang.srt.twice import two\ntwo()\n", ["2 calls two, which needs an argument a"]),
        ("from sglang.srt.twice import two\ntwo(1)\ntwo(1, 2)\n", []),
        ("from sglang.srt.again import two\ntwo()\n", []),
        ("from sglang.srt.decorated import kept\nkept()\n", ["2 calls kept, which needs an argument a"]),
        ("from sglang.srt.decorated import changed, spread\nchanged()\n", []),
        ("from sglang.srt.decorated import spread\nspread()\n", ["2 calls spread, which needs an argument a"]),
        ("import sglang.srt.tools as t\nt.helper()\n", ["2 calls t.helper, which needs an argument a"]),
        ("x[0]()\nunknown()\nunknown.f()\n", []),
        # methods
        (
            "class A:\n    def f(self, a): ...\n    def g(self):\n        self.f()\n",
            ["4 calls self.f, which needs an argument a"],
        ),
        (
            "class A:\n    def f(self, a): ...\nclass B(A):\n    def g(self):\n        self.f()\n",
            ["5 calls self.f, which needs an argument a"],
        ),
        (
            "class A:\n    def f(self, a): ...\nclass B(A): ...\nclass C(B):\n    def g(self):\n        self.f()\n",
            ["6 calls self.f, which needs an argument a"],
        ),
        (
            "from sglang.srt.tools import Base\nclass B(Base):\n    def g(self):\n        self.run()\n",
            ["4 calls self.run, which needs an argument a"],
        ),
        # Child has a base of its own file, which this file does not tell.
        ("from sglang.srt.tools import Child\nclass B(Child):\n    def g(self):\n        self.run()\n", []),
        ("class B(torch.nn.Module):\n    def g(self):\n        self.run()\n", []),
        ("class A:\n    def f(self, a): ...\nclass B(A):\n    f = 1\n    def g(self):\n        self.f()\n", []),
        ("class A:\n    def f(self, a): ...\nclass B(X, A):\n    def g(self):\n        self.f()\n", []),
        (
            "class X: ...\nclass A:\n    def f(self, a): ...\nclass B(X, A):\n    def g(self):\n        self.f()\n",
            ["6 calls self.f, which needs an argument a"],
        ),
        ("class A(A):\n    def g(self):\n        self.f()\n", []),
        ("def g(self):\n    self.f()\n", []),
        ("class A:\n    @classmethod\n    def f(cls, a): ...\n    def g(cls):\n        cls.f()\n",
         ["5 calls cls.f, which needs an argument a"]),
        ("class A:\n    @staticmethod\n    def f(a): ...\n    def g(self):\n        self.f(1)\n", []),
    ],
)  # fmt: skip
def test_what_the_tree_lacks(source: str, found: list[str]) -> None:
    assert find(source) == found


@pytest.mark.parametrize(
    ("source", "lines", "found"),
    [
        ("import sglang.gone\nx = 1\n", [2], []),
        ("from sglang.srt import (\n    gone,\n    tools,\n)\n", [2], ["2 imports gone from sglang.srt, which has no such name"]),
        ("from sglang.srt import (\n    gone,\n    tools,\n)\n", [3], []),
        ("from sglang.srt import (\n    gone,\n)\n", [1], ["1 imports gone from sglang.srt, which has no such name"]),
        ("def f():\n    x = 1\n    import sglang.gone\n", [2], []),
        ("@sglang.gone.mark\ndef f():\n    return 1\nimport sglang.srt.tools\n", [1], ["1 uses sglang.gone, and there is none"]),
        ("import sglang.srt.tools as t\n(t\n  .gone)\n", [2], []),
        ("import sglang.srt.tools as t\n(t\n  .gone)\n", [3], ["3 uses sglang.srt.tools.gone, and there is none"]),
        # A keyword that was put into a call that was there: only the keyword is looked at.
        (HELPER + "helper(\n    c=1,\n)\n", [3], ["3 calls helper, which takes no argument c"]),
        (HELPER + "helper(\n    b=1,\n)\n", [3], []),
        (HELPER + "helper(\n    b=1,\n)\n", [2], ["2 calls helper, which needs an argument a"]),
        (HELPER + "helper(\n    1\n)\n", [3], []),
    ],
)  # fmt: skip
def test_only_changed_lines_count(source: str, lines: list[int], found: list[str]) -> None:
    assert find(source, lines) == found


def test_long_files_and_many_lines_agree() -> None:
    """A node is looked at where it has a changed line, whichever of the two is longer."""
    source = "def f():\n" + "    x = 1\n" * 20 + "    import sglang.gone\n"
    assert len(find(source, [22])) == len(find(source, range(1, 60))) == 1
    assert find(source, [2, 40]) == []


@pytest.mark.parametrize(
    ("module", "name", "bound"),
    [
        ("sglang.srt.tools", "helper", True),
        ("sglang.srt.tools", "kinds", True),
        ("sglang.srt.tools", "gone", False),
        ("sglang.srt", "tools", True),  # a submodule
        ("sglang.folder", "inner", True),  # of a folder without __init__
        ("sglang.folder", "gone", False),
        ("sglang.gone", "x", None),
        ("torch", "x", None),
        ("sglang.srt.dynamic", "x", None),
        ("sglang.srt.broken", "x", None),
        ("sglang.srt.stars", "x", None),
        ("sglang.srt.stars", "helper", True),
        ("sglang.srt.ring", "x", None),
    ],
)
def test_whether_a_module_binds_a_name(module: str, name: str, bound: bool | None) -> None:
    assert modules().binds(module, name) is bound


def test_nothing_is_known_of_a_folder_from_elsewhere() -> None:
    known = modules("python/sglang/kernels")
    assert known.exists("sglang.kernels.anything") and known.exists("sglang.kernels")
    assert known.binds("sglang.kernels", "anything") is None
    assert not known.exists("sglang.kernels2")
    assert not modules().exists("sglang.kernels.anything")


@pytest.mark.parametrize(
    ("statement", "path", "origin"),
    [
        ("from a.b import c", "python/sglang/x.py", "a.b"),
        ("from . import c", "python/sglang/srt/x.py", "sglang.srt"),
        ("from . import c", "python/sglang/srt/__init__.py", "sglang.srt"),
        ("from .. import c", "python/sglang/srt/x.py", "sglang"),
        ("from ..a import c", "python/sglang/srt/__init__.py", "sglang.a"),
    ],
)
def test_where_an_import_leads(statement: str, path: str, origin: str) -> None:
    (node,) = ast.parse(statement).body
    assert isinstance(node, ast.ImportFrom) and import_origin(node, path) == origin


def test_what_statements_bind() -> None:
    source = (
        "import a.b\nimport c.d as e\nfrom f import g as h, i\nfrom j import *\nk = l = 1\n"
        "if m:\n    n: int = 1\nfor o, p in q:\n    pass\nwith r as s:\n    pass\n"
        "try:\n    pass\nexcept E as t:\n    pass\n"
        "match u:\n    case [v, *w] | {'x': v as w}: ...\ndef y(z):\n    inner = 1\nclass A: ...\n"
    )
    found = Bindings(ast.parse(source).body, PATH)
    assert found.names == set("aehiknopstvwy") | {"l", "A"}
    assert found.stars == ["j"]
    assert found.imports["a"] == [("a", None)] and found.imports["e"] == [("c.d", None)]
    assert found.imports["h"] == [("f", "g")] and set(found.definitions) == {"y", "A"}
    assert found.assigned["k"] == 1 and list(found.values) == ["k"]


@pytest.mark.parametrize(
    ("definition", "known"),
    [
        ("def f(a): ...", True),
        ("@cache\ndef f(a): ...", True),
        ("@functools.lru_cache(maxsize=1)\ndef f(a): ...", True),
        ("@jit\ndef f(a): ...", False),
        ("class A:\n    def __init__(self, a): ...", True),
        ("@mark\nclass A:\n    def __init__(self, a): ...", False),
        ("class A:\n    def __new__(cls): ...\n    def __init__(self, a): ...", False),
        ("class A(metaclass=M):\n    def __init__(self, a): ...", False),
        ("class A: ...", False),
        ("class A(B):\n    def __init__(self, a): ...", True),
        ("@dataclass\nclass A:\n    a: int", True),
        ("@dataclasses.dataclass(frozen=True)\nclass A:\n    a: int", True),
        ("@dataclass\nclass A(B):\n    a: int", False),
        ("@dataclass\n@mark\nclass A:\n    a: int", False),
        ("@dataclass\nclass A:\n    a: int\n    def __init__(self, b): ...", False),
    ],
)
def test_whether_the_text_tells_how_it_is_called(definition: str, known: bool) -> None:
    (node,) = ast.parse(definition).body
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    assert (read_signature(node) is not None) is known


@pytest.mark.parametrize(
    ("definition", "positional", "keywords", "why"),
    [
        ("def f(a, b=1): ...", 1, [], None),
        ("def f(a, b=1): ...", 0, ["a"], None),
        ("def f(a, b=1): ...", 0, ["b"], "which needs an argument a"),
        ("def f(a, /): ...", 0, ["a"], "which takes no argument a"),
        ("def f(a, /, **k): ...", 1, ["a"], None),
        ("def f(*, a): ...", 0, [], "which needs an argument a"),
        ("def f(*, a=1): ...", 0, [], None),
        ("def f(*, a): ...", 1, ["a"], "which takes at most 0 arguments by position"),
        ("def f(*a): ...", 9, [], None),
        ("def f(**k): ...", 0, ["x"], None),
        ("def f(): ...", 0, ["x"], "which takes no argument x"),
        ("def f(a): ...", None, [], None),
        ("@dataclass\nclass A:\n    a: int\n    b: int = 1", 0, ["c"], "which takes no argument c"),
        ("@dataclass\nclass A:\n    a: int\n    b: int = 1", 0, ["b"], None),
    ],
)
def test_whether_a_call_fits(
    definition: str, positional: int | None, keywords: list[str], why: str | None
) -> None:
    (node,) = ast.parse(definition).body
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    signature = read_signature(node)
    assert signature is not None and signature.misfit(positional, keywords) == why


@pytest.mark.parametrize(
    ("method", "positional", "misfits"),
    [
        ("def f(self, a): ...", 1, False),
        ("def f(self, a): ...", 2, True),
        ("def f(self=None): ...", 0, False),
        ("def f(self, /, a): ...", 1, False),
        ("@staticmethod\ndef f(a): ...", 1, False),
        ("@staticmethod\ndef f(a): ...", 0, True),
        ("def f(): ...", 0, False),
    ],
)
def test_python_passes_the_first_parameter_of_a_method(
    method: str, positional: int, misfits: bool
) -> None:
    (node,) = ast.parse(method).body
    assert isinstance(node, ast.FunctionDef)
    signature = read_signature(node, method=True)
    assert signature is not None and (signature.misfit(positional, []) is not None) is misfits


CODE = """\
@mark
class A:
    field = other.read
    def method(self, argument):
        self.set = getattr(argument, "by_name", None)
        local = (argument
                 .last)
        return setattr(self, name, 1)
"""


def test_names_of_lines() -> None:
    syntax = ast.parse(CODE)
    every = range(1, 9)
    names = {(n.text, n.line, n.attribute, n.binds) for n in find_names(syntax, every)}
    assert {
        ("mark", 1, False, False), ("A", 2, False, True), ("field", 3, False, True),
        ("read", 3, True, False), ("method", 4, False, True), ("argument", 4, False, True),
        ("set", 5, True, False), ("local", 6, False, True), ("last", 7, True, False),
    } <= names  # fmt: skip
    assert {n.text for n in find_names(syntax, [1])} == {"mark"}
    assert {n.text for n in find_names(syntax, [7])} == {"last"}


def test_attributes_of_lines() -> None:
    syntax = ast.parse(CODE)
    assert find_attributes(syntax, range(1, 9)) == {"read": 3, "set": 5, "by_name": 5, "last": 7}
    assert find_attributes(syntax, [6]) == {}
    assert find_attributes(syntax, [7]) == {"last": 7}


def test_definitions_of_lines() -> None:
    syntax = ast.parse(CODE)
    assert find_defined(syntax, range(1, 9)) == {"A", "field", "method"}
    assert find_defined(syntax, [3]) == {"field"}
    assert find_defined(syntax, [4]) == {"method"}
    assert find_defined(syntax, [1, 5]) == set()
