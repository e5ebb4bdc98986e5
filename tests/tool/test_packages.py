"""The order of tool's packages, read from their imports.

A package imports only packages before it in ``LAYERS``, and only names that their ``__init__`` lists.
click and printing stay in ``tool.cli``. torch, sglang and ``ada_dsa`` are not imported at all.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tool"
LAYERS = (
    ("errors", "atomic"),
    ("git", "plan", "interpreter"),
    ("series", "analysis"),
    ("project",),
    ("upstream",),
    ("apply",),
    ("wheel", "authoring", "classify"),
    ("verify", "doctor", "rebase", "publish", "tune"),
    ("cli",),
)
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(TOOL.rglob("*.py"))
PROBE = TOOL / "doctor" / "probe.py"
"""Runs in the environment that is examined: it asks for torch by name and prints JSON."""


def imports(path: Path) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Line, module and imported names of every import, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield node.lineno, node.module or "", tuple(alias.name for alias in node.names)


def package_of(path: Path) -> str:
    return path.relative_to(TOOL).parts[0].removesuffix(".py")


def violations(path: Path) -> Iterator[str]:
    """What ``path`` imports against the rules."""
    own = package_of(path)
    for line, module, names in imports(path):
        root, *rest = module.split(".")
        where = f"{path.relative_to(TOOL.parent)}:{line}"
        if root in ("torch", "sglang", "ada_dsa", "triton", "tilelang"):
            yield f"{where}: imports {root}"
        elif root == "click" and own != "cli":
            yield f"{where}: click belongs to tool.cli"
        elif root == "tool":
            package = rest[0] if rest else ""
            for target in [package] if package else names:
                if target == own or own == "__main__":
                    continue
                if LEVEL.get(target, 99) >= LEVEL[own]:
                    yield f"{where}: {own} may not import {target}"
                elif len(rest) > 1:
                    yield f"{where}: imports {module}, not the face tool.{package}"


def prints(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        match node:
            case ast.Call(func=ast.Name(id="print")):
                yield f"{path.relative_to(TOOL.parent)}:{node.lineno}: prints"


def test_the_picture_in_docs_shows_these_layers() -> None:
    page = (TOOL.parent / "docs" / "design.md").read_text(encoding="utf-8")
    (picture,) = re.findall(r"^```mermaid\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    arrows = re.findall(r"^ *(\w[\w &]*) --> (\w[\w &]*)$", picture, re.MULTILINE)
    shown = [tuple({*above.split(" & ")} for above in arrow) for arrow in arrows]
    layers = [set(layer) for layer in reversed(LAYERS)]
    assert shown == list(pairwise(layers))


def test_every_module_belongs_to_a_layer() -> None:
    assert {package_of(path) for path in FILES} - {"__init__", "__main__"} == set(LEVEL)


def test_imports_point_down_and_use_faces() -> None:
    modules = [path for path in FILES if package_of(path) != "__init__"]
    assert [line for path in modules for line in violations(path)] == []


def test_only_the_command_line_prints() -> None:
    domain = [path for path in FILES if package_of(path) != "cli" and path != PROBE]
    assert [line for path in domain for line in prints(path)] == []


@pytest.mark.parametrize("package", sorted(LEVEL.keys() - {"errors", "atomic"}))
def test_a_face_says_what_the_package_is_and_may_import(package: str) -> None:
    face = ast.parse((TOOL / package / "__init__.py").read_bytes())
    assert "may import" in (ast.get_docstring(face) or "")


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "import click",
        "from tool.rebase import preview_rebase",
        "def f():\n    from tool import cli",
        "from tool.series.lockfile import Lock",
        "from tool.analysis.outline import Outlines",
    ],
)
def test_a_violation_is_seen(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tool" / "upstream" / "bad.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)
    monkeypatch.setattr(f"{__name__}.TOOL", tmp_path / "tool")
    assert len(list(violations(path))) == 1
