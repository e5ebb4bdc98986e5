"""``tool diff``."""

from __future__ import annotations

import click

from tool.cli.completion import complete_release
from tool.cli.options import command
from tool.cli.output import Report
from tool.project import Session
from tool.rebase import diff_releases
from tool.series import parse_release


@command(session="offline quiet", example=("tool diff v0.5.22 v0.5.23",))
@click.argument("one", metavar="A", shell_complete=complete_release)
@click.argument("other", metavar="B", shell_complete=complete_release)
def diff(session: Session, one: str, other: str) -> Report:
    """Show how what the series changes differs between releases A and B (git range-diff)."""
    first, second = parse_release(one), parse_release(other)
    text = diff_releases(session, first, second)
    return Report({"from": str(first), "to": str(second), "range_diff": text}, [text])
