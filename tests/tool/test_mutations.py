"""How strong the tests are: one-place changes to ``tool/``, of which a test must notice nearly all.

    pip install coverage
    MUTATIONS=60 MUTATION_SEED=7 pytest -m mutations tests/tool/test_mutations.py -s

``MUTATION_PACKAGES=classify,apply`` takes the places from these packages alone. The changes are made one
at a time in a copy of the tree. All tests of tests/tool run once without a change: it is noted which of them
run which line, and those that fail are left out. A change is then shown to the tests that run its line, those
of the file that mirrors the changed one first, and to the files whose tests run the tool as another process.
"""

from __future__ import annotations

import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
WANTED = "not index and not gpu and not exhaustive and not mutations"
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


class Tests:
    """The tests in the copy ``root``, and what is known of them from a run without a change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("MUTATION")}
        self.env |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
        path = root / "line_map.json"
        given = os.environ.get("MUTATION_MAP")
        if given and Path(given).exists():  # made by an earlier run, of the same tree
            path = Path(given)
        else:
            self.env["MUTATION_MAP"] = given or str(path)
            self.run(["-p", "tests.support.line_map", "--maxfail=20", "tests/tool"], None)
            path = Path(self.env.pop("MUTATION_MAP"))
        known: dict[str, Any] = json.loads(path.read_text())
        self.seconds: dict[str, float] = known["seconds"]
        self.lines: dict[str, dict[str, list[str]]] = known["lines"]
        self.failed: list[str] = known["failed"]
        # A test that cannot be named would look like one that fails.
        assert self.run(["--collect-only", *self.seconds], None)

    def run(self, arguments: list[str], seconds: float | None) -> bool:
        """Do they pass within ``seconds``? A change that makes them hang is noticed too."""
        listed = self.root / "arguments"
        listed.write_text("\n".join(arguments))
        command = [sys.executable, "-m", "pytest", "--maxfail=1", "-q", "-p", "no:cacheprovider"]
        try:
            done = subprocess.run(
                [*command, "-m", WANTED, f"@{listed}"],
                cwd=self.root, env=self.env, capture_output=True, timeout=seconds, text=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
        return done.returncode in (0, 5)

    def list_stages(self, file: Path, node: ast.AST) -> Iterator[list[str]]:
        """The tests that run the line of ``node``, the nearest and fastest first; then whole files."""
        assert isinstance(node, ast.expr | ast.stmt)
        last = node.test.end_lineno if isinstance(node, ast.If) else node.end_lineno
        lines = self.lines.get(str(file), {})
        span = range(node.lineno, (last or node.lineno) + 1)
        found = {test for line in span for test in lines.get(str(line), ()) if test}
        found.difference_update(self.failed)
        folder = f"tests/tool/{'/'.join(file.parent.parts[1:2])}"
        mirror = f"{folder}/test_{file.stem}.py"

        def rank(test: str) -> tuple[bool, bool, str, float]:
            path = test.partition("::")[0]
            return path != mirror, not path.startswith(folder), path, self.seconds[test]

        yield sorted(found, key=rank)
        sources = sorted((self.root / "tests/tool").rglob("test_*.py"))
        yield [
            *(f"--deselect={test}" for test in self.failed),
            *(
                str(path.relative_to(self.root))
                for path in sources
                if '"-m", "tool"' in path.read_text() and path.name != Path(__file__).name
            ),
        ]

    def notice(self, file: Path, node: ast.AST) -> bool:
        for tests in self.list_stages(file, node):
            usual = sum(self.seconds.get(test, 30.0) for test in tests)
            if tests and not self.run(tests, 120 + 4 * usual):
                return True
        return False


@pytest.mark.mutations
@pytest.mark.skipif("MUTATIONS" not in os.environ, reason="set MUTATIONS to how many to try")
def test_the_tests_notice_a_change(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    pytest.importorskip("coverage")
    number, seed = int(os.environ["MUTATIONS"]), int(os.environ.get("MUTATION_SEED", "1"))
    packages = [name for name in os.environ.get("MUTATION_PACKAGES", "").split(",") if name]
    root = tmp_path / "tree"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__"))
    chosen = random.Random(seed).sample(list_places(root, packages), number)
    tests = Tests(root)
    print("left out, because they fail without a change:", tests.failed or "none")
    unnoticed = []
    for file, node in chosen:
        before = (root / file).read_bytes()
        text = write_changed(root, file, node)
        place = f"{file}:{getattr(node, 'lineno', 0)}: {text}"
        noticed = tests.notice(file, node)
        print("noticed " if noticed else "SURVIVED", place, flush=True)
        unnoticed += [] if noticed else [place]
        (root / file).write_bytes(before)
    record_property("tried", number)
    record_property("not noticed", len(unnoticed))
    assert len(unnoticed) <= number // 20, "\n".join(unnoticed)
