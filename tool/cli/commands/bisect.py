"""``tool bisect``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from tool.cli.completion import complete_patch, complete_release
from tool.cli.options import command, make_request, source_options, start_option
from tool.cli.outcomes import describe_ref
from tool.cli.output import Report, format_table
from tool.errors import UsageError
from tool.project import Session
from tool.rebase import Bisection, Break, bisect_breaks
from tool.series import parse_release


@command(
    session="offline quiet",
    example=(
        "tool bisect --onto upstream/main",
        "tool bisect capability-guards upstream/v0.5.23..upstream/main",
    ),
)
@click.argument("what", nargs=-1, metavar="[PATCH]... [GOOD..BAD]", shell_complete=complete_patch)
@click.option(
    "--onto",
    metavar="REF",
    shell_complete=complete_release,
    help="A git ref; instead of GOOD..BAD.",
)
@start_option
@source_options
def bisect(
    session: Session,
    what: tuple[str, ...],
    onto: str | None,
    start: str | None,
    source: str | None,
    release: str | None,
) -> Report:
    """Name the first upstream commit that breaks each patch; changes nothing.

    Without GOOD the search begins where the ref left the tag of the release that the patches are from. Exit
    code 1 when a patch does not carry over.
    """
    ranges = [text for text in what if ".." in text]
    names = [text for text in what if ".." not in text]
    if len(ranges) + (onto is not None) != 1:
        raise UsageError(
            "one of GOOD..BAD and --onto REF says where to look",
            next_step="tool bisect --onto upstream/main",
        )
    good, _, bad = ranges[0].partition("..") if ranges else ("", "", str(onto))
    request = make_request(bad, source, release)
    begin = parse_release(start) if start else None
    return _report(bisect_breaks(session, request, good=good or None, source=begin, names=names))


def _report(done: Bisection) -> Report:
    rows = [(one.patch, one.step.outcome.kind.value, _describe(one)) for one in done.breaks]
    lines = [
        f"v{done.source} -> {done.base.label}: {done.commits} commit(s) after {done.good[:12]}, "
        f"{done.tried} looked at",
        *describe_ref(done.base),
        *(format_table(rows) if rows else ["every patch carries over"]),
    ]
    broken = [one for one in done.breaks if one.step.stops]
    if broken:
        lines.append(f"next: tool rebase --onto {done.base.typed} --from v{done.source}")
    result = {
        "from": str(done.source),
        "onto": done.base.typed,
        "base": done.base.commit,
        "based_on": done.base.based_on,
        "good": done.good,
        "commits": done.commits,
        "tried": done.tried,
        "patches": [_as_dict(one) for one in done.breaks],
    }
    return Report(result, lines, int(bool(broken)))


def _describe(one: Break) -> str:
    if one.commit:
        return f"first broken by {one.commit[:12]} ({one.date}): {one.title}"
    return "broken on the first commit already" if one.step.stops else "carries over"


def _as_dict(one: Break) -> dict[str, str | Sequence[str] | None]:
    return {
        "patch": one.patch,
        "outcome": one.step.outcome.kind.value,
        "reasons": list(one.step.outcome.reasons),
        "first_broken_by": one.commit,
        "title": one.title or None,
        "date": one.date or None,
    }
