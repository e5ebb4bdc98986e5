"""``tool explain``."""

from __future__ import annotations

import dataclasses

import click

from tool.cli.completion import complete_patch
from tool.cli.options import command
from tool.cli.output import Report
from tool.project import Session
from tool.rebase import explain_patch


@command(session="offline quiet", example=("tool explain capability-guards",))
@click.argument("patch", shell_complete=complete_patch)
def explain(session: Session, patch: str) -> Report:
    """Say what a patch is for: life span, upstream, files, symbols, and which patches need it."""
    found = explain_patch(session, patch)
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
    lines.append(f"on v{found.release} it changes")
    lines += [f"  {path}: {', '.join(names)}" for path, names in found.symbols.items()]
    lines += [
        f"without it {d.patch} stops ({d.outcome}): {d.reasons[0]}" for d in found.dependents
    ] or ["no later patch depends on it"]
    return Report(dataclasses.asdict(found), lines)
