"""``series.lock``: what applying the series gave when a person last proved it.

For every supported release: the released wheels (sha256, size), the base commit imported from
them, and per patch its sha256, the resulting tree and commit, and per touched file the git blob
before and after. Blobs hold for any source of the same release; trees and commits hold for the
wheel import. The commit that bundles the kernels follows from their content and is not here, so
editing a kernel leaves the lock alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from tool import atomic
from tool.errors import IntegrityError, UsageError

FORMAT = 1


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
    """One release. ``base_commit``/``base_tree`` are of the wheel import."""

    version: Version
    wheels: tuple[LockedWheel, ...]
    base_commit: str
    base_tree: str
    patches: tuple[LockedPatch, ...]

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
        net: dict[str, FileChange] = {}
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

    def checked_on(self, patch: str) -> set[Version]:
        """The releases that the patch file named ``patch`` was proven on."""
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

    Raises:
        IntegrityError: the file does not parse or has another format.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}, this tool reads {FORMAT}")
        return Lock({r.version: r for r in (_release(k, v) for k, v in raw["releases"].items())})
    except FileNotFoundError:
        return Lock({})
    except (ValueError, KeyError, TypeError, AttributeError, InvalidVersion) as err:
        raise IntegrityError(
            "the lock cannot be read",
            where=str(path),
            why=f"{type(err).__name__}: {err}",
            next_step="restore it from version control, or prove the series anew with: tool lock",
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


def _release(version: str, raw: dict[str, Any]) -> LockedRelease:
    return LockedRelease(
        version=Version(version),
        wheels=tuple(
            LockedWheel(name, w["sha256"], w["size"]) for name, w in raw["wheels"].items()
        ),
        base_commit=raw["base"]["commit"],
        base_tree=raw["base"]["tree"],
        patches=tuple(
            LockedPatch(
                name=p["name"],
                sha256=p["sha256"],
                tree=p["tree"],
                commit=p["commit"],
                files=tuple(FileChange(path, *blobs) for path, blobs in p["files"].items()),
            )
            for p in raw["patches"]
        ),
    )


def _release_json(release: LockedRelease) -> dict[str, Any]:
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
