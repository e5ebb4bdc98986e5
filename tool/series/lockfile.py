"""``series.lock``: what applying the series gave when it was last locked.

For every supported release: the released wheels (sha256, size), the base commit imported from
them, and per patch its sha256, the resulting tree and commit, and per touched file the git blob
before and after. Blobs hold for any source of the same release; trees and commits hold for the
wheel import. The commit that bundles the kernels follows from their content and is not here, so
editing a kernel leaves the lock alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from packaging.version import Version

from tool import atomic
from tool.errors import IntegrityError, UsageError
from tool.series.model import is_patch_name, parse_release
from tool.series.patchfile import find_path_fault
from tool.series.regular_file import read_regular_file

FORMAT = 1
_MAX_SIZE: Final = 64 << 20
_WHEEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,199}\.whl")


@dataclass(frozen=True)
class LockedWheel:
    """A released wheel file: ``sha256`` in hex, ``size`` in bytes."""

    filename: str
    sha256: str
    size: int


@dataclass(frozen=True)
class FileChange:
    """Blob ids of one file before and after a patch; NULL_OID where the file does not exist."""

    path: str
    before: str
    after: str


@dataclass(frozen=True)
class LockedPatch:
    name: str
    sha256: str
    tree: str
    commit: str
    files: tuple[FileChange, ...]


@dataclass(frozen=True)
class LockedRelease:
    """One release. ``base_commit``/``base_tree`` are of the wheel import.

    ``commit`` and ``own`` describe a git ref that is no release: its commit, and what it changes in the files
    of the wheel. No lock holds such an entry.
    """

    version: Version
    wheels: tuple[LockedWheel, ...]
    base_commit: str
    base_tree: str
    patches: tuple[LockedPatch, ...]
    commit: str | None = None
    own: tuple[FileChange, ...] = ()

    @property
    def final_tree(self) -> str:
        """The tree with every patch applied, before the kernels are bundled."""
        return self.patches[-1].tree if self.patches else self.base_tree

    @property
    def pre_images(self) -> frozenset[str]:
        """Every blob that a patch begins with here."""
        return frozenset(f.before for p in self.patches for f in p.files)

    def net_files(self) -> dict[str, FileChange]:
        """Per touched path, the blob in the release and the blob after the whole series."""
        net = {change.path: change for change in self.own}
        for patch in self.patches:
            for change in patch.files:
                first = net.get(change.path)
                before = first.before if first else change.before
                net[change.path] = FileChange(change.path, before, change.after)
        return net


@dataclass(frozen=True)
class Lock:
    releases: Mapping[Version, LockedRelease]

    def with_release(self, release: LockedRelease) -> Lock:
        return Lock({**self.releases, release.version: release})

    @property
    def carried(self) -> list[Version]:
        """The releases that have patches, oldest first; one may be locked without any."""
        return sorted(v for v, entry in self.releases.items() if entry.patches)

    def checked_on(self, patch: str) -> set[Version]:
        """The releases that the patch file named ``patch`` was checked on."""
        return {v for v, e in self.releases.items() if any(p.name == patch for p in e.patches)}

    def get(self, version: Version) -> LockedRelease:
        """The entry for ``version``. Raises UsageError naming the supported releases."""
        try:
            return self.releases[version]
        except KeyError:
            known = ", ".join(f"v{v}" for v in sorted(self.releases)) or "none"
            raise UsageError(
                f"the series does not carry sglang {version}",
                where="series.lock",
                why=f"supported releases: {known}",
                next_step="name a supported release with --sglang-ref",
            ) from None


def load(path: Path) -> Lock:
    """Read the lock; an absent file is an empty lock.

    Every name, id and size is checked here, because later code opens files by these names.

    Raises:
        IntegrityError: the file does not parse, has another format, or holds a value of the wrong kind.
    """
    try:
        raw = json.loads(read_regular_file(path, _MAX_SIZE), object_pairs_hook=_without_duplicates)
        return _read_lock(raw)
    except FileNotFoundError:
        return Lock({})
    except (OSError, ValueError, RecursionError, UsageError) as err:
        raise IntegrityError(
            "the lock cannot be read",
            where=str(path),
            why=str(err),
            next_step="restore it from version control, or record the series anew: remove it, then "
            "tool lock",
        ) from err


def dump(lock: Lock) -> bytes:
    """The lock as canonical JSON: sorted releases, two-space indent, final newline."""
    body = {
        "format": FORMAT,
        "releases": {str(v): _release_json(lock.releases[v]) for v in sorted(lock.releases)},
    }
    return (json.dumps(body, indent=2) + "\n").encode()


def save(path: Path, lock: Lock) -> bool:
    """Write the lock whole; True when it changed."""
    return atomic.write(path, dump(lock))


def _read_lock(raw: object) -> Lock:
    body = _Entry(raw, "the file")
    found = body.integer("format")
    if found != FORMAT:
        raise ValueError(f"format {found}, this tool reads {FORMAT}")
    releases = [_read_release(name, entry) for name, entry in body.entries("releases")]
    by_version = {release.version: release for release in releases}
    if len(by_version) != len(releases):
        raise ValueError("a release is there twice")
    return Lock(by_version)


def _read_release(name: str, raw: _Entry) -> LockedRelease:
    try:
        version = parse_release(name)
    except UsageError as err:
        raise ValueError(err.message) from err
    wheels = [
        LockedWheel(_check_wheel(file, version), wheel.digest("sha256", 64), wheel.integer("size"))
        for file, wheel in raw.entries("wheels")
    ]
    base = raw.entry("base")
    return LockedRelease(
        version,
        tuple(wheels),
        base.digest("commit"),
        base.digest("tree"),
        tuple(_read_patch(entry) for entry in raw.objects("patches")),
    )


def _read_patch(raw: _Entry) -> LockedPatch:
    name = raw.get("name")
    if not isinstance(name, str) or not is_patch_name(name):
        raise ValueError(f"{raw.where}: {name!r:.80} is not a patch file name")
    files = []
    for path, blobs in raw.mapping("files").items():
        if fault := find_path_fault(path):
            raise ValueError(f"{raw.where}: {path!r:.80} {fault}")
        if not isinstance(blobs, list) or len(blobs) != 2:
            raise ValueError(f"{raw.where}: {path!r:.80} has no two blob ids")
        files.append(FileChange(path, *(_check_digest(b, 40, raw.where) for b in blobs)))
    return LockedPatch(
        name, raw.digest("sha256", 64), raw.digest("tree"), raw.digest("commit"), tuple(files)
    )


def _check_wheel(name: str, version: Version) -> str:
    """A wheel is stored and removed under this name, so it may not lead out of its folder."""
    parts = name.split("-")
    if (
        not _WHEEL_NAME.fullmatch(name)
        or len(parts) not in (5, 6)
        or parts[0] != "sglang"
        or parts[1] != str(version)
    ):
        raise ValueError(f"{name!r:.80} is not the file name of a wheel of sglang {version}")
    return name


class _Entry:
    """A JSON object whose members are read with their type. Raises ValueError, naming the place."""

    def __init__(self, raw: object, where: str) -> None:
        if not isinstance(raw, dict):
            raise ValueError(f"{where} is not a JSON object")
        self._raw: dict[str, object] = raw
        self.where = where

    def get(self, key: str) -> object:
        if key not in self._raw:
            raise ValueError(f"{self.where} has no {key}")
        return self._raw[key]

    def entry(self, key: str) -> _Entry:
        return _Entry(self.get(key), f"{key} of {self.where}")

    def mapping(self, key: str) -> dict[str, object]:
        return self.entry(key)._raw

    def entries(self, key: str) -> list[tuple[str, _Entry]]:
        return [(name, _Entry(raw, f"{name!r:.80}")) for name, raw in self.mapping(key).items()]

    def objects(self, key: str) -> list[_Entry]:
        raw = self.get(key)
        if not isinstance(raw, list):
            raise ValueError(f"{key} of {self.where} is not a list")
        return [_Entry(item, f"{key}[{at}] of {self.where}") for at, item in enumerate(raw)]

    def integer(self, key: str) -> int:
        value = self.get(key)
        if type(value) is not int or not 0 <= value < 1 << 48:
            raise ValueError(f"{key} of {self.where} is not a whole number of ordinary size")
        return value

    def digest(self, key: str, digits: int = 40) -> str:
        return _check_digest(self.get(key), digits, f"{key} of {self.where}")


def _check_digest(value: object, digits: int, where: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value):
        raise ValueError(f"{where} is not {digits} hexadecimal digits")
    return value


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a JSON object has a name twice")
    return found


def _release_json(release: LockedRelease) -> dict[str, Any]:
    assert release.commit is None, "series.lock rests on released wheels"
    return {
        "wheels": {w.filename: {"sha256": w.sha256, "size": w.size} for w in release.wheels},
        "base": {"commit": release.base_commit, "tree": release.base_tree},
        "patches": [
            {
                "name": p.name,
                "sha256": p.sha256,
                "tree": p.tree,
                "commit": p.commit,
                "files": {f.path: [f.before, f.after] for f in p.files},
            }
            for p in release.patches
        ],
    }
