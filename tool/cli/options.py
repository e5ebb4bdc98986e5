"""What every command shares: options, the session, and how a report or an error leaves."""

from __future__ import annotations

import contextlib
import errno
import functools
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from tool.cli import interrupt
from tool.cli.completion import complete_release
from tool.cli.output import Report, print_error, print_report, print_warnings
from tool.cli.progress import Terminal
from tool.errors import EnvironmentFault, Interrupted, ToolError, UsageError
from tool.project import REPAIR, Session, locate_workspace
from tool.series import find_root, parse_release
from tool.upstream import Request, names_release

_Function = Callable[..., Report]


def command(
    *,
    example: Sequence[str],
    name: str | None = None,
    session: str = "",
    settle: bool = True,
    reads: bool = False,
) -> Callable[[_Function], click.Command]:
    """Make a click command of a function that takes a session and returns a report.

    ``example`` holds command lines for its help. ``session`` names the options of the session besides
    ``--series``: ``offline``, ``quiet``, or both. ``reads``: it changes nothing and waits for nobody; an
    interrupted change is only mentioned. ``settle`` False leaves an interrupted write of the project to
    the function. The command prints the report, or its one error, and leaves with the documented exit
    code.
    """

    def make(function: _Function) -> click.Command:
        title = name or function.__name__

        @functools.wraps(function)
        def run(*, as_json: bool, **values: Any) -> None:
            sys.exit(
                _run(
                    title, functools.partial(_call, function, settle and not reads, values), as_json
                )
            )

        wrapped = run
        shared = session.split() if reads else [*session.split(), "wait"]
        for option in ("series", *reversed(shared)):
            wrapped = _SESSION_OPTIONS[option](wrapped)
        return _make_command(title, wrapped, example)

    return make


def report_command(*, example: Sequence[str]) -> Callable[[_Function], click.Command]:
    """Make a click command of a function that needs no project."""

    def make(function: _Function) -> click.Command:
        title = function.__name__

        @functools.wraps(function)
        def run(*, as_json: bool, **values: Any) -> None:
            sys.exit(_run(title, functools.partial(function, **values), as_json))

        return _make_command(title, run, example)

    return make


def _make_command(
    title: str, function: Callable[..., None], example: Sequence[str]
) -> click.Command:
    """A click command with ``--json``, and with examples below its options."""
    option = click.option("--json", "as_json", is_flag=True, help="Print one JSON envelope.")
    head = "Example:" if len(example) == 1 else "Examples:"
    lines = ["\b", head, *(f"  $ {line}" for line in example)]
    return click.command(title, epilog="\n".join(lines))(option(function))


def release_option(function: _Function) -> _Function:
    return click.option(
        "--sglang-ref",
        "ref",
        default="pin",
        show_default=True,
        metavar="REF",
        shell_complete=complete_release,
        help="A release (v0.5.23), pin (the series' default), or a git ref (upstream/main).",
    )(function)


def source_options(function: _Function) -> _Function:
    """Where sglang comes from, and what a git ref is based on."""
    source = click.option(
        "--source",
        metavar="pypi|git|NAME|URL|PATH",
        help="Where sglang comes from. Default: pypi for a release; for a git ref the source in "
        "NAME/REF, the only one of tool source, or sglang's repository.",
    )
    release = click.option(
        "--release",
        metavar="RELEASE",
        shell_complete=complete_release,
        help="With a git ref: the release it is based on. Default: found in its history or files.",
    )
    return source(release(function))


def start_option(function: _Function) -> _Function:
    return click.option(
        "--from",
        "start",
        metavar="RELEASE",
        shell_complete=complete_release,
        help="Default: the newest carried one below.",
    )(function)


def worktree_argument(function: _Function) -> _Function:
    folder = click.Path(exists=True, file_okay=False, path_type=Path)
    return click.argument("worktree", type=folder, default=".")(function)


def make_request(ref: str, source: str | None, release: str | None) -> Request:
    """Raises UsageError when ``release`` is not a release, or goes with one."""
    if release and names_release(ref):
        raise UsageError(
            f"{ref} is a release, and --release says what a git ref is based on",
            next_step="leave --release out, or name a git ref",
        )
    return Request(ref, source, parse_release(release) if release else None)


_SESSION_OPTIONS = {
    "series": click.option(
        "--series",
        "series_dir",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Folder of series.txt. Default: the nearest one at or above the current folder.",
    ),
    "offline": click.option("--offline", is_flag=True, help="Use nothing but the cache."),
    "wait": click.option(
        "--no-wait", is_flag=True, help="Fail at once when another tool command is at work."
    ),
    "quiet": click.option("--quiet", "-q", is_flag=True, help="No progress."),
}


def _call(function: _Function, settle: bool, values: dict[str, Any]) -> Report:
    series_dir = values.pop("series_dir")
    session = Session(
        series_dir.absolute() if series_dir else find_root(Path.cwd()),
        locate_workspace(),
        offline=values.pop("offline", False),
        wait=not values.pop("no_wait", False),
        progress=Terminal(quiet=values.pop("quiet", False)),
    )
    try:
        if settle and session.is_interrupted:
            with session.exclusive():
                pass
        report = function(session, **values)
    except BaseException:
        print_warnings([*session.warnings, *_mention_interrupted(session)])
        raise
    return replace(report, warnings=(*session.warnings, *_mention_interrupted(session)))


def _mention_interrupted(session: Session) -> list[str]:
    """A warning for each change that a stopped command left unfinished, now or earlier."""
    if session.warnings:
        return []  # it was tried to recover it: that warning says more
    with contextlib.suppress(ToolError, OSError):
        return [f"{found.what} is unfinished; {REPAIR}" for found in session.list_interrupted()]
    return []


def _run(title: str, work: Callable[[], Report], as_json: bool) -> int:
    """Print what ``work`` reports or raises; returns the exit code."""
    try:
        interrupt.raise_error()
        report = work()
        print_report(title, report, as_json=as_json)
        interrupt.ignore()
        return report.exit_code
    except KeyboardInterrupt:
        error: ToolError = Interrupted(
            "interrupted",
            why="what the command was writing is as it was before, or complete",
            next_step="see what stands: tool status",
        )
    except ToolError as known:
        error = known
    except OSError as known:
        error = _from_os(known)
    except Exception as unknown:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        error = ToolError(f"internal error: {unknown!r}")
    interrupt.ignore()
    print_error(title, error, as_json=as_json)
    return error.exit_code


def _from_os(error: OSError) -> EnvironmentFault:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return EnvironmentFault(
        "no space left" if full else f"{error.strerror or error}",
        where=str(error.filename) if error.filename else None,
        next_step="free some space and run the same command again" if full else None,
    )
