"""``tool export``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from tool.authoring import export_patches, write_upstream_mail
from tool.cli.completion import complete_patch
from tool.cli.header import format_files
from tool.cli.options import command, worktree_argument
from tool.cli.output import Report
from tool.errors import UsageError
from tool.project import Session


@command(
    session="offline quiet",
    example=(
        "tool export sglang-v0.5.23",
        'tool export --for-upstream pipeline-speculation-message --author "Ada <ada@example.org>"',
    ),
)
@worktree_argument
@click.option(
    "--for-upstream",
    "patch",
    metavar="PATCH",
    shell_complete=complete_patch,
    help="Write this patch as a mail that upstream can apply with git am.",
)
@click.option(
    "--author", metavar="NAME <ADDRESS>", help="Author of the mail. Default: the header's."
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the mail. Default: 0001-SUBJECT.patch in the current folder.",
)
def export(
    session: Session, worktree: Path, patch: str | None, author: str | None, out: Path | None
) -> Report:
    """Write a worktree's commits back as patch files, and their order and number to series.txt.

    With --for-upstream, write one patch as a mail instead.
    """
    if patch is not None:
        return _export_mail(session, patch, author, out)
    if author is not None or out is not None:
        raise UsageError("--author and --out belong to --for-upstream")
    done = export_patches(session, worktree)
    lines: list[str] = []
    for name in done.written:
        lines += [f"wrote {name}", *format_files(done.files[name])]
    for name, into in done.removed.items():
        reason = f"its commit was squashed into {into}" if into else "no commit holds it any more"
        lines.append(f"took {name} out: {reason}")
    if done.order:
        lines.append(f"series.txt has the new order: {', '.join(done.order)}")
    lines.append(f"{len(done.written)} written, {len(done.kept)} unchanged")
    if done.written or done.removed or done.order:
        lines.append("next: tool lock checks them and records the result")
    return Report(dataclasses.asdict(done), lines)


def _export_mail(session: Session, patch: str, author: str | None, out: Path | None) -> Report:
    done = write_upstream_mail(session, patch, out=out and out.absolute(), author=author)
    lines = [
        f"wrote {done.path}: {done.patch} on sglang v{done.release}",
        f"next: in a clone of sglang, git switch --detach v{done.release} && git am {done.path}; when it "
        "is sent, name the thread in the Forwarded field of the patch",
    ]
    return Report(dataclasses.asdict(done), lines)
