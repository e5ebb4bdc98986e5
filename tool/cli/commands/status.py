"""``tool status``."""

from __future__ import annotations

import dataclasses

from tool.cli.options import command, release_option
from tool.cli.output import Report, format_table
from tool.project import Session
from tool.rebase import RebaseStatus, read_status
from tool.upstream import Request, find_release


@command(reads=True, example=("tool status --sglang-ref v0.5.17",))
@release_option
def status(session: Session, ref: str) -> Report:
    """Show the pin, what is cached, and what each patch does on a release."""
    found = read_status(session, find_release(session.series, Request(ref)))
    rows = [("change", "patch", "releases", "here")]
    rows += [
        (p.change, p.patch, p.releases, f"{p.state} {p.detail}".strip()) for p in found.patches
    ]
    pinned = " (the pin)" if found.release == found.pin else ""
    lines = [
        f"sglang v{found.release}{pinned}, fork revision {found.revision}",
        f"supported: {', '.join(f'v{v}' for v in found.supported) or 'none'}",
        f"base: {found.base or 'not carried'}{', imported' if found.imported else ''}",
        f"wheels in the cache: {', '.join(found.cached_wheels) or 'none'}",
        *(f"worktree: {folder} ({branch})" for branch, folder in found.worktrees.items()),
        *_rebase_lines(found.rebase),
        "",
        *format_table(rows),
    ]
    return Report(dataclasses.asdict(found), lines)


def _rebase_lines(found: RebaseStatus | None) -> list[str]:
    if found is None:
        return []
    at = f"stopped at {found.patch} ({found.outcome})" if found.patch else "interrupted"
    onto = found.ref or f"v{found.onto}"
    what = f"{found.alone} alone, " if found.alone else ""
    lines = [f"rebase under way: {what}v{found.source} -> {onto} of {found.root}, {at}"]
    lines += [f"  in {found.worktree}"] if found.worktree else []
    return [*lines, f"  next: {found.next_step}"]
