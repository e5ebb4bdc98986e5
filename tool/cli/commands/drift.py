"""``tool drift``."""

from __future__ import annotations

import click

from tool.cli.completion import complete_release
from tool.cli.options import command, make_request, source_options, start_option
from tool.cli.outcomes import report_preview
from tool.cli.output import Report
from tool.project import Session
from tool.rebase import preview_rebase
from tool.series import parse_release


@command(
    session="offline quiet",
    example=(
        "tool drift --onto v0.5.24",
        "tool drift --onto upstream/main",
    ),
)
@click.option(
    "--onto",
    required=True,
    metavar="REF",
    shell_complete=complete_release,
    help="A release (v0.5.24) or a git ref (upstream/main).",
)
@start_option
@source_options
def drift(
    session: Session, onto: str, start: str | None, source: str | None, release: str | None
) -> Report:
    """Show what carrying the series to a release or a git ref would meet; changes nothing."""
    request = make_request(onto, source, release)
    return report_preview(
        preview_rebase(session, request, source=parse_release(start) if start else None)
    )
