"""``tool drop``."""

from __future__ import annotations

import click

from tool.authoring import drop_patch
from tool.cli.completion import complete_patch
from tool.cli.header import report_edit
from tool.cli.options import command
from tool.cli.output import Report
from tool.project import Session


@command(
    session="offline quiet",
    example=('tool drop topk-swap/v0.5.9.patch --why "the release is no longer used"',),
)
@click.argument("patch", shell_complete=complete_patch)
@click.option("--why", required=True, metavar="TEXT", help="The reason; series.txt keeps it.")
def drop(session: Session, patch: str, why: str) -> Report:
    """Take a patch out of the series."""
    return report_edit(drop_patch(session, patch, why))
