"""How strong the tests are: one-place changes to ``tool/``, of which a test must notice nearly all.

    MUTATIONS=60 MUTATION_SEED=7 pytest -m mutations tests/tool/test_mutations.py -s

``MUTATION_PACKAGES=classify,apply`` takes the places from these packages alone. Each change is made in a
copy of the tree; the tests of the package run first, then those of the packages that depend on it.
"""

from __future__ import annotations

import ast
import copy
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = (
    "git", "series", "analysis", "project", "upstream", "apply", "classify", "wheel", "authoring",
    "rebase", "verify", "doctor", "cli",
)  # fmt: skip
INVERSE = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE,
    ast.LtE: ast.Gt, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
SECONDS = 900.0
"""A change that makes the tests hang is noticed too."""


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


def list_places(packages: list[str]) -> list[tuple[Path, ast.AST]]:
    """Every place that can be changed, in the order of the files."""
    files = [p for name in packages for p in sorted((ROOT / "tool" / name).rglob("*.py"))]
    return [
        (file.relative_to(ROOT), node)
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if mutate(node) is not None
    ]


def write_changed(root: Path, file: Path, node: ast.AST) -> str:
    """Change the place in the copy ``root``; returns what stands there then."""
    path = root / file
    lines = path.read_bytes().splitlines(keepends=True)
    assert isinstance(node, ast.expr | ast.stmt) and node.end_lineno and node.end_col_offset
    first, last = node.lineno - 1, node.end_lineno - 1
    if isinstance(node, ast.If):  # only its condition: the rest keeps its lines
        test = node.test
        assert test.end_lineno and test.end_col_offset
        first, last = test.lineno - 1, test.end_lineno - 1
        start, end, text = test.col_offset, test.end_col_offset, f"(not ({ast.unparse(test)}))"
    else:
        start, end = node.col_offset, node.end_col_offset
        changed = mutate(node)
        assert changed is not None
        text = "pass" if isinstance(changed, ast.Pass) else f"({ast.unparse(changed)})"
    lines[first : last + 1] = [lines[first][:start] + text.encode() + lines[last][end:]]
    path.write_bytes(b"".join(lines))
    return text


def list_tests(root: Path, package: str) -> Iterator[str]:
    """The folder that mirrors ``package``, then those of the packages above that import it."""
    for name in ORDER[ORDER.index(package) :]:
        sources = (root / "tool" / name).rglob("*.py")
        uses = any(re.search(rf"\btool\.{package}\b", path.read_text()) for path in sources)
        if (root / "tests" / "tool" / name).is_dir() and (name == package or uses):
            yield f"tests/tool/{name}"


def is_noticed(root: Path, package: str) -> bool:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MUTATION")}
    env |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    for folder in list_tests(root, package):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-m",
            "not index and not gpu",
            folder,
        ]
        try:
            done = subprocess.run(command, cwd=root, env=env, capture_output=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return True
        if done.returncode not in (0, 5):
            return True
    return False


@pytest.mark.mutations
@pytest.mark.skipif("MUTATIONS" not in os.environ, reason="set MUTATIONS to how many to try")
def test_the_tests_notice_a_change(tmp_path: Path) -> None:
    number, seed = int(os.environ["MUTATIONS"]), int(os.environ.get("MUTATION_SEED", "1"))
    packages = os.environ.get("MUTATION_PACKAGES", ",".join(ORDER)).split(",")
    chosen = random.Random(seed).sample(list_places(packages), number)
    unnoticed = []
    for file, node in chosen:
        root = tmp_path / "tree"
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__"))
        text = write_changed(root, file, node)
        place = f"{file}:{getattr(node, 'lineno', 0)}: {text}"
        noticed = is_noticed(root, file.parts[1])
        print("noticed " if noticed else "SURVIVED", place, flush=True)
        unnoticed += [] if noticed else [place]
        shutil.rmtree(root)
    assert len(unnoticed) <= number // 20, "\n".join(unnoticed)
