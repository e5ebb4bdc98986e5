"""``tool drop``."""

from __future__ import annotations

import dataclasses

import click

from tool.authoring import drop_patch
from tool.cli.completion import complete_patch, complete_supported
from tool.cli.header import report_edit
from tool.cli.options import command
from tool.cli.output import Report
from tool.project import Session
from tool.rebase import retire_release
from tool.series import parse_release
from tool.upstream import names_release


def _complete(ctx: click.Context, option: click.Parameter, incomplete: str) -> list[str]:
    return complete_patch(ctx, option, incomplete) + complete_supported(ctx, option, incomplete)


@command(
    session="offline quiet",
    example=(
        'tool drop topk-swap/v0.5.9.patch --why "the kernel is not used any more"',
        'tool drop v0.5.9 --why "nobody serves with it any more"',
    ),
)
@click.argument("what", metavar="PATCH|RELEASE", shell_complete=_complete)
@click.option("--why", required=True, metavar="TEXT", help="The reason; it is kept.")
def drop(session: Session, what: str, why: str) -> Report:
    """Take a patch out of the series, or a release out of those that it supports.

    With a release, patches that stand for it alone go too. rebase-history.json keeps the reason.
    """
    if what == "pin" or what.endswith(".patch") or not names_release(what):
        return report_edit(drop_patch(session, what, why))
    done = retire_release(session, parse_release(what), why)
    lines = [f"v{done.release} is not supported any more"]
    lines += [f"removed patches/{name}" for name in done.removed]
    lines += [f"wrote patches/{name}" for name in done.written]
    if done.releases:
        lines.append(
            f"checked on {', '.join(f'v{v}' for v in done.releases)}; series.lock is up to date"
        )
    lines.append("next: tool lint && tool check")
    return Report(dataclasses.asdict(done), lines)
