"""Everything that a release of the fork hands out, in one folder.

The folder is a function of the project and of the released wheels: it holds no date, no absolute path and
nothing of the machine. It lands whole, or the one before it stays.

A wheel that is there already is taken over if it would be built from the same parts. What it was built from
is noted in the data folder, beside the repository, and not in the published folder: whoever can write there
cannot pass another wheel off as one that this tool built.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.version import Version

import tool
from tool import atomic
from tool.apply import check_patch_files, select_patches
from tool.errors import UsageError
from tool.project import Session
from tool.publish.index import IndexFile, render_index
from tool.publish.notes import render_notes
from tool.series import (
    LockedRelease,
    LockedWheel,
    parse_release,
    read_kernels,
    read_requirements,
)
from tool.upstream import Request, fetch_wheel, hash_file, select_wheels
from tool.wheel import (
    SBOM_NAME,
    BuiltWheel,
    ForkParts,
    Wheel,
    WheelName,
    fork_version,
    hash_kernels,
    prepare_parts,
    read_requires_python,
)

SUMS: Final = "SHA256SUMS"
TOKEN_FILE: Final = ".ada-token"
TOKEN: Final = b"tool publish made this folder and replaces it whole\n"
NOTES: Final = "RELEASE_NOTES.md"
CHANGELOG: Final = "CHANGELOG.md"
_BUILT: Final = "built-wheels.json"
"""In this project's part of the data folder: name of a wheel → what it was built from, and its sha256."""


@dataclass(frozen=True)
class PublishedWheel:
    """``reused``: it was taken from the folder that was there before."""

    filename: str
    version: str
    sha256: str
    size: int
    reused: bool


@dataclass(frozen=True)
class Published:
    """``files`` are all files of the folder, relative to it; ``sums_sha256`` is the hash of SHA256SUMS."""

    folder: Path
    wheels: tuple[PublishedWheel, ...]
    files: tuple[str, ...]
    sums_sha256: str


@dataclass(frozen=True)
class _Order:
    """One wheel to hand out: the released one, its name as a fork, and the digest of its parts."""

    locked: LockedRelease
    wheel: LockedWheel
    name: WheelName
    parts: str


def publish_wheels(
    session: Session,
    folder: Path,
    *,
    refs: Sequence[str],
    pythons: Sequence[str],
    machines: Sequence[str],
) -> Published:
    """Write the wheels of ``refs`` and all that belongs to them into ``folder``.

    Args:
        refs: releases; ``pin`` and ``all`` too.
        pythons, machines: as ``cp311`` and ``x86_64``. Empty: every wheel that series.lock lists.

    Raises:
        UsageError: an unknown release, no such wheel, or ``folder`` holds something that this command did
            not write.
        ToolError: whatever composing, checking or building raises; ``folder`` is as it was then.
    """
    with session.exclusive():
        orders = _plan(session, refs, pythons, machines)
        folder = folder.resolve()
        there = _read_published(folder)
        noted = _read_notes(session.folder / _BUILT)
        with session.replace_folder(folder) as replacement:
            kept = {
                order.name.filename
                for order in orders
                if (digest := there.get(order.name.filename))
                and noted.get(order.name.filename) == [order.parts, digest]
            }
            sums = _place_wheels(session, orders, kept, folder, replacement.staged)
            files = _write_files(session, orders, sums, replacement.staged)
            replacement.finish()
        made = {order.name.filename: [order.parts, sums[order.name.filename]] for order in orders}
        note = json.dumps(dict(sorted({**noted, **made}.items())), indent=1).encode()
        atomic.write(session.folder / _BUILT, note)
        return _report(folder, orders, sums, kept, files)


def _plan(
    session: Session, refs: Sequence[str], pythons: Sequence[str], machines: Sequence[str]
) -> list[_Order]:
    series, lock = session.series, session.lock
    kernels, requires = read_kernels(series.kernel_dir), read_requirements(series.kernel_dir)
    common = [_digest_tool(), series.revision, hash_kernels(kernels), list(requires)]
    orders = []
    for release in _find_releases(session, refs):
        locked = lock.get(release)
        check_patch_files(select_patches(series, release), locked)
        wheels = select_wheels(locked, pythons, machines)
        if not wheels:
            session.warn(f"sglang {release} has no wheel for what was asked, and is left out")
        for wheel in wheels:
            released = WheelName.parse(wheel.filename)
            name = WheelName(
                released.distribution, fork_version(release, series.revision), released.tags
            )
            patches = [(patch.name, patch.sha256) for patch in locked.patches]
            own = [wheel.filename, wheel.sha256, locked.final_tree, patches]
            parts = hashlib.sha256(json.dumps([common, own]).encode()).hexdigest()
            orders.append(_Order(locked, wheel, name, parts))
    if orders:
        return orders
    offers = sorted({wheel.filename for entry in lock.releases.values() for wheel in entry.wheels})
    raise UsageError(
        "series.lock lists no wheel for these releases, Pythons and machines",
        why=f"asked for: {', '.join([*refs, *pythons, *machines])}; the newest that it lists: "
        f"{', '.join(offers[-4:])}",
        next_step="name a Python as cp311 and a machine as x86_64; wheels that were uploaded later: "
        "tool lock --wheels",
    )


def _find_releases(session: Session, refs: Sequence[str]) -> list[Version]:
    """The releases that ``refs`` name, ascending, each once."""
    found: set[Version] = set()
    for ref in refs:
        if ref == "all":
            found |= set(session.lock.carried)
        else:
            found.add(session.series.pin if ref == "pin" else parse_release(ref))
    return sorted(found)


def _digest_tool() -> str:
    """Digest of the tool's own source: another version of it may build other bytes."""
    root = Path(tool.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _read_published(folder: Path) -> dict[str, str]:
    """The files of a folder that this command wrote, with their sha256; empty where there is no folder.

    Raises:
        UsageError: somebody else's folder, or one that was changed: replacing it would lose something.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return {}
    token = folder / TOKEN_FILE
    if not _is_plain(token) or token.read_bytes() != TOKEN:
        raise UsageError(
            "is there and was not written by tool publish",
            where=str(folder),
            next_step="name another folder with --out",
        )
    found = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    }
    del found[TOKEN_FILE]
    listed: dict[str, str] = {}
    if _is_plain(folder / SUMS):
        del found[SUMS]
        lines = (folder / SUMS).read_text("utf-8", errors="replace").splitlines()
        listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in sorted(found.keys() | listed.keys()):
        path = found.get(name)
        if (
            path is None
            or name not in listed
            or not _is_plain(path)
            or hash_file(path) != listed[name]
        ):
            state = "is missing" if path is None else "is not what tool publish wrote"
            raise UsageError(
                f"{name} {state}",
                where=str(folder),
                why="the folder is replaced whole, and a change of yours would be lost",
                next_step="name another folder with --out, or remove this one",
            )
    return listed


def _is_plain(path: Path) -> bool:
    """Is it a regular file, and no link to one?"""
    return path.is_file() and not path.is_symlink()


def _read_notes(path: Path) -> dict[str, object]:
    """What earlier wheels were built from. A note that cannot be read costs a build, nothing else."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            return found
    return {}


def _place_wheels(
    session: Session, orders: Sequence[_Order], kept: set[str], earlier: Path, staged: Path
) -> dict[str, str]:
    """Put every wheel into ``staged``, linked from the earlier folder or built; name → sha256.

    Wheels are built in threads: most of the time goes into hashing and copying, which leave the others
    run. A release is composed once, while the wheels of the one before it are built.
    """
    sums: dict[str, str] = {}
    running: dict[str, Future[str]] = {}
    parts: dict[Version, ForkParts] = {}
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with (
        ThreadPoolExecutor(max_workers=workers) as pool,
        session.progress.bar("building wheels") as step,
    ):
        try:
            for order in orders:
                name = order.name.filename
                if name in kept:
                    sums[name] = _link_or_copy(earlier / name, staged / name)
                    continue
                release = order.locked.version
                if release not in parts:
                    parts[release] = prepare_parts(session, Request(f"v{release}"))
                source = fetch_wheel(session, order.locked, order.wheel)
                running[name] = pool.submit(_build, parts[release].build, source, staged)
            for number, (name, future) in enumerate(running.items(), start=1):
                sums[name] = future.result()
                step(number, len(running))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return sums


def _build(build: Callable[[Path, Path], BuiltWheel], source: Path, out: Path) -> str:
    return build(source, out).sha256


def _link_or_copy(source: Path, target: Path) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
    return hash_file(target)


def _write_files(
    session: Session, orders: Sequence[_Order], sums: Mapping[str, str], staged: Path
) -> list[str]:
    """Write all that is no wheel; returns the names of all files."""
    series = session.series
    entries: list[IndexFile] = []
    files: dict[str, bytes] = {}
    for order in orders:
        filename, info = order.name.filename, order.name.dist_info
        with Wheel(staged / filename) as wheel:
            bill = f"{filename.removesuffix('.whl')}.cdx.json"
            files[bill] = wheel.read(f"{info}/{SBOM_NAME}")
            needs = read_requires_python(wheel.read(f"{info}/METADATA"))
            size = wheel.file_size
        entries.append(IndexFile(filename, order.name.version, sums[filename], size, needs))
    versions = {order.locked.version: order.name.version for order in orders}
    for release, version in versions.items():
        files[f"constraints-v{release}.txt"] = _render_constraints(release, version)
    changelog = series.root / CHANGELOG
    text = changelog.read_text("utf-8") if changelog.is_file() else None
    files[NOTES] = render_notes(series, versions, text)
    files |= render_index(entries)
    all_sums = {**sums, **{n: hashlib.sha256(data).hexdigest() for n, data in files.items()}}
    files[SUMS] = "".join(f"{all_sums[name]}  {name}\n" for name in sorted(all_sums)).encode()
    files[TOKEN_FILE] = TOKEN
    for name, data in files.items():
        atomic.write(staged / name, data)
    return sorted([*files, *sums])


def _render_constraints(release: Version, version: Version) -> bytes:
    return (
        f"# Give this to every pip or uv command in the environment of the fork: -c "
        f"constraints-v{release}.txt\n"
        "# Without it a later release of stock sglang replaces the fork.\n"
        f"sglang=={version}\n"
    ).encode()


def _report(
    folder: Path,
    orders: Sequence[_Order],
    sums: Mapping[str, str],
    kept: set[str],
    files: Sequence[str],
) -> Published:
    wheels = tuple(
        PublishedWheel(
            name := order.name.filename,
            str(order.name.version),
            sums[name],
            (folder / name).stat().st_size,
            name in kept,
        )
        for order in orders
    )
    return Published(folder, wheels, tuple(files), hash_file(folder / SUMS))
