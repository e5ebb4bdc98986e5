"""The commands that apply the series, prove it and build the fork; found by ``tool.cli``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tool.cli import output as report
from tool.cli.options import load, options, reporting, request_of
from tool.cli.output import Report

if TYPE_CHECKING:
    from tool.rebase.status import Rebase


@click.command()
@reporting
@options("ref", "source", "release")
@click.option("--into", type=click.Path(path_type=Path), help="Default: ./sglang-vRELEASE.")
@click.option("--branch", help="Default: ada/vRELEASE.")
@options("offline", "quiet", "series")
def apply(
    ref: str,
    source: str | None,
    release: str | None,
    into: Path | None,
    branch: str | None,
    offline: bool,
    quiet: bool,
    series_dir: Path | None,
) -> Report:
    """Apply the series to a release: a git worktree, one commit per patch."""
    from tool.apply import worktree as command

    series, home = load(series_dir)
    request = request_of(ref, source, release, offline, quiet)
    note = (lambda text: None) if quiet else report.note
    done = command.apply_to_worktree(series, home, request, into=into, branch=branch, note=note)
    base = done.composition.base
    result = {
        "state": done.state,
        "folder": str(done.folder),
        "branch": done.branch,
        "release": str(base.release),
        "source": base.source,
        "base": base.commit,
        "head": done.composition.head,
        "proven_files": done.proven_files,
        "patches": [
            {
                "name": a.name,
                "commit": a.commit,
                "tree": a.tree,
                "verdict": "exact" if a.exact else "merged",
                "files": [f.path for f in a.files],
            }
            for a in done.composition.applied
        ],
    }
    rows = [
        (a.name, a.commit[:12], "exact" if a.exact else "merged", f"{len(a.files)} file(s)")
        for a in done.composition.applied
    ]
    rows.append(("ada_dsa kernels", done.composition.head[:12], "bundled", ""))
    lines = [
        *(f"  {line}" for line in report.table(rows)),
        {
            "created": f"sglang {base.label} with {len(rows) - 1} patches is in {done.folder}",
            "updated": f"updated {done.folder} to the series as it is now",
            "unchanged": f"{done.folder} already holds this; nothing changed",
        }[done.state],
        f"  branch {done.branch}, head {done.composition.head[:12]}",
        "next: tool build makes the wheel that pip installs; "
        f"or use the tree as it is: PYTHONPATH={done.folder}/python",
    ]
    return Report(result, lines)


@click.command()
@reporting
@options("ref")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("dist"),
    show_default=True,
    help="Folder for the wheel.",
)
@click.option("--python", metavar="cp312", help="Python of the wheel. Default: this interpreter's.")
@click.option("--machine", metavar="x86_64", help="Machine of the wheel. Default: this one.")
@options("offline", "quiet", "series")
def build(
    ref: str,
    out: Path,
    python: str | None,
    machine: str | None,
    offline: bool,
    quiet: bool,
    series_dir: Path | None,
) -> Report:
    """Build the fork wheel: the released wheel with the series and the kernels inside."""
    from tool.wheel import build as forkwheel

    series, home = load(series_dir)
    request = request_of(ref, "pypi", None, offline, quiet)
    built = forkwheel.build_wheel(
        series, home, request, out=out.absolute(), python=python, machine=machine
    )
    lines = [
        f"{built.path}",
        f"  sglang {built.version}: {len(built.replaced)} files replaced, {len(built.added)} added, "
        f"{built.kept} as released",
        f"  sha256 {built.sha256}",
        f"  content {built.content_digest}",
        f"next: pip install {built.path}",
    ]
    return Report(dataclasses.asdict(built), lines)


@click.command()
@reporting
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@options("series")
def verify(artifact: Path, series_dir: Path | None) -> Report:
    """Prove a fork wheel, a worktree or an installed fork (its site-packages) against series.lock.

    Exit code 5 when it does not hold; the first file that differs is named.
    """
    from tool.verify import verify as command

    series, home = load(series_dir)
    return command.report_on(command.verify(series, home, artifact.absolute()))


@click.command()
@reporting
@options("ref", "series")
def status(ref: str, series_dir: Path | None) -> Report:
    """Show the pin, what is cached, and what each patch does on a release."""
    from tool.rebase import status as command
    from tool.upstream import resolve as upstream

    series, home = load(series_dir)
    state = command.read_status(series, home, upstream.find_release(series, request_of(ref)))
    rows = [("change", "patch", "releases", "here")]
    rows += [
        (p.change, p.patch, p.releases, f"{p.state} {p.detail}".strip()) for p in state.patches
    ]
    pinned = " (the pin)" if state.release == state.pin else ""
    lines = [
        f"sglang v{state.release}{pinned}, fork revision {state.revision}",
        f"supported: {', '.join(f'v{v}' for v in state.supported) or 'none'}",
        f"base: {state.base or 'not carried'}{', imported' if state.imported else ''}",
        f"wheels in the cache: {', '.join(state.cached_wheels) or 'none'}",
        *(f"worktree: {folder} ({branch})" for branch, folder in state.worktrees.items()),
        *_rebase_lines(state.rebase),
        "",
        *report.table(rows),
    ]
    return Report(dataclasses.asdict(state), lines)


def _rebase_lines(found: Rebase | None) -> list[str]:
    if found is None:
        return []
    at = f"stopped at {found.patch} ({found.verdict})" if found.patch else "interrupted"
    lines = [f"rebase under way: v{found.source} -> v{found.onto} of {found.root}, {at}"]
    lines += [f"  in {found.worktree}"] if found.worktree else []
    return [*lines, f"  next: {found.next_step}"]


@click.command()
@reporting
@options("series")
def lint(series_dir: Path | None) -> Report:
    """Check headers, order file, canonical form and the security rules; exit 1 on findings."""
    from tool.series import lint as command

    series, _ = load(series_dir)
    findings = command.lint_series(series)
    lines = [f"{f.where}: {f.rule}: {f.message}" for f in findings]
    lines.append(f"{len(series.patches)} patches, {len(findings)} finding(s)")
    return Report(
        {"findings": [dataclasses.asdict(f) for f in findings]}, lines, int(bool(findings))
    )


@click.command()
@reporting
@click.argument(
    "worktree", type=click.Path(exists=True, file_okay=False, path_type=Path), default="."
)
@options("series")
def export(worktree: Path, series_dir: Path | None) -> Report:
    """Write a worktree's commits back as patch files, changed ones only."""
    from tool.authoring import export as command

    series, home = load(series_dir)
    done = command.export_patches(series, home, worktree)
    lines = [f"wrote {name}" for name in done.written]
    lines.append(f"{len(done.written)} written, {len(done.kept)} unchanged")
    if done.written:
        lines.append("next: tool lock proves them and records the result")
    return Report(dataclasses.asdict(done), lines)


@click.command()
@reporting
@click.option(
    "--sglang-ref", "refs", multiple=True, metavar="RELEASE", help="Default: every one locked."
)
@options("offline", "quiet", "series")
def lock(refs: tuple[str, ...], offline: bool, quiet: bool, series_dir: Path | None) -> Report:
    """Apply and prove the series, then record the results in series.lock."""
    from tool.apply import lock as command
    from tool.series import lockfile as locks
    from tool.upstream import resolve as upstream

    series, home = load(series_dir)
    releases = [upstream.find_release(series, request_of(ref)) for ref in refs]
    if not releases:
        releases = [v for v in locks.load(series.lock_path).releases if series.for_release(v)]
    changed = []
    for release in releases or [series.pin]:
        if command.update_lock(series, home, release, offline=offline, quiet=quiet):
            changed.append(str(release))
    lines = [f"recorded v{release}" for release in changed]
    lines.append("series.lock updated" if changed else "series.lock is up to date")
    return Report({"changed": changed}, lines)


COMMANDS = (apply, build, export, lint, lock, status, verify)
