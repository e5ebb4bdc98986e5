"""How strong the tests are: one-place changes to ``tool/``, of which a test must notice nearly all.

    MUTATIONS=60 MUTATION_SEED=7 pytest -m mutations tests/tool/test_mutations.py -s

``MUTATION_PACKAGES=classify,apply`` takes the places from these packages alone. The changes are made one
at a time in a copy of the tree. Of the tests, the file that mirrors the changed one runs first, then its
folder, then the rest of tests/tool. They have all to pass before anything is changed.
"""

from __future__ import annotations

import ast
import copy
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INVERSE = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE,
    ast.LtE: ast.Gt, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
SECONDS = 1800.0
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
    """Every place that can be changed, in the order of the files. No package: all of ``tool/``."""
    folders = [ROOT / "tool" / name for name in packages or [""]]
    return [
        (file.relative_to(ROOT), node)
        for folder in folders
        for file in sorted(folder.rglob("*.py"))
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


def list_stages(root: Path, file: Path) -> Iterator[list[str]]:
    """Arguments of pytest for the test file that mirrors ``file``, for its folder, and for the rest."""
    tests = Path("tests/tool")
    folder = tests.joinpath(*file.parent.parts[1:2])
    mirror = folder / f"test_{file.stem}.py"
    ran = []
    for place in (mirror, folder):
        if place != tests and (root / place).exists():
            yield [str(place), *(f"--ignore={path}" for path in ran)]
            ran.append(place)
    yield [str(tests), *(f"--ignore={path}" for path in ran)]


def run_tests(root: Path, arguments: list[str]) -> bool:
    """Do they pass? Tests that hang do not."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MUTATION")}
    env |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    wanted = "not index and not gpu and not exhaustive and not mutations"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, "-m", wanted, *arguments],
            cwd=root, env=env, capture_output=True, timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return done.returncode in (0, 5)


@pytest.mark.mutations
@pytest.mark.skipif("MUTATIONS" not in os.environ, reason="set MUTATIONS to how many to try")
def test_the_tests_notice_a_change(tmp_path: Path) -> None:
    number, seed = int(os.environ["MUTATIONS"]), int(os.environ.get("MUTATION_SEED", "1"))
    packages = [name for name in os.environ.get("MUTATION_PACKAGES", "").split(",") if name]
    chosen = random.Random(seed).sample(list_places(packages), number)
    root = tmp_path / "tree"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__"))
    assert run_tests(root, ["tests/tool"]), "the tests fail without a change"
    unnoticed = []
    for file, node in chosen:
        text = write_changed(root, file, node)
        place = f"{file}:{getattr(node, 'lineno', 0)}: {text}"
        noticed = not all(run_tests(root, stage) for stage in list_stages(root, file))
        print("noticed " if noticed else "SURVIVED", place, flush=True)
        unnoticed += [] if noticed else [place]
        shutil.copyfile(ROOT / file, root / file)
    assert len(unnoticed) <= number // 20, "\n".join(unnoticed)
