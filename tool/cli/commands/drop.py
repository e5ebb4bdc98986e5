"""``tool drop``."""

from __future__ import annotations

import click

from tool.authoring import drop_patch
from tool.cli.header import report_edit
from tool.cli.options import command
from tool.cli.output import Report
from tool.project import Session


@command(session="offline quiet")
@click.argument("patch")
@click.option("--why", required=True, metavar="TEXT", help="The reason; series.txt keeps it.")
def drop(session: Session, patch: str, why: str) -> Report:
    """Take a patch out of the series."""
    return report_edit(drop_patch(session, patch, why))
