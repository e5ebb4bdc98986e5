"""RECORD of a wheel: one row for each file."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from tool.errors import IntegrityError

_MAX_ROWS: Final = 1 << 18


class RecordRow(NamedTuple):
    """A RECORD line: sha256 as 64 hex digits and size in bytes; None where RECORD leaves it out."""

    sha256: str | None
    size: int | None


def parse_record(data: bytes, where: str) -> dict[str, RecordRow]:
    """RECORD's rows by path, in order.

    Raises:
        IntegrityError: a row that does not parse, a hash other than sha256, or a path named twice.
    """
    rows: dict[str, RecordRow] = {}
    try:
        lines = csv.reader(io.StringIO(data.decode("utf-8"), newline=""), strict=True)
        for path, digest, size in lines:
            if path in rows:
                raise ValueError(f"{path} stands twice")
            if len(rows) == _MAX_ROWS:
                raise ValueError(f"more than {_MAX_ROWS} rows")
            rows[path] = RecordRow(_unpack_hash(digest), _parse_size(size))
    except (ValueError, csv.Error) as err:
        raise IntegrityError(
            f"RECORD row {len(rows) + 1} is broken", where=where, why=str(err)
        ) from err
    return rows


def format_record(rows: Iterable[tuple[str, RecordRow]]) -> bytes:
    """RECORD as setuptools and pip write it: CSV, a newline after each row, quotes where needed."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    for path, row in rows:
        digest = "" if row.sha256 is None else _pack_hash(row.sha256)
        writer.writerow((path, digest, "" if row.size is None else row.size))
    return text.getvalue().encode()


def _pack_hash(digest: str) -> str:
    packed = base64.urlsafe_b64encode(bytes.fromhex(digest)).rstrip(b"=").decode()
    return f"sha256={packed}"


def _unpack_hash(text: str) -> str | None:
    if not text:
        return None
    name, _, value = text.partition("=")
    if name != "sha256" or not re.fullmatch(r"[A-Za-z0-9_-]{43}", value):
        raise ValueError(f"{text!r} is not a sha256")
    return base64.urlsafe_b64decode(value + "=").hex()


def _parse_size(text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise ValueError(f"{text[:40]!r} is not a size")
    return int(text)
