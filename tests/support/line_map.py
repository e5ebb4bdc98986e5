"""A pytest plugin: which tests run which lines of ``tool/``, how long each takes, and which start Python.

``pytest -p tests.support.line_map`` writes ``{"seconds": {test: s}, "lines": {file: {line: [test]}},
"starts": [test], "source": {file: text}}`` to the file that the environment variable MUTATION_MAP names. It
needs coverage.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest

_BEGUN_IN = Path.cwd()
_measured = coverage.Coverage(data_file=None, include=["tool/*"], config_file=False)
_seconds: dict[str, float] = {}
_starts: dict[str, None] = {}
_running: list[str] = [""]


def _note_start(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and "python" in str(arguments[1][0]):
        _starts[_running[-1]] = None


def pytest_sessionstart() -> None:
    sys.addaudithook(_note_start)
    _measured.start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _running.append(item.nodeid)
    _measured.switch_context(item.nodeid)
    begin = time.perf_counter()
    try:
        return (yield)
    finally:
        _seconds[item.nodeid] = time.perf_counter() - begin
        _measured.switch_context("")
        _running.pop()


def pytest_sessionfinish() -> None:
    _measured.stop()
    data = _measured.get_data()
    files = {file.removeprefix(f"{_BEGUN_IN}/"): file for file in data.measured_files()}
    known: dict[str, Any] = {
        "seconds": _seconds,
        "lines": {name: data.contexts_by_lineno(file) for name, file in files.items()},
        "starts": [test for test in _starts if test],
        "source": {name: Path(file).read_text() for name, file in files.items()},
    }
    Path(os.environ["MUTATION_MAP"]).write_text(json.dumps(known))
