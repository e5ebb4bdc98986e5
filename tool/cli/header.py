"""The options that make a patch's header, and the report of a command that edits the series."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Mapping
from typing import Final

import click

from tool.authoring import Edited, HeaderFields
from tool.cli.output import Report

_Function = Callable[..., Report]
_SHOWN: Final = 3
"""Releases that a line names."""
_WIDTH: Final = 79
"""Columns of a reason; in the header each line has a space before it."""


def header_options(function: _Function) -> _Function:
    for option in (
        click.option("--drop-when", required=True, metavar="TEXT", help="When it can go again."),
        click.option("--reason", default="", metavar="TEXT", help="Why it is needed."),
        click.option("--subject", "-m", default="", metavar="TEXT", help="What it does, one line."),
        click.option("--change", required=True, metavar="NAME", help="The change it belongs to."),
    ):
        function = option(function)
    return function


def make_header(
    name: str, change: str, subject: str, reason: str, drop_when: str, origin: str = "vendor"
) -> HeaderFields:
    return HeaderFields(
        f"{change}/{name.removeprefix(f'{change}/').removesuffix('.patch')}.patch",
        change,
        " ".join(subject.split()),
        _wrap(reason),
        " ".join(drop_when.split()),
        " ".join(origin.split()),
    )


def _wrap(reason: str) -> str:
    """``reason`` with its long lines wrapped; line ends that are there stay, for lists and paragraphs."""
    lines: list[str] = []
    for line in reason.strip("\n").split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        # A path, an option or an address is one word.
        lines += textwrap.wrap(
            line,
            _WIDTH,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(lines)


def report_edit(done: Edited) -> Report:
    lines = [f"wrote patches/{name}" for name in done.written]
    lines += format_files(done.files)
    lines += [f"removed patches/{name}" for name in done.removed]
    if done.releases:
        lines.append(
            f"checked on {', '.join(f'v{v}' for v in done.releases)}; series.lock is up to date"
        )
    if done.kept:
        folder = done.patch.partition("/")[0]
        files = ", ".join(name.partition("/")[2] for name in done.kept)
        lines.append(
            f"patches/{folder} has files for other releases; they stay as they are: {files}"
        )
    match done.worktree_moved:
        case True:
            lines.append("the worktree holds the series as it now is")
        case False:
            lines.append(
                "the worktree still has the change uncommitted; next: git stash -u there, then tool apply"
            )
        case None:
            lines.append("next: tool apply brings a worktree up to date")
    if done.lacking:
        names = ", ".join(f"v{v}" for v in done.lacking[-_SHOWN:])
        more = f" and {len(done.lacking) - _SHOWN} older" if len(done.lacking) > _SHOWN else ""
        lines.append(f"{names}{more} have no such patch")
        lines.append(
            f"next: tool rebase --patch {done.patch} --onto all, or --onto and the releases with commas"
        )
    return Report(dataclasses.asdict(done), lines)


def format_files(files: Mapping[str, str]) -> list[str]:
    """A line for each file that goes into a patch: what is not meant to be there shows."""
    return [f"  {what} {path}" for path, what in files.items()]
