"""``tool build``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from tool.cli.options import command, release_option
from tool.cli.output import Report
from tool.project import Session
from tool.upstream import PYPI, Request
from tool.wheel import build_wheel


@command(session="offline quiet", example=("tool build --python cp312 --out dist",))
@release_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("dist"),
    show_default=True,
    help="Folder for the wheel.",
)
@click.option("--python", metavar="cp312", help="Python of the wheel. Default: this interpreter's.")
@click.option("--machine", metavar="x86_64", help="Machine of the wheel. Default: this one.")
def build(session: Session, ref: str, out: Path, python: str | None, machine: str | None) -> Report:
    """Build the fork wheel: the released wheel with the series and the kernels inside."""
    request = Request(ref, PYPI)
    built = build_wheel(session, request, out=out.absolute(), python=python, machine=machine)
    lines = [
        f"{built.path}",
        f"  sglang {built.version}: {len(built.replaced)} files replaced, {len(built.added)} added, "
        f"{built.kept} as released",
        f"  sha256 {built.sha256}",
        f"  content {built.content_digest}",
        f"next: pip install {built.path}",
    ]
    return Report(dataclasses.asdict(built), lines)
