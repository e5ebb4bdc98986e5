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
    # Paths in byte order are in git's order for each folder: there, a folder's name ends in a slash.
    open_folders: list[tuple[bytes, bytearray]] = [(b"", bytearray())]

    def close() -> str:
        name, body = open_folders.pop()
        oid = object_id("tree", bytes(body))
        if open_folders:
            open_folders[-1][1].extend(b"%b %b\0" % (_TREE.encode(), name) + bytes.fromhex(oid))
        return oid

    for path, (mode, blob) in sorted((p.encode(), entry) for p, entry in files.items()):
        *folders, name = path.split(b"/")
        same = 0
        while same < min(len(folders), len(open_folders) - 1) and (
            folders[same] == open_folders[same + 1][0]
        ):
            same += 1
        while len(open_folders) > same + 1:
            close()
        open_folders += [(folder, bytearray()) for folder in folders[same:]]
        open_folders[-1][1].extend(b"%b %b\0" % (mode.encode(), name) + bytes.fromhex(blob))
    while len(open_folders) > 1:
        close()
    return close()


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
