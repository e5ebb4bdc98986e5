"""The fork wheel: a released wheel with the series' files replaced and the kernels inside.

No compiler and no git takes part: native modules and every file the series does not touch keep the
compressed bytes of the release. The released wheel is checked by the sha256 of the whole file in
``series.lock``; so its RECORD rows are reused and only what changes is hashed. A wheel the lock
does not list is refused even if each file to be replaced has the right content: nothing would vouch
for its native modules.

The result is a function of the inputs: fixed dates and modes, sorted members, new data stored
uncompressed.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, Final

from tool import atomic
from tool.apply import DESTINATION
from tool.errors import EnvironmentFault, IntegrityError, UsageError
from tool.git import FILE, NULL_OID, blob_id, tree_id
from tool.series import LockedRelease, LockedWheel
from tool.upstream import PREFIX, is_imported
from tool.wheel.archive import Wheel, WheelName, WheelWriter, content_digest, unsafe_name
from tool.wheel.record import RecordRow, format_record, parse_record
from tool.wheel.sbom import SBOM_NAME, PatchProvenance, Provenance, render_sbom
from tool.wheel.version import (
    VERSION_FILE,
    find_missing_requirements,
    fork_version,
    replace_metadata,
    replace_version,
)

KERNEL_PREFIX: Final = DESTINATION.removeprefix(PREFIX) + "/"
"""Where the kernels live inside sglang's own package, as a wheel member's prefix."""


@dataclass(frozen=True)
class BuiltWheel:
    """A finished fork wheel.

    ``sha256`` is the file's, ``content_digest`` that of its content
    (:func:`tool.wheel.archive.content_digest` over every member), equal for two wheels that install the
    same files whatever compressed them. ``replaced``, ``added`` and ``removed`` name members
    outside the dist-info folder; ``kept`` counts those whose compressed bytes are the release's.
    """

    path: Path
    version: str
    sha256: str
    content_digest: str
    size: int
    replaced: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    kept: int


@dataclass(frozen=True)
class _New:
    data: bytes
    mode: int


def build_fork_wheel(
    source: Path,
    out_dir: Path,
    *,
    locked: LockedRelease,
    revision: int,
    patched: Mapping[str, bytes | None],
    kernels: Mapping[str, bytes],
    requires: Sequence[str],
    patches: Sequence[PatchProvenance],
    executables: Collection[str] | None = None,
) -> BuiltWheel:
    """Write ``sglang-<release>+ada.<revision>-<tags>.whl`` into ``out_dir``, whole or not at all.

    The wheel of a git ref has its commit in the version.

    Args:
        source: the released wheel under its own file name.
        locked: the release's entry in series.lock, or what describes a git ref in the same way.
        patched: for every file the series touches, its path (``python/sglang/…``) and content after
            the series; None where the series deletes it.
        kernels: the files of the kernel package, by path relative to it.
        requires: what the kernels need, as requirements; those the release implies are left out.
        patches: the series for this release, in order.
        executables: the executable files of the release's base commit, as member names; None: those of
            ``source``. The wheels of a release may differ in this (0.5.23 does), and the tree in
            series.lock has the modes of one of them.

    Raises:
        IntegrityError: the wheel is not the released one, a file to be replaced is not what the
            series was written for, or what replaces it is not what the lock says. Names the first
            such file.
        UsageError: a requirement contradicts the release, or the inputs make no wheel.
        EnvironmentFault: the result cannot be written; what stood in its place before still does.
    """
    with Wheel(source) as wheel:
        released = check_released(wheel, locked)
        _check_patches(locked, patches)
        new, removed = _overlay(wheel, locked, patched, kernels, executables)
        version = fork_version(locked.version, revision, locked.commit)
        name = WheelName(wheel.name.distribution, version, wheel.name.tags)

        old = new[VERSION_FILE].data if VERSION_FILE in new else wheel.read(VERSION_FILE)
        data = replace_version(old, locked.version, version)
        new[VERSION_FILE] = _New(data, _mode(wheel, VERSION_FILE, executables))
        info = wheel.name.dist_info
        metadata = wheel.read(f"{info}/METADATA")
        requirements = find_missing_requirements(metadata, requires)
        metadata = replace_metadata(metadata, locked.version, version, requirements)
        new[f"{info}/METADATA"] = _New(metadata, 0o644)
        facts = Provenance(
            version=version,
            release=locked.version,
            source=released.filename,
            source_sha256=released.sha256,
            tree=locked.final_tree,
            patches=tuple(patches),
            kernel_digest=hash_kernels(kernels),
            kernel_tree=tree_id({p: (FILE, blob_id(d)) for p, d in kernels.items()}),
            kernel_files=len(kernels),
            executables=find_executables(wheel, removed, executables),
            requirements=requirements,
            commit=locked.commit,
        )
        new[f"{info}/{SBOM_NAME}"] = _New(render_sbom(facts), 0o644)
        with _whole_file(out_dir / name.filename) as out:
            writer = WheelWriter(out)
            digest, kept = _write(wheel, writer, new, removed, name, executables)

    payload = [n for n in new if not n.startswith(f"{info}/")]
    return BuiltWheel(
        path=out_dir / name.filename,
        version=str(version),
        sha256=writer.sha256(),
        content_digest=digest,
        size=writer.size,
        replaced=tuple(sorted(n for n in payload if n in wheel.members)),
        added=tuple(sorted(n for n in payload if n not in wheel.members)),
        removed=tuple(sorted(removed)),
        kept=kept,
    )


def check_released(wheel: Wheel, locked: LockedRelease) -> LockedWheel:
    """The lock's entry for ``wheel``, which is that file byte for byte.

    Raises:
        IntegrityError: with the lock's wheels, or the two hashes.
    """
    filename = wheel.path.name
    entry = next((w for w in locked.wheels if w.filename == filename), None)
    if entry is None:
        raise IntegrityError(
            f"{filename} is not a wheel of sglang {locked.version} that series.lock lists",
            where=str(wheel.path),
            why="the lock has: " + (", ".join(sorted(w.filename for w in locked.wheels)) or "none"),
            next_step="build from one of these; tool build fetches the right one itself",
        )
    found = wheel.sha256()
    if (found, wheel.file_size) != (entry.sha256, entry.size):
        raise IntegrityError(
            f"{filename} is not the released file",
            where=str(wheel.path),
            why=f"series.lock has sha256 {entry.sha256} ({entry.size} bytes), "
            f"this file has {found} ({wheel.file_size} bytes)",
            next_step="delete it and fetch it again, from the index the release came from",
        )
    return entry


def hash_kernels(kernels: Mapping[str, bytes]) -> str:
    """Digest of the kernel package, paths relative to it, every mode 0644."""
    return content_digest(
        (path, 0o644, hashlib.sha256(data).hexdigest()) for path, data in kernels.items()
    )


def find_executables(
    wheel: Wheel, removed: frozenset[str], executables: Collection[str] | None
) -> tuple[str, ...]:
    """The executable members of sglang's package, without native modules, sorted."""
    return tuple(
        sorted(
            name
            for name in wheel.members
            if is_imported(name)
            and name not in removed
            and _mode(wheel, name, executables) == 0o755
        )
    )


def _mode(wheel: Wheel, name: str, executables: Collection[str] | None) -> int:
    """The mode of a member in the fork: the base commit's, where that says which are executable."""
    if executables is not None and is_imported(name):
        return 0o755 if name in executables else 0o644
    member = wheel.members.get(name)
    return member.mode if member else 0o644


def _check_patches(locked: LockedRelease, patches: Sequence[PatchProvenance]) -> None:
    given = [(p.name, p.sha256) for p in patches]
    recorded = [(p.name, p.sha256) for p in locked.patches]
    if given == recorded:
        return
    first = next(g or p for g, p in zip_longest(given, recorded) if g != p)
    raise IntegrityError(
        "the patches are not those series.lock was made with",
        where=f"patches/{first[0] if first else ''}",
        why=f"{len(given)} given, {len(recorded)} locked for {locked.version}",
        next_step="restore the patch, or record the series again with: tool lock",
    )


def _overlay(
    wheel: Wheel,
    locked: LockedRelease,
    patched: Mapping[str, bytes | None],
    kernels: Mapping[str, bytes],
    executables: Collection[str] | None,
) -> tuple[dict[str, _New], frozenset[str]]:
    """New members by name, and the removed ones; each pre-image and result checked."""
    net = locked.net_files()
    if odd := sorted(set(net) ^ set(patched)):
        raise IntegrityError(
            "the patched files are not those series.lock lists",
            where=odd[0],
            why="in the lock only" if odd[0] in net else "not in the lock",
            next_step="check and record the series again with: tool lock",
        )
    new: dict[str, _New] = {}
    removed: set[str] = set()
    for path, change in sorted(net.items()):
        name = _member_name(path)
        member = wheel.members.get(name)
        _same_blob(path, change.before, wheel.read(name) if member else None, "before")
        data = patched[path]
        _same_blob(path, change.after, data, "after")
        if data is not None:
            new[name] = _New(data, _mode(wheel, name, executables))
        elif member:
            removed.add(name)
    if "__init__.py" not in kernels:
        raise UsageError("the kernels hold no __init__.py", next_step="run from a whole checkout")
    for path, data in kernels.items():
        if why := unsafe_name(path):
            raise UsageError(f"a kernel file has {why}", where=repr(path))
        new[KERNEL_PREFIX + path] = _New(data, 0o644)
    taken = [n for n in [*wheel.members, *new] if n.startswith(KERNEL_PREFIX)]
    if len(taken) != len(kernels):
        raise IntegrityError(
            "the release or a patch has files where the kernels go", where=KERNEL_PREFIX
        )
    return new, frozenset(removed)


def _member_name(path: str) -> str:
    name = path.removeprefix(PREFIX)
    if not path.startswith(PREFIX) or not is_imported(name) or unsafe_name(name):
        raise IntegrityError(
            "a patch touches a file outside python/sglang/", where=path, next_step="tool lint"
        )
    return name


def _same_blob(path: str, expected: str, data: bytes | None, when: str) -> None:
    found = NULL_OID if data is None else blob_id(data)
    if found == expected:
        return
    raise IntegrityError(
        "the file in the wheel is not the one the series was written for"
        if when == "before"
        else "the patched file is not what series.lock says",
        where=path,
        why=f"{when} the series its blob is {_blob(expected)}, this one is {_blob(found)}",
        next_step="build from the released wheel of this version"
        if when == "before"
        else "apply the series again; if it changed on purpose: tool lock",
    )


def _blob(blob: str) -> str:
    return "absent" if blob == NULL_OID else blob


def _write(
    wheel: Wheel,
    writer: WheelWriter,
    new: Mapping[str, _New],
    removed: frozenset[str],
    name: WheelName,
    executables: Collection[str] | None,
) -> tuple[str, int]:
    """Write all members, dist-info last; returns the content digest and the members kept."""
    old_info, record = f"{wheel.name.dist_info}/", f"{wheel.name.dist_info}/RECORD"
    rows = parse_record(wheel.read(record), str(wheel.path))
    names = sorted(
        (set(wheel.members) | set(new)) - removed - {record},
        key=lambda n: (n.startswith(old_info), n),
    )
    written: list[tuple[str, RecordRow]] = []
    listed: list[tuple[str, int, str]] = []
    for old in names:
        in_info = old.startswith(old_info)
        target = f"{name.dist_info}/{old.removeprefix(old_info)}" if in_info else old
        if old in new:
            data, mode = new[old].data, new[old].mode
            digest, size = hashlib.sha256(data).hexdigest(), len(data)
            writer.store(target, mode, data)
        else:
            member = wheel.members[old]
            digest, size = _row(rows, old, member.size), member.size
            mode = _mode(wheel, old, executables)
            writer.copy(wheel, old, target, mode)
        written.append((target, RecordRow(digest, size)))
        listed.append((target, mode, digest))
    target = f"{name.dist_info}/RECORD"
    data = format_record([*written, (target, RecordRow(None, None))])
    writer.store(target, 0o644, data)
    listed.append((target, 0o644, hashlib.sha256(data).hexdigest()))
    writer.close()
    return content_digest(listed), len(names) - len(new)


def _row(rows: Mapping[str, RecordRow], name: str, size: int) -> str:
    row = rows.get(name)
    if row is None or row.sha256 is None or row.size != size:
        raise IntegrityError(
            "the released wheel's RECORD does not describe this member", where=name
        )
    return row.sha256


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    try:
        with atomic.replacing(path) as out:
            yield out
    except OSError as err:
        raise EnvironmentFault(
            f"cannot write the wheel: {err.strerror}",
            where=str(path),
            why="nothing was changed",
            next_step="free some space, or name another folder with --out",
        ) from err
