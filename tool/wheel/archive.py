"""Reading a wheel without trusting it, and writing one whose bytes depend on its content alone.

Reading takes names, modes, sizes and offsets from the zip's central directory and refuses an
archive whose local headers say otherwise, whose members overlap, repeat, escape the install folder
or are links: two zip readers could otherwise see two different wheels in one file. Writing copies a
member's compressed bytes as they are, or stores new data uncompressed, so the result does not
depend on the zlib at hand.

Zip layout: PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16 (no zip64: a wheel of 4 GiB or
of 65535 members is refused). RECORD: the binary distribution format of packaging.python.org; it is
CSV, and hundreds of sglang's file names contain commas.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import zipfile
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

_LOCAL: Final = struct.Struct("<4s5H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_ZIP_VERSION: Final = 20
_UNIX: Final = 3
_UTF8_NAME: Final = 0x800
_ENCRYPTED: Final = 0x1
_DATE_1980: Final = 0x21
"""1 January 1980, the earliest date a zip can hold, with time 0."""
_LIMIT: Final = 0xFFFFFFFF
_MAX_MEMBERS: Final = 0xFFFE

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
        except InvalidWheelFilename as err:
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
    if "\\" in name:
        return "a backslash in the path"
    if _CONTROL.search(name):
        return "a control character in the path"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "an empty, '.' or '..' part in the path"
    return None


class Wheel:
    """A wheel opened for reading; every check named in the module docstring holds once it is open.

    ``members`` are the files by name in archive order; folder entries carry nothing and are left
    out.

    Raises:
        IntegrityError: the archive is damaged or one a wheel must not be.
        UsageError: there is no such file, or its name is not a wheel's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = WheelName.parse(path.name)
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as err:
            raise UsageError(f"cannot read the wheel: {err.strerror}", where=str(path)) from err
        try:
            self._zip = zipfile.ZipFile(self._file)
            self.members: Mapping[str, Member] = self._scan()
        except (zipfile.BadZipFile, UnicodeDecodeError, struct.error, NotImplementedError) as err:
            self._file.close()
            raise IntegrityError(
                f"the wheel is damaged: {err}", where=str(path), next_step="fetch it again"
            ) from err
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
        self._zip.close()
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
        """The member's content. Raises IntegrityError when it does not decompress to its CRC."""
        try:
            with self._zip.open(name) as stream:
                while chunk := stream.read(CHUNK):
                    yield chunk
        except (zipfile.BadZipFile, zlib.error, EOFError) as err:
            raise IntegrityError(f"the member is damaged: {err}", where=name) from err

    def read(self, name: str) -> bytes:
        """The member's whole content.

        Raises:
            IntegrityError: the wheel has no such member, or it is damaged.
        """
        if name not in self.members:
            raise IntegrityError("the wheel has no such file", where=f"{self.path.name}: {name}")
        return b"".join(self.chunks(name))

    def packed(self, name: str) -> Iterator[bytes]:
        """The member's bytes as the archive holds them, compressed or not."""
        member = self.members[name]
        return self._range(member.offset, member.packed)

    def _range(self, offset: int, length: int) -> Iterator[bytes]:
        # pread, because the zipfile object moves the position of the same descriptor.
        descriptor, end = self._file.fileno(), offset + length
        while offset < end:
            chunk = os.pread(descriptor, min(CHUNK, end - offset), offset)
            if not chunk:
                raise IntegrityError("the wheel ends early", where=str(self.path))
            offset += len(chunk)
            yield chunk

    def _scan(self) -> dict[str, Member]:
        members: dict[str, Member] = {}
        seen: set[str] = set()
        end = 0
        for info in sorted(self._zip.infolist(), key=lambda i: i.header_offset):
            name = info.orig_filename
            if why := unsafe_name(name.removesuffix("/")):
                raise self._refuse(name, why)
            if name.rstrip("/") in seen:
                raise self._refuse(name, "two members of one name")
            seen.add(name.rstrip("/"))
            offset = self._data_offset(info)
            if info.header_offset < end or (not end and info.header_offset):
                raise self._refuse(name, "members overlap, or bytes stand before the first one")
            end = offset + info.compress_size
            permissions = info.external_attr >> 16
            if info.is_dir():
                continue
            if stat.S_IFMT(permissions) not in (0, stat.S_IFREG):
                raise self._refuse(name, "neither a file nor a folder")
            members[name] = Member(
                name=name,
                mode=0o755 if permissions & 0o100 else 0o644,
                method=info.compress_type,
                crc=info.CRC,
                size=info.file_size,
                packed=info.compress_size,
                offset=offset,
            )
        if end > self._zip.start_dir:
            raise IntegrityError("a member reaches into the zip's directory", where=str(self.path))
        for name in members:
            for folder in _folders(name):
                if folder in members:
                    raise self._refuse(folder, "a file and a folder of one name")
        return members

    def _data_offset(self, info: zipfile.ZipInfo) -> int:
        name = info.orig_filename
        if info.flag_bits & _ENCRYPTED or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise self._refuse(name, "encrypted, or compressed in a way wheels do not use")
        header = os.pread(self._file.fileno(), _LOCAL.size, info.header_offset)
        magic, _, flags, method, _, _, _, _, _, length, extra = _LOCAL.unpack(header)
        written = os.pread(self._file.fileno(), length, info.header_offset + _LOCAL.size)
        text = written.decode("utf-8" if flags & _UTF8_NAME else "cp437")
        if magic != b"PK\x03\x04" or text != name or method != info.compress_type:
            raise self._refuse(name, "its two headers disagree")
        return int(info.header_offset + _LOCAL.size + length + extra)

    def _refuse(self, name: str, why: str) -> IntegrityError:
        return IntegrityError(
            "a wheel must not hold this member",
            where=f"{self.path.name}: {name!r}",
            why=why,
            next_step="do not install it; fetch the wheel again",
        )


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
        self._header(Member(name, mode, zipfile.ZIP_STORED, zlib.crc32(data), size, size, 0))
        self._write(data)

    def copy(self, source: Wheel, name: str, target: str) -> None:
        """Add member ``name`` of ``source`` as ``target``, compressed bytes as they are."""
        self._header(source.members[name]._replace(name=target))
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


def _folders(name: str) -> Iterator[str]:
    slash = name.find("/")
    while slash != -1:
        yield name[:slash]
        slash = name.find("/", slash + 1)
