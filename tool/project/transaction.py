"""Several files of the project and of the data folder, changed together or not at all.

A journal in the data folder holds the old and the new content of each file. It is written first and
removed last, so whoever runs next finds either no journal, and files that were not touched, or a
journal, and completes it. Until then it can also be taken back.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tool import atomic
from tool.errors import IntegrityError
from tool.project.workspace import Workspace

_NAME: Final = "project.json"


def commit(
    home: Workspace,
    root: Path,
    files: Mapping[str, bytes | None],
    *,
    data: Mapping[str, bytes | None] | None = None,
) -> None:
    """Give ``files`` (paths below ``root``) and then ``data`` (paths in the data folder) their content;
    None removes one."""
    body = {
        "root": str(root),
        "files": {name: _versions(root / name, new) for name, new in files.items()},
        "data": {name: _versions(home.data / name, new) for name, new in (data or {}).items()},
    }
    atomic.write(_path(home), json.dumps(body).encode())
    complete(home)


def pending(home: Workspace) -> bool:
    return _path(home).is_file()


def holds(home: Workspace, name: str) -> bool:
    """Does a transaction that was begun write or remove ``name`` in the data folder?"""
    body = _begun(home)
    return body is not None and name in body["data"]


def complete(home: Workspace) -> str | None:
    """Finish a transaction that was begun; a sentence about it, or None when there is none.

    Raises:
        IntegrityError: a file was edited since; it then keeps what it holds.
    """
    return _settle(home, back=False)


def roll_back(home: Workspace) -> str | None:
    """Undo a transaction that was begun; as ``complete``."""
    return _settle(home, back=True)


def _settle(home: Workspace, *, back: bool) -> str | None:
    body = _begun(home)
    if body is None:
        return None
    root = Path(body["root"])
    files = {name: (_unpack(old), _unpack(new)) for name, (old, new) in body["files"].items()}
    for name, versions in files.items():
        if _read(root / name) not in versions:
            raise IntegrityError(
                "was edited while a rebase was being written",
                where=str(root / name),
                why="an interrupted command left the project between two states",
                next_step="restore the file from version control, then run the same command again",
            )
    for name, (old, new) in files.items():
        _write(root / name, old if back else new)
    for name, versions in body["data"].items():
        _write(home.data / name, _unpack(versions[0 if back else 1]))
    _path(home).unlink()
    return f"{'took back' if back else 'finished'} an interrupted change of {root}"


def _begun(home: Workspace) -> dict[str, Any] | None:
    try:
        body: dict[str, Any] = json.loads(_path(home).read_bytes())
    except FileNotFoundError:
        return None
    return body


def _versions(path: Path, new: bytes | None) -> list[str | None]:
    """What ``path`` holds and will hold, as the journal keeps it."""
    return [_pack(_read(path)), _pack(new)]


def _write(path: Path, data: bytes | None) -> None:
    if data is None:
        atomic.remove(path)
    else:
        atomic.write(path, data)


def _read(path: Path) -> bytes | None:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def _pack(data: bytes | None) -> str | None:
    import base64  # every command looks for a journal, few write or read one

    return None if data is None else base64.b64encode(data).decode()


def _unpack(text: str | None) -> bytes | None:
    import base64

    return None if text is None else base64.b64decode(text)


def _path(home: Workspace) -> Path:
    return home.data / _NAME
