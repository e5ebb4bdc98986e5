"""``tool import``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from tool.authoring import import_patch
from tool.cli.header import header_options, make_header, report_edit
from tool.cli.options import command
from tool.cli.output import Report
from tool.errors import UsageError
from tool.project import Session
from tool.series import parse_release, read_regular_file

_MAX_SIZE: Final = 32 << 20


@command(
    name="import",
    session="offline quiet",
    example=(
        "tool import fix.mbox my-change/v0.5.23.patch --change my-change --reason TEXT --drop-when TEXT",
    ),
)
@click.argument("diff", type=click.Path(allow_dash=True, path_type=Path))
@click.argument("name")
@click.option("--sglang-ref", "release", metavar="RELEASE", help="Default: the pin.")
@click.option("--origin", default="vendor", show_default=True, help="Where it is from: a URL.")
@header_options
def import_(
    session: Session,
    diff: Path,
    name: str,
    release: str | None,
    origin: str,
    change: str,
    subject: str,
    reason: str,
    drop_when: str,
) -> Report:
    """Make a patch of a diff or a mail (- reads standard input)."""
    onto = parse_release(release) if release else session.series.pin
    header = make_header(name, change, subject, reason, drop_when, origin)
    return report_edit(import_patch(session, header, _read(diff), onto))


def _read(path: Path) -> bytes:
    if str(path) != "-":
        return read_regular_file(path, _MAX_SIZE)
    content = sys.stdin.buffer.read(_MAX_SIZE + 1)
    if len(content) > _MAX_SIZE:
        raise UsageError(f"standard input is larger than {_MAX_SIZE >> 20} MiB")
    return content
