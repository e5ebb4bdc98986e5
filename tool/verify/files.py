"""The files of a wheel or a folder, seen alike; each is read and hashed once."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from tool.errors import EnvironmentFault, IntegrityError
from tool.git import blob_header, file_mode
from tool.wheel import CHUNK, READ_LIMIT, NotRegularError, Wheel, open_regular

INSTALLER_FILES: Final = frozenset(
    {"INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"}
)
"""What pip and uv write into dist-info about the installation; Python executes none of it."""

_MAX_FILES: Final = 200_000
_MAX_BYTES: Final = 8 << 30
"""Bytes of all files of a folder together: what is larger is no release, and hashing has to end."""
_MAX_PATH: Final = 512


class File(NamedTuple):
    """``sha256`` and git ``blob`` id in hex, ``mode`` as git writes it, ``size`` in bytes."""

    sha256: str
    blob: str
    mode: str
    size: int


@dataclass(frozen=True)
class Difference:
    """One way in which the file set is not what it should be; ``path`` names the file."""

    path: str
    problem: str
    expected: str | None = None
    found: str | None = None

    def __str__(self) -> str:
        text = f"{self.path}: {self.problem}"
        if self.expected is not None or self.found is not None:
            text += f" (expected {self.expected or 'none'}, found {self.found or 'none'})"
        return text


@dataclass(frozen=True)
class Unproven:
    """A file, or a class of files, that nothing at hand confirms or refutes, and why."""

    path: str
    reason: str


class FileSet(Protocol):
    """``files`` by wheel member name (``sglang/…``); ``broken`` could not be read as files."""

    @property
    def files(self) -> Mapping[str, File]: ...

    @property
    def broken(self) -> tuple[Difference, ...]: ...

    def read(self, name: str) -> bytes:
        """Content of one of ``files``. Raises IntegrityError for one of more than READ_LIMIT bytes."""


class WheelFiles:
    """An open wheel."""

    def __init__(self, wheel: Wheel) -> None:
        self._wheel = wheel
        files: dict[str, File] = {}
        broken: list[Difference] = []
        for name, member in wheel.members.items():
            try:
                sha256, blob = _hashes(wheel.chunks(name), member.size)
            except IntegrityError as err:
                broken.append(Difference(name, err.message, None, err.why))
            else:
                files[name] = File(sha256, blob, file_mode(member.mode), member.size)
        self.files: Mapping[str, File] = files
        self.broken = tuple(broken)

    def read(self, name: str) -> bytes:
        return self._wheel.read(name)


class FolderFiles:
    """The regular files in ``folders`` below ``root``, and single files beside them.

    A link, FIFO, socket or device is never read and stands in ``broken``; so do names that are not
    UTF-8 and paths that are too long. What an installer notes in dist-info is left out. ``bytecode``
    are the ``.pyc`` files in ``__pycache__`` folders, not read yet.

    Args:
        folders: relative paths; ``""`` stands for ``root`` itself.
        links: accept a file that is a link to a regular file, as some installers make them. A folder
            that is a link is never accepted.

    Raises:
        EnvironmentFault: something cannot be read.
    """

    def __init__(
        self, root: Path, folders: Iterable[str], singles: Iterable[str] = (), *, links: bool
    ) -> None:
        self.root = root
        self._links = links
        self._broken: list[Difference] = []
        names = [name for folder in folders for name in self._walk(folder)]
        names += [name for name in singles if os.path.lexists(root / name)]
        self.bytecode = sorted(n for n in names if n.endswith(".pyc") and _is_cached(n))
        files: dict[str, File] = {}
        left = _MAX_BYTES
        for name in names:
            if name.endswith(".pyc") and _is_cached(name):
                continue
            file = self._hash(name, left)
            if file is not None:
                files[name] = file
                left -= file.size
        self.files: Mapping[str, File] = files

    @property
    def broken(self) -> tuple[Difference, ...]:
        return tuple(self._broken)

    def read(self, name: str) -> bytes:
        with open_regular(self.root / name, links=self._links) as stream:
            data = stream.read(READ_LIMIT + 1)
        if len(data) > READ_LIMIT:
            raise IntegrityError(f"the file has more than {READ_LIMIT} bytes", where=name)
        return data

    def _hash(self, name: str, left: int) -> File | None:
        path = self.root / name
        try:
            with open_regular(path, links=self._links) as stream:
                status = os.fstat(stream.fileno())
                if status.st_size > left:
                    self._broken.append(Difference(name, "larger than the files of any release"))
                    return None
                sha256, blob = _hashes(
                    iter(functools.partial(stream.read, CHUNK), b""), status.st_size
                )
        except NotRegularError as err:
            self._broken.append(Difference(name, str(err)))
            return None
        except OSError as err:
            if path.is_symlink():
                self._broken.append(Difference(name, "a link that leads to no file"))
                return None
            raise EnvironmentFault(f"cannot read: {err.strerror}", where=str(path)) from err
        return File(sha256, blob, file_mode(stat.S_IMODE(status.st_mode)), status.st_size)

    def _walk(self, top: str) -> Iterator[str]:
        """The names of all files below ``top``. Not recursive: a hostile tree may be deep."""
        if top and (self.root / top).is_symlink():
            self._broken.append(Difference(top, "a link where a folder should be"))
            return
        waiting, count = [top], 0
        while waiting:
            folder = waiting.pop()
            note = folder.endswith(".dist-info") and "/" not in folder
            try:
                with os.scandir(self.root / folder) as entries:
                    found = sorted(entries, key=lambda e: e.name)
            except OSError as err:
                where = str(self.root / folder)
                raise EnvironmentFault(f"cannot read: {err.strerror}", where=where) from err
            for entry in found:
                name = f"{folder}/{entry.name}" if folder else entry.name
                count += 1
                if count > _MAX_FILES:
                    self._broken.append(Difference(top, f"more than {_MAX_FILES} files"))
                    return
                if len(name) > _MAX_PATH:
                    self._broken.append(Difference(name[:80] + "…", "a path that is too long"))
                elif not _is_utf8(name):
                    self._broken.append(Difference(name, "a name that is not UTF-8"))
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(name)
                elif entry.is_symlink() and (self.root / name).is_dir():
                    self._broken.append(Difference(name, "a link where a folder should be"))
                elif not (note and entry.name in INSTALLER_FILES):
                    yield name


def _is_cached(name: str) -> bool:
    return name.split("/")[-2:-1] == ["__pycache__"]


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hashes(chunks: Iterable[bytes], size: int) -> tuple[str, str]:
    sha256, blob = hashlib.sha256(), hashlib.sha1(blob_header(size))
    for chunk in chunks:
        sha256.update(chunk)
        blob.update(chunk)
    return sha256.hexdigest(), blob.hexdigest()
