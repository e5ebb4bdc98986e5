"""Byte code beside its source: does it follow from the source?

Python executes ``__pycache__/NAME.TAG.pyc`` instead of ``NAME.py`` when the file's header fits the source:
the same time and size, a hash, or no check at all. So the source is compiled again and the two code
objects are compared. :mod:`marshal` writes equal code in different bytes, because it marks what is
referred to more than once in the process that writes. Where the bytes differ, both are parsed here, since
``marshal.loads`` is not safe on data of others; file names are ignored, because Python replaces them.

Only byte code of the running interpreter can be compared. Header and names: PEP 3147, PEP 552; format:
CPython's ``Python/marshal.c``, the same for code objects from 3.11 to 3.14.
"""

from __future__ import annotations

import functools
import importlib.util
import marshal
import os
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from tool.project import Progress
from tool.verify.files import Difference, FolderFiles, Unproven
from tool.wheel import READ_LIMIT, NotRegularError, open_regular

_HEADER: Final = 16
_PARALLEL: Final = 100
"""Files from which on more than one process is worth its start."""
_MAX_OBJECTS: Final = 10_000_000

OTHER_PYTHON: Final = (
    "byte code of another Python: remove the __pycache__ folders, or run the tool with that Python"
)
STALE: Final = "outdated byte code that does not follow from its source: remove it"

_Result = Literal["same", "different", "stale", "irregular"]


class _Job(NamedTuple):
    name: str
    source: str
    optimize: int


def check_bytecode(
    folder: FolderFiles, progress: Progress
) -> tuple[list[Difference], list[Unproven], int]:
    """Compare every ``.pyc`` file of ``folder`` with its source, which must have been verified before.

    Returns:
        What is wrong, what cannot be told, and the number of files that follow from their source.
    """
    differences: list[Difference] = []
    unproven: list[Unproven] = []
    jobs: list[_Job] = []
    for name in folder.bytecode:
        place, _, file = name.rpartition("/__pycache__/")
        stem, tag, optimize = _split_name(file)
        source = f"{place}/{stem}.py"
        if source not in folder.files:
            differences.append(Difference(name, "byte code without a source"))
        elif tag != sys.implementation.cache_tag or optimize is None:
            unproven.append(Unproven(name, OTHER_PYTHON))
        else:
            jobs.append(_Job(name, source, optimize))
    same = 0
    compare = functools.partial(_compare, folder.root, _find_prefix(folder.root, jobs))
    with progress.bar("comparing byte code with its source") as step:
        for number, (job, result) in enumerate(zip(jobs, _map(compare, jobs), strict=True), 1):
            step(number, len(jobs))
            if result == "same":
                same += 1
            elif result == "stale":
                unproven.append(Unproven(job.name, STALE))
            elif result == "irregular":
                differences.append(Difference(job.name, "not a regular file"))
            else:
                differences.append(Difference(job.name, "does not follow from its source"))
    return differences, unproven, same


def _map(compare: Callable[[_Job], _Result], jobs: list[_Job]) -> Iterator[_Result]:
    workers = min(8, os.cpu_count() or 1)
    if len(jobs) < _PARALLEL or workers == 1:
        yield from map(compare, jobs)
        return
    # Ctrl-C is for the parent: it ends the workers.
    with ProcessPoolExecutor(
        workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        yield from pool.map(compare, jobs, chunksize=16)


def _split_name(file: str) -> tuple[str, str, int | None]:
    """Module, interpreter tag and optimization (None when Python has no such level) of a file name."""
    parts = file.removesuffix(".pyc").split(".")
    optimize: int | None = 0
    if len(parts) > 2 and parts[-1].startswith("opt-"):
        optimize = {"opt-1": 1, "opt-2": 2}.get(parts.pop())
    if len(parts) < 2:
        return parts[0], "", None
    # The tag has no dot, but one of a plug-in may: cpython-311-pytest-8.4.1. A module's name has none.
    return parts[0], ".".join(parts[1:]), optimize


def _find_prefix(root: Path, jobs: Iterable[_Job]) -> str:
    """What stands before a source's relative path in the byte code's file names.

    It is the folder in which the installer compiled, which may have been moved since. A wrong answer
    costs time, nothing else.
    """
    for job in jobs:
        try:
            with open_regular(root / job.name, links=True) as stream:
                code = _Reader(stream.read(READ_LIMIT)[_HEADER:], filenames=True).read()
        except (OSError, NotRegularError, _UnreadableError):
            continue
        filename = bytes(code[-1]).decode(errors="replace") if code[:1] == ("c",) else ""
        if filename.endswith(job.source):
            return filename.removesuffix(job.source)
    return f"{root}/"


def _compare(root: Path, prefix: str, job: _Job) -> _Result:
    try:
        with open_regular(root / job.source, links=True) as stream:
            status = os.fstat(stream.fileno())
            source = stream.read(READ_LIMIT)
        with open_regular(root / job.name, links=True) as stream:
            stored = stream.read(READ_LIMIT + 1)
    except (OSError, NotRegularError):
        return "irregular"
    if len(stored) <= READ_LIMIT and stored[:4] == importlib.util.MAGIC_NUMBER:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                code = compile(
                    source, prefix + job.source, "exec", dont_inherit=True, optimize=job.optimize
                )
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                return "different"  # no byte code follows from such a source
        if same_code(marshal.dumps(code), stored[_HEADER:]):
            return "same"
    flags, *stamp = struct.unpack("<3I", stored[4:_HEADER].ljust(12, b"\0"))
    loaded = [int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF]
    current = stored[:4] == importlib.util.MAGIC_NUMBER and (flags != 0 or stamp == loaded)
    return "different" if current else "stale"


def same_code(one: bytes, other: bytes) -> bool:
    """Do two marshalled code objects differ in nothing but file names and reference marks?"""
    if one == other:
        return True
    try:
        return bool(_Reader(one).read() == _Reader(other).read())
    except _UnreadableError:
        return False


class _UnreadableError(Exception):
    """The data is not what marshal writes for a code object."""


class _Reader:
    """Marshalled data as nested tuples that are equal for equal objects.

    A reference stands for the value it names. ``filenames`` appends the file name to the outermost code
    object; otherwise file names are left out.
    """

    def __init__(self, data: bytes, *, filenames: bool = False) -> None:
        self._data = data
        self._at = 0
        self._refs: list[tuple[Any, int]] = []
        self._filenames = filenames

    def read(self) -> Any:
        """Raises _UnreadableError when the data is anything but one object."""
        try:
            value = self._object()[0]
        except (struct.error, IndexError, RecursionError, TypeError) as err:
            raise _UnreadableError from err
        if self._at != len(self._data):
            raise _UnreadableError
        return value

    def _take(self, count: int) -> bytes:
        data = self._data[self._at : self._at + count]
        if count < 0 or len(data) != count:
            raise _UnreadableError
        self._at += count
        return data

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _object(self) -> tuple[Any, int]:
        """A value and the number of objects in it, references expanded."""
        byte = self._take(1)[0]
        kind = chr(byte & 0x7F)
        if kind == "r":
            return self._refs[self._number("<I")]
        slot = len(self._refs) if byte & 0x80 else None
        if slot is not None:
            self._refs.append((None, 0))
        found = self._value(kind)
        if found[1] > _MAX_OBJECTS:  # references to references can stand for endlessly many
            raise _UnreadableError
        if slot is not None:
            self._refs[slot] = found
        return found

    def _value(self, kind: str) -> tuple[Any, int]:
        if kind in "0NFTS.":
            return (kind,), 1
        if kind in _FIXED:
            return (kind, self._take(_FIXED[kind])), 1
        if kind == "l":
            count = self._number("<i")
            return (kind, count, self._take(2 * abs(count))), 1
        if kind in _SIZED:
            tag, form = _SIZED[kind]
            return (tag, self._take(self._number(form))), 1
        if kind in ")(>":
            count = self._number("<B" if kind == ")" else "<I")
            if count > len(self._data):
                raise _UnreadableError
            items = [self._object() for _ in range(count)]
            values = tuple(value for value, _ in items)
            size = 1 + sum(size for _, size in items)
            if size > _MAX_OBJECTS:
                raise _UnreadableError
            return ((">", frozenset(values)) if kind == ">" else ("(", values)), size
        if kind == ":":
            parts = [self._object() for _ in range(3)]
            return (kind, *(value for value, _ in parts)), 1 + sum(size for _, size in parts)
        if kind == "c":
            return self._code()
        raise _UnreadableError

    def _code(self) -> tuple[Any, int]:
        numbers = self._take(20)  # arguments, stack size, flags
        # code, consts, names, localsplusnames, localspluskinds, filename, name, qualname
        fields = [self._object() for _ in range(8)]
        line = self._take(4)
        fields += [self._object() for _ in range(2)]  # linetable, exceptiontable
        values = [value for value, _ in fields]
        filename = values.pop(5)
        size = 1 + sum(size for _, size in fields)
        end = (filename[1],) if self._filenames else ()
        return ("c", numbers, line, *values, *end), size


_FIXED: Final = {"i": 4, "g": 8, "y": 16}
_SIZED: Final = {
    "s": ("s", "<I"),
    "u": ("u", "<I"),
    "t": ("u", "<I"),
    "a": ("u", "<I"),
    "A": ("u", "<I"),
    "z": ("u", "<B"),
    "Z": ("u", "<B"),
}
"""Types of stated length. Interned, short and ASCII strings are all strings."""
