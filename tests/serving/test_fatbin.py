"""Device code of other GPUs leaves a library; everything else stays where it was."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.serving.support import fatbin


def entry(kind: int, arch: int, payload: bytes) -> bytes:
    header = fatbin.ENTRY.pack(kind, 1, 64, len(payload), 0, 0, 0, 0, arch)
    return header.ljust(64, b"\0") + payload


def container(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return fatbin.CONTAINER.pack(fatbin.MAGIC, 1, fatbin.CONTAINER.size, len(body)) + body


def library(path: Path, section: bytes) -> Path:
    """A 64-bit ELF file with one section of device code."""
    names = b"\0.nv_fatbin\0.shstrtab\0"
    start = 64
    table = start + len(section) + len(names)
    rows = [
        (0, 0, 0, 0, 0, 0),
        (1, 1, 0, 0, start, len(section)),
        (12, 3, 0, 0, start + len(section), len(names)),
    ]
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    struct.pack_into("<Q", header, 0x28, table)
    struct.pack_into("<HHH", header, 0x3A, 64, len(rows), 2)
    sections = b"".join(struct.pack("<IIQQQQ", *row).ljust(64, b"\0") for row in rows)
    path.write_bytes(bytes(header) + section + names + sections)
    return path


def test_other_architectures_and_ptx_leave_a_container(tmp_path: Path) -> None:
    wanted = entry(fatbin.MACHINE_CODE, 90, b"sm_90..." * 4)
    other = entry(fatbin.MACHINE_CODE, 80, b"sm_80..." * 4)
    ptx = entry(fatbin.PTX, 90, b"ptx....." * 4)
    path = library(tmp_path / "lib.so", container(other, wanted, ptx) + container(wanted))
    before = path.read_bytes()
    assert fatbin.prune(path) == len(other) + len(ptx)
    after = path.read_bytes()
    assert len(after) == len(before)
    assert after.count(b"sm_90...") == 8 and b"sm_80..." not in after and b"ptx....." not in after
    second = 64 + len(container(other, wanted, ptx))
    assert after[second:] == before[second:]
    assert fatbin.prune(path) == 0


def test_a_container_without_the_wanted_code_stays(tmp_path: Path) -> None:
    only = container(entry(fatbin.MACHINE_CODE, 80, b"x" * 32), entry(fatbin.PTX, 80, b"y" * 32))
    path = library(tmp_path / "lib.so", only)
    before = path.read_bytes()
    assert fatbin.prune(path) == 0
    assert path.read_bytes() == before


def test_what_is_no_library_stays(tmp_path: Path) -> None:
    for content in (b"", b"a script", b"\0" * 4096):
        path = tmp_path / "file.so"
        path.write_bytes(content)
        assert fatbin.prune(path) == 0
        assert path.read_bytes() == content
