"""``tool explain``."""

from __future__ import annotations

import dataclasses

import click

from tool.cli.completion import complete_patch, complete_release
from tool.cli.options import command, make_request, source_options
from tool.cli.outcomes import describe_ref
from tool.cli.output import Report
from tool.errors import UsageError
from tool.project import Session
from tool.rebase import explain_patch


@command(
    session="offline quiet",
    example=(
        "tool explain capability-guards",
        "tool explain capability-guards --sglang-ref upstream/main",
    ),
)
@click.argument("patch", shell_complete=complete_patch)
@click.option(
    "--sglang-ref",
    "ref",
    metavar="REF",
    shell_complete=complete_release,
    help="Where to look at it. Default: the newest release it was checked on.",
)
@source_options
def explain(
    session: Session, patch: str, ref: str | None, source: str | None, release: str | None
) -> Report:
    """Say what a patch is for: life span, upstream, files, symbols, and which patches need it."""
    if ref is None and (source or release):
        raise UsageError(
            "--source and --release go with --sglang-ref",
            next_step="tool explain PATCH --sglang-ref REF",
        )
    request = make_request(ref, source, release) if ref is not None else None
    found = explain_patch(session, patch, request)
    lines = [
        f"{found.patch}: {found.subject}",
        *(f"  {x}".rstrip() for x in found.body.split("\n")),
    ]
    lines.append(f"change {found.change}, needed on {found.needed}")
    if found.upstream:
        lines.append(f"  upstream since {found.upstream}")
    checked = ", ".join(f"v{v}" for v in found.checked_on)
    lines.append(f"releases {found.releases}; checked on {checked}")
    lines += [f"  beside it: {name} {releases}" for name, releases in found.relatives]
    lines += [f"{key}: {' '.join(value.split())}" for key, value in found.fields]
    base = found.base
    lines += describe_ref(base)
    lines.append(f"on {base.label} it changes")
    lines += [f"  {path}: {', '.join(names)}" for path, names in found.symbols.items()]
    lines += [
        f"without it {d.patch} stops ({d.outcome}): {d.reasons[0]}" for d in found.dependents
    ] or ["no later patch depends on it"]
    result = dataclasses.asdict(found)
    del result["base"]
    result |= {"release": base.release, "onto": base.typed or None, "based_on": base.based_on}
    return Report(result, lines)
