"""Released wheels, from the package index the user's pip is set up for.

pip does the transfer: it knows mirrors, proxies, credentials and certificates, retries and shows
progress. Every file is checked against the sha256 in series.lock before it gets its final name, so
a broken or interrupted download leaves nothing that a later command could take for a wheel.
"""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from tool.errors import EnvironmentFault, IntegrityError, ToolError, UsageError
from tool.project import Session, Workspace
from tool.series import LockedRelease, LockedWheel

if TYPE_CHECKING:
    import tempfile

PROJECT: Final = "sglang"
STDERR: Final = 2
PYTHONS: Final = ("cp310", "cp311", "cp312", "cp313", "cp314")
MACHINES: Final = ("x86_64", "aarch64")
_GLIBC: Final = range(17, 41)
"""manylinux_2_N tags to offer: pip compares platform tags exactly when it is given any."""
_DOWNLOAD: Final = ".download."


class Yanked(UsageError):
    """The release was withdrawn from the index."""


def choose_wheel(
    locked: LockedRelease, python: str | None, machine: str | None = None
) -> LockedWheel:
    """The locked wheel for ``python`` (``cp312``) on ``machine`` (``x86_64``); defaults: this
    interpreter.

    Raises:
        UsageError: the release has no such wheel; names those it has.
    """
    wanted = python or f"cp{sys.version_info[0]}{sys.version_info[1]}"
    cpu = machine or platform.machine()
    for wheel in locked.wheels:
        if _fits(wheel.filename, wanted, cpu):
            return wheel
    offers = ", ".join(w.filename for w in locked.wheels)
    raise UsageError(
        f"sglang {locked.version} has no wheel for {wanted} on {cpu}",
        why=f"locked wheels: {offers}",
        next_step="name one of these with --python and --machine",
    )


def choose_any_wheel(session: Session, locked: LockedRelease) -> LockedWheel:
    """The wheel to import a base from: all of a release's wheels hold the same Python files.

    One already downloaded wins, then this interpreter's, then the first.
    """
    for wheel in locked.wheels:
        if (session.workspace.wheels / wheel.filename).is_file():
            return wheel
    try:
        return choose_wheel(locked, None)
    except UsageError:
        return locked.wheels[0]


def _fits(filename: str, python: str, machine: str) -> bool:
    tags = parse_wheel_filename(filename)[3]
    return any(
        tag.interpreter in (python, "py3")
        and (tag.platform == "any" or tag.platform.endswith(machine))
        for tag in tags
    )


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
    tags = parse_wheel_filename(wanted.filename)[3]
    tag = next(iter(tags))
    python = tag.interpreter if tag.interpreter.startswith("cp") else None
    machine = None if tag.platform == "any" else tag.platform
    quiet = session.progress.quiet
    with _download_folder(session.workspace) as temp:
        got = _pip_download(Path(temp), locked.version, python, machine and [machine], quiet=quiet)
        digest = hash_file(got)
        if got.name != wanted.filename or digest != wanted.sha256:
            raise IntegrityError(
                f"{got.name} is not the file the series was written for",
                where="series.lock",
                why=f"sha256 {digest}, locked {wanted.filename} {wanted.sha256}",
                next_step="check the index pip uses (pip config list); nothing was kept",
            )
        got.replace(path)
    return path


def discover_wheels(session: Session, release: Version) -> tuple[LockedWheel, ...]:
    """Download every Linux wheel of ``release`` and describe it, for a new lock entry.

    Raises:
        UsageError: the index has no such release, or it was yanked.
    """
    found: dict[str, LockedWheel] = {}
    wheels, quiet = session.workspace.wheels, session.progress.quiet
    for machine in MACHINES:
        for python in PYTHONS:
            with _download_folder(session.workspace) as temp:
                try:
                    got = _pip_download(
                        Path(temp), release, python, _platforms(machine), quiet=quiet, new=True
                    )
                except Yanked:
                    raise
                except UsageError:
                    continue
                found[got.name] = LockedWheel(got.name, hash_file(got), got.stat().st_size)
                got.replace(wheels / got.name)
                if got.name.endswith("-none-any.whl"):
                    return tuple(found.values())
    if not found:
        raise _unknown(release)
    return tuple(found[name] for name in sorted(found))


def list_available() -> tuple[Version, ...]:
    """Final and post releases the index offers for this interpreter, oldest first; not yanked ones.

    Raises:
        EnvironmentFault: the index cannot be asked.
    """
    command = [sys.executable, "-m", "pip", "index", "versions", PROJECT, "--no-input"]
    command += ["--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True)
    listed = re.search(r"^Available versions: (.+)$", done.stdout, re.MULTILINE)
    if done.returncode != 0 or listed is None:
        raise EnvironmentFault(
            f"pip cannot list the releases of {PROJECT}",
            why=_last_error(done.stderr),
            next_step="check the network and pip's index settings (pip config list)",
        )
    versions = (Version(text.strip()) for text in listed[1].split(","))
    return tuple(sorted(v for v in versions if not v.is_prerelease))


def _pip_download(
    into: Path,
    release: Version,
    python: str | None,
    platforms: Sequence[str] | None,
    *,
    quiet: bool,
    new: bool = False,
) -> Path:
    """Download one wheel. ``new``: it is not locked yet, so a yanked one is refused."""
    command = [sys.executable, "-m", "pip", "download", f"{PROJECT}=={release}"]
    command += [
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(into),
        "--disable-pip-version-check",
    ]
    command += ["--no-input", "--no-cache-dir"]
    if python is not None:
        command += ["--implementation", "cp", "--python-version", f"{python[2]}.{python[3:]}"]
    elif platforms is None:
        # A pure wheel still states Requires-Python; any interpreter that meets it may fetch it.
        command += ["--ignore-requires-python"]
    for tag in platforms or ():
        command += ["--platform", tag]
    if quiet:
        command += ["--quiet", "--progress-bar=off"]
    # pip draws its progress bar on stdout, which belongs to our own report.
    done = subprocess.run(command, stdout=STDERR, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise _pip_failure(done.stderr, release)
    if new and "yanked version" in done.stderr:
        # pip takes a yanked release when it is named exactly; a series should not be built on one.
        raise _yanked(release, done.stderr)
    files = [p for p in into.iterdir() if p.suffix == ".whl"]
    if len(files) != 1:
        raise EnvironmentFault(
            "pip reported success but left no wheel", why=done.stderr.strip() or None
        )
    try:
        parse_wheel_filename(files[0].name)
    except InvalidWheelFilename as err:
        raise IntegrityError(f"the index served a file with a bad name: {files[0].name}") from err
    return files[0]


def _pip_failure(stderr: str, release: Version) -> ToolError:
    if "No module named pip" in stderr:
        return EnvironmentFault(
            "pip is not installed beside this tool", next_step="python -m ensurepip, then try again"
        )
    if re.search(r"No matching distribution|Could not find a version", stderr):
        if re.search(
            r"NewConnectionError|Retrying|ConnectionError|timed out|Name or service", stderr
        ):
            return EnvironmentFault(
                "the package index cannot be reached",
                why=_last_error(stderr),
                next_step="check the network and pip's index settings, or use --offline with a full cache",
            )
        return _unknown(release)
    return EnvironmentFault(
        f"pip could not download sglang {release}",
        why=_last_error(stderr),
        next_step="run the same command again; the download starts afresh",
    )


def _unknown(release: Version) -> UsageError:
    return UsageError(
        f"the package index has no usable wheel of sglang {release}",
        why="the release is unknown, yanked, or has no wheel for this platform",
        next_step="list what there is with: pip index versions sglang",
    )


def _yanked(release: Version, stderr: str) -> Yanked:
    reason = re.search(r"Reason for being yanked: (.+)", stderr)
    return Yanked(
        f"sglang {release} was yanked from the index",
        why=reason[1].strip() if reason else None,
        next_step="take the next release; list what there is with: pip index versions sglang",
    )


def _last_error(stderr: str) -> str | None:
    lines = stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("ERROR")]
    return next(reversed(errors or lines), None)


def _platforms(machine: str) -> list[str]:
    return [f"manylinux_2_{n}_{machine}" for n in _GLIBC] + [f"manylinux2014_{machine}"]


def _download_folder(workspace: Workspace) -> tempfile.TemporaryDirectory[str]:
    """A folder beside the wheels, removed when its block ends. The data folder's lock must be held."""
    import shutil
    import tempfile  # both slow to import, and a cached wheel needs neither

    workspace.wheels.mkdir(parents=True, exist_ok=True)
    for stale in workspace.wheels.glob(f"{_DOWNLOAD}*"):  # left by a killed run; we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    return tempfile.TemporaryDirectory(dir=workspace.wheels, prefix=_DOWNLOAD)


def hash_file(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
