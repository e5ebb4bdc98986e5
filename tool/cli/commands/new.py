"""``tool new``."""

from __future__ import annotations

from pathlib import Path

import click

from tool.authoring import new_patch
from tool.cli.header import header_options, make_header, report_edit
from tool.cli.options import command, worktree_argument
from tool.cli.output import Report
from tool.errors import UsageError
from tool.project import Session


@command(
    session="offline quiet",
    example=(
        "tool new my-change sglang-v0.5.23 --change my-change --subject TEXT --reason TEXT --drop-when TEXT",
    ),
)
@click.argument("name")
@worktree_argument
@header_options
def new(
    session: Session,
    name: str,
    worktree: Path,
    change: str,
    subject: str,
    reason: str,
    drop_when: str,
) -> Report:
    """Make a patch of what is uncommitted in a worktree of tool apply."""
    if not subject or not reason:
        raise UsageError(
            "a patch says what it does and why", next_step="add: --subject TEXT --reason TEXT"
        )
    header = make_header(name, change, subject, reason, drop_when)
    return report_edit(new_patch(session, header, worktree.absolute()))
