"""Time and peak memory of ``tool apply``, against plain git doing the same.

    python -m bench.tool.apply [--sglang-ref v0.5.23] [--rounds 5]

Both start from a warm cache and end with a worktree in which the patches are committed. They take turns:

* ``tool apply`` applies and checks the patches, adds the kernels, compares with the lock and writes the
  worktree;
* plain git makes a worktree of the release with ``git worktree add`` and applies the same patches as mails
  with ``git am --3way``.

A second table compares ``tool --help`` with Python importing click alone, the fastest of 20 runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path

from bench.tool.meter import ROOT, TOOL, Measurement, measure, output, table

REFERENCE = "git worktree add + git am --3way"
IDENTITY = ("-c", "user.name=x", "-c", "user.email=x@example.invalid")


def compare(ref: str, rounds: int) -> dict[str, list[Measurement]]:
    """Measure both, ``rounds`` times."""
    with tempfile.TemporaryDirectory() as temp:
        work = Path(temp)
        os.environ["TOOL_DATA_DIR"] = str(work / "data")
        apply = [*TOOL, "apply", "--sglang-ref", ref, "--series", str(ROOT), "-q"]
        made = json.loads(output([*apply, "--json", "--into", str(work / "first")]))["result"]
        git = ["git", "-C", str(work / "data" / "sglang.git"), *IDENTITY]
        mails = work / "mails"
        span = f"{made['base']}..{made['head']}~1"  # the last commit adds the kernels, not a patch
        output([*git, "format-patch", "--quiet", "--full-index", "-o", str(mails), span])
        results: dict[str, list[Measurement]] = {"tool apply": [], REFERENCE: []}
        for number in range(rounds):
            ours, theirs = work / f"ours{number}", work / f"theirs{number}"
            branch = ["--branch", f"round{number}"]
            results["tool apply"].append(
                measure([*apply, "--offline", *branch, "--into", str(ours)])
            )
            script = (
                f"{shlex.join(git)} worktree add --quiet --detach {theirs} {made['base']} && "
                f"git -C {theirs} {shlex.join(IDENTITY)} am --quiet --3way {mails}/*.patch"
            )
            results[REFERENCE].append(measure(["/bin/sh", "-c", script]))
            _check_same(ours, theirs)
            for folder in (ours, theirs):
                output([*git, "worktree", "remove", "--force", str(folder)])
    return results


def _check_same(ours: Path, theirs: Path) -> None:
    trees = {
        output(["git", "-C", str(folder), "rev-parse", f"{commit}^{{tree}}"])
        for folder, commit in ((ours, "HEAD~1"), (theirs, "HEAD"))
    }
    if len(trees) != 1:
        raise SystemExit(
            "bench.tool.apply: tool apply and git am made different trees, "
            "so their times cannot be compared"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sglang-ref", default="pin", help="the release (default: the pin)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(table(compare(options.sglang_ref, options.rounds), REFERENCE))
    commands = {
        "tool --help": [*TOOL, "--help"],
        "python, importing click": [sys.executable, "-c", "import click"],
    }
    fastest = {
        name: [min((measure(command) for _ in range(20)), key=lambda m: m.seconds)]
        for name, command in commands.items()
    }
    print("\n" + table(fastest, "python, importing click"))


if __name__ == "__main__":
    main()
