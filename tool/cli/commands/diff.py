"""``tool diff``."""

from __future__ import annotations

import click

from tool.cli.completion import complete_release
from tool.cli.options import command, make_request, source_options
from tool.cli.outcomes import describe_ref
from tool.cli.output import Report
from tool.project import Session
from tool.rebase import diff_bases
from tool.upstream import Base, Request, names_release


@command(
    session="offline quiet",
    example=("tool diff v0.5.22 v0.5.23", "tool diff v0.5.23 upstream/main"),
)
@click.argument("one", metavar="A", shell_complete=complete_release)
@click.argument("other", metavar="B", shell_complete=complete_release)
@source_options
def diff(session: Session, one: str, other: str, source: str | None, release: str | None) -> Report:
    """Show how what the series changes differs between A and B, releases or git refs (git range-diff)."""
    requests = [
        # The options say something about git refs.
        Request(ref) if names_release(ref) else make_request(ref, source, release)
        for ref in (one, other)
    ]
    first, second, text = diff_bases(session, *requests)
    result = {
        "from": _name(first),
        "to": _name(second),
        "based_on": [first.based_on, second.based_on],
        "range_diff": text,
    }
    return Report(result, [*describe_ref(first), *describe_ref(second), text])


def _name(base: Base) -> str:
    return base.typed if base.basis else str(base.release)
