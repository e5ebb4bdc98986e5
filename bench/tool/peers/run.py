"""Compare ``tool rebase`` with quilt and StGit: same series, same conflicts, same resolutions.

    apt-get install quilt stgit
    python -m bench.tool.peers.run [--job 0.5.9:0.5.10 ...] [--rounds 3] [--write docs/peers.md]

This needs the two Debian packages, and the released wheels in the cache of ``tool``, where ``tool check``
puts them. There are two parts:

* Jobs carry this project's series from one release to the next. Where a tool stops, the person writes what
  the project's own patches have there. The tree at the end is compared with that of series.lock.
* Traps are small repositories on which a patch can land in a wrong place, twice or not at all. Nobody
  resolves anything.

Everything happens in a temporary folder with a home of its own.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from packaging.version import Version

from bench.tool.peers import traps
from bench.tool.peers.tools import Quilt, QuiltMerge, QuiltNoFuzz, Stg, Tool
from bench.tool.peers.workflow import (
    ROOT,
    CarriedPatch,
    Job,
    Tally,
    Workflow,
    environment,
    flat_name,
)
from tool.git import Git, canonical_diff
from tool.project import Workspace, locate_workspace
from tool.series import load_series, lockfile, make_specifier, patchfile

JOBS: Final = ("0.5.9:0.5.10", "0.5.12.post1:0.5.13")
WORKFLOWS: Final[tuple[type[Workflow], ...]] = (Tool, Quilt, QuiltNoFuzz, QuiltMerge, Stg)
BY_HAND: Final = "## What was found\n"

_HOW: Final = """\
Each job carries this project's series from one release to the next. Where a tool stops, the person writes
what the project's own patches have at that place. Each command line counts as one command, and each
edited file as one edit. Seconds are the time of the commands, the median of the rounds.

Every tool starts with the old release, patched, in its own form, and with the new release imported,
unpacked or fetched. That preparation is not counted. `tool rebase` repeats a part of it, and this part is
in its seconds. The series for the old release must stay usable, so quilt works on a copy and StGit on a
branch. Every workflow begins by removing the patches that upstream made needless. A person has to know
which these are.

"Got wrong" compares the files at the end with the trees in `series.lock`. It also looks, at every stop,
for changes in a symbol (class or function) that the resolved patch does not touch. Each trap is one patch
and two releases of a few files. Nobody resolves anything there.

The script writes this page down to "What was found". The rest is written by hand.
"""


@dataclass(frozen=True)
class Row:
    """One tool's result: the last round's tally, and the median seconds of all rounds."""

    tool: str
    tally: Tally
    seconds: float
    cpu: float


def make_job(source: str, onto: str, folder: Path) -> Job:
    """The job from this checkout's series, cut back to the releases up to ``source``.

    Raises:
        SystemExit: a change has another number of patches on the new release.
    """
    series = load_series(ROOT)
    lock = lockfile.load(ROOT / "series.lock")
    begin, end = Version(source), Version(onto)
    cache = locate_workspace().cache
    git = _checked(folder / "material", cache, source, onto)
    project = folder / "project"
    (project / "patches").mkdir(parents=True)
    known = sorted(v for v in lock.releases if v <= begin)
    before, after = lock.get(begin), {p.name: p.tree for p in lock.get(end).patches}
    patches, lines = [], [f"pin {source}", "revision 1"]
    bounded = [*lines]
    for change in series.changes:
        now = [p for p in series.for_release(begin) if p.change == change.name]
        new = [p for p in series.for_release(end) if p.change == change.name]
        if now and new and len(now) != len(new):
            raise SystemExit(
                f"bench.tool.peers.run: {change.name} has {len(now)} patches for {source} and {len(new)} for "
                f"{onto}; only changes with equally many can be compared. Choose another --job"
            )
        first = min((v for v in known if change.needed.contains(v)), default=begin)
        ended = f",<{end}" if now and not new else ""
        needed = str(change.needed) if not now else f">={first}"
        why = f" upstream {change.upstream}" if change.upstream and not new else ""
        lines.append(f"change {change.name} {needed}" + ("" if now else why))
        bounded.append(f"change {change.name} {needed}{ended}{why}")
        for patch in (p for p in series.patches if p.change == change.name):
            proven = {v for v in known if patch.applies_to(v)}
            if not proven:
                continue
            spec = make_specifier(proven)
            parsed = patchfile.parse(patch.name, patch.content)
            fields = tuple((k, spec if k == "Releases" else v) for k, v in parsed.header.fields)
            content = patchfile.render(replace(parsed.header, fields=fields), parsed.diff)
            path = project / "patches" / patch.name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            for text in (lines, bounded):
                text.append(f"    {patch.name} {spec}")
        for number, patch in enumerate(now):
            # quilt and StGit keep a patch refreshed on the release before.
            at = [p.name for p in before.patches].index(patch.name)
            parent = before.patches[at - 1].tree if at else before.base_tree
            diff = canonical_diff(git, parent, before.patches[at].tree)
            header = patchfile.parse(patch.name, patch.content).header
            wanted = after[new[number].name] if new else None
            patches.append(
                CarriedPatch(flat_name(patch.name), patchfile.render(header, diff), wanted)
            )
    (project / "series.txt").write_text("\n".join(lines) + "\n")
    shutil.copytree(ROOT / "ada_dsa", project / "ada_dsa")
    return Job(
        git.git_dir, project, cache, tuple(map(str, known)), source, onto,
        before.base_commit, lock.get(end).base_commit, tuple(patches), "\n".join(bounded) + "\n",
    )  # fmt: skip


def _checked(data: Path, cache: Path, source: str, onto: str) -> Git:
    """Make a repository with both releases and every tree that the series gives on them.

    Raises:
        SystemExit: ``tool check`` failed.
    """
    command = [sys.executable, "-m", "tool", "check", "--offline", "-q", "--series", str(ROOT)]
    env = {"TOOL_DATA_DIR": str(data), "TOOL_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [*command, "--refs", f"v{source},v{onto}"],
        env=environment(data / "home") | env,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(
            f"bench.tool.peers.run: tool check failed on v{source} or v{onto}:\n{done.stdout}{done.stderr}"
        )
    return Workspace(cache, data).open_repository()


def run_job(
    source: str, onto: str, workflows: Sequence[type[Workflow]], rounds: int, folder: Path
) -> list[Row]:
    """Do the job ``rounds`` times with every tool. The tools take turns."""
    job = make_job(source, onto, folder)
    tallies: dict[str, list[Tally]] = {workflow.name: [] for workflow in workflows}
    for workflow in workflows:
        template = workflow(job, folder / "templates" / workflow.name.replace(" ", "-"))
        template.folder.mkdir(parents=True)
        template.prepare()
    for number in range(rounds):
        for workflow in workflows:
            place = folder / f"round{number}-{workflow.name.replace(' ', '-')}"
            shutil.copytree(
                folder / "templates" / workflow.name.replace(" ", "-"), place, symlinks=True
            )
            one = workflow(job, place)
            one.after_copy()
            one.carry()
            tallies[workflow.name].append(one.tally)
            shutil.rmtree(place)
            print(
                f"{onto} {workflow.name}: {one.tally.seconds:.1f} s, CPU {one.tally.cpu:.1f} s",
                file=sys.stderr,
            )
    return [
        Row(
            name,
            done[-1],
            statistics.median(d.seconds for d in done),
            statistics.median(d.cpu for d in done),
        )
        for name, done in tallies.items()
    ]


def tables(rows: Sequence[Row]) -> str:
    lines = [
        "| tool | stops | commands | edits | seconds | CPU seconds | got wrong |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    everyone = [
        text for text in rows[0].tally.unnoticed if all(text in r.tally.unnoticed for r in rows)
    ]
    for row in rows:
        tally = row.tally
        wrong = [f"**misplaced**: {text}" for text in tally.misplaced]
        wrong += [f"**wrong, exit 0**: {text}" for text in tally.unnoticed if text not in everyone]
        shown = "<br>".join(wrong) or ("see below" if everyone else "nothing")
        lines.append(
            f"| {row.tool} | {tally.stops} | {len(tally.commands)} | {tally.edits} | {row.seconds:.1f} | "
            f"{row.cpu:.1f} | {shown} |"
        )
    if everyone:
        lines += [
            "",
            "Every tool carried this as it was, although the project's patch has other text there:",
        ]
        lines += [f"{text}." for text in everyone]
    return "\n".join(lines)


def logs(rows: Sequence[Row]) -> str:
    """The commands and edits of each tool. The variants of quilt differ in one option, so one is shown."""
    shown = [row for row in rows if row.tool in (Tool.name, Quilt.name, Stg.name)]
    parts = [f"{row.tool}:\n\n```console\n" + "\n".join(row.tally.log) + "\n```" for row in shown]
    return "\n\n".join(parts)


def versions() -> str:
    def ask(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    stg = re.search(r"Stacked GIT (\S+)", ask("stg", "--version"))
    patch = re.search(r"GNU patch (\S+)", ask("patch", "--version"))
    assert stg and patch
    return (
        f"quilt {ask('quilt', '--version').strip()} with GNU patch {patch[1]}, "
        f"StGit {stg[1]}, {ask('git', '--version').strip()}, "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"load average {os.getloadavg()[1]:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--job",
        action="append",
        metavar="FROM:ONTO",
        help=f"repeatable; default: {' '.join(JOBS)}",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write there, and keep what a person wrote"
    )
    options = parser.parse_args()
    for program, package in (("quilt", "quilt"), ("stg", "stgit")):
        if shutil.which(program) is None:
            raise SystemExit(
                f"bench.tool.peers.run: {program} is not installed; apt-get install {package}"
            )
    jobs = options.job or JOBS
    command = f"python -m bench.tool.peers.run --rounds {options.rounds}" + "".join(
        f" --job {j}" for j in options.job or ()
    )
    text = [
        "# Against quilt and StGit\n",
        f"Written by `{command}` on {datetime.date.today()}: {versions()}.\n",
        _HOW,
    ]
    with tempfile.TemporaryDirectory(prefix="peers.") as temp:
        for number, name in enumerate(jobs):
            source, onto = name.split(":")
            rows = run_job(source, onto, WORKFLOWS, options.rounds, Path(temp) / f"job{number}")
            text += [f"## {source} to {onto}\n", tables(rows) + "\n", logs(rows) + "\n"]
        text += ["## Traps\n", traps.table(Path(temp) / "traps") + "\n"]
    body = "\n".join(text)
    if options.write is None:
        print(body)
        return
    kept = options.write.read_text() if options.write.exists() else ""
    _, mark, below = kept.partition(BY_HAND)
    options.write.write_text(f"{body}\n{mark or BY_HAND}{below}")


if __name__ == "__main__":
    main()
