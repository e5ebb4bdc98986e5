"""Time of carrying the whole series, release by release, with every resolution known.

    python -m bench.tool.carry [--onto v0.5.23]

A copy of the project supports the first release only. It is carried twice, by ``tool rebase`` alone. The
first time every stop is answered with what the project's own patch makes of the files there, and the tool
remembers it. The second time, in a fresh copy, nobody answers: that is what is measured. Everything starts
from a warm cache: the releases are imported, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from bench.tool.meter import ROOT, TOOL
from tool.project import locate_workspace
from tool.series import Lock, load_series, lockfile, parse_release, patchfile


@dataclass(frozen=True)
class Step:
    """One rebase: its wall time and the processor time of all its processes, in seconds; how many stops
    needed an answer, and how many were remembered."""

    onto: Version
    seconds: float
    processor: float
    stops: int
    remembered: int


def make_project(root: Path, first: Version, environ: Mapping[str, str]) -> None:
    """The project as it would be if it supported ``first`` alone."""
    series = load_series(ROOT)
    shutil.copytree(ROOT / "ada_dsa", root / "ada_dsa")
    lines = [f"pin {first}", "revision 1"]
    for change in series.changes:
        own = [p for p in series.for_release(first) if p.change == change.name]
        source = (ROOT / "series.txt").read_text().split("\n")[change.line - 1]
        lines += [source] if own else []
        for patch in own:
            parsed = patchfile.parse(patch.name, patch.content)
            header = patchfile.with_fields(parsed.header, Releases=f"=={first}")
            path = root / "patches" / patch.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(patchfile.render(header, parsed.diff))
            lines.append(f"    {patch.name} =={first}")
    (root / "series.txt").write_text("\n".join([*lines, ""]))
    lock = lockfile.load(ROOT / "series.lock")
    lockfile.save(root / "series.lock", Lock({first: lock.get(first)}))
    run(root, environ, "lock", "--sglang-ref", f"v{first}")


def run(
    root: Path, environ: Mapping[str, str], *args: str, allowed: tuple[int, ...] = (0,)
) -> dict[str, Any]:
    """The result of a command of the tool. Raises CalledProcessError when its exit code is not allowed."""
    command = [*TOOL, *args, "--offline", "-q", "--json", "--series", str(root)]
    done = subprocess.run(command, cwd=root, env=environ, stdout=subprocess.PIPE, text=True)
    if done.returncode not in allowed:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout)
    found: dict[str, Any] = json.loads(done.stdout)["result"]
    return found


def carry(root: Path, environ: Mapping[str, str], onto: Version, lock: Lock) -> Step:
    """Carry the project in ``root`` to ``onto``; stops are answered with the patches of ``lock``."""
    begin, busy, stops = time.perf_counter(), _processor_time(), 0
    result = run(root, environ, "rebase", "--onto", f"v{onto}", allowed=(0, 3, 4))
    remembered = len(result["remembered"])
    while result["state"] == "stopped":
        stops += 1
        last = answer(Path(result["worktree"]), result["stop"]["patch"], onto, lock)
        result = run(root, environ, "rebase", *last, allowed=(0, 3, 4))
        remembered += len(result["remembered"])
    return Step(onto, time.perf_counter() - begin, _processor_time() - busy, stops, remembered)


def _processor_time() -> float:
    """Of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def answer(worktree: Path, patch: str, onto: Version, lock: Lock) -> list[str]:
    """Make of the worktree what the project's own patch of that change makes of it; the next command."""
    git = ["git", "-C", str(worktree)]
    subprocess.run([*git, "reset", "--hard", "--quiet"], check=True)
    change = patch.partition("/")[0]
    own = [p for p in lock.get(onto).patches if p.name.startswith(f"{change}/")]
    changed = False
    for file in (file for one in own for file in one.files):
        path = worktree / file.path
        content = subprocess.run(
            [*git, "cat-file", "blob", file.after], check=True, stdout=subprocess.PIPE
        ).stdout
        changed |= not path.is_file() or path.read_bytes() != content
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return ["--continue"] if changed else ["--skip", "--why", "the series has it no more"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--onto", default="v9999.0", help="the last release; default: the newest")
    options = parser.parse_args()
    last = parse_release(options.onto)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed tool has its bytecode
    lock = lockfile.load(ROOT / "series.lock")
    first, *others = sorted(v for v in lock.releases if v <= last)
    with tempfile.TemporaryDirectory() as temp:
        data = Path(temp) / "data"
        data.mkdir()
        # The releases as they were imported, and nothing else of what this machine has done.
        repository = locate_workspace().repository
        shutil.copytree(repository, data / repository.name, symlinks=True)
        environ = os.environ | {"TOOL_DATA_DIR": str(data)}
        steps: list[Step] = []
        for name in ("answered", "unattended"):
            root = Path(temp) / name
            root.mkdir()
            make_project(root, first, environ)
            steps = [carry(root, environ, onto, lock) for onto in others]
            stops = sum(step.stops for step in steps)
            seconds, busy = (
                sum(t) for t in zip(*((s.seconds, s.processor) for s in steps), strict=True)
            )
            print(
                f"{name}: {seconds:.1f} s, {busy:.1f} s of processor time, {stops} stop(s)",
                flush=True,
            )
        print("\n| onto | seconds | processor | remembered | stops |\n|---|---:|---:|---:|---:|")
        for step in steps:
            print(
                f"| {step.onto} | {step.seconds:.2f} | {step.processor:.2f} | {step.remembered} | "
                f"{step.stops} |"
            )


if __name__ == "__main__":
    main()
