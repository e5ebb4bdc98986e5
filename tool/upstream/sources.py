"""Git repositories that a project remembers under a name, so that ``NAME/branch`` names a commit everywhere.

They are in the project's part of the data folder, which is not committed. A URL may hold a login, so the file
can be read by its owner alone, and whatever is shown has the login masked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tool import atomic
from tool.errors import IntegrityError, UsageError
from tool.project import Session
from tool.upstream.git_source import (
    GitSource,
    check_url,
    fetch_source,
    forget_source,
    make_source,
    mask_login,
)

SOURCES_FILE: Final = "sources.json"
_FORMAT: Final = 1
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_RESERVED: Final = frozenset({"pypi", "git", "pin", "refs", "heads", "tags", "HEAD"})


def list_sources(session: Session) -> dict[str, GitSource]:
    """The sources of the project by name. Reads only.

    Raises:
        IntegrityError: the file that holds them cannot be read.
    """
    return {name: make_remembered(name, url) for name, url in _load(session.folder).items()}


def make_remembered(name: str, url: str) -> GitSource:
    """The source ``name``; a path that is not there any more is left to whoever uses it."""
    try:
        return make_source(url, name)
    except UsageError:
        return GitSource(url, {}, name)


def add_source(session: Session, name: str, text: str) -> GitSource:
    """Remember ``text``, a URL or a path, as ``name``, and fetch its HEAD and its release tags.

    Raises:
        UsageError: the name is taken or reserved, or ``text`` is no source.
        EnvironmentFault: it cannot be reached; nothing is remembered then.
    """
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise UsageError(
            f"{name!r:.60} cannot be the name of a source",
            why="a name has letters, digits, - and _, begins with a letter, and is none of "
            + ", ".join(sorted(_RESERVED)),
            next_step="tool source add upstream URL",
        )
    url = check_url(text)
    with session.exclusive():
        known = _load(session.folder)
        if name in known and known[name] != url:
            raise UsageError(
                f"{name} is {mask_login(known[name])} already",
                next_step=f"choose another name, or first: tool source remove {name}",
            )
        source = make_source(url, name)
        fetch_source(session, source, first=True)
        _save(session.folder, {**known, name: url})
    return source


def refresh_sources(session: Session, name: str | None) -> dict[str, tuple[str, ...]]:
    """Fetch the source ``name``, or every one, anew; which of its refs moved, by source.

    Raises:
        UsageError: there is no such source.
        EnvironmentFault: one cannot be reached.
    """
    with session.exclusive():
        known = list_sources(session)
        chosen = [get_source(session, name)] if name else list(known.values())
        return {str(source.name): fetch_source(session, source) for source in chosen}


def remove_source(session: Session, name: str) -> GitSource:
    """Forget the source ``name`` and the refs that were fetched of it.

    Raises:
        UsageError: there is no such source.
    """
    with session.exclusive():
        source = get_source(session, name)
        # Another project, or another name, may go on using what was fetched from that URL.
        if sum(other.url == source.url for other in _list_everywhere(session)) == 1:
            forget_source(session.git, source)
        # Last, because a command that was stopped before can be given again as long as the name is there.
        known = _load(session.folder)
        del known[name]
        _save(session.folder, known)
    return source


def get_source(session: Session, name: str) -> GitSource:
    """Raises UsageError when the project has no source ``name``."""
    known = list_sources(session)
    if name not in known:
        raise UsageError(
            f"the project has no source {name}",
            why=f"sources: {', '.join(sorted(known)) or 'none'}",
            next_step=f"tool source add {name} URL|PATH",
        )
    return known[name]


def _list_everywhere(session: Session) -> list[GitSource]:
    """The sources of every project in the data folder."""
    found: list[GitSource] = []
    for path in sorted((session.workspace.data / "projects").glob(f"*/{SOURCES_FILE}")):
        found += [make_remembered(name, url) for name, url in _load(path.parent).items()]
    return found


def _load(folder: Path) -> dict[str, str]:
    path = folder / SOURCES_FILE
    try:
        raw = json.loads(path.read_bytes())
        if raw["format"] != _FORMAT:
            raise ValueError(f"format {raw['format']}, this tool reads {_FORMAT}")
        found = dict(raw["sources"])
        for name, url in found.items():
            if not _NAME.fullmatch(name) or not isinstance(url, str) or url.startswith("-"):
                raise ValueError("a source is not a name and a URL")
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise IntegrityError(
            "the sources of the project cannot be read",
            where=str(path),
            why=f"{type(error).__name__}: {mask_login(str(error))}",
            next_step="remove the file, then name them again: tool source add NAME URL|PATH",
        ) from error


def _save(folder: Path, sources: Mapping[str, str]) -> None:
    body = {"format": _FORMAT, "sources": dict(sorted(sources.items()))}
    atomic.write(folder / SOURCES_FILE, json.dumps(body, indent=1).encode(), mode=0o600)
