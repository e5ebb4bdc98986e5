"""``tool repair``."""

from __future__ import annotations

import dataclasses

import click

from tool.cli.options import command
from tool.cli.output import Report
from tool.project import Session, repair_project
from tool.rebase import repair_state


@command(settle=False, example=("tool repair --dry-run",))
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
def repair(session: Session, dry_run: bool) -> Report:
    """Finish or undo what an interrupted command left.

    Exit code 1 when something is left that could not be repaired from here.
    """
    found = repair_project(session, dry_run=dry_run)
    if state := repair_state(session.folder, dry_run=dry_run):
        found.insert(0, state)
    lines = []
    for item in found:
        done = f"would be {item.action}" if dry_run else item.action
        lines.append(f"{item.what}: {item.problem or done}")
    result = {"dry_run": dry_run, "interrupted": [dataclasses.asdict(item) for item in found]}
    lines = lines or ["nothing is interrupted"]
    return Report(result, lines, int(any(item.problem for item in found)))
