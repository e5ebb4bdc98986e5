"""Git object ids computed from content, so that a wheel can be compared with a commit without git.

Object format: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

FILE = "100644"
EXECUTABLE = "100755"
_TREE = "40000"


def blob_id(data: bytes) -> str:
    """The id (40 hex digits) git gives a file with this content."""
    return object_id("blob", data)


def object_id(kind: str, data: bytes) -> str:
    """The id of an object of this kind (``blob``, ``tree``, ``commit``, ``tag``) with this content."""
    return hashlib.sha1(b"%b %d\0" % (kind.encode(), len(data)) + data).hexdigest()


def blob_header(size: int) -> bytes:
    """What git hashes before a file's ``size`` bytes of content."""
    return b"blob %d\0" % size


def file_mode(permissions: int) -> str:
    """Git's mode for a regular file: executable when its owner may execute it."""
    return EXECUTABLE if permissions & 0o100 else FILE


def tree_id(files: Mapping[str, tuple[str, str]]) -> str:
    """The id of the tree holding ``files``: path → (mode, blob id), paths with forward slashes.

    No path may be a folder of another one.
    """
    entries: dict[str, tuple[str, str]] = {}
    folders: dict[str, dict[str, tuple[str, str]]] = {}
    for path, entry in files.items():
        head, slash, rest = path.partition("/")
        if slash:
            folders.setdefault(head, {})[rest] = entry
        else:
            entries[head] = entry
    for name, below in folders.items():
        entries[name] = (_TREE, tree_id(below))
    # Git sorts a folder as if its name ended in a slash.
    order = sorted(entries, key=lambda n: (n + "/" if entries[n][0] == _TREE else n).encode())
    body = b"".join(
        f"{entries[name][0]} {name}\0".encode() + bytes.fromhex(entries[name][1]) for name in order
    )
    return object_id("tree", body)


def commit_id(tree: str, parent: str, identity: str, date: str, message: str) -> str:
    """The id of a commit with one parent whose author and committer are ``identity`` at ``date``.

    ``identity`` is ``NAME <MAIL>``, ``date`` seconds and zone, as git writes them.
    """
    body = (
        f"tree {tree}\nparent {parent}\nauthor {identity} {date}\n"
        f"committer {identity} {date}\n\n{message}"
    ).encode()
    return object_id("commit", body)


NULL_OID = "0" * 40
"""Blob id that stands for "no such file", as in git's raw diff."""
