"""What a command prints: lines for a person, or one JSON envelope on stdout. Logs go to stderr."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tool.errors import EnvironmentFault, ToolError

PIPE_CLOSED: Final = 141
"""128 + SIGPIPE: the reader (``head``) has seen enough."""
SCHEMA: Final = 2
"""Raised whenever a field of a result is renamed or removed; CHANGELOG.md lists what changed."""


@dataclass(frozen=True)
class Report:
    """``result`` is the envelope's payload, ``lines`` the same for a person. ``warnings`` are for both."""

    result: Mapping[str, Any]
    lines: Sequence[str]
    exit_code: int = 0
    warnings: Sequence[str] = ()


def prepare_streams() -> None:
    """Print what the terminal's encoding does not have as an escape, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_report(command: str, report: Report, *, as_json: bool) -> None:
    """Raises EnvironmentFault when standard output cannot take it (a full disk)."""
    print_warnings(report.warnings)
    if as_json:
        _write(_envelope(command, report.exit_code, report.result, None, report.warnings))
    else:
        _write("\n".join(report.lines))


def print_error(command: str, error: ToolError, *, as_json: bool) -> None:
    if as_json:
        with contextlib.suppress(EnvironmentFault):
            _write(_envelope(command, error.exit_code, None, error.as_dict(), ()))
    _print_to_person(f"error: {error}")


def print_warnings(warnings: Sequence[str]) -> None:
    for text in warnings:
        _print_to_person(f"warning: {text}")


def drop_output() -> None:
    """Give up standard output after it failed, so that Python does not fail again when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns; the first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _write(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        drop_output()
        sys.exit(PIPE_CLOSED)
    except OSError as error:
        drop_output()
        raise EnvironmentFault(
            "the output could not be written",
            where="standard output",
            why=error.strerror,
            next_step="the command itself is done; run it again where its output has room",
        ) from error


def _print_to_person(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _envelope(
    command: str,
    code: int,
    result: Mapping[str, Any] | None,
    error: Mapping[str, Any] | None,
    warnings: Sequence[str],
) -> str:
    body = {
        "schema": SCHEMA,
        "command": command,
        "ok": code == 0,
        "exit_code": code,
        "result": result,
        "error": error,
        "warnings": list(warnings),
    }
    return json.dumps(body, indent=2, default=str)
