"""``tool export``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tool.authoring import export_patches
from tool.cli.header import format_files
from tool.cli.options import command, worktree_argument
from tool.cli.output import Report
from tool.project import Session


@command(example=("tool export sglang-v0.5.23",))
@worktree_argument
def export(session: Session, worktree: Path) -> Report:
    """Write a worktree's commits back as patch files, and their order and number to series.txt."""
    done = export_patches(session, worktree)
    lines: list[str] = []
    for name in done.written:
        lines += [f"wrote {name}", *format_files(done.files[name])]
    for name, into in done.removed.items():
        reason = f"its commit was squashed into {into}" if into else "no commit holds it any more"
        lines.append(f"took {name} out: {reason}")
    if done.order:
        lines.append(f"series.txt has the new order: {', '.join(done.order)}")
    lines.append(f"{len(done.written)} written, {len(done.kept)} unchanged")
    if done.written or done.removed or done.order:
        lines.append("next: tool lock checks them and records the result")
    return Report(dataclasses.asdict(done), lines)
