"""Read a wheel without trusting it, and write one whose bytes depend on its content alone.

A zip archive states each member twice, in a local header before its data and in the directory at the
end. Installers differ in which of the two they read. So a wheel is accepted only when both say the
same and every byte of the file belongs to a member, to the directory or to the end record:

- the end record is the last 22 bytes, without a comment, and its counts and offsets are right;
- the members lie in the order of the directory, each where the one before it ends, the first at 0;
- a local header equals its directory entry in every field, and neither has an extra field or comment;
- no data descriptor, encryption, zip64, or compression other than deflate;
- a name is ASCII or marked as UTF-8, is a plain relative path, and occurs once;
- a member's data is one deflate stream, or stored bytes, of the stated size and CRC.

Writing copies a member's compressed bytes as they are, or stores new data uncompressed, so the result
does not depend on the zlib at hand.

Zip layout: PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16. RECORD: the binary distribution
format of packaging.python.org; it is CSV, and hundreds of sglang's file names contain commas.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, NamedTuple

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from tool.errors import IntegrityError, UsageError

CHUNK: Final = 1 << 18
"""Bytes read at a time: large enough for hashing to dominate, small in memory."""

READ_LIMIT: Final = 16 << 20
"""Bytes of the largest file that is read into memory whole: METADATA, RECORD, a Python file."""

_LOCAL: Final = struct.Struct("<4s5H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_ZIP_VERSION: Final = 20
_UNIX: Final = 3
_STORED: Final = 0
_DEFLATED: Final = 8
_UTF8_NAME: Final = 0x800
_LEVEL: Final = 0x6
"""Flag bits in which a deflated member notes how hard its writer tried; no reader uses them."""
_DOS_FOLDER: Final = 0x10
_DOS_LABEL: Final = 0x8
_DATE_1980: Final = 0x21
"""1 January 1980, the earliest date a zip can hold, with time 0."""
_LIMIT: Final = 0xFFFFFFFF
_MAX_MEMBERS: Final = 0xFFFE
_MAX_DIRECTORY: Final = 64 << 20
_MAX_CONTENT: Final = 2 << 30
"""Bytes of all members together. The largest release has 123 MB; more is a bomb."""
_MAX_NAME: Final = 512

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Member(NamedTuple):
    """One file of a wheel. ``packed`` bytes at ``offset`` hold ``size`` bytes, CRC-32 ``crc``."""

    name: str
    mode: int
    method: int
    crc: int
    size: int
    packed: int
    offset: int


@dataclass(frozen=True)
class WheelName:
    """A wheel file name; ``tags`` as written: ``cp311-cp311-manylinux_2_34_x86_64``."""

    distribution: str
    version: Version
    tags: str

    @classmethod
    def parse(cls, filename: str) -> WheelName:
        """Raises UsageError when ``filename`` is not name-version-python-abi-platform.whl."""
        try:
            distribution, version, build, _ = parse_wheel_filename(filename)
        except (InvalidWheelFilename, ValueError) as err:
            raise UsageError("not a wheel file name", where=filename, why=str(err)) from err
        if build:
            raise UsageError("a wheel with a build tag is no sglang release", where=filename)
        return cls(distribution, version, filename.removesuffix(".whl").split("-", 2)[2])

    @property
    def filename(self) -> str:
        return f"{self.distribution}-{self.version}-{self.tags}.whl"

    @property
    def dist_info(self) -> str:
        return f"{self.distribution}-{self.version}.dist-info"


def unsafe_name(name: str) -> str | None:
    """Why ``name`` must not be a member of a wheel; None for a plain relative path."""
    if not name or name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "an absolute path"
    if len(name) > _MAX_NAME:
        return f"a path of more than {_MAX_NAME} characters"
    if "\\" in name:
        return "a backslash in the path"
    if _CONTROL.search(name):
        return "a control character in the path"
    if not {"", ".", ".."}.isdisjoint(name.split("/")):
        return "an empty, '.' or '..' part in the path"
    return None


def open_regular(path: Path, *, links: bool = False) -> BinaryIO:
    """Open a regular file; never waits for a FIFO and never reads a device.

    Args:
        links: accept a symbolic link to a regular file.

    Raises:
        NotRegularError: ``path`` is something else.
        OSError: it cannot be opened.
    """
    _check_regular(path, path.stat(follow_symlinks=links))
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _check_regular(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


class NotRegularError(Exception):
    """A link, a folder, a FIFO, a socket or a device stands where a file should be."""


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise NotRegularError("a link where a file should be")
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularError("not a regular file")


class Wheel:
    """A wheel opened for reading; every rule of the module docstring but the last holds once it is open.

    The last one, about a member's data, is checked whenever the member is read. ``members`` are the
    files by name in archive order; folder entries hold nothing and are left out.

    Raises:
        IntegrityError: the archive is damaged, or can be read in more than one way.
        UsageError: there is no such file, or its name is not a wheel's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = WheelName.parse(path.name)
        try:
            self._file = open_regular(path, links=True)
        except NotRegularError as err:
            raise UsageError(f"cannot read the wheel: {err}", where=str(path)) from err
        except OSError as err:
            raise UsageError(f"cannot read the wheel: {err.strerror}", where=str(path)) from err
        try:
            self.members: Mapping[str, Member] = self._scan()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Wheel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def file_size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def sha256(self) -> str:
        """Hash of the whole file, in hex."""
        digest = hashlib.sha256()
        for chunk in self._range(0, self.file_size):
            digest.update(chunk)
        return digest.hexdigest()

    def chunks(self, name: str) -> Iterator[bytes]:
        """The member's content, at most CHUNK bytes at a time.

        Raises:
            IntegrityError: the data is not one stream of the stated size and CRC.
        """
        member = self.members[name]
        crc = size = 0
        packed = self.packed(name)
        for chunk in packed if member.method == _STORED else _inflate(packed, name):
            size += len(chunk)
            if size > member.size:
                break
            crc = zlib.crc32(chunk, crc)
            yield chunk
        if (size, crc) != (member.size, member.crc):
            raise _damaged(name, "its size or CRC is not the stated one")

    def read(self, name: str) -> bytes:
        """The member's whole content.

        Raises:
            IntegrityError: the wheel has no such member, or it is damaged or larger than READ_LIMIT.
        """
        if name not in self.members:
            raise IntegrityError("the wheel has no such file", where=f"{self.path.name}: {name}")
        if self.members[name].size > READ_LIMIT:
            raise IntegrityError(f"the file has more than {READ_LIMIT} bytes", where=name)
        return b"".join(self.chunks(name))

    def packed(self, name: str) -> Iterator[bytes]:
        """The member's bytes as the archive holds them, compressed or not."""
        member = self.members[name]
        return self._range(member.offset, member.packed)

    def _range(self, offset: int, length: int) -> Iterator[bytes]:
        descriptor, end = self._file.fileno(), offset + length
        while offset < end:
            chunk = os.pread(descriptor, min(CHUNK, end - offset), offset)
            if not chunk:
                raise IntegrityError("the wheel ends early", where=str(self.path))
            offset += len(chunk)
            yield chunk

    def _scan(self) -> dict[str, Member]:
        directory, start, count = self._find_directory()
        members: dict[str, Member] = {}
        names: list[str] = []
        at = end = content = 0
        for _ in range(count):
            member, at, end = self._scan_member(directory, at, end)
            names.append(member.name.removesuffix("/"))
            content += member.size
            if not member.name.endswith("/"):
                members[member.name] = member
        if at != len(directory) or end != start:
            raise self._damage("bytes stand between the members and the directory, or after it")
        if content > _MAX_CONTENT:
            raise self._damage(
                f"its members would have {content} bytes, {_MAX_CONTENT} is the limit"
            )
        # A slash sorts as the lowest character, so what is below a name comes right after it.
        for one, two in itertools.pairwise(sorted(names, key=lambda n: n.replace("/", "\0"))):
            if one == two:
                raise self._refuse(two, "two members of one name")
            if two.startswith(f"{one}/") and one in members:
                raise self._refuse(one, "a file and a folder of one name")
        return members

    def _find_directory(self) -> tuple[bytes, int, int]:
        """The directory's bytes, where it starts, and how many members it lists."""
        size = self.file_size
        if size < _END.size:
            raise self._damage("it is too short for a zip archive")
        magic, disk, first, here, count, length, start, comment = _END.unpack(
            b"".join(self._range(size - _END.size, _END.size))
        )
        if magic != b"PK\x05\x06" or comment:
            raise self._damage(
                "it does not end with the zip end record: bytes are missing or follow"
            )
        if count > _MAX_MEMBERS or _LIMIT in (start, length):
            raise self._damage("it uses the zip64 format")
        if (disk, first, here) != (0, 0, count) or length > _MAX_DIRECTORY:
            raise self._damage("the numbers in its end record are wrong")
        if start + length != size - _END.size:
            raise self._damage(
                "bytes stand before the first member or after the directory, or some are missing"
            )
        return b"".join(self._range(start, length)), start, count

    def _scan_member(self, directory: bytes, at: int, begin: int) -> tuple[Member, int, int]:
        """The member whose entry is at ``at``; where the next entry is, and where its data ends."""
        if len(directory) - at < _CENTRAL.size:
            raise self._damage("its directory ends early")
        (magic, made, version, flags, method, time, date, crc, packed, size, length, extra,
         comment, disk, _, attributes, offset) = _CENTRAL.unpack_from(directory, at)  # fmt: skip
        at += _CENTRAL.size
        raw = directory[at : at + length]
        if magic != b"PK\x01\x02" or len(raw) != length:
            raise self._damage("its directory is broken")
        name = raw.decode("utf-8" if flags & _UTF8_NAME else "ascii", "backslashreplace")
        if name.encode() != raw:
            raise self._refuse(name, "a name that is neither ASCII nor marked as UTF-8")
        if why := unsafe_name(name.removesuffix("/")) or _unusual(
            name, made, version, flags, method, packed, size, extra or comment or disk, attributes
        ):
            raise self._refuse(name, why)
        if offset != begin:
            raise self._refuse(
                name,
                "members overlap or are out of order"
                if offset < begin
                else "bytes stand before it that belong to no member",
            )
        header = _LOCAL.pack(
            b"PK\x03\x04", version, flags, method, time, date, crc, packed, size, length, 0
        )
        if os.pread(self._file.fileno(), len(header) + length, offset) != header + raw:
            raise self._refuse(name, "its two headers disagree")
        data = offset + len(header) + length
        mode = 0o755 if attributes >> 16 & 0o111 else 0o644
        member = Member(name, mode, method, crc, size, packed, data)
        return member, at + length, data + packed

    def _damage(self, why: str) -> IntegrityError:
        return IntegrityError(
            f"the wheel is damaged: {why}", where=str(self.path), next_step="fetch it again"
        )

    def _refuse(self, name: str, why: str) -> IntegrityError:
        return IntegrityError(
            "a wheel must not hold this member",
            where=f"{self.path.name}: {name!r}",
            why=why,
            next_step="do not install it; fetch the wheel again",
        )


def _unusual(
    name: str,
    made: int,
    version: int,
    flags: int,
    method: int,
    packed: int,
    size: int,
    extra: int,
    attributes: int,
) -> str | None:
    """Why readers could disagree about this directory entry; None when they cannot."""
    folder, mode = name.endswith("/"), attributes >> 16
    if method not in (_STORED, _DEFLATED) or flags & ~(
        _UTF8_NAME | (_LEVEL if method == _DEFLATED else 0)
    ):
        return "encrypted, or written in a way that wheels do not use"
    if extra:
        return "an extra field, a comment, or another disk"
    if version > _ZIP_VERSION or made >> 8 != _UNIX:
        return "written for another system, or in a later zip version"
    if method == _STORED and packed != size:
        return "stored bytes of another size"
    if folder and (packed or method):
        return "a folder with content"
    if stat.S_IFMT(mode) not in (0, stat.S_IFDIR if folder else stat.S_IFREG):
        return "neither a file nor a folder"
    if attributes & (_DOS_LABEL | (0 if folder else _DOS_FOLDER)):
        return "neither a file nor a folder in its DOS attributes"
    if not folder and mode & 0o111 and not stat.S_IFMT(mode):
        return "executable, but not marked as a file"
    return None


def _inflate(packed: Iterator[bytes], name: str) -> Iterator[bytes]:
    """The content of one deflate stream that takes all of ``packed``, CHUNK bytes at a time."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for data in packed:
            if stream.eof:
                raise _damaged(name, "bytes follow its compressed data")
            while not stream.eof:
                out = stream.decompress(data, CHUNK)
                data = stream.unconsumed_tail
                if out:
                    yield out
                if not data and len(out) < CHUNK:
                    break
    except zlib.error as err:
        raise _damaged(name, str(err)) from err
    if not stream.eof or stream.unused_data:
        raise _damaged(name, "its compressed data ends early, or bytes follow it")


def _damaged(name: str, why: str) -> IntegrityError:
    return IntegrityError("the member is damaged", where=name, why=why)


class WheelWriter:
    """Writes a wheel to a binary stream, member by member, without seeking.

    Every member carries the same date and host, mode 0644 or 0755, and no extra field. ``sha256``
    and ``size`` describe what was written so far; call :meth:`close` before using them.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._hash = hashlib.sha256()
        self._directory: list[bytes] = []
        self.size = 0

    def store(self, name: str, mode: int, data: bytes) -> None:
        """Add ``data`` uncompressed."""
        size = len(data)
        self._header(Member(name, mode, _STORED, zlib.crc32(data), size, size, 0))
        self._write(data)

    def copy(self, source: Wheel, name: str, target: str, mode: int | None = None) -> None:
        """Add member ``name`` of ``source`` as ``target``, compressed bytes as they are.

        ``mode`` None keeps the member's.
        """
        member = source.members[name]
        self._header(member._replace(name=target, mode=member.mode if mode is None else mode))
        for chunk in source.packed(name):
            self._write(chunk)

    def close(self) -> None:
        """Write the zip's directory. The stream stays open."""
        start, directory = self.size, b"".join(self._directory)
        count = len(self._directory)
        if count > _MAX_MEMBERS or start + len(directory) > _LIMIT:
            raise IntegrityError("the wheel would need the zip64 format", where=f"{count} members")
        self._write(directory)
        self._write(_END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), start, 0))

    def sha256(self) -> str:
        return self._hash.hexdigest()

    def _header(self, member: Member) -> None:
        if self.size + member.packed > _LIMIT:
            raise IntegrityError("the wheel would need the zip64 format", where=member.name)
        raw = member.name.encode()
        flags = 0 if raw.isascii() else _UTF8_NAME
        common = (
            flags,
            member.method,
            0,
            _DATE_1980,
            member.crc,
            member.packed,
            member.size,
            len(raw),
            0,
        )
        attributes = (stat.S_IFREG | member.mode) << 16
        self._directory.append(
            _CENTRAL.pack(
                b"PK\x01\x02",
                _UNIX << 8 | _ZIP_VERSION,
                _ZIP_VERSION,
                *common,
                0,
                0,
                0,
                attributes,
                self.size,
            )
            + raw
        )
        self._write(_LOCAL.pack(b"PK\x03\x04", _ZIP_VERSION, *common) + raw)

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._hash.update(data)
        self.size += len(data)


def content_digest(files: Iterable[tuple[str, int, str]]) -> str:
    """One sha256 for a set of files, independent of compression and order, in hex.

    Args:
        files: path, permission bits (0o644 or 0o755) and sha256 (hex) of each file. Hashed are the
            lines ``MODE SHA256 PATH``, mode in octal, sorted by path, each with a newline.
    """
    digest = hashlib.sha256()
    for path, mode, sha256 in sorted(files):
        digest.update(f"{mode:o} {sha256} {path}\n".encode())
    return digest.hexdigest()
