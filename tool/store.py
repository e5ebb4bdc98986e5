"""What was worked out once, kept for the next command.

A value follows from the words it is kept under, from this tool and from Python. All three name its
entry, so none is ever out of date; one that is damaged counts as missing. The folder may be deleted
at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, Final

_DIGEST: Final = 64


class Store:
    """JSON values in a folder below ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, *words: object) -> Any:
        """The value kept under ``words``, whose text must say all it follows from; None: no value."""
        try:
            entry = self._path(words).read_bytes()
        except OSError:
            return None
        digest, body = entry[:_DIGEST], entry[_DIGEST:]
        return json.loads(body) if _hex(body).encode() == digest else None

    def put(self, value: Any, *words: object) -> None:
        """Keep ``value``; where that cannot be written, it will be worked out again."""
        body = json.dumps(value).encode()
        with contextlib.suppress(OSError):
            # Written in place: what a kill cuts short is damaged, and so missing.
            self._path(words).write_bytes(_hex(body).encode() + body)

    def _path(self, words: tuple[object, ...]) -> Path:
        return self._folder / _hex(repr((sys.version, *words)).encode())

    @cached_property
    def _folder(self) -> Path:
        """The entries of this very program; those of other ones go."""
        sources = sorted(Path(__file__).parent.glob("*.py"))
        folder = self._root / _hex(b"".join(source.read_bytes() for source in sources))
        if not folder.is_dir():
            import shutil

            shutil.rmtree(self._root, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        return folder


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
