"""What every command of the command line shares: options, loading, and how a report leaves.

Modules are imported inside the functions: ``tool --help`` must not pay for GitPython or unidiff.
"""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tool.cli import output as report
from tool.cli.output import Report
from tool.errors import EnvironmentFault, ToolError

if TYPE_CHECKING:
    from packaging.version import Version

    from tool.project.workspace import Workspace
    from tool.series.model import Series
    from tool.upstream.resolve import Request

_Command = Callable[..., Report]


def reporting(function: _Command) -> Callable[..., None]:
    """Print the command's report, or its one error, and leave with the documented exit code."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON envelope on stdout.")
    @functools.wraps(function)
    def run(*, as_json: bool, **kwargs: Any) -> None:
        name = function.__name__.rstrip("_")
        try:
            result = function(**kwargs)
        except ToolError as error:
            report.emit_error(name, error, as_json=as_json)
            sys.exit(error.exit_code)
        except OSError as error:
            fault = _from_os(error)
            report.emit_error(name, fault, as_json=as_json)
            sys.exit(fault.exit_code)
        except Exception as error:
            import traceback

            traceback.print_exc()
            report.emit_error(name, ToolError(f"internal error: {error!r}"), as_json=as_json)
            sys.exit(ToolError.exit_code)
        report.emit(name, result, as_json=as_json)
        sys.exit(result.exit_code)

    return run


def _from_os(error: OSError) -> EnvironmentFault:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return EnvironmentFault(
        "no space left" if full else f"{error.strerror or error}",
        where=str(error.filename) if error.filename else None,
        next_step="free some space and run the same command again" if full else None,
    )


def options(*names: str) -> Callable[[_Command], _Command]:
    """The shared options of ``names``, so that each is spelled and explained once."""
    known = {
        "series": click.option(
            "--series",
            "series_dir",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="Folder of series.txt. Default: the nearest one at or above the current folder.",
        ),
        "ref": click.option(
            "--sglang-ref",
            "ref",
            default="pin",
            show_default=True,
            metavar="REF",
            help="A release (v0.5.23), pin (the series' default), or a git ref.",
        ),
        "source": click.option(
            "--source",
            metavar="pypi|git|URL|PATH",
            help="Where sglang comes from. Default: pypi for a release, git for any other ref.",
        ),
        "release": click.option(
            "--release",
            metavar="RELEASE",
            help="With a git ref: the release whose patches to apply. Default: the pin.",
        ),
        "offline": click.option("--offline", is_flag=True, help="Use nothing but the cache."),
        "quiet": click.option("--quiet", "-q", is_flag=True, help="No progress."),
    }

    def add(function: _Command) -> _Command:
        for name in reversed(names):
            function = known[name](function)
        return function

    return add


def load(series_dir: Path | None, *, settle: bool = True) -> tuple[Series, Workspace]:
    """The series and the tool's folders. ``settle``: first finish what a killed command was writing."""
    from tool.project import transaction
    from tool.project import workspace as home
    from tool.series import layout as project
    from tool.series import model as series

    root = series_dir.absolute() if series_dir else project.find_root(Path.cwd())
    folders = home.locate_workspace()
    if settle and transaction.pending(folders):
        with folders.exclusive():
            if done := transaction.complete(folders):
                report.note(done)
    return series.load_series(root), folders


def request_of(
    ref: str,
    source: str | None = None,
    release: str | None = None,
    offline: bool = False,
    quiet: bool = False,
) -> Request:
    from tool.series.model import parse_release
    from tool.upstream.resolve import Request

    given: Version | None = parse_release(release) if release else None
    return Request(ref, source, given, offline, quiet)
