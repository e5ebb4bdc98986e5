"""What every command shares: options, the session, and how a report or an error leaves."""

from __future__ import annotations

import errno
import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tool.cli.output import Report, print_error, print_report
from tool.cli.progress import Terminal
from tool.errors import EnvironmentFault, ToolError
from tool.project import Session, locate_workspace
from tool.series import find_root, parse_release
from tool.upstream import Request

_Function = Callable[..., Report]


def command(
    *, name: str | None = None, session: str = "", settle: bool = True
) -> Callable[[_Function], click.Command]:
    """Make a click command of a function that takes a session and returns a report.

    ``session`` names the options of the session besides ``--series``: ``offline``, ``quiet``, or both.
    ``settle`` False leaves an interrupted write of the project to the function. The command prints the
    report, or its one error, and leaves with the documented exit code.
    """

    def make(function: _Function) -> click.Command:
        title = name or function.__name__

        @functools.wraps(function)
        def run(*, as_json: bool, **values: Any) -> None:
            sys.exit(_run(title, functools.partial(_call, function, settle, values), as_json))

        wrapped = run
        for option in ("series", *reversed(session.split())):
            wrapped = _SESSION_OPTIONS[option](wrapped)
        json_option = click.option(
            "--json", "as_json", is_flag=True, help="Print one JSON envelope."
        )
        return click.command(title)(json_option(wrapped))

    return make


def report_command(function: _Function) -> click.Command:
    """Make a click command of a function that needs no project."""

    @functools.wraps(function)
    def run(*, as_json: bool, **values: Any) -> None:
        sys.exit(_run(function.__name__, functools.partial(function, **values), as_json))

    option = click.option("--json", "as_json", is_flag=True, help="Print one JSON envelope.")
    return click.command(function.__name__)(option(run))


def release_option(function: _Function) -> _Function:
    return click.option(
        "--sglang-ref",
        "ref",
        default="pin",
        show_default=True,
        metavar="REF",
        help="A release (v0.5.23), pin (the series' default), or a git ref.",
    )(function)


def source_options(function: _Function) -> _Function:
    """Where sglang comes from, and whose patches a git ref takes."""
    source = click.option(
        "--source",
        metavar="pypi|git|URL|PATH",
        help="Where sglang comes from. Default: pypi for a release, git for any other ref.",
    )
    release = click.option(
        "--release",
        metavar="RELEASE",
        help="With a git ref: the release whose patches to apply. Default: the pin.",
    )
    return source(release(function))


def start_option(function: _Function) -> _Function:
    return click.option(
        "--from", "start", metavar="RELEASE", help="Default: the newest carried one below."
    )(function)


def worktree_argument(function: _Function) -> _Function:
    folder = click.Path(exists=True, file_okay=False, path_type=Path)
    return click.argument("worktree", type=folder, default=".")(function)


def make_request(ref: str, source: str | None, release: str | None) -> Request:
    """Raises UsageError when ``release`` is not a release."""
    return Request(ref, source, parse_release(release) if release else None)


_SESSION_OPTIONS = {
    "series": click.option(
        "--series",
        "series_dir",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Folder of series.txt. Default: the nearest one at or above the current folder.",
    ),
    "offline": click.option("--offline", is_flag=True, help="Use nothing but the cache."),
    "quiet": click.option("--quiet", "-q", is_flag=True, help="No progress."),
}


def _call(function: _Function, settle: bool, values: dict[str, Any]) -> Report:
    series_dir = values.pop("series_dir")
    session = Session(
        series_dir.absolute() if series_dir else find_root(Path.cwd()),
        locate_workspace(),
        offline=values.pop("offline", False),
        progress=Terminal(quiet=values.pop("quiet", False)),
    )
    if settle and session.is_interrupted:
        with session.exclusive():
            pass
    return function(session, **values)


def _run(title: str, work: Callable[[], Report], as_json: bool) -> int:
    """Print what ``work`` reports or raises; returns the exit code."""
    try:
        report = work()
    except ToolError as error:
        return _fail(title, error, as_json)
    except OSError as error:
        return _fail(title, _from_os(error), as_json)
    except Exception as error:
        traceback.print_exc()
        return _fail(title, ToolError(f"internal error: {error!r}"), as_json)
    print_report(title, report, as_json=as_json)
    return report.exit_code


def _fail(title: str, error: ToolError, as_json: bool) -> int:
    print_error(title, error, as_json=as_json)
    return error.exit_code


def _from_os(error: OSError) -> EnvironmentFault:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return EnvironmentFault(
        "no space left" if full else f"{error.strerror or error}",
        where=str(error.filename) if error.filename else None,
        next_step="free some space and run the same command again" if full else None,
    )
