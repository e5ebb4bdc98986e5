"""``tool publish``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from tool.cli.options import command
from tool.cli.output import Report
from tool.errors import UsageError
from tool.project import Session
from tool.publish import publish_wheels


@command(
    session="offline quiet",
    example=(
        "tool publish --out release",
        "tool publish --out release --refs v0.5.22,v0.5.23 --pythons cp311,cp312 --machines x86_64",
    ),
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write. An earlier one of this command is replaced; any other is refused.",
)
@click.option(
    "--refs",
    default="pin",
    show_default=True,
    metavar="all|pin|RELEASE,…",
    help="Releases to publish, separated by commas.",
)
@click.option("--pythons", metavar="cp311,…", help="Default: all that series.lock lists.")
@click.option("--machines", metavar="x86_64,…", help="Default: all that series.lock lists.")
def publish(
    session: Session, out: Path, refs: str, pythons: str | None, machines: str | None
) -> Report:
    """Write a folder to hand out: wheels, SHA256SUMS, a package index, constraints, notes, SBOMs.

    Every wheel that series.lock lists is built. One that is in the folder already, and would be built from
    the same parts, is kept. The folder has the same bytes wherever it is made.
    """
    done = publish_wheels(
        session,
        out.absolute(),
        refs=_split(refs, "--refs"),
        pythons=_split(pythons, "--pythons"),
        machines=_split(machines, "--machines"),
    )
    reused = sum(wheel.reused for wheel in done.wheels)
    lines = [f"{done.folder}: {len(done.wheels) - reused} wheel(s) built, {reused} kept"]
    lines += [f"  {w.sha256[:16]}…  {w.size:>11,}  {w.filename}" for w in done.wheels]
    lines += [
        f"  {len(done.files)} files; SHA256SUMS has sha256 {done.sums_sha256}",
        f"next: tool verify {done.folder / done.wheels[0].filename}",
    ]
    return Report(dataclasses.asdict(done), lines)


def _split(text: str | None, option: str) -> list[str]:
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if all(parts):
        return parts
    raise UsageError(f"{option} has an empty name in it", why=repr(text))
