"""What a command prints: lines for a person, or one JSON envelope on stdout. Logs go to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tool.errors import ToolError

SCHEMA: Final = 2
"""Raised whenever a field of a result is renamed or removed; CHANGELOG.md lists what changed."""


@dataclass(frozen=True)
class Report:
    """``result`` is the envelope's payload, ``lines`` the same for a person."""

    result: Mapping[str, Any]
    lines: Sequence[str]
    exit_code: int = 0


def print_report(command: str, report: Report, *, as_json: bool) -> None:
    if as_json:
        _print_envelope(command, report.exit_code, report.result, None)
    else:
        print("\n".join(report.lines))


def print_error(command: str, error: ToolError, *, as_json: bool) -> None:
    if as_json:
        _print_envelope(command, error.exit_code, None, error.as_dict())
    print(f"error: {error}", file=sys.stderr)


def format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns; the first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _print_envelope(
    command: str, code: int, result: Mapping[str, Any] | None, error: Mapping[str, Any] | None
) -> None:
    body = {
        "schema": SCHEMA,
        "command": command,
        "ok": code == 0,
        "exit_code": code,
        "result": result,
        "error": error,
    }
    print(json.dumps(body, indent=2, default=str))
