"""Upstream threads that patch headers name: pull requests and issues, by number.

A header names them in ``Forwarded``, ``Bug`` or ``Applied-Upstream`` (DEP-3), as ``#35429`` or as a
link. Words in parentheses after one or several of them say what the author knew::

    Forwarded: no
     Upstream threads: #26928 (merged, 0.5.17; GLM on sm_120), #35429 and #35420 (open).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tool.series import patchfile
from tool.series.model import Patch
from tool.series.patchfile import Header

_FIELDS: Final = ("Forwarded", "Bug", "Applied-Upstream")
_THREAD: Final = re.compile(r"(?:https?://\S+/(?:pull|issues)/|(?<![\w#])#)(\d{1,9})\b")
_BETWEEN: Final = re.compile(r"[\s,;]*(?:and|or)?\s*")
_NOTE: Final = re.compile(r"\s*\(([^()]*)\)")
_CLOSED: Final = re.compile(r"(?:merged|closed|superseded)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Thread:
    """``note`` is what the header says about it; ``open`` is False where that is merged or closed."""

    number: int
    note: str
    open: bool
    patches: tuple[str, ...]


def find_threads(patches: Sequence[Patch]) -> list[Thread]:
    """The threads that the headers of ``patches`` name, by number.

    One is open unless a header says that it is not.
    """
    found: dict[int, list[tuple[str, str, bool]]] = {}
    for patch in patches:
        for number, note, is_open in _read(patchfile.parse(patch.name, patch.content).header):
            found.setdefault(number, []).append((patch.name, note, is_open))
    return [
        Thread(
            number,
            next((note for _, note, _ in said if note), ""),
            all(is_open for _, _, is_open in said),
            tuple(dict.fromkeys(name for name, _, _ in said)),
        )
        for number, said in sorted(found.items())
    ]


def _read(header: Header) -> Iterator[tuple[int, str, bool]]:
    for name in _FIELDS:
        text = " ".join((header.get(name) or "").split())
        waiting: list[int] = []
        end = 0
        for match in _THREAD.finditer(text):
            if waiting and not _BETWEEN.fullmatch(text, end, match.start()):
                yield from _settle(waiting, "", name)
                waiting = []
            waiting.append(int(match[1]))
            end = match.end()
            if note := _NOTE.match(text, end):
                yield from _settle(waiting, note[1], name)
                waiting = []
        yield from _settle(waiting, "", name)


def _settle(numbers: Sequence[int], note: str, field: str) -> Iterator[tuple[int, str, bool]]:
    is_open = field != "Applied-Upstream" and not _CLOSED.match(note)
    yield from ((number, note, is_open) for number in numbers)
