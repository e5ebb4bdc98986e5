"""A released wheel as a git commit, the same on every machine.

The members under ``sglang/`` become ``python/sglang/…``, the layout of sglang's own repository, so
the same patches apply to both. Left out: dist-info (it differs per Python) and ``.so`` files
(compiled per Python and platform), so every wheel of a release gives the same commit. Author,
dates and modes are fixed.
"""

from __future__ import annotations

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
    import zipfile  # slow to import, and the engine needs only this module's constants

    ref = release_ref(release)
    process = git.start("fast-import", "--quiet", "--done", "--date-format=raw")
    assert process.stdin is not None and process.stderr is not None
    try:
        with (
            zipfile.ZipFile(path) as archive,
            progress.bar(f"importing sglang {release}") as step,
        ):
            _write_stream(process.stdin, archive, ref, release, step)
        process.stdin.close()
    except BrokenPipeError:
        pass  # fast-import died; its own words follow
    except (zipfile.BadZipFile, EOFError, OSError) as err:
        process.kill()
        process.wait()
        raise IntegrityError(
            "the wheel cannot be read",
            where=str(path),
            why=str(err),
            next_step="delete it and try again",
        ) from err
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
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return tree_id(
                {
                    PREFIX + info.filename: (
                        file_mode(info.external_attr >> 16),
                        blob_id(archive.read(info)),
                    )
                    for info in _members(archive)
                }
            )
    except (zipfile.BadZipFile, EOFError) as err:
        raise IntegrityError("the wheel cannot be read", where=str(path), why=str(err)) from err


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
    for info in archive.infolist():
        if not is_imported(info.filename):
            continue
        parts = PurePosixPath(info.filename).parts
        if ".." in parts or ".git" in parts or "\\" in info.filename or info.filename in seen:
            raise IntegrityError(
                f"unsafe or repeated member {info.filename!r}", where=str(archive.filename)
            )
        seen.add(info.filename)
        yield info


def _quoted(path: str) -> bytes:
    """A path as fast-import reads it: C-style quotes, so that no byte of a name is syntax."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return b'"' + escaped.encode() + b'"'
