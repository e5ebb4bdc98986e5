"""Time and peak memory of ``tool apply``, against plain git doing the same.

    python -m bench.tool.apply [--sglang-ref v0.5.23] [--rounds 5]

Both start from a warm cache and end with a worktree that has the patches committed; taking turns, each
in a process of its own:

* ``tool apply``: apply, prove, bundle the kernels, check against the lock, write the worktree whole;
* plain git: ``git worktree add`` of the base, then ``git am --3way`` of the same patches as mails.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.tool.meter import Measurement, measure, table

REFERENCE = "git worktree add + git am --3way"


def compare(ref: str, root: Path, rounds: int) -> list[tuple[str, Measurement]]:
    with tempfile.TemporaryDirectory() as temp:
        work = Path(temp)
        os.environ["TOOL_DATA_DIR"] = str(work / "data")
        tool = [
            sys.executable,
            "-m",
            "tool",
            "apply",
            "--sglang-ref",
            ref,
            "--series",
            str(root),
            "-q",
        ]
        made = json.loads(_run([*tool, "--json", "--into", str(work / "first")]))["result"]
        repository = work / "data" / "sglang.git"
        git = [
            "git",
            "-C",
            str(repository),
            "-c",
            "user.name=x",
            "-c",
            "user.email=x@example.invalid",
        ]
        mails = work / "mails"
        span = (
            f"{made['base']}..{made['head']}~1"  # without the kernels, which git am has no part in
        )
        _run([*git, "format-patch", "--quiet", "--full-index", "-o", str(mails), span])
        results: dict[str, list[Measurement]] = {"tool apply": [], REFERENCE: []}
        for number in range(rounds):
            ours, theirs = work / f"ours{number}", work / f"theirs{number}"
            branch = ["--branch", f"round{number}"]
            results["tool apply"].append(
                measure([*tool, "--offline", *branch, "--into", str(ours)])
            )
            script = (
                f"{shlex.join(git)} worktree add --quiet --detach {theirs} {made['base']} && "
                f"git -C {theirs} -c user.name=x -c user.email=x@example.invalid "
                f"am --quiet --3way {mails}/*.patch"
            )
            results[REFERENCE].append(measure(["/bin/sh", "-c", script]))
            _same(ours, theirs)
            for folder in (ours, theirs):
                _run([*git, "worktree", "remove", "--force", str(folder)])
    return [
        (way, Measurement(statistics.median(m.seconds for m in ms), max(m.peak for m in ms)))
        for way, ms in results.items()
    ]


def _same(ours: Path, theirs: Path) -> None:
    trees = {
        _run(["git", "-C", str(folder), "rev-parse", f"{commit}^{{tree}}"])
        for folder, commit in ((ours, "HEAD~1"), (theirs, "HEAD"))
    }
    if len(trees) != 1:
        raise SystemExit("the two ways gave different trees, so the times cannot be compared")


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sglang-ref", default="pin")
    parser.add_argument("--series", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(table(compare(options.sglang_ref, options.series, options.rounds), REFERENCE))
    bare = [sys.executable, "-c", "import click"]
    helped = [sys.executable, "-m", "tool", "--help"]
    rows = [
        (way, min((measure(command) for _ in range(20)), key=lambda m: m.seconds))
        for way, command in (("tool --help", helped), ("python, importing click", bare))
    ]
    print("\n" + table(rows, "python, importing click"))


if __name__ == "__main__":
    main()
