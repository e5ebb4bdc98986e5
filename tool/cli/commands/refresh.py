"""``tool refresh``."""

from __future__ import annotations

from pathlib import Path

import click

from tool.authoring import refresh_patch
from tool.cli.completion import complete_patch
from tool.cli.header import report_edit
from tool.cli.options import command, worktree_argument
from tool.cli.output import Report
from tool.project import Session


@command(session="offline quiet", example=("tool refresh capability-guards sglang-v0.5.23",))
@click.argument("patch", shell_complete=complete_patch)
@worktree_argument
@click.option(
    "--split", is_flag=True, help="Into a new patch file, from the worktree's release on."
)
def refresh(session: Session, patch: str, worktree: Path, split: bool) -> Report:
    """Fold what is uncommitted in a worktree of tool apply into a patch."""
    return report_edit(refresh_patch(session, patch, worktree.absolute(), split=split))
