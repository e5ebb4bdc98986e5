"""A released wheel as a git commit, the same on every machine.

The members under ``sglang/`` become ``python/sglang/…``, the layout of sglang's own repository, so
the same patches apply to both. Left out: dist-info (it differs per Python) and ``.so`` files
(compiled per Python and platform), so the wheels of a release give the same commit if they agree on
which files are executable. Author and dates are fixed, and a mode is 0644 or 0755.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Final

from packaging.version import Version

from tool.errors import IntegrityError
from tool.git import DATE, IDENTITY, Git, blob_id, failure, file_mode, tree_id
from tool.project import SILENT, Progress, Step

if TYPE_CHECKING:
    import zipfile


PACKAGE: Final = "sglang/"
PREFIX: Final = "python/"
_METHODS: Final = (0, 8)
"""Stored and deflated."""


def is_imported(member: str) -> bool:
    """Does this wheel member belong to the base tree?"""
    return member.startswith(PACKAGE) and not member.endswith((".so", "/"))


def release_ref(release: Version) -> str:
    return f"refs/ada/base/v{release}"


def import_wheel(git: Git, path: Path, release: Version, *, progress: Progress = SILENT) -> str:
    """Import ``path`` and return the commit id. The ref appears last, so a killed import leaves
    nothing.

    Raises:
        IntegrityError: the archive is damaged or has unsafe member names.
    """
    ref = release_ref(release)
    process = git.start("fast-import", "--quiet", "--done", "--date-format=raw")
    assert process.stdin is not None and process.stderr is not None
    try:
        with (
            _open(path) as archive,
            progress.bar(f"importing sglang {release}") as step,
        ):
            _write_stream(process.stdin, archive, ref, release, step)
        process.stdin.close()
    except BrokenPipeError:
        pass  # fast-import died; its own words follow
    except BaseException:
        process.kill()
        process.wait()
        raise
    with process.stderr as stderr:
        words = stderr.read()
    if process.wait() != 0:
        raise failure(("fast-import",), process.returncode, words)
    commit = git.resolve(ref)
    assert commit is not None
    return commit


def compute_base_tree(path: Path) -> str:
    """The tree that importing the wheel ``path`` gives; git is not asked. Errors as for the import."""
    with _open(path) as archive:
        return tree_id(
            {
                PREFIX + info.filename: (
                    file_mode(info.external_attr >> 16),
                    blob_id(archive.read(info)),
                )
                for info in _members(archive)
            }
        )


@contextlib.contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    """The wheel, for a block that reads it. zipfile and its decoders raise errors of many types."""
    import struct
    import zipfile  # slow to import, and the engine needs only this module's constants
    import zlib

    damage = (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        RuntimeError,
        ValueError,
    )
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except BrokenPipeError:
        raise  # whoever took what was read has stopped
    except damage as err:
        raise IntegrityError(
            "the wheel cannot be read",
            where=str(path),
            why=f"{type(err).__name__}: {err}",
            next_step="delete it and try again",
        ) from err


def _write_stream(
    out: IO[bytes], archive: zipfile.ZipFile, ref: str, release: Version, step: Step
) -> None:
    message = f"sglang {release}\n\nThe Python files of the released wheel.\n".encode()
    out.write(f"commit {ref}\nauthor {IDENTITY} {DATE}\ncommitter {IDENTITY} {DATE}\n".encode())
    out.write(b"data %d\n%b\n" % (len(message), message))
    out.write(b"deleteall\n")
    members = list(_members(archive))
    for number, info in enumerate(members, start=1):
        mode = b"100755" if (info.external_attr >> 16) & 0o100 else b"100644"
        data = archive.read(info)
        out.write(b"M %b inline %b\n" % (mode, _quoted(PREFIX + info.filename)))
        out.write(b"data %d\n" % len(data))
        out.write(data)
        out.write(b"\n")
        step(number, len(members))
    out.write(b"done\n")


def _members(archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    seen: set[str] = set()
    folders: set[str] = set()
    for info in archive.infolist():
        name = info.filename
        if not is_imported(name):
            continue
        if info.compress_type not in _METHODS:
            raise IntegrityError(
                f"{name!r} is packed by method {info.compress_type}",
                where=str(archive.filename),
                why="a wheel's files are stored or deflated",
                next_step="delete it and try again",
            )
        above = {str(parent) for parent in PurePosixPath(name).parents}
        unsafe = any(part in ("", ".", "..") or part.lower() == ".git" for part in name.split("/"))
        if unsafe or "\\" in name or name in seen or name in folders or above & seen:
            raise IntegrityError(
                f"unsafe or repeated member {name!r}",
                where=str(archive.filename),
                next_step="delete it and try again",
            )
        seen.add(name)
        folders |= above
        yield info


def _quoted(path: str) -> bytes:
    """A path as fast-import reads it: C-style quotes, so that no byte of a name is syntax."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return b'"' + escaped.encode() + b'"'
