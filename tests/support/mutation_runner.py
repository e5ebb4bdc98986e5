"""A pytest plugin: instead of running the tests, try changes to ``tool/`` and say which a test notices.

The tests are collected once. For each change a child process is forked, which has all modules loaded: the
functions of the changed file get the changed code, and the tests run until the first fails. The changed file
also lies in the tree, for the tests that start the tool as another process. A test that fails is run again
without the change: if it fails there too, it is left out from then on and counts for nothing.

The environment: MUTATIONS is a JSON list of [file, number of the place in it], MUTATION_MAP what
``tests.support.line_map`` wrote. The map may be of an earlier tree: lines are found again by their text, and
tests that it does not have are shown to every change of the package that their folder mirrors.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import gc
import inspect
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.mutations import list_places, span, write, write_changed

ROOT = Path.cwd()
CODES = dict[tuple[str, int], types.CodeType]


class LineMap:
    """Which tests run a line of the tree as it is now."""

    def __init__(self, known: dict[str, Any]) -> None:
        self.seconds: dict[str, float] = known["seconds"]
        self.starts: list[str] = known["starts"]
        self._lines: dict[str, dict[str, list[str]]] = known["lines"]
        self._source: dict[str, str] = known["source"]

    def find_tests(self, file: str, lines: range) -> set[str]:
        before = self._source.get(file, "").splitlines()
        now = (ROOT / file).read_text().splitlines()
        known = self._lines.get(file, {})
        found: set[str] = set()
        for tag, i, j, k, m in difflib.SequenceMatcher(
            None, before, now, autojunk=False
        ).get_opcodes():
            for line in lines:
                if k < line <= m:
                    # A changed block: the tests of all its lines, and of the two beside it.
                    old = [line - k + i] if tag == "equal" else range(i, j + 2)
                    found.update(test for one in old for test in known.get(str(one), ()))
        return found - {""}


class Runner:
    def __init__(self, session: pytest.Session) -> None:
        self.items = {item.nodeid: item for item in session.items}
        self.map = LineMap(json.loads(Path(os.environ["MUTATION_MAP"]).read_text()))
        self.left_out: set[str] = set()
        self.terminal = session.config.get_terminal_writer()
        self.limit = float(os.environ.get("MUTATION_SECONDS", "inf"))
        gc.unfreeze()  # frozen objects are not listed
        self.functions: dict[types.CodeType, list[types.FunctionType]] = {}
        for found in gc.get_objects():
            if type(found) is types.FunctionType and "/tool/" in found.__code__.co_filename:
                self.functions.setdefault(found.__code__, []).append(found)
        gc.freeze()

    def say(self, line: str) -> None:
        self.terminal.line(line)
        self.terminal.flush()

    # -- which tests ------------------------------------------------------------------------------

    def list_tests(self, file: Path, lines: range) -> list[str]:
        """Those that run the lines, the nearest and fastest first, then those that start Python."""
        folder = "/".join(["tests/tool", *file.parts[1:-1][:1]])
        mirror = f"{folder}/test_{file.stem}.py"
        known = self.map.seconds
        found = self.map.find_tests(str(file), lines)
        found.update(
            test for test in self.items if test.startswith(f"{folder}/") and test not in known
        )
        files: dict[str, float] = {}
        for test in found:
            path = test.partition("::")[0]
            files[path] = files.get(path, 0.0) + known.get(test, 0.1)

        def rank(test: str) -> tuple[object, ...]:
            path = test.partition("::")[0]
            near = (path != mirror, not path.startswith(f"{folder}/"))
            return *near, files[path], path, known.get(test, 0.1)

        ordered = [*sorted(found, key=rank), *(t for t in self.map.starts if t not in found)]
        return [test for test in ordered if test in self.items and test not in self.left_out]

    # -- running them -----------------------------------------------------------------------------

    def run(self, tests: Sequence[str], prepare: Callable[[], None]) -> str | None:
        """The first of ``tests`` that fails in a child process which called ``prepare``, if any."""
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.setsid()
            os.close(reading)
            code = 3
            try:
                prepare()
                code = self._run_here([self.items[test] for test in tests], writing)
            finally:
                os._exit(code)
        os.close(writing)
        try:
            return self._watch(tests, reading)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reading)

    def _run_here(self, items: list[pytest.Item], writing: int) -> int:
        config = items[0].config
        config.get_terminal_writer()._file = io.StringIO()  # the dots of each test
        outcome = _Outcome()
        config.pluginmanager.register(outcome)
        for item, following in zip(items, [*items[1:], None], strict=True):
            config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            os.write(writing, b"-" if outcome.failed else b"+")
            if outcome.failed:
                return 1
        return 0

    def _watch(self, tests: Sequence[str], reading: int) -> str | None:
        for number, test in enumerate(tests):
            patience = 60 + 10 * self.map.seconds.get(test, 10.0)
            ready, _, _ = select.select([reading], [], [], patience)
            if not ready or os.read(reading, 1) != b"+":
                return tests[number]  # failed, took far longer than it does, or ended the process
        return None

    def notice(self, file: Path, node: ast.AST) -> tuple[str | None, str]:
        """The test that notices the change, if any, and what stands there then."""
        path, before = ROOT / file, (ROOT / file).read_bytes()
        tests = self._within_limit(self.list_tests(file, span(node)))
        while True:
            text = write_changed(ROOT, file, node)
            try:
                failed = self._run_changed(tests, self._find_changed(path, before.decode()))
            finally:
                write(path, before)
            if failed is None or self.run([failed], lambda: None) is None:
                return failed, text
            self.left_out.add(failed)
            self.say(f"left out, because it fails without a change: {failed}")
            tests = tests[tests.index(failed) + 1 :]

    def _within_limit(self, tests: list[str]) -> list[str]:
        left, chosen = self.limit, []
        for test in tests:
            left -= self.map.seconds.get(test, 0.1)
            if left > 0:
                chosen.append(test)
        return chosen

    def _run_changed(self, tests: list[str], changed: CODES | None) -> str | None:
        if not tests:
            return None
        if changed is None:
            return self._run_fresh(tests)

        def replace() -> None:
            for code, functions in self.functions.items():
                new = changed.get((code.co_qualname, code.co_firstlineno))
                if new is not None and code.co_filename == new.co_filename:
                    for function in functions:
                        function.__code__ = new

        return self.run(tests, replace)

    def _find_changed(self, path: Path, before: str) -> CODES | None:
        """The changed functions; None if the change takes effect while the module is loaded."""
        old, new = (
            dict(_walk(compile(text, str(path), "exec", dont_inherit=True)))
            for text in (before, path.read_text())
        )
        changed = {key: code for key, code in new.items() if code != old.get(key)}
        innermost = [code for code in changed.values() if changed.keys().isdisjoint(_inner(code))]
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module not in sys.modules:
            return {}
        if any(not code.co_flags & inspect.CO_OPTIMIZED for code in innermost):
            return None
        optimized = {k: c for k, c in changed.items() if c.co_flags & inspect.CO_OPTIMIZED}
        living = {
            (code.co_qualname, code.co_firstlineno): code
            for code in self.functions
            if code.co_filename == str(path)
        }
        found = {key: code for key, code in optimized.items() if key in living}
        if not found or any(living[k].co_freevars != c.co_freevars for k, c in found.items()):
            return None
        return found

    def _run_fresh(self, tests: list[str]) -> str | None:
        """In a new process, for what takes effect while modules are loaded."""
        listed = ROOT / "arguments"
        listed.write_text("\n".join(tests))
        usual = sum(self.map.seconds.get(test, 0.1) for test in tests)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider"]
        try:
            done = subprocess.run(
                [*command, "--tb=no", "-o", "addopts=", f"@{listed}"],
                capture_output=True, timeout=120 + 10 * usual, text=True,
                start_new_session=True,  # a changed probe may kill its process group
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return tests[0]
        if done.returncode == 0:
            return None
        named = [line.split(" ")[1] for line in done.stdout.splitlines() if "::" in line]
        return next((t for t in tests for n in named if t.startswith(n)), tests[0])


class _Outcome:
    """A plugin of pytest that notes whether a test failed."""

    failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed


def _walk(code: types.CodeType) -> Iterator[tuple[tuple[str, int], types.CodeType]]:
    yield (code.co_qualname, code.co_firstlineno), code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _walk(constant)


def _inner(code: types.CodeType) -> set[tuple[str, int]]:
    return {key for key, _ in _walk(code)} - {(code.co_qualname, code.co_firstlineno)}


def pytest_runtestloop(session: pytest.Session) -> bool:
    runner = Runner(session)
    wanted: list[list[Any]] = json.loads(os.environ["MUTATIONS"])
    places: dict[str, list[ast.AST]] = {}
    for file, node in list_places(ROOT, []):
        places.setdefault(str(file), []).append(node)
    for name, number in wanted:
        node = places[name][number]
        begin = time.monotonic()
        test, text = runner.notice(Path(name), node)
        took = f"{time.monotonic() - begin:.0f}s"
        what = f"{name}:{span(node)[0]}: {' '.join(text.split())}"
        runner.say(f"{f'noticed  {what} by {test}' if test else f'SURVIVED {what}'} {took}")
        shutil.rmtree(session.config.option.basetemp, ignore_errors=True)
    return True
