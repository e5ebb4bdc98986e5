"""The rows of docs/reliability.md: run one, or all of them, and print the table.

    python -m bench.reliability [ROW ...] [--results FILE]

A row is a part of the test suite, with the whole of what CI samples. ``--results`` keeps the figures in a
JSON file, so that rows can be run at different times: the table that is printed holds all rows of the file.
The row ``mutations`` needs the package coverage. ``python -m bench.reliability.peers`` makes the same table
for git, StGit, pip and uv.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
TOOL_TESTS: Final = "tests/tool"


@dataclass(frozen=True)
class Row:
    """``tests`` are arguments of pytest; ``failure`` says what a failed trial is."""

    title: str
    tests: tuple[str, ...]
    failure: str


ROWS: Final[Mapping[str, Row]] = {
    "kills": Row(
        "SIGKILL, to the tool alone and to its process group, in every command that writes",
        (f"{TOOL_TESTS}/test_interruptions.py", "-k", "test_kills and all"),
        "a torn state, or a next command that fails",
    ),
    "disks": Row(
        "full disk, in every command that writes",
        (f"{TOOL_TESTS}/test_interruptions.py", "-k", "test_full_disks and all"),
        "a torn state, another exit code than 6, a wrong message, or a next command that fails",
    ),
    "signals": Row(
        "SIGINT, SIGTERM, SIGHUP, SIGPIPE, in every command that writes",
        (f"{TOOL_TESTS}/test_interruptions.py", "-k", "test_signals and all"),
        "a torn state, an undocumented exit code, a traceback, or a next command that fails",
    ),
    "wheels": Row(
        "forged wheels, with and without the released wheel",
        (f"{TOOL_TESTS}/verify/test_forged_wheels.py",),
        "proven; with the released wheel, anything but refuted",
    ),
    "folders": Row(
        "forged installations and worktrees",
        (f"{TOOL_TESTS}/verify/test_forged_folders.py",),
        "proven, or another outcome than the table of the test has",
    ),
    "zips": Row(
        "zip structures, forged and fuzzed",
        (f"{TOOL_TESTS}/wheel/test_zip_structure.py",),
        "accepted, although two readers of zip files find different files in it",
    ),
    "inputs": Row(
        "hostile series.txt, series.lock, patch and mail, through every command that reads them",
        (f"{TOOL_TESTS}/test_hostile_inputs.py",),
        "a traceback, a hang, an undocumented exit code, or a changed project after a refusal",
    ),
    "sources": Row(
        "hostile git configurations, attributes and sources, and large or special files",
        (
            *(f"{TOOL_TESTS}/git/test_isolation.py", f"{TOOL_TESTS}/verify/test_limits.py"),
            *(f"{TOOL_TESTS}/upstream/test_resolve.py", f"{TOOL_TESTS}/apply/test_traps.py"),
            *("-k", "not each_key_alone"),  # hours; run it with -m exhaustive
        ),
        "a changed commit, patch or verdict; a program that ran; a hang; memory over the limit",
    ),
    "index": Row(
        "failures and lies of a package index",
        (f"{TOOL_TESTS}/upstream/test_index_failures.py", f"{TOOL_TESTS}/upstream/test_index.py"),
        "a success, a traceback, a hang, a changed project, or a file kept in the cache",
    ),
    "mutations": Row(
        "one-place changes to tool/",
        (f"{TOOL_TESTS}/test_mutations.py",),
        "a change that no test notices",
    ),
}


class Counter:
    """A plugin of pytest that adds up what the tests say they tried."""

    def __init__(self) -> None:
        self.numbers: collections.Counter[str] = collections.Counter()
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.skipped.append(f"{report.nodeid}: {report.longrepr}")
        elif report.when == "call" or report.failed:
            said: dict[str, Any] = dict(report.user_properties)
            self.numbers["tried"] += said.pop("tried", 1)
            unnoticed = said.pop("not noticed", 0)
            self.numbers["failures"] += unnoticed
            for name, number in said.items():
                self.numbers[name] += number
            if report.failed:
                bad = [said.get(name, 0) for name in ("torn states", "failed next commands")]
                self.numbers["failures"] += max(0 if unnoticed else 1, sum(bad))
                print(f"\n{report.nodeid}\n{report.longreprtext[-3000:]}", file=sys.stderr)


def run(name: str) -> dict[str, Any]:
    """Run one row; the numbers that its tests say, and the seconds it took."""
    counter = Counter()
    options = ["-q", "-m", "not index and not gpu", "-p", "no:cacheprovider"]
    begin = datetime.datetime.now()
    pytest.main([*options, *ROWS[name].tests], plugins=[counter])
    took = datetime.datetime.now() - begin
    return {
        "date": begin.date().isoformat(),
        "seconds": round(took.total_seconds()),
        "skipped": counter.skipped,
        **counter.numbers,
    }


def format_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["| row | what | tried | failures | more | date |", "|---|---|---:|---:|---|---|"]
    known = {"tried", "failures", "date", "seconds", "skipped"}
    for name in ROWS:
        if name in results:
            found = results[name]
            more = "; ".join(f"{k}: {v}" for k, v in found.items() if k not in known)
            cells = (found.get("tried", 0), found.get("failures", 0), more, found["date"])
            lines.append(f"| {name} | {ROWS[name].title} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--results", type=Path, help="a JSON file that keeps the figures")
    parser.add_argument("--count", type=int, default=60, help="how many mutations")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations")
    options = parser.parse_args(arguments)
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    os.chdir(ROOT)
    os.environ |= {"MUTATIONS": str(options.count), "MUTATION_SEED": str(options.seed)}
    results: dict[str, Any] = {}
    if options.results and options.results.exists():
        results = json.loads(options.results.read_text())
    failed = False
    for name in options.rows or ROWS:
        results[name] = run(name)
        failed |= bool(results[name].get("failures"))
        if options.results:
            options.results.write_text(json.dumps(results, indent=2) + "\n")
    print(format_table(results))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
