"""What a command is about to change, written down before it begins and removed when it is done.

A journal belongs to one project: it is a JSON file in the project's part of the data folder. A command
that finds one finishes or undoes the change. One that cannot be read, or acted upon, never stops a
command that only reads; ``tool repair`` deals with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tool import atomic
from tool.errors import IntegrityError

_FORMAT: Final = 1
_TOKEN: Final = re.compile(r"[0-9a-f]{32}")
REPAIR: Final = "see what can be done: tool repair --dry-run; do it: tool repair"


@dataclass(frozen=True)
class Recovery:
    """One interrupted change: ``what`` it was, and what was or would be done about it.

    ``problem`` says why nothing can be done; the journal is then still there.
    """

    project: str
    what: str
    action: str
    problem: str | None = None

    def __str__(self) -> str:
        if self.problem:
            return f"{self.what} is unfinished: {self.problem}"
        return f"{self.what}: {self.action}"


@dataclass(frozen=True)
class Journal:
    """The journal ``kind`` (its file's stem) in the project's folder ``folder``."""

    folder: Path
    kind: str

    @property
    def path(self) -> Path:
        return self.folder / f"{self.kind}.json"

    @property
    def exists(self) -> bool:
        return self.path.is_file()

    def write(self, body: Mapping[str, Any]) -> None:
        """Begin a change.

        Raises:
            IntegrityError: an earlier one is unfinished.
        """
        if self.exists:
            raise self.unfinished()
        atomic.write(self.path, json.dumps({"format": _FORMAT, **body}).encode())

    def read(self) -> dict[str, Any] | None:
        """The body; None when there is no journal.

        Raises:
            IntegrityError: it is damaged, or of another version of the tool.
        """
        try:
            body = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise self.damaged(error) from error
        if not isinstance(body, dict) or body.pop("format", None) != _FORMAT:
            raise self.damaged(ValueError("not a journal of this version of the tool"))
        return body

    def unfinished(self) -> IntegrityError:
        return IntegrityError(
            "an interrupted change of this project is unfinished",
            where=str(self.path),
            next_step=REPAIR,
        )

    def damaged(self, error: Exception) -> IntegrityError:
        return IntegrityError(
            "the journal of an interrupted change cannot be read",
            where=str(self.path),
            why=f"{type(error).__name__}: {error}",
            next_step=REPAIR,
        )

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def set_aside(self) -> Path:
        """Rename the journal, so that no command meets it again; returns where it is."""
        return set_aside(self.path)


def set_aside(path: Path) -> Path:
    """Rename ``path`` to a free name that ends in ``.damaged-N``."""
    number = 1
    while (free := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(free)
    return free


def is_token(text: object) -> bool:
    return isinstance(text, str) and _TOKEN.fullmatch(text) is not None
