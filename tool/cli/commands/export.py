"""``tool export``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tool.authoring import export_patches
from tool.cli.options import command, worktree_argument
from tool.cli.output import Report
from tool.project import Session


@command()
@worktree_argument
def export(session: Session, worktree: Path) -> Report:
    """Write a worktree's commits back as patch files, changed ones only."""
    done = export_patches(session, worktree)
    lines = [f"wrote {name}" for name in done.written]
    lines.append(f"{len(done.written)} written, {len(done.kept)} unchanged")
    if done.written:
        lines.append("next: tool lock checks them and records the result")
    return Report(dataclasses.asdict(done), lines)
