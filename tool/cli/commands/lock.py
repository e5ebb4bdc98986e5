"""``tool lock``."""

from __future__ import annotations

import click

from tool.apply import update_lock
from tool.cli.options import command
from tool.cli.output import Report
from tool.project import Session
from tool.upstream import Request, find_release


@command(session="offline quiet")
@click.option(
    "--sglang-ref", "refs", multiple=True, metavar="RELEASE", help="Default: every one locked."
)
def lock(session: Session, refs: tuple[str, ...]) -> Report:
    """Apply and check the series, then record the results in series.lock."""
    series = session.series
    releases = [find_release(series, Request(ref)) for ref in refs]
    if not releases:
        releases = [v for v in session.lock.releases if series.for_release(v)] or [series.pin]
    changed = [str(release) for release in update_lock(session, *releases)]
    lines = [f"recorded v{release}" for release in changed]
    lines.append("series.lock updated" if changed else "series.lock is up to date")
    return Report({"changed": changed}, lines)
