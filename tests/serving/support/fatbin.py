"""Removes the device code of other GPUs from a CUDA library, in place.

A ``.nv_fatbin`` section is a row of containers, each with one entry per architecture. A container that has
machine code for a wanted architecture keeps that and loses the PTX and the machine code of the others. Its
size field becomes smaller and the bytes after it become zero, so every other offset in the file stays as it
is, and the file compresses to what is left. A container without code for a wanted architecture is not
changed.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SECTIONS: Final = (b".nv_fatbin", b"__nv_relfatbin")
MAGIC: Final = 0xBA55ED50
CONTAINER: Final = struct.Struct("<IHHQ")
"""Magic number, version, size of this header, size of all entries."""
ENTRY: Final = struct.Struct("<HHIQIIHHI")
"""Kind, version, size of this header, size of the payload, two fields, minor, major, architecture."""
PTX: Final = 1
MACHINE_CODE: Final = 2


@dataclass(frozen=True)
class Entry:
    """The bytes ``start`` to ``end`` of a container; ``arch`` is 90 for sm_90 and sm_90a."""

    kind: int
    arch: int
    start: int
    end: int

    def is_for(self, archs: Collection[int]) -> bool:
        return self.kind == MACHINE_CODE and self.arch in archs


def prune(path: Path, archs: Collection[int] = (90,)) -> int:
    """Keep the machine code of ``archs`` alone where there is some.

    Returns the number of bytes that became zero; 0 for a file that is no 64-bit ELF library.
    """
    if path.stat().st_size < 64:
        return 0
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as data:
        if data[:5] != b"\x7fELF\x02":
            return 0
        return sum(
            _prune_container(data, at, archs)
            for name, start, end in _sections(data)
            if name in SECTIONS
            for at in _containers(data, start, end)
        )


def _sections(data: mmap.mmap) -> list[tuple[bytes, int, int]]:
    """Name, first byte and end of every section, from the ELF section headers."""
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
    rows = [struct.unpack_from("<IIQQQQ", data, table + i * size) for i in range(count)]
    names = rows[names_index][4]
    found = []
    for name, _, _, _, offset, length in rows:
        end = data.find(b"\0", names + name)
        found.append((data[names + name : end], offset, offset + length))
    return found


def _containers(data: mmap.mmap, start: int, end: int) -> Iterator[int]:
    at = start
    while at + CONTAINER.size <= end:
        magic, _, header, size = CONTAINER.unpack_from(data, at)
        if magic == MAGIC:
            yield at
            at += header + size
        else:
            at += 8  # containers are aligned to 8 bytes


def _prune_container(data: mmap.mmap, at: int, archs: Collection[int]) -> int:
    _, _, header, size = CONTAINER.unpack_from(data, at)
    start, end = at + header, at + header + size
    entries = list(_entries(data, start, end))
    if not any(entry.is_for(archs) for entry in entries):
        return 0
    kept = b"".join(
        data[entry.start : entry.end]
        for entry in entries
        if entry.is_for(archs) or entry.kind not in (PTX, MACHINE_CODE)
    )
    struct.pack_into("<Q", data, at + 8, len(kept))
    data[start:end] = kept + bytes(size - len(kept))
    return size - len(kept)


def _entries(data: mmap.mmap, start: int, end: int) -> Iterator[Entry]:
    at = start
    while at + ENTRY.size <= end:
        kind, _, header, payload, _, _, _, _, arch = ENTRY.unpack_from(data, at)
        if header == 0:
            return
        yield Entry(kind, arch, at, at + header + payload)
        at += header + payload
