"""The commands that carry the series to other releases; found by ``tool.cli``."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tool.cli import output as report
from tool.cli.options import load, options, reporting, request_of
from tool.cli.output import Report

if TYPE_CHECKING:
    from tool.rebase.preview import Preview


@click.command()
@reporting
@click.option("--refs", default="all", show_default=True, metavar="all|LIST", help="v0.5.9,v0.5.23")
@click.option(
    "--jobs", "-j", type=click.IntRange(1), default=os.cpu_count() or 1, help="Default: all cores."
)
@options("offline", "quiet", "series")
def check(refs: str, jobs: int, offline: bool, quiet: bool, series_dir: Path | None) -> Report:
    """Check the series on every supported release: replay, lock, round trip, no double apply."""
    from tool.apply import check_all as command
    from tool.series import lockfile as locks

    series, home = load(series_dir)
    releases = command.releases_of(series, locks.load(series.lock_path), refs)
    checked = command.check_releases(
        series, home, releases, jobs=jobs, offline=offline, quiet=quiet
    )
    rows: list[tuple[str, ...]] = [("release", "patches", *command.RULES, "seconds")]
    for item in checked:
        failed = {f.rule for f in item.findings}
        marks = ("FAILED" if rule in failed else "ok" for rule in command.RULES)
        many = f"{item.patches} ({item.merged} merged)" if item.merged else str(item.patches)
        rows.append((f"v{item.release}", many, *marks, f"{item.seconds:.2f}"))
    lines = report.table(rows)
    lines += [
        f"v{i.release}: {f.where}: {f.rule}: {f.message}" for i in checked for f in i.findings
    ]
    count = sum(len(i.findings) for i in checked)
    lines.append(f"{len(checked)} release(s), {count} finding(s)")
    result = {"releases": [dataclasses.asdict(item) for item in checked], "findings": count}
    return Report(result, lines, int(bool(count)))


@click.command()
@reporting
@click.option("--onto", required=True, metavar="REF", help="A release (v0.5.24) or a git ref.")
@click.option("--from", "source_release", metavar="RELEASE", help="Default: the newest below.")
@options("source", "release", "offline", "quiet", "series")
def drift(
    onto: str,
    source_release: str | None,
    source: str | None,
    release: str | None,
    offline: bool,
    quiet: bool,
    series_dir: Path | None,
) -> Report:
    """Show what carrying the series to another release would meet; changes nothing."""
    from tool.rebase import preview as command
    from tool.series.model import parse_release

    series, home = load(series_dir)
    request = request_of(onto, source, release, offline, quiet)
    start = parse_release(source_release) if source_release else None
    return drift_report(command.preview(series, home, request, source=start))


def drift_report(done: Preview) -> Report:
    """Exit code 1 when a patch does not carry over."""
    from tool.cli.rebase_report import step_result
    from tool.rebase import preview as command

    rows = [("patch", "verdict", "evidence")]
    for step in done.steps:
        verdict = step.verdict
        since = done.broken_since.get(verdict.patch)
        first, *rest = (*verdict.evidence, *([f"first broken by v{since}"] if since else []))
        rows.append((verdict.patch, verdict.kind.value, first))
        rows += [("", "", more) for more in rest]
    failing = done.failing
    name = done.base.label
    closing = (
        f"next: tool rebase --onto v{done.base.release} --from v{done.source}, which stops at "
        f"{failing[0].patch.name}"
        if failing
        else f"next: tool rebase --onto v{done.base.release} --from v{done.source}"
    )
    counts = ", ".join(f"{n} {kind}" for kind, n in command.count_outcomes(done.steps).items())
    lines = [f"v{done.source} -> {name}: {counts}", *report.table(rows)]
    if done.same_as_lock is not None:
        lines.append(
            "the result is the locked tree of that release"
            if done.same_as_lock
            else "the result is not the locked tree of that release, which has patches of its own"
        )
    lines.append(closing)
    result = {
        "from": str(done.source),
        "onto": str(done.base.release),
        "base": done.base.commit,
        "tree": done.tree,
        "carries": not failing,
        "same_as_lock": done.same_as_lock,
        "summary": command.count_outcomes(done.steps),
        "patches": [step_result(step, done.broken_since) for step in done.steps],
    }
    return Report(result, lines, int(bool(failing)))


@click.command()
@reporting
@click.option("--onto", metavar="RELEASE", help="The release to carry the series to.")
@click.option("--from", "source_release", metavar="RELEASE", help="Default: the newest below.")
@click.option(
    "--edit",
    "edits",
    multiple=True,
    metavar="PATCH",
    help="With --onto: stop at PATCH in any case.",
)
@click.option("--continue", "resume", is_flag=True, help="Take the worktree as resolved; go on.")
@click.option("--skip", is_flag=True, help="Leave this patch out; needs --why.")
@click.option("--why", metavar="TEXT", help="The reason; it goes into the patch's header.")
@click.option("--abort", is_flag=True, help="Give up: the series is as it was.")
@click.option("--restart", is_flag=True, help="Begin again, without the decisions made.")
@click.option(
    "--into", type=click.Path(path_type=Path), help="Worktree, where one is needed. Default: "
    "./sglang-vRELEASE-rebase.",
)  # fmt: skip
@options("offline", "quiet", "series")
def rebase(
    onto: str | None,
    source_release: str | None,
    edits: tuple[str, ...],
    resume: bool,
    skip: bool,
    why: str | None,
    abort: bool,
    restart: bool,
    into: Path | None,
    offline: bool,
    quiet: bool,
    series_dir: Path | None,
) -> Report:
    """Carry the series to another release.

    \b
    Exit code 3: stopped at a patch that does not carry over, in a worktree where it can be resolved;
    4: upstream seems to have it. Then --continue, --skip --why TEXT, --abort or --restart. Without any
    of these: show again where it stopped.
    """
    from tool.cli.rebase_report import interrupted, rebase_report
    from tool.errors import UsageError
    from tool.rebase import run as command
    from tool.series.model import parse_release

    if sum([onto is not None, resume, skip, abort, restart]) > 1:
        raise UsageError(
            "one of --onto, --continue, --skip, --abort and --restart",
            next_step="see where the rebase is: tool rebase",
        )
    if edits and onto is None:
        raise UsageError(
            "--edit goes with --onto", next_step="tool rebase --onto RELEASE --edit PATCH"
        )
    if (why is not None) != skip:
        raise UsageError(
            "--skip and --why go together", next_step="tool rebase --skip --why 'the reason'"
        )
    series, home = load(series_dir, settle=False)
    note = (lambda text: None) if quiet else report.note
    if abort:
        message = command.abort(series, home)
        return Report({"state": "aborted"}, [message])
    if resume:
        done = command.continue_(series, home, note)
    elif skip:
        done = command.skip(series, home, why or "", note)
    elif onto is None and not restart:
        shown = command.show(series, home)
        return rebase_report(shown) if shown else interrupted()
    else:
        request = request_of(onto or "pin", None, None, offline, quiet)
        if restart:
            done = command.restart(series, home, request, note)
        else:
            start = parse_release(source_release) if source_release else None
            done = command.start(
                series, home, request, source=start, into=into, edits=edits, note=note
            )
    return rebase_report(done)


@click.command()
@reporting
@options("series")
def history(series_dir: Path | None) -> Report:
    """Print what every rebase met, as Markdown: docs/rebase-history.md is made with it."""
    from tool.rebase import history as command

    series, _ = load(series_dir)
    entries = command.load_history(series)
    return Report({"rebases": entries}, command.render_markdown(entries))


@click.command()
@reporting
@options("quiet", "series")
def watch(quiet: bool, series_dir: Path | None) -> Report:
    """Look for a newer release on the index and show what carrying the series there would meet.

    For cron or CI: exit code 1 when the series does not carry over.
    """
    from tool.rebase import preview as command

    series, home = load(series_dir)
    newest = command.find_newer(series)
    if newest is None:
        return Report({"newer": None}, ["the series carries the newest release"])
    request = request_of(f"v{newest}", None, None, False, quiet)
    found = drift_report(command.preview(series, home, request, source=None))
    return Report({"newer": str(newest), **found.result}, found.lines, found.exit_code)


@click.command()
@reporting
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@options("offline", "quiet", "series")
def diff(one: str, other: str, offline: bool, quiet: bool, series_dir: Path | None) -> Report:
    """Show how what the series changes differs between releases A and B (git range-diff)."""
    from tool.rebase import explain as command
    from tool.series.model import parse_release

    series, home = load(series_dir)
    first, second = parse_release(one), parse_release(other)
    text = command.diff_releases(series, home, first, second, offline=offline, quiet=quiet)
    return Report({"from": str(first), "to": str(second), "range_diff": text}, [text])


@click.command()
@reporting
@click.argument("patch")
@options("offline", "quiet", "series")
def explain(patch: str, offline: bool, quiet: bool, series_dir: Path | None) -> Report:
    """Say what a patch is for: life span, upstream, files, symbols, and which patches need it."""
    from tool.rebase import explain as command

    series, home = load(series_dir)
    found = command.explain(series, home, patch, offline=offline, quiet=quiet)
    lines = [
        f"{found.patch}: {found.subject}",
        *(f"  {x}".rstrip() for x in found.body.split("\n")),
    ]
    lines.append(f"change {found.change}, needed on {found.needed}")
    if found.upstream:
        lines.append(f"  upstream since {found.upstream}")
    proven = ", ".join(f"v{v}" for v in found.proven)
    lines.append(f"releases {found.releases}; proven on {proven}")
    lines += [f"  beside it: {name} {span}" for name, span in found.relatives]
    lines += [f"{key}: {' '.join(value.split())}" for key, value in found.fields]
    lines.append(f"on v{found.release} it changes")
    lines += [f"  {path}: {', '.join(names)}" for path, names in found.symbols.items()]
    lines += [
        f"without it {d.patch} stops ({d.verdict}): {d.evidence[0]}" for d in found.dependents
    ] or ["no later patch depends on it"]
    return Report(dataclasses.asdict(found), lines)


COMMANDS = (check, diff, drift, explain, history, rebase, watch)
