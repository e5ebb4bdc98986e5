"""One reading of a zip archive: what an installer could read in another way is refused.

The oracle is what others read: :mod:`zipfile` by the directory at the end, and a reader in this file
that goes from local header to local header, as streaming installers do. Where :class:`Wheel` accepts an
archive, all three see the same members with the same bytes.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support.forks import make_fork
from tool.errors import IntegrityError
from tool.wheel.archive import Wheel, WheelWriter

NAME: Final = "sglang-0.5.23-py3-none-any.whl"
INFO: Final = "sglang-0.5.23.dist-info"
LAST: Final = 7
"""Number of the last member of the archives here."""
LOCAL: Final = b"PK\x03\x04"
ENTRY: Final = b"PK\x01\x02"
END: Final = b"PK\x05\x06"


def plain(*, deflated: bool = True) -> bytes:
    """An archive as build tools write it: folders, deflated and stored files, an empty one."""
    out = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.mkdir("sglang/")
        for name, data in {
            "sglang/__init__.py": b"",
            "sglang/a.py": b"A = 1\n" * 50,
            "sglang/\u00e9.py": b"E = 1\n",
            "sglang/b/c.py": bytes(range(256)),
            f"{INFO}/METADATA": b"Metadata-Version: 2.1\nName: sglang\nVersion: 0.5.23\n",
            f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{INFO}/RECORD": b"sglang/a.py,,\n",
        }.items():
            archive.writestr(name, data)
    return out.getvalue()


ARCHIVE: Final = plain()


def at(data: bytes, magic: bytes, number: int = 0) -> int:
    """Where the ``number``-th header of a kind stands."""
    place = -1
    for _ in range(number + 1):
        place = data.index(magic, place + 1)
    return place


def set_field(
    magic: bytes, number: int, offset: int, form: str, value: int
) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        out = bytearray(data)
        struct.pack_into(form, out, at(data, magic, number) + offset, value)
        return bytes(out)

    return change


def chain(*changes: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        for one in changes:
            data = one(data)
        return data

    return change


def insert(data: bytes, place: int, added: bytes) -> bytes:
    """``added`` at ``place``; the directory's offsets follow."""
    out = bytearray(data[:place] + added + data[place:])
    end = out.rindex(END)
    start = struct.unpack_from("<I", out, end + 16)[0]
    if place <= start:
        struct.pack_into("<I", out, end + 16, start + len(added))
    entry = out.index(ENTRY, struct.unpack_from("<I", out, end + 16)[0])
    while out[entry : entry + 4] == ENTRY:
        offset = struct.unpack_from("<I", out, entry + 42)[0]
        if offset >= place:
            struct.pack_into("<I", out, entry + 42, offset + len(added))
        lengths = struct.unpack_from("<3H", out, entry + 28)
        entry += 46 + sum(lengths)
    return bytes(out)


def local(name: bytes, data: bytes, flags: int = 0) -> bytes:
    header = (LOCAL, 20, flags, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0)
    return struct.pack("<4s5H3I2H", *header) + name + data


def both(number: int, field: str, value: int) -> Callable[[bytes], bytes]:
    """Set a field in the two headers of a member."""
    form, first, second = {
        "version": ("<H", 4, 6),
        "flags": ("<H", 6, 8),
        "method": ("<H", 8, 10),
        "crc": ("<I", 14, 16),
        "packed": ("<I", 18, 20),
        "size": ("<I", 22, 24),
    }[field]
    return chain(
        set_field(LOCAL, number, first, form, value), set_field(ENTRY, number, second, form, value)
    )


def extra_field(identifier: int, content: bytes, where: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        field = struct.pack("<2H", identifier, len(content)) + content
        place = at(data, where, 2)
        size, offset = (30, 28) if where == LOCAL else (46, 30)
        length = struct.unpack_from("<H", data, place + (26 if where == LOCAL else 28))[0]
        data = set_field(where, 2, offset, "<H", len(field))(data)
        data = insert(data, place + size + length, field)
        if where == ENTRY:
            end = data.rindex(END)
            old = struct.unpack_from("<I", data, end + 12)[0]
            data = data[: end + 12] + struct.pack("<I", old + len(field)) + data[end + 16 :]
        return data

    return change


def add_comment(data: bytes) -> bytes:
    return data[:-2] + struct.pack("<H", 4) + b"evil"


def add_entry_comment(data: bytes) -> bytes:
    place = at(data, ENTRY, LAST)
    end = data.rindex(END)
    data = data[:end] + b"evil" + data[end:]
    data = data[: place + 32] + struct.pack("<H", 4) + data[place + 34 :]
    end += 4
    old = struct.unpack_from("<I", data, end + 12)[0]
    return data[: end + 12] + struct.pack("<I", old + 4) + data[end + 16 :]


def deflate_tail(data: bytes) -> bytes:
    """Bytes behind the end of a member's deflate stream, counted in both headers."""
    place = at(data, LOCAL, 2)
    packed, length = (struct.unpack_from("<I", data, place + 18)[0], data[place + 26])
    data = both(2, "packed", packed + 4)(data)
    return insert(data, place + 30 + length + packed, b"evil")


def drop_entry(data: bytes) -> bytes:
    """Take a member out of the directory and leave its local header: an older uv installs it."""
    first, second = at(data, ENTRY, 2), at(data, ENTRY, 3)
    out = bytearray(data[:first] + data[second:])
    end = out.rindex(END)
    count, _, length = struct.unpack_from("<2HI", out, end + 8)
    struct.pack_into("<2HI", out, end + 8, count - 1, count - 1, length - (second - first))
    return bytes(out)


def rename_local(data: bytes) -> bytes:
    return data.replace(b"sglang/a.py", b"sglang/z.py", 1)


def rename_both(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    assert len(old) == len(new)
    return lambda data: data.replace(old, new)


def swap_entries(data: bytes) -> bytes:
    one, two, three = (at(data, ENTRY, n) for n in (1, 2, 3))
    return data[:one] + data[two:three] + data[one:two] + data[three:]


def zip64(data: bytes) -> bytes:
    end = data.rindex(END)
    count, _, length, start = struct.unpack_from("<2H2I", data, end + 8)
    record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    return data[:end] + record + locator + data[end:]


def repeat_last(data: bytes) -> bytes:
    """Two entries for one local header."""
    place, end = at(data, ENTRY, LAST), data.rindex(END)
    entry = data[place:end]
    out = bytearray(data[:end] + entry + data[end:])
    count, _, length = struct.unpack_from("<2HI", data, end + 8)
    struct.pack_into("<2HI", out, end + len(entry) + 8, count + 1, count + 1, length + len(entry))
    return bytes(out)


FORGED: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "bytes before": lambda d: b"#!/bin/sh\n" + d,
    "bytes before, offsets right": lambda d: insert(d, 0, b"#!/bin/sh\n"),
    "bytes between": lambda d: insert(d, at(d, LOCAL, 3), b"evil"),
    "member between": lambda d: insert(d, at(d, LOCAL, 3), local(b"sglang/evil.py", b"evil")),
    "member before": lambda d: insert(d, 0, local(b"evil.pth", b"import evil")),
    "member before the directory": lambda d: insert(d, at(d, ENTRY), local(b"evil.pth", b"x")),
    "bytes before the directory": lambda d: insert(d, at(d, ENTRY), b"evil"),
    "bytes behind": lambda d: d + b"evil",
    "newline behind": lambda d: d + b"\n",
    "another archive behind": lambda d: d + plain(deflated=False),
    "another archive before": lambda d: plain(deflated=False) + d,
    "comment": add_comment,
    "archive in the comment": lambda d: d[:-2] + struct.pack("<H", len(ARCHIVE)) + ARCHIVE,
    "comment of an entry": add_entry_comment,
    "entry without its member": set_field(ENTRY, 2, 42, "<I", 0),
    "member without its entry": drop_entry,
    "entry twice": repeat_last,
    "entries in another order": swap_entries,
    "local name": rename_local,
    "local CRC": set_field(LOCAL, 2, 14, "<I", 1),
    "local packed size": set_field(LOCAL, 2, 18, "<I", 1),
    "local size": set_field(LOCAL, 2, 22, "<I", 1),
    "local sizes of nothing": chain(
        set_field(LOCAL, 2, 18, "<I", 0), set_field(LOCAL, 2, 22, "<I", 0)),
    "local flags": set_field(LOCAL, 2, 6, "<H", 8),
    "local method": set_field(LOCAL, 2, 8, "<H", 0),
    "local date": set_field(LOCAL, 2, 12, "<H", 77),
    "local time": set_field(LOCAL, 2, 10, "<H", 77),
    "local version": set_field(LOCAL, 2, 4, "<H", 10),
    "local magic": set_field(LOCAL, 2, 0, "<I", 0),
    "local name length": set_field(LOCAL, 2, 26, "<H", 3),
    "CRC": both(2, "crc", 1),
    "size": both(2, "size", 7),
    "huge size": both(2, "size", 0xFFFFFFF0),
    "packed size": both(2, "packed", 3),
    "zip64 size": both(2, "size", 0xFFFFFFFF),
    "encrypted": both(2, "flags", 1),
    "data descriptor": both(2, "flags", 8),
    "strong encryption": both(2, "flags", 0x40),
    "masked headers": both(2, "flags", 0x2000),
    "reserved flag": both(2, "flags", 0x8000),
    "patch data": both(2, "flags", 0x20),
    "level bits on stored bytes": both(0, "flags", 2),
    "method bzip2": both(2, "method", 12),
    "method lzma": both(2, "method", 14),
    "method zstd": both(2, "method", 93),
    "method shrunk": both(2, "method", 1),
    "stored as deflated": both(2, "method", 0),
    "later version": both(2, "version", 63),
    "much later version": both(2, "version", 0xFFFF),
    "UTF-8 mark lost": both(3, "flags", 0),
    "name not UTF-8": rename_both("\u00e9".encode(), b"\xff\xfe"),
    "name with NUL": rename_both(b"sglang/a.py", b"sglang/a\0py"),
    "name above": rename_both(b"sglang/a.py", b"../../a.pyx"),
    "name absolute": rename_both(b"sglang/a.py", b"/glang/a.py"),
    "name of a drive": rename_both(b"sglang/a.py", b"C:lang/a.py"),
    "name with backslash": rename_both(b"sglang/a.py", b"sglang\\a.py"),
    "name with an empty part": rename_both(b"sglang/a.py", b"sglang//.py"),
    "name with a newline": rename_both(b"sglang/a.py", b"sglang/a\npy"),
    "file that is a folder": rename_both(b"sglang/a.py", b"sglang/b/c/"),
    "file below a file": rename_both(b"sglang/b/c.py", b"sglang/a.py/x"),
    "name twice": rename_both(b"sglang/\xc3\xa9.py", b"sglang//a.py"),
    "Unicode path field": extra_field(0x7075, b"\1" + b"\0" * 4 + b"evil.py", ENTRY),
    "Unicode path field, local": extra_field(0x7075, b"\1" + b"\0" * 4 + b"evil.py", LOCAL),
    "Unicode comment field": extra_field(0x6375, b"\1\0\0\0\0x", ENTRY),
    "zip64 field": extra_field(1, struct.pack("<2Q", 1, 1), ENTRY),
    "zip64 field, local": extra_field(1, struct.pack("<2Q", 1, 1), LOCAL),
    "time field": extra_field(0x5455, b"\1\0\0\0\0", ENTRY),
    "empty field, local": extra_field(0xCAFE, b"", LOCAL),
    "link": set_field(ENTRY, 2, 38, "<I", 0o120777 << 16),
    "device": set_field(ENTRY, 2, 38, "<I", 0o020666 << 16),
    "FIFO": set_field(ENTRY, 2, 38, "<I", 0o010666 << 16),
    "folder by mode": set_field(ENTRY, 2, 38, "<I", 0o040755 << 16),
    "folder by DOS attribute": set_field(ENTRY, 2, 38, "<I", 0x10),
    "volume label": set_field(ENTRY, 2, 38, "<I", 0x8),
    "executable of no kind": set_field(ENTRY, 2, 38, "<I", 0o755 << 16),
    "another system": set_field(ENTRY, 2, 4, "<H", 20),
    "another disk": set_field(ENTRY, 2, 34, "<H", 1),
    "folder with content": chain(both(0, "size", 4), both(0, "packed", 4)),
    "bytes behind a stream": deflate_tail,
    "end record: disk": set_field(END, 0, 4, "<H", 1),
    "end record: first disk": set_field(END, 0, 6, "<H", 1),
    "end record: count here": set_field(END, 0, 8, "<H", 5),
    "end record: count": set_field(END, 0, 10, "<H", 5),
    "end record: both counts": chain(
        set_field(END, 0, 8, "<H", 5), set_field(END, 0, 10, "<H", 5)),
    "end record: more": chain(set_field(END, 0, 8, "<H", 9), set_field(END, 0, 10, "<H", 9)),
    "end record: nothing": chain(set_field(END, 0, 8, "<H", 0), set_field(END, 0, 10, "<H", 0)),
    "end record: zip64 count": chain(
        set_field(END, 0, 8, "<H", 0xFFFF), set_field(END, 0, 10, "<H", 0xFFFF)),
    "end record: size": set_field(END, 0, 12, "<I", 60),
    "end record: offset": set_field(END, 0, 16, "<I", 0),
    "end record: zip64 offset": set_field(END, 0, 16, "<I", 0xFFFFFFFF),
    "end record: comment length": set_field(END, 0, 20, "<H", 1),
    "zip64 end record": zip64,
    "no end record": lambda d: d[:-22],
    "nothing": lambda d: b"",
    "cut": lambda d: d[: len(d) // 2],
}  # fmt: skip


def read_all(path: Path) -> dict[str, bytes]:
    with Wheel(path) as wheel:
        return {name: b"".join(wheel.chunks(name)) for name in wheel.members}


def read_by_directory(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [i.filename for i in archive.infolist()]
        assert len(names) == len(set(names)) and archive.comment == b""
        return {i.filename: archive.read(i) for i in archive.infolist() if not i.is_dir()}


def read_by_local_headers(data: bytes) -> dict[str, bytes]:
    """What a reader that never looks at the directory extracts."""
    found: dict[str, bytes] = {}
    place = 0
    while data[place : place + 4] == LOCAL:
        _, flags, method, _, _, crc, packed, size, length, extra = struct.unpack_from(
            "<5H3I2H", data, place + 4
        )
        name = data[place + 30 : place + 30 + length]
        begin = place + 30 + length + extra
        content = data[begin : begin + packed]
        if method:
            content = zlib.decompress(content, -15)
        assert not flags & 8 and len(content) == size and zlib.crc32(content) == crc
        place = begin + packed
        if not name.endswith(b"/"):
            assert name.decode() not in found
            found[name.decode()] = content
    assert data[place : place + 4] in (ENTRY, END)
    return found


def check(path: Path, data: bytes) -> bool:
    """Is ``data`` accepted? If so, all readers must agree."""
    path.write_bytes(data)
    try:
        found = read_all(path)
    except IntegrityError:
        return False
    assert found == read_by_directory(data) == read_by_local_headers(data)
    return True


def test_ordinary_archives_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / NAME
    assert check(path, ARCHIVE) and check(path, plain(deflated=False))
    assert check(path, make_fork(tmp_path).source.read_bytes())
    assert check(path, END + bytes(18)) and read_all(path) == {}
    assert check(path, both(2, "flags", 2)(ARCHIVE))  # "maximum compression", which no reader heeds


def test_a_name_twice_is_refused_whoever_wrote_it(tmp_path: Path) -> None:
    out = io.BytesIO()
    writer = WheelWriter(out)
    writer.store("sglang/a.py", 0o644, b"1")
    writer.store("sglang/a.py", 0o644, b"2")
    writer.close()
    assert not check(tmp_path / NAME, out.getvalue())


@pytest.mark.parametrize("name", FORGED)
def test_forged_structure_is_refused(tmp_path: Path, name: str) -> None:
    data = FORGED[name](ARCHIVE)
    assert data != ARCHIVE
    assert not check(tmp_path / NAME, data)


def mutate(data: bytes, choose: random.Random) -> bytes:
    """One to three edits, most of them in the headers: fields, lengths, whole records, bytes anywhere."""
    for _ in range(choose.randint(1, 3)):
        if len(data) < 64:
            break
        out = bytearray(data)
        kind = choose.randrange(8)
        heads = [i for i in range(len(data) - 3) if data[i : i + 2] == b"PK"]
        head = choose.choice(heads or [0])
        if kind <= 2:  # a field of a header
            place = min(head + choose.randrange(46), len(out) - 1)
            out[place] = choose.choice((0, 1, 8, 0xFF, out[place] ^ (1 << choose.randrange(8))))
        elif kind == 3:  # any byte
            place = choose.randrange(len(out))
            out[place] ^= 1 << choose.randrange(8)
        elif kind == 4:  # insert, offsets following or not
            added = choose.choice(
                (b"\0", b"PK", local(b"x.pth", b"evil"), END + bytes(18), b"evil")
            )
            place = choose.choice((head, choose.randrange(len(out) + 1)))
            try:
                data = insert(data, place, added) if choose.random() < 0.7 else (
                    data[:place] + added + data[place:])  # fmt: skip
            except (ValueError, struct.error):
                data = data[:place] + added + data[place:]
            continue
        elif kind == 5:  # remove
            place = choose.choice((head, choose.randrange(len(out))))
            del out[place : place + choose.choice((1, 4, 22, 46, 100))]
        elif kind == 6:  # one header's bytes over another's
            other = choose.choice(heads or [0])
            length = choose.choice((30, 46))
            out[head : head + length] = data[other : other + length]
        else:  # a known forgery on top
            try:
                data = choose.choice(list(FORGED.values()))(data)
            except (ValueError, struct.error, IndexError):
                continue
            continue
        data = bytes(out)
    return data


def fuzz(tmp_path: Path, count: int, first: int = 0) -> list[bytes]:
    """The archives of ``count`` that are accepted; each reads the same for everybody."""
    accepted = []
    for seed in range(first, first + count):
        choose = random.Random(seed)
        data = mutate(choose.choice((ARCHIVE, plain(deflated=False))), choose)
        try:
            if check(tmp_path / NAME, data):
                accepted.append(data)
        except AssertionError:
            raise
        except Exception as err:
            raise AssertionError(f"seed {seed}: {err!r}") from err
    return accepted


def test_fuzzed_structures(tmp_path: Path) -> None:
    accepted = fuzz(tmp_path, 300)
    assert 0 < len(accepted) < 100  # dates, modes and equal bytes may pass


def install(tmp_path: Path, data: bytes, *installer: str) -> dict[str, bytes]:
    """What an installer puts in place, without what it writes itself."""
    (tmp_path / NAME).write_bytes(data)
    target = tmp_path / "target"
    shutil.rmtree(target, ignore_errors=True)
    command = [*installer, "install", "--no-deps", "--no-index", "--target", str(target)]
    done = subprocess.run([*command, str(tmp_path / NAME)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        name: path.read_bytes()
        for path in target.rglob("*")
        if path.is_file()
        and (name := path.relative_to(target).as_posix())
        and "__pycache__" not in name
        and (path.parent.name != INFO or path.name in ("METADATA", "WHEEL"))
        and path.name != ".lock"
    }


@pytest.mark.exhaustive
def test_many_fuzzed_structures(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """10,000 archives; those that are accepted are also installed, with pip and with every uv in PATH."""
    installers: list[tuple[str, ...]] = [(sys.executable, "-m", "pip")]
    for folder in dict.fromkeys(os.environ["PATH"].split(os.pathsep)):
        if uv := shutil.which("uv", path=folder):
            installers.append((uv, "pip"))
    accepted = fuzz(tmp_path, 10_000, first=1000)
    assert 0 < len(accepted) < 1000
    for data in sorted(set(accepted)):
        (tmp_path / NAME).write_bytes(data)
        found = {n: d for n, d in read_all(tmp_path / NAME).items() if n != f"{INFO}/RECORD"}
        for installer in installers:
            assert install(tmp_path, data, *installer) == found
    record_property("tried", 10_000)
    record_property("accepted", len(accepted))
    record_property("of these, different ones", len(set(accepted)))
    record_property("installers", len(installers))
