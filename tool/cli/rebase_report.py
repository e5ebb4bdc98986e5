"""What ``tool rebase`` says when it stops and when it has landed, for a person and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from packaging.version import Version

from tool.classify.outcome import UPSTREAM, OutcomeKind
from tool.cli import output as report
from tool.cli.output import Report

if TYPE_CHECKING:
    from tool.analysis.changes import Block
    from tool.classify.replay import Step
    from tool.rebase.run import RebaseResult, Stopped
    from tool.rebase.write import SeriesUpdate

_HUNK_LINES: Final = 24


def step_result(step: Step, broken_since: Mapping[str, Version] | None = None) -> dict[str, Any]:
    """One patch in a JSON result."""
    since = (broken_since or {}).get(step.patch.name)
    return {
        "patch": step.patch.name,
        "verdict": step.verdict.kind.value,
        "evidence": list(step.verdict.evidence),
        "first_broken_by": str(since) if since else None,
    }


def rebase_report(done: RebaseResult) -> Report:
    """Exit code 0 when it landed, 3 or 4 when it stopped at a patch."""
    result: dict[str, Any] = {
        "from": str(done.source),
        "onto": str(done.onto),
        "remembered": list(done.remembered),
    }
    lines = [f"used a {text}" for text in done.remembered]
    if done.stopped is not None:
        return _stopped(done, done.stopped, result, lines)
    result |= {"state": "landed", "patches": [], "files": []}
    if done.carried is not None:
        rows = [("patch", "verdict", "became")]
        rows += [
            (r.patch, r.verdict.value, f"{r.outcome} ({r.decided})" if r.decided else r.outcome)
            for r in done.carried.rows
        ]
        lines += report.table(rows)
        result["patches"] = [dataclasses.asdict(row) for row in done.carried.rows]
        result["files"] = sorted(done.carried.files)
        result["tree"] = done.carried.tree
        result["dated"] = done.carried.dated
        lines += _dated(done.carried)
    lines.append(f"the series carries v{done.onto} now")
    lines.append(f"next: tool check; tool diff v{done.source} v{done.onto} shows what changed")
    return Report(result, lines)


def _dated(carried: SeriesUpdate) -> Iterator[str]:
    """New files whose words are still those for another release: only their author knows better ones."""
    for name, fields in carried.dated.items():
        yield f"patches/{name}: {', '.join(fields)} still speaks of a release it does not stand for"
    if carried.dated:
        yield "next: edit that, then tool lock"


def _stopped(
    done: RebaseResult, stopped: Stopped, result: dict[str, Any], lines: list[str]
) -> Report:
    step = stopped.step
    verdict = step.verdict
    asked = ", as asked with --edit" if stopped.asked else ""
    lines.append(f"stopped at {verdict.patch}: {verdict.kind.value}{asked}")
    lines += [f"  {text}" for text in verdict.evidence]
    for trouble in verdict.troubles:
        if trouble.theirs and trouble.successor is None:
            lines.append(
                f"  {trouble.path}, {trouble.symbol}: upstream, since the patch was written:"
            )
            lines += [f"    {text}" for block in trouble.theirs for text in _brief(block)]
            lines.append("  the patch, in the same place:")
            lines += [f"    {text}" for text in _brief(trouble.ours)]
    marked = {m.path: m.marked_lines for m in stopped.merged if m.conflicts}
    lines.append(f"the worktree is {stopped.folder}, with the patches before this one")
    for path, at in marked.items():
        where = ", ".join(map(str, at))
        lines.append(f"  {path}: conflict at line {where}" if at else f"  {path} is not there")
    beside = {m.path: at for m in stopped.merged if (at := m.lines_beside(verdict.troubles))}
    for file in stopped.merged:
        if not file.conflicts:
            look = ", ".join(map(str, beside.get(file.path, ())))
            and_look = f"; upstream changed lines beside it, look at line {look}" if look else ""
            lines.append(f"  {file.path} is merged{and_look}")
    lines.append(f"next: {_next(stopped, resolved=not marked)}")
    result |= {
        "state": "stopped",
        "asked": stopped.asked,
        "worktree": str(stopped.folder),
        "marked": marked,
        "beside": beside,
        "stop": step_result(step)
        | {
            "troubles": [
                {
                    "path": t.path,
                    "symbol": t.symbol,
                    "line": t.line,
                    "successor": t.successor,
                    "upstream": [text for block in t.theirs for text in block.shown()],
                    "ours": list(t.ours.shown()),
                }
                for t in verdict.troubles
            ]
        },
        "patches": [step_result(s) for s in done.steps],
    }
    return Report(result, lines, 4 if verdict.kind in UPSTREAM else 3)


def _next(stopped: Stopped, *, resolved: bool) -> str:
    """What to type, the likeliest first. ``resolved``: no file in the worktree holds a conflict."""
    kind = stopped.step.verdict.kind
    skip = "tool rebase --skip --why TEXT"
    if stopped.asked:
        return "change it there, then tool rebase --continue; unchanged it goes on as it is"
    if kind is OutcomeKind.STALE:
        return (
            "make there what is missing, or leave it so if nothing is; then tool rebase --continue"
        )
    if kind is OutcomeKind.PARTIAL:
        first = (
            "tool rebase --continue"
            if resolved
            else "resolve it there, then tool rebase --continue"
        )
        return f"{first}: what upstream lacks stays; or, if that is not needed either, {skip}"
    if kind in UPSTREAM:
        return (
            "tool rebase --skip --why 'upstream REFERENCE', if upstream has it; or make there what "
            "is still needed, then tool rebase --continue"
        )
    if resolved:
        return (
            f"look at it there, nothing is left to resolve; then tool rebase --continue; or {skip}"
        )
    return f"resolve it there, then tool rebase --continue; or {skip}"


def interrupted() -> Report:
    """A rebase that a kill left between two stops."""
    lines = ["the rebase under way was interrupted", "next: tool rebase --continue"]
    return Report({"state": "interrupted"}, lines, 3)


def _brief(block: Block) -> list[str]:
    """A hunk for the terminal: whole when short, its ends otherwise."""
    shown = [f"@@ line {max(1, block.old_line)} @@", *block.shown()]
    if len(shown) <= _HUNK_LINES:
        return shown
    half = _HUNK_LINES // 2
    left_out = len(shown) - 2 * half
    return [*shown[:half], f"... {left_out} lines; --json has them all", *shown[-half:]]
