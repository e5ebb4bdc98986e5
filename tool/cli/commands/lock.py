"""``tool lock``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import click

from tool.apply import update_lock
from tool.authoring import move_pin
from tool.cli.completion import complete_release, complete_supported
from tool.cli.options import command
from tool.cli.output import Report
from tool.errors import UsageError
from tool.project import Session
from tool.series import parse_release
from tool.upstream import Request, complete_wheels, find_release, names_release


@command(
    session="offline quiet",
    example=(
        "tool lock --sglang-ref v0.5.23",
        "tool lock --wheels",
        "tool lock --pin v0.5.23",
        "tool lock --revision",
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
@click.option(
    "--pin",
    metavar="RELEASE",
    shell_complete=complete_supported,
    help="Only make RELEASE the pin of series.txt.",
)
@click.option(
    "--revision",
    is_flag=False,
    flag_value="0",
    type=click.IntRange(0, 999_999_999),
    metavar="[N]",
    help="Only raise the revision of series.txt to N, or by one.",
)
def lock(
    session: Session,
    refs: tuple[str, ...],
    wheels: str | None,
    pin: str | None,
    revision: int | None,
) -> Report:
    """Apply and check the series, then record the results in series.lock."""
    for ref in refs:
        if not names_release(ref):
            raise UsageError(
                f"{ref!r} is not a release, and series.lock holds results on released wheels alone",
                where="--sglang-ref",
                next_step=f"name a release (v0.5.23); or see what {ref} would meet: tool drift --onto {ref}",
            )
    if pin is not None or revision is not None:
        if refs or wheels is not None:
            raise UsageError(
                "--pin and --revision go with neither --sglang-ref nor --wheels",
                next_step="run tool lock once for each",
            )
        return _move(session, pin, revision)
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


def _move(session: Session, pin: str | None, revision: int | None) -> Report:
    done = move_pin(session, parse_release(pin) if pin else None, revision)
    lines = []
    if done.pin != done.old_pin:
        lines.append(f"the pin is v{done.pin}; it was v{done.old_pin}")
    if done.revision != done.old_revision:
        lines.append(f"the fork's revision is {done.revision}; it was {done.old_revision}")
    if not lines:
        lines.append(f"the pin is v{done.pin} already, with revision {done.revision}")
    lines.append(f"next: tool build makes the wheel {done.pin}+ada.{done.revision}")
    return Report(dataclasses.asdict(done), lines)


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
