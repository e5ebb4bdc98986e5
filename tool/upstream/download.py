"""Released wheels on this machine: which one serves, and how it gets into the cache.

Every file is checked against the sha256 in series.lock before it gets its final name, so a broken or
interrupted download leaves nothing that a later command could take for a wheel.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from tool.errors import EnvironmentFault, IntegrityError, UsageError
from tool.project import Session, Workspace
from tool.series import LockedRelease, LockedWheel
from tool.upstream import index

_DOWNLOAD: Final = ".download."


def choose_wheel(
    locked: LockedRelease, python: str | None, machine: str | None = None
) -> LockedWheel:
    """The locked wheel for ``python`` (``cp312``) on ``machine`` (``x86_64``); defaults: this
    interpreter. Of several that fit, the one that pip would take.

    Raises:
        UsageError: the release has no such wheel; names those it has.
    """
    wanted = python or f"cp{sys.version_info[0]}{sys.version_info[1]}"
    cpu = machine or platform.machine()
    order = _usable(wanted)
    ranked = [(_rank(wheel.filename, order, cpu), wheel) for wheel in locked.wheels]
    fitting = [(rank, wheel) for rank, wheel in ranked if rank is not None]
    if fitting:
        return min(fitting, key=lambda one: (one[0], one[1].filename))[1]
    offers = ", ".join(w.filename for w in locked.wheels)
    raise UsageError(
        f"sglang {locked.version} has no wheel for {wanted} on {cpu}",
        why=f"locked wheels: {offers}",
        next_step="name one of these with --python and --machine, or look for wheels that were uploaded "
        f"later: tool lock --wheels v{locked.version}",
    )


def select_wheels(
    locked: LockedRelease, pythons: Sequence[str], machines: Sequence[str]
) -> tuple[LockedWheel, ...]:
    """The locked wheels that one of ``pythons`` on one of ``machines`` takes, in the lock's order.

    Without a name in ``pythons`` or ``machines``, that side selects nothing out.
    """
    return tuple(wheel for wheel in locked.wheels if _is_selected(wheel, pythons, machines))


def _is_selected(wheel: LockedWheel, pythons: Sequence[str], machines: Sequence[str]) -> bool:
    orders = [_usable(python) for python in pythons]
    return any(
        (not pythons or any((tag.interpreter, tag.abi) in order for order in orders))
        and (not machines or any(_runs_on(tag.platform, machine) for machine in machines))
        for tag in parse_wheel_filename(wheel.filename)[3]
    )


def order_wheels(session: Session, locked: LockedRelease) -> tuple[LockedWheel, ...]:
    """The wheels to import a base from: downloaded ones first, then this interpreter's, then the others.

    All of a release's wheels hold the same Python files. A few hold other modes, so they give another base.
    """
    try:
        own = choose_wheel(locked, None)
    except UsageError:
        own = None

    def rank(wheel: LockedWheel) -> tuple[bool, bool]:
        cached = (session.workspace.wheels / wheel.filename).is_file()
        return not cached, wheel != own

    return tuple(sorted(locked.wheels, key=rank))


def fetch_wheel(session: Session, locked: LockedRelease, wanted: LockedWheel) -> Path:
    """``wanted`` on disk, downloaded when the cache lacks it, checked either way.

    Raises:
        IntegrityError: the bytes are not those of series.lock.
        EnvironmentFault: offline and not cached, or pip failed.
    """
    path = session.workspace.wheels / wanted.filename
    if path.is_file():
        if hash_file(path) == wanted.sha256:
            return path
        path.unlink()  # a damaged cache entry: fetch it anew
    if session.offline:
        raise EnvironmentFault(
            f"{wanted.filename} is not in the cache",
            where=str(session.workspace.wheels),
            why="--offline uses nothing but the cache",
            next_step="run once without --offline",
        )
    download_wheel(session, wanted.filename, wanted)
    return path


def discover_wheels(
    session: Session,
    release: Version,
    *,
    whole: bool,
    offered: Mapping[str, Version] | None = None,
) -> tuple[LockedWheel, ...]:
    """Download and describe the Linux wheels of a release that is not locked.

    ``whole``: all of them, for a lock entry; else one, to look at the release. ``offered`` is what the
    index offers, where it has been asked already.

    Raises:
        UsageError: the index has no such release, or it was yanked.
        EnvironmentFault: the index cannot be asked, or a download failed.
    """
    known = index.list_wheels() if offered is None else offered
    names = [name for name, version in known.items() if version == release]
    if not names:
        raise index.unknown_release(release)
    if not whole:
        order, cpu = _usable(f"cp{sys.version_info[0]}{sys.version_info[1]}"), platform.machine()
        ranks = {name: _rank(name, order, cpu) for name in names}
        names = [min(names, key=lambda name: (ranks[name] is None, ranks[name] or 0, name))]
    return tuple(download_wheel(session, name) for name in names)


def list_cached(workspace: Workspace, release: Version) -> tuple[LockedWheel, ...]:
    """The wheels of ``release`` in the cache."""
    return tuple(
        LockedWheel(path.name, hash_file(path), path.stat().st_size)
        for path in sorted(workspace.wheels.glob(f"{index.PROJECT}-*.whl"))
        if _version_of(path.name) == release
    )


def hash_file(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def download_wheel(
    session: Session, filename: str, locked: LockedWheel | None = None
) -> LockedWheel:
    """Fetch a wheel into the cache and describe it; the data folder's lock must be held.

    Raises:
        UsageError: the index has no such file, or ``locked`` is None and it was yanked.
        IntegrityError: it is not the ``locked`` one.
        EnvironmentFault: the index cannot be asked, or the transfer failed.
    """
    wheels = session.workspace.wheels
    wheels.mkdir(parents=True, exist_ok=True)
    for stale in wheels.glob(f"{_DOWNLOAD}*"):  # left by a killed run; we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    session.progress.note(f"downloading {filename}")
    with (
        tempfile.TemporaryDirectory(dir=wheels, prefix=_DOWNLOAD) as temp,
        session.progress.bar(f"downloading {filename}") as step,
    ):
        size = locked.size if locked else 0
        got = index.download(
            filename,
            Path(temp),
            new=locked is None,
            progress=(lambda done: step(min(done, size), size)) if size else None,
        )
        found = LockedWheel(filename, hash_file(got), got.stat().st_size)
        if locked is not None and found.sha256 != locked.sha256:
            raise IntegrityError(
                f"{filename} is not the file the series was written for",
                where="series.lock",
                why=f"sha256 {found.sha256}, locked {locked.sha256}",
                next_step="check the index pip uses (pip config list); nothing was kept",
            )
        got.replace(wheels / filename)
    return found


def _usable(python: str) -> dict[tuple[str, str], int]:
    """(interpreter, abi) of the wheels that CPython ``python`` (``cp312``, ``cp313t``) takes → preference.

    As pip orders them; the platform is compared apart, because it is Linux whatever runs the tool.
    """
    match = re.fullmatch(r"cp3(\d+)t?", python)
    if match is None:
        return {}
    version = (3, int(match[1]))
    tags = [
        *cpython_tags(version, abis=[python], platforms=["any"]),
        *compatible_tags(version, python.rstrip("t"), platforms=["any"]),
    ]
    return {(tag.interpreter, tag.abi): at for at, tag in reversed(list(enumerate(tags)))}


def _rank(filename: str, order: dict[tuple[str, str], int], machine: str) -> int | None:
    """Place of a wheel in ``order``; None when it does not fit."""
    places = [
        order[tag.interpreter, tag.abi]
        for tag in parse_wheel_filename(filename)[3]
        if (tag.interpreter, tag.abi) in order and _runs_on(tag.platform, machine)
    ]
    return min(places, default=None)


def _runs_on(platform_tag: str, machine: str) -> bool:
    if platform_tag == "any":
        return True
    return re.fullmatch(rf"(many)?linux\w*_{re.escape(machine)}", platform_tag) is not None


def _version_of(filename: str) -> Version | None:
    try:
        return parse_wheel_filename(filename)[1]
    except InvalidWheelFilename:
        return None
