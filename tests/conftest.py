"""What every test shares: markers that skip with a reason, released wheels, and subprocesses.

Some tests cannot share a process with the rest. An environment variable chooses Triton's interpreter
at import, and a process cannot import two releases of sglang (on a faked CUDA platform). So each file
named ``test_*_interp.py``, and each release of a folder in tests/patched, is one test here. That test
runs pytest in a child process and shows the child's output if it fails.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from packaging.version import Version

from tests.support import selection
from tests.support.trees import ROOT, PatchedTrees, Unavailable, releases

TESTS = Path(__file__).parent
INTERPRETED = "_interp.py"
"""End of the names of files whose kernels run in Triton's interpreter."""
PATCHED = TESTS / "patched"
CHILD = "ADA_TEST_CHILD"
"""Environment variable of a child process: collect the file as ordinary tests."""

# The same examples at every run and no deadline, so that a failure is caused by the change. To look for
# new examples: pytest --hypothesis-profile=default.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

_trees = pytest.StashKey[PatchedTrees]()
_SUMMARY = "child"
"""Property of a report: what the child process printed last."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sglang-ref",
        action="append",
        metavar="REF",
        help="release whose patched tree to test: v0.5.23, pin (default), all, or ci (the first, the "
        "pin, the newest, and what differs from the merge base with ADA_BASE_REF); may be repeated",
    )


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A job in the background begins like this, and so would every command that a test interrupts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    wanted = selection.releases(ROOT, config.getoption("--sglang-ref") or ["pin"])
    config.stash[_trees] = PatchedTrees(wanted)


def pytest_collection_finish() -> None:
    # The modules and tests that are loaded live to the end. Without this, the collector goes through all
    # of torch again and again: up to a third of the time of the tests of tool/.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def pytest_unconfigure(config: pytest.Config) -> None:
    if trees := config.stash.get(_trees, None):  # absent where configuring failed
        trees.close()


def pytest_report_header(config: pytest.Config) -> str | None:
    if CHILD in os.environ:
        return None
    return "patched trees: " + ", ".join(f"v{one}" for one in config.stash[_trees].wanted)


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if CHILD not in os.environ and path.parent == PATCHED and path.name in releases.ERAS:
        return _Era.from_parent(parent, path=path)
    return None


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Collector | None:
    if CHILD not in os.environ and module_path.name.endswith(INTERPRETED):
        return _File.from_parent(parent, path=module_path)
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (reason := _no_gpu()):
        pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [r for some in terminalreporter.stats.values() for r in some]
    found = {
        f"{value}"
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == _SUMMARY
    }
    if found:
        terminalreporter.section("run in processes of their own")
        for line in sorted(found):
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def released_wheel() -> Iterator[Callable[[str], Path]]:
    """``released_wheel("0.5.23")`` → the released wheel, from the user's cache or the index."""
    from tests.support.trees import released_wheel as fetch_wheel

    def get(version: str) -> Path:
        try:
            return fetch_wheel(version)
        except Unavailable as err:
            pytest.skip(str(err))

    yield get


@pytest.fixture(scope="session", autouse=True)
def _repaired_interpreter() -> None:
    """Make Triton's interpreter exact, and faster, where a child process runs kernels in it."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        from tests.support import interpreter_repair, interpreter_speed

        interpreter_repair.install()
        interpreter_speed.install()


class _File(pytest.File):
    """A test file that runs in a subprocess."""

    def collect(self) -> Iterator[pytest.Item]:
        yield _ChildItem.from_parent(self, name="child", files=[self.path])


class _Era(pytest.Directory):
    """A folder of tests/patched: one process for each release it is for and the session wants.

    Naming files of it on the command line runs those alone.
    """

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        files = sorted(self.path.glob("test_*.py"))
        asked = {Path(arg.split("::")[0]).resolve() for arg in self.config.args}
        for named in asked.intersection(files):
            yield _EraFile.from_parent(self, path=named)
        if asked.isdisjoint(files):
            yield from _of_each_release(self, self.path.name, files)


class _EraFile(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        yield from _of_each_release(self, self.path.parent.name, [self.path])


def _of_each_release(
    parent: pytest.Collector, era: str, files: list[Path]
) -> Iterator[pytest.Item]:
    for release in parent.config.stash[_trees].wanted:
        if releases.era(release) == era:
            item = _ChildItem.from_parent(parent, name=f"v{release}", files=files, release=release)
            item.add_marker(pytest.mark.index)
            yield item


class _ChildItem(pytest.Item):
    """A test that runs files under ``python -m pytest`` and passes if the child passes."""

    def __init__(
        self, *, files: list[Path], release: Version | None = None, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._files = files
        self._release = release

    def runtest(self) -> None:
        env = os.environ | {CHILD: "1", "OMP_NUM_THREADS": "1"}
        if self._release is None:
            env["TRITON_INTERPRET"] = "1"
        else:
            try:
                env |= self.config.stash[_trees].environment(self._release)
            except Unavailable as err:
                pytest.skip(str(err))
        command = [sys.executable, "-m", "pytest", *map(str, self._files)]
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider", "-q"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "no output"
        # A property travels with the report, also from a worker of pytest-xdist.
        self.user_properties.append((_SUMMARY, f"{self._title()}: {last}"))
        if done.returncode != 0:
            raise _ChildFailed(done.stdout)
        if not re.search(r"\b\d+ passed\b", last):
            pytest.skip(f"the child passed no test: {last}")

    def _title(self) -> str:
        where = str(self.path.relative_to(TESTS.parent))
        return where if self._release is None else f"{where} on v{self._release}"

    def repr_failure(
        self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None
    ) -> str:
        if isinstance(excinfo.value, _ChildFailed):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"{self._title()} in its own process"


class _ChildFailed(Exception):
    pass


def _no_gpu() -> str | None:
    try:
        import torch
    except ModuleNotFoundError:
        return "torch is not installed"
    return None if torch.cuda.is_available() else "no CUDA GPU"
