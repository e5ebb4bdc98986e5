"""What can be verified, seen alike: the files of a wheel or a folder, each read and hashed once."""

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
from tool.wheel import CHUNK, Wheel

INSTALLER_FILES: Final = frozenset({"INSTALLER", "REQUESTED", "direct_url.json"})
"""What an installer writes into dist-info, different on every machine."""


class File(NamedTuple):
    """``sha256`` and git ``blob`` id in hex, ``mode`` as git writes it, ``size`` in bytes."""

    sha256: str
    blob: str
    mode: str
    size: int


@dataclass(frozen=True)
class Difference:
    """One way in which the subject is not what it should be; ``path`` names the file."""

    path: str
    problem: str
    expected: str | None = None
    found: str | None = None

    def __str__(self) -> str:
        text = f"{self.path}: {self.problem}"
        if self.expected is not None or self.found is not None:
            text += f" (expected {self.expected or 'none'}, found {self.found or 'none'})"
        return text


class FileSet(Protocol):
    """``files`` by wheel member name (``sglang/…``); ``broken`` could not be read as files."""

    @property
    def files(self) -> Mapping[str, File]: ...

    @property
    def broken(self) -> tuple[Difference, ...]: ...

    def read(self, name: str) -> bytes:
        """Content of one of ``files``."""


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
                broken.append(Difference(name, err.message))
            else:
                files[name] = File(sha256, blob, file_mode(member.mode), member.size)
        self.files: Mapping[str, File] = files
        self.broken = tuple(broken)

    def read(self, name: str) -> bytes:
        return self._wheel.read(name)


class FolderFiles:
    """Folders below ``root``, and single files an installer put beside them.

    Byte code and the installer's own notes are not part of the subject. ``links`` accepts a file
    that is a link (some installers link to a cache); a folder that is one never is.

    Raises:
        EnvironmentFault: something cannot be read.
    """

    def __init__(
        self, root: Path, folders: Iterable[str], singles: Iterable[str] = (), *, links: bool
    ) -> None:
        self._root = root
        self._links = links
        files: dict[str, File] = {}
        broken: list[Difference] = []
        names = [n for folder in folders for n in self._walk(root / folder, broken)]
        names += [n for n in singles if (root / n).is_file()]
        for name in names:
            path = root / name
            try:
                if path.is_symlink() and not links:
                    broken.append(Difference(name, "a link where a file should be"))
                    continue
                with path.open("rb") as stream:
                    status = os.fstat(stream.fileno())
                    chunks = iter(functools.partial(stream.read, CHUNK), b"")
                    sha256, blob = _hashes(chunks, status.st_size)
            except OSError as err:
                raise EnvironmentFault(f"cannot read: {err.strerror}", where=str(path)) from err
            mode = file_mode(stat.S_IMODE(status.st_mode))
            files[name] = File(sha256, blob, mode, status.st_size)
        self.files: Mapping[str, File] = files
        self.broken = tuple(broken)

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def _walk(self, top: Path, broken: list[Difference]) -> Iterator[str]:
        for folder, subfolders, names in os.walk(top, onerror=_raise):
            here = Path(folder).relative_to(self._root).as_posix()
            subfolders[:] = sorted(n for n in subfolders if n != "__pycache__")
            for name in subfolders:
                if Path(folder, name).is_symlink():
                    broken.append(Difference(f"{here}/{name}", "a link where a folder should be"))
            note = here.endswith(".dist-info") and "/" not in here
            for name in sorted(names):
                if not (name.endswith(".pyc") or (note and name in INSTALLER_FILES)):
                    yield f"{here}/{name}"


def _raise(err: OSError) -> None:
    raise EnvironmentFault(f"cannot read: {err.strerror}", where=str(err.filename)) from err


def _hashes(chunks: Iterable[bytes], size: int) -> tuple[str, str]:
    sha256, blob = hashlib.sha256(), hashlib.sha1(blob_header(size))
    for chunk in chunks:
        sha256.update(chunk)
        blob.update(chunk)
    return sha256.hexdigest(), blob.hexdigest()
