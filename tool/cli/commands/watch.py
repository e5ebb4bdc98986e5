"""``tool watch``."""

from __future__ import annotations

from tool.cli.options import command
from tool.cli.outcomes import report_preview
from tool.cli.output import Report
from tool.project import Session
from tool.rebase import find_newer, preview_rebase
from tool.upstream import Request


@command(session="quiet", example=("tool watch --json",))
def watch(session: Session) -> Report:
    """Look for a newer release on the index and show what carrying the series there would meet.

    For cron or CI: exit code 1 when the series does not carry over.
    """
    newest = find_newer(session)
    if newest is None:
        return Report({"newer": None}, ["the series carries the newest release"])
    found = report_preview(preview_rebase(session, Request(f"v{newest}")))
    return Report({"newer": str(newest), **found.result}, found.lines, found.exit_code)
