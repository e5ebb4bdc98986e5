"""The commands of a patch author; found by ``tool.cli``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from tool.cli.options import load, options, reporting
from tool.cli.output import Report

if TYPE_CHECKING:
    from tool.authoring.edit import Edited, HeaderFields

_WORKTREE = click.argument(
    "worktree", type=click.Path(exists=True, file_okay=False, path_type=Path), default="."
)


def _words(function: Callable[..., Report]) -> Callable[..., Report]:
    """The options that make a patch's header."""
    for option in (
        click.option("--drop-when", required=True, metavar="TEXT", help="When it can go again."),
        click.option("--reason", default="", metavar="TEXT", help="Why it is needed."),
        click.option("--subject", "-m", default="", metavar="TEXT", help="What it does, one line."),
        click.option("--change", required=True, metavar="NAME", help="The change it belongs to."),
    ):
        function = option(function)
    return function


@click.command()
@reporting
@click.argument("name")
@_WORKTREE
@_words
@options("offline", "quiet", "series")
def new(
    name: str,
    worktree: Path,
    change: str,
    subject: str,
    reason: str,
    drop_when: str,
    offline: bool,
    quiet: bool,
    series_dir: Path | None,
) -> Report:
    """Make a patch of what is uncommitted in a worktree of tool apply."""
    from tool.authoring import edit as command
    from tool.errors import UsageError

    if not subject or not reason:
        raise UsageError(
            "a patch says what it does and why", next_step="add: --subject TEXT --reason TEXT"
        )
    series, home = load(series_dir)
    words = _header(name, change, subject, reason, drop_when)
    folder = worktree.absolute()
    return _report(command.new_patch(series, home, words, folder, offline=offline, quiet=quiet))


@click.command()
@reporting
@click.argument("patch")
@_WORKTREE
@click.option(
    "--split", is_flag=True, help="Into a new patch file, from the worktree's release on."
)
@options("offline", "quiet", "series")
def refresh(
    patch: str,
    worktree: Path,
    split: bool,
    offline: bool,
    quiet: bool,
    series_dir: Path | None,
) -> Report:
    """Fold what is uncommitted in a worktree of tool apply into a patch."""
    from tool.authoring import edit as command

    series, home = load(series_dir)
    folder = worktree.absolute()
    return _report(
        command.refresh_patch(
            series, home, patch, folder, split=split, offline=offline, quiet=quiet
        )
    )


@click.command("import")
@reporting
@click.argument("diff", type=click.File("rb"))
@click.argument("name")
@click.option("--sglang-ref", "release", metavar="RELEASE", help="Default: the pin.")
@click.option("--origin", default="vendor", show_default=True, help="Where it is from: a URL.")
@_words
@options("offline", "quiet", "series")
def import_(
    diff: IO[bytes],
    name: str,
    release: str | None,
    origin: str,
    change: str,
    subject: str,
    reason: str,
    drop_when: str,
    offline: bool,
    quiet: bool,
    series_dir: Path | None,
) -> Report:
    """Make a patch of a diff or a mail (- reads standard input)."""
    from tool.authoring import edit as command
    from tool.series.model import parse_release

    series, home = load(series_dir)
    words = dataclasses.replace(
        _header(name, change, subject, reason, drop_when), origin=" ".join(origin.split())
    )
    onto = parse_release(release) if release else series.pin
    content = diff.read()
    return _report(
        command.import_patch(series, home, words, content, onto, offline=offline, quiet=quiet)
    )


@click.command()
@reporting
@click.argument("patch")
@click.option("--why", required=True, metavar="TEXT", help="The reason; series.txt keeps it.")
@options("offline", "quiet", "series")
def drop(patch: str, why: str, offline: bool, quiet: bool, series_dir: Path | None) -> Report:
    """Take a patch out of the series."""
    from tool.authoring import edit as command

    series, home = load(series_dir)
    return _report(command.drop_patch(series, home, patch, why, offline=offline, quiet=quiet))


def _header(name: str, change: str, subject: str, reason: str, drop_when: str) -> HeaderFields:
    from tool.authoring.edit import HeaderFields

    file = name if name.endswith(".patch") else f"{name}.patch"
    return HeaderFields(
        file, change, " ".join(subject.split()), reason, " ".join(drop_when.split())
    )


def _report(done: Edited) -> Report:
    lines = [f"wrote patches/{name}" for name in done.written]
    lines += [f"removed patches/{name}" for name in done.removed]
    lines.append(
        f"proven on {', '.join(f'v{v}' for v in done.releases)}; series.lock is up to date"
    )
    lines.append(
        "next: tool lint; a worktree that still has the change uncommitted can go: git stash -u there, "
        "then tool apply"
    )
    return Report(dataclasses.asdict(done), lines)


COMMANDS = (drop, import_, new, refresh)
