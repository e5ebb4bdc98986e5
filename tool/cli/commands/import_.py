"""``tool import``."""

from __future__ import annotations

from typing import IO

import click

from tool.authoring import import_patch
from tool.cli.header import header_options, make_header, report_edit
from tool.cli.options import command
from tool.cli.output import Report
from tool.project import Session
from tool.series import parse_release


@command(name="import", session="offline quiet")
@click.argument("diff", type=click.File("rb"))
@click.argument("name")
@click.option("--sglang-ref", "release", metavar="RELEASE", help="Default: the pin.")
@click.option("--origin", default="vendor", show_default=True, help="Where it is from: a URL.")
@header_options
def import_(
    session: Session,
    diff: IO[bytes],
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
    return report_edit(import_patch(session, header, diff.read(), onto))
