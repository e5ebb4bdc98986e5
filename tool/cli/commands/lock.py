"""``tool lock``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from tool.apply import update_lock
from tool.cli.completion import complete_release
from tool.cli.options import command
from tool.cli.output import Report
from tool.errors import UsageError
from tool.project import Session
from tool.upstream import Request, complete_wheels, find_release


@command(
    session="offline quiet",
    example=(
        "tool lock --sglang-ref v0.5.23",
        "tool lock --wheels",
    ),
)
@click.option(
    "--sglang-ref",
    "refs",
    multiple=True,
    metavar="RELEASE",
    shell_complete=complete_release,
    help="Default: every one locked.",
)
@click.option(
    "--wheels",
    is_flag=False,
    flag_value="",
    metavar="[RELEASE]",
    help="Only add the wheels that were uploaded since, of RELEASE or of every one locked.",
)
def lock(session: Session, refs: tuple[str, ...], wheels: str | None) -> Report:
    """Apply and check the series, then record the results in series.lock."""
    series = session.series
    if wheels is not None:
        return _complete(session, (*refs, *([wheels] if wheels else [])))
    releases = [find_release(series, Request(ref)) for ref in refs]
    if not releases:
        releases = [v for v in session.lock.releases if series.for_release(v)] or [series.pin]
    changed = [str(release) for release in update_lock(session, *releases)]
    lines = [f"recorded v{release}" for release in changed]
    lines.append("series.lock updated" if changed else "series.lock is up to date")
    return Report({"changed": changed}, lines)


def _complete(session: Session, refs: Sequence[str]) -> Report:
    if session.offline:
        raise UsageError(
            "--wheels asks the index, and --offline uses nothing but the cache",
            next_step="run it without --offline",
        )
    releases = [find_release(session.series, Request(ref)) for ref in refs]
    added = complete_wheels(session, releases or sorted(session.lock.releases))
    named = {str(release): names for release, names in added.items()}
    lines = [f"v{release}: added {name}" for release, names in named.items() for name in names]
    lines.append("series.lock updated" if named else "series.lock holds every wheel of the index")
    return Report({"changed": list(named), "added": named}, lines)
