"""``tool build``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from tool.cli.options import command, make_request, release_option, source_options
from tool.cli.outcomes import describe_ref
from tool.cli.output import Report
from tool.errors import UsageError
from tool.project import Session
from tool.upstream import PYPI, names_release
from tool.wheel import build_wheel


@command(
    session="offline quiet",
    example=(
        "tool build --python cp312 --out dist",
        "tool build --sglang-ref mine/main",
    ),
)
@release_option
@source_options
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("dist"),
    show_default=True,
    help="Folder for the wheel.",
)
@click.option("--python", metavar="cp312", help="Python of the wheel. Default: this interpreter's.")
@click.option("--machine", metavar="x86_64", help="Machine of the wheel. Default: this one.")
def build(
    session: Session,
    ref: str,
    source: str | None,
    release: str | None,
    out: Path,
    python: str | None,
    machine: str | None,
) -> Report:
    """Build the fork wheel: the released wheel with the series and the kernels inside.

    Of a git ref, the wheel of the release that it is based on, with the commits of the ref inside too. Its
    version names the commit, and it says that it is not a release.
    """
    request = make_request(ref, source, release)
    if names_release(ref) and source not in (None, PYPI):
        raise UsageError(
            f"{ref} is a release, and its wheel is built from the released one",
            next_step=f"tool build --sglang-ref {ref}, without --source",
        )
    base, built = build_wheel(session, request, out=out.absolute(), python=python, machine=machine)
    lines = [
        f"{built.path}",
        *describe_ref(base),
        *(["  this is not a release: the version names the commit"] if base.basis else []),
        f"  sglang {built.version}: {len(built.replaced)} files replaced, {len(built.added)} added, "
        f"{built.kept} as released",
        f"  sha256 {built.sha256}",
        f"  content {built.content_digest}",
        f"next: pip install {built.path}",
    ]
    return Report({**dataclasses.asdict(built), "based_on": base.based_on}, lines)
