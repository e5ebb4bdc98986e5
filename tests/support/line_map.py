"""A pytest plugin: which tests run which lines of ``tool/``, how long each takes, and which fail.

``pytest -p tests.support.line_map`` writes ``{"seconds": {test: s}, "lines": {file: {line: [test]}},
"failed": [test]}`` to the file that the environment variable MUTATION_MAP names. It needs coverage.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest

_BEGUN_IN = Path.cwd()
_measured = coverage.Coverage(data_file=None, include=["tool/*"], config_file=False)
_seconds: dict[str, float] = {}
_failed: list[str] = []


def pytest_sessionstart() -> None:
    _measured.start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _measured.switch_context(item.nodeid)
    begin = time.perf_counter()
    try:
        return (yield)
    finally:
        _seconds[item.nodeid] = time.perf_counter() - begin
        _measured.switch_context("")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _failed.append(report.nodeid)


def pytest_sessionfinish() -> None:
    _measured.stop()
    data = _measured.get_data()
    lines: dict[str, Any] = {
        file.removeprefix(f"{_BEGUN_IN}/"): data.contexts_by_lineno(file)
        for file in data.measured_files()
    }
    text = json.dumps({"seconds": _seconds, "lines": lines, "failed": _failed})
    Path(os.environ["MUTATION_MAP"]).write_text(text)
