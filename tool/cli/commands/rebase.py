"""``tool rebase``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
from packaging.version import Version

from tool.analysis import Block, format_lines
from tool.classify import UPSTREAM, OutcomeKind
from tool.cli.completion import complete_patch, complete_supported
from tool.cli.options import command, make_request, source_options, start_option
from tool.cli.outcomes import make_step_result
from tool.cli.output import Report, format_table
from tool.errors import UsageError
from tool.project import Session
from tool.rebase import (
    RebaseResult,
    SeriesUpdate,
    Stopped,
    abort_rebase,
    continue_rebase,
    restart_rebase,
    show_rebase,
    skip_patch,
    start_carry,
    start_rebase,
)
from tool.series import parse_release

_HUNK_LINES: Final = 24


@command(
    session="offline quiet",
    settle=False,
    example=(
        "tool rebase --onto v0.5.24",
        "tool rebase --onto upstream/main",
        "tool rebase --continue",
        "tool rebase --patch my-fix --onto v0.5.21,v0.5.22",
    ),
)
@click.option(
    "--onto",
    metavar="REF",
    shell_complete=complete_supported,
    help="The release to carry the series to; of a git ref, provisionally. With --patch: a list of "
    "releases, or all.",
)
@start_option
@source_options
@click.option(
    "--patch",
    metavar="PATCH",
    shell_complete=complete_patch,
    help="Bring this patch alone to releases that the series carries already.",
)
@click.option(
    "--edit",
    "edits",
    multiple=True,
    metavar="PATCH",
    shell_complete=complete_patch,
    help="With --onto: stop at PATCH in any case.",
)
@click.option("--continue", "resume", is_flag=True, help="Take the worktree as resolved; go on.")
@click.option("--skip", is_flag=True, help="Leave this patch out; needs --why.")
@click.option("--why", metavar="TEXT", help="The reason; it goes into the patch's header.")
@click.option("--abort", is_flag=True, help="Give up: the series is as it was.")
@click.option("--restart", is_flag=True, help="Begin again, without the decisions made.")
@click.option(
    "--into", type=click.Path(path_type=Path), help="Worktree, where one is needed. Default: "
    "./sglang-vRELEASE-rebase, or with --patch ./sglang-CHANGE-rebase.",
)  # fmt: skip
def rebase(
    session: Session,
    onto: str | None,
    start: str | None,
    source: str | None,
    release: str | None,
    patch: str | None,
    edits: tuple[str, ...],
    resume: bool,
    skip: bool,
    why: str | None,
    abort: bool,
    restart: bool,
    into: Path | None,
) -> Report:
    """Carry the series to another release, or provisionally to a git ref; or one patch to releases that
    the series carries.

    \b
    Exit code 3: stopped at a patch that does not carry over, in a worktree where it can be resolved;
    4: upstream seems to have it. Then --continue, --skip --why TEXT, --abort or --restart. Without any
    of these: show again where it stopped.

    A git ref gets no entry in series.lock. What you resolve there is remembered, and the rebase onto the
    release takes it where it still holds.
    """
    _check_options(onto, resume, skip, abort, restart, edits, why)
    if patch is not None and (onto is None or edits or {start, source, release} != {None}):
        raise UsageError(
            "--patch goes with --onto, and with none of --from, --edit, --source and --release",
            next_step="tool rebase --patch PATCH --onto RELEASE,RELEASE, or --onto all",
        )
    if abort:
        message = f"gave up the rebase onto {abort_rebase(session)}; the series is as it was"
        return Report({"state": "aborted"}, [message])
    if resume:
        return _report(continue_rebase(session))
    if skip:
        return _report(skip_patch(session, why or ""))
    if restart:
        return _report(restart_rebase(session))
    if onto is None:
        shown = show_rebase(session)
        return _report(shown) if shown else _report_interrupted()
    if patch is not None:
        return _report(start_carry(session, patch, onto, into=into))
    request = make_request(onto, source, release)
    begin = parse_release(start) if start else None
    return _report(start_rebase(session, request, source=begin, into=into, edits=edits))


def _check_options(
    onto: str | None,
    resume: bool,
    skip: bool,
    abort: bool,
    restart: bool,
    edits: tuple[str, ...],
    why: str | None,
) -> None:
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


def _report(done: RebaseResult) -> Report:
    """Exit code 0 when the series was carried, 3 or 4 when the rebase stopped at a patch."""
    result: dict[str, Any] = {
        "from": str(done.source),
        "onto": done.ref.typed if done.ref else str(done.onto),
        "provisional": done.ref is not None,
        "patch": done.patch,
        "remembered": list(done.remembered),
    }
    lines = []
    if ref := done.ref:
        lines.append(
            f"{ref.label} is based on v{done.onto}: {ref.how}; --release RELEASE overrides this"
        )
    lines += [f"used a {text}" for text in done.remembered]
    if done.stopped is not None:
        return _report_stop(done, done.stopped, result, lines)
    if done.ref is not None:
        return _report_provisional(done, result, lines)
    result |= {"state": "carried", "patches": [], "files": []}
    if done.patch is not None:
        return _report_carried(done, result, lines)
    if done.update is not None:
        rows = [("patch", "outcome", "became")]
        rows += [
            (r.patch, r.outcome.value, f"{r.became} ({r.decided})" if r.decided else r.became)
            for r in done.update.rows
        ]
        lines += format_table(rows)
        result["patches"] = [dataclasses.asdict(row) for row in done.update.rows]
        result["files"] = sorted(done.update.files)
        result["tree"] = done.update.tree
        result["dated"] = done.update.dated
        lines += _dated_lines(done.update)
    lines.append(f"the series carries v{done.onto} now")
    lines.append(f"what changed in it: tool diff v{done.source} v{done.onto}")
    lines.append(f"next: tool test --sglang-ref v{done.onto}")
    return Report(result, lines)


def _report_provisional(done: RebaseResult, result: dict[str, Any], lines: list[str]) -> Report:
    rows = [("patch", "outcome", "decided")]
    for step in done.steps:
        decision = step.decision
        what = "" if decision is None else decision.skipped or decision.how
        left_out = "left out: " if decision and decision.skipped else ""
        rows.append((step.patch.name, step.outcome.kind.value, f"{left_out}{what}"))
    lines += format_table(rows)
    lines.append(f"the series carries {done.target} provisionally; series.lock has no entry for it")
    if done.recorded:
        lines.append(f"remembered for the release: what you decided on {done.recorded} patch(es)")
    if done.worktree:
        lines.append(f"the result is in {done.worktree}")
    lines.append("next: when the release is out: tool rebase --onto RELEASE")
    result |= {
        "state": "carried",
        "patches": [make_step_result(step) for step in done.steps],
        "files": [],
        "recorded": done.recorded,
        "worktree": str(done.worktree) if done.worktree else None,
    }
    return Report(result, lines)


def _report_carried(done: RebaseResult, result: dict[str, Any], lines: list[str]) -> Report:
    """One patch on several releases."""
    reached = [str(target) for target in done.targets]
    if done.update is not None:
        rows = [("release", "outcome", "became")]
        result["patches"] = []
        for target, row in zip(done.targets, done.update.rows, strict=True):
            became = f"{row.became} ({row.decided})" if row.decided else row.became
            rows.append((f"v{target}", row.outcome.value, became))
            result["patches"].append({"release": str(target), **dataclasses.asdict(row)})
        lines += format_table(rows)
        result["files"] = sorted(done.update.files)
        took = zip(done.targets, done.update.rows, strict=True)
        reached = [str(target) for target in sorted(t for t, row in took if row.file is not None)]
    checked = ",".join(f"v{release}" for release in reached)
    lines.append(f"next: tool check --refs {checked}" if checked else "next: tool lint")
    return Report(result | {"releases": reached}, lines)


def _dated_lines(update: SeriesUpdate) -> Iterator[str]:
    """New files whose header still names another release: only their author can reword it."""
    for name, fields in update.dated.items():
        yield f"patches/{name}: {', '.join(fields)} still names a release it does not stand for"
    if update.dated:
        yield "next: edit that, then tool lock"


def _report_stop(
    done: RebaseResult, stopped: Stopped, result: dict[str, Any], lines: list[str]
) -> Report:
    step, outcome = stopped.step, stopped.step.outcome
    asked = ", as asked with --edit" if stopped.asked else ""
    on = f" on v{done.onto}" if done.patch is not None else ""
    lines.append(f"stopped at {step.patch.name}{on}: {outcome.kind.value}{asked}")
    if len(done.targets) > 1:
        answered, left = (_list_releases(some) for some in (done.done, done.left))
        lines.append(f"  releases with an answer: {answered}; left after this one: {left}")
    lines += [f"  {text}" for text in outcome.reasons]
    for conflict in outcome.conflicts:
        if conflict.theirs and conflict.renamed_to is None:
            lines.append(
                f"  {conflict.path}, {conflict.symbol}: upstream, since the patch was written:"
            )
            lines += [f"    {text}" for block in conflict.theirs for text in _shorten(block)]
            lines.append("  the patch, in the same place:")
            lines += [f"    {text}" for text in _shorten(conflict.ours)]
    marked = {m.path: m.marked_lines for m in stopped.merged if m.conflicts}
    beside = {m.path: at for m in stopped.merged if (at := m.lines_beside(outcome.conflicts))}
    lines.append(f"the worktree is {stopped.folder}, with the patches before this one")
    lines += [f"  {_describe_conflicts(path, at)}" for path, at in marked.items()]
    merged = [m.path for m in stopped.merged if not m.conflicts]
    lines += [f"  {_describe_merge(path, beside.get(path, ()))}" for path in merged]
    lines.append(f"next: {_next_step(stopped, resolved=not marked)}")
    result |= {
        "state": "stopped",
        "asked": stopped.asked,
        "done": [str(release) for release in done.done],
        "left": [str(release) for release in done.left],
        "worktree": str(stopped.folder),
        "marked": marked,
        "beside": beside,
        "stop": make_step_result(step)
        | {
            "conflicts": [
                {
                    "path": c.path,
                    "symbol": c.symbol,
                    "line": c.line,
                    "renamed_to": c.renamed_to,
                    "upstream": [text for block in c.theirs for text in block.format()],
                    "ours": list(c.ours.format()),
                }
                for c in outcome.conflicts
            ]
        },
        "patches": [make_step_result(s) for s in done.steps],
    }
    return Report(result, lines, 4 if outcome.kind in UPSTREAM else 3)


def _list_releases(releases: Sequence[Version]) -> str:
    return ", ".join(f"v{release}" for release in releases) or "none"


def _describe_conflicts(path: str, lines: Sequence[int]) -> str:
    """``lines`` is where a conflict begins; without one, the file was not written."""
    if not lines:
        return f"{path} is not there"
    return f"{path}: conflict{'s' * (len(lines) > 1)} at {format_lines(lines)} in the worktree"


def _describe_merge(path: str, lines: Sequence[int]) -> str:
    """``lines`` are those where upstream changed lines beside those of the patch."""
    if not lines:
        return f"{path} is merged"
    look = f"look at {format_lines(lines)} in the worktree"
    return f"{path} is merged; upstream changed lines beside those of the patch: {look}"


def _next_step(stopped: Stopped, *, resolved: bool) -> str:
    """What to type, the likeliest first. ``resolved``: no file in the worktree holds a conflict."""
    kind = stopped.step.outcome.kind
    skip = "tool rebase --skip --why TEXT"
    if stopped.asked:
        return "edit the worktree or leave it as it is, then: tool rebase --continue"
    if kind is OutcomeKind.STALE:
        return "edit the worktree if the patch is incomplete, then: tool rebase --continue"
    if kind is OutcomeKind.PARTIAL:
        first = "" if resolved else "resolve the conflicts, then: "
        return f"if what upstream lacks is still needed: {first}tool rebase --continue; if it is not: {skip}"
    if kind in UPSTREAM:
        return (
            "if upstream has the patch: tool rebase --skip --why 'upstream REFERENCE'; otherwise make "
            "what is still needed in the worktree, then: tool rebase --continue"
        )
    if resolved:
        return f"look at the merge; nothing is left to resolve: tool rebase --continue; or {skip}"
    return f"resolve the conflicts, then: tool rebase --continue; or {skip}"


def _report_interrupted() -> Report:
    """A rebase that a kill left between two stops."""
    lines = ["the rebase under way was interrupted", "next: tool rebase --continue"]
    return Report({"state": "interrupted"}, lines, 3)


def _shorten(block: Block) -> list[str]:
    """A hunk for the terminal: whole when short, its ends otherwise."""
    shown = [f"@@ line {max(1, block.old_line)} when the patch was written @@", *block.format()]
    if len(shown) <= _HUNK_LINES:
        return shown
    half = _HUNK_LINES // 2
    left_out = len(shown) - 2 * half
    return [*shown[:half], f"... {left_out} lines; --json has them all", *shown[-half:]]
