"""One verification under way: what a subject is compared with, and what came of it.

The reasoning is in :mod:`tool.verify.verify`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from packaging.version import Version

from tool.errors import IntegrityError
from tool.git import EXECUTABLE, FILE, NULL_OID, blob_id, tree_id
from tool.series import Lock, LockedRelease
from tool.upstream import PREFIX, is_imported
from tool.verify.files import INSTALLER_FILES, Difference, FileSet
from tool.wheel import (
    KERNEL_PREFIX,
    SBOM_NAME,
    VERSION_FILE,
    Provenance,
    RecordRow,
    Wheel,
    check_released,
    content_digest,
    is_fork,
    parse_record,
    parse_sbom,
    public_release,
    read_identity,
    replace_metadata,
    replace_version,
)

Kind = Literal["wheel", "worktree", "installed"]

PACKAGE: Final = "sglang"


@dataclass(frozen=True)
class VerifyReport:
    """The outcome: it holds when there is no difference.

    ``version`` is the fork's (``0.5.23+ada.1``), the release for a worktree, None when it cannot be
    told. ``checked`` and ``unproven`` are sentences for a person.
    """

    kind: Kind
    artifact: Path
    version: Version | None
    checked: tuple[str, ...]
    unproven: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        return not self.differences

    @property
    def first(self) -> Difference | None:
        """The difference to show: a file the series touches comes before any other."""
        return self.differences[0] if self.differences else None

    def as_dict(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "artifact": str(self.artifact),
            "version": None if self.version is None else str(self.version),
            "ok": self.ok,
            "checked": list(self.checked),
            "unproven": list(self.unproven),
            "differences": [vars(d) for d in self.differences],
        }


@dataclass
class Verification:
    """A subject, and what was found out about it so far."""

    kind: Kind
    path: Path
    lock: Lock
    subject: FileSet
    differences: list[Difference] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)

    def distribution(
        self,
        version: Version,
        info: str,
        kernels: Mapping[str, bytes] | None,
        released: Path | None,
        tags: str | None,
    ) -> VerifyReport:
        """Verify a wheel or an installed fork, whose dist-info folder is ``info``."""
        if not is_fork(version):
            self.differences.append(
                Difference(info, "not a fork", "a version such as 0.5.23+ada.1", str(version))
            )
            return self._report(version)
        locked = self.lock.get(public_release(version))
        blobs = self._payload(version, locked)
        self._touched(locked, blobs)
        self._record(info)
        self._strays(info)
        self._identity(version, info)
        facts = self._provenance(version, info, locked, tags)
        self._whole_tree(locked, blobs, facts)
        if facts:
            self._bundle(facts)
        self._kernels(kernels)
        self._released(version, info, locked, facts, released)
        return self._report(version)

    def worktree(
        self,
        release: Version,
        kernels: Mapping[str, bytes] | None,
        expected: Mapping[str, tuple[str, str]] | None,
        wheel_base: bool,
    ) -> VerifyReport:
        """Verify a worktree, which has neither RECORD nor provenance."""
        locked = self.lock.get(release)
        blobs = {n: f.blob for n, f in self.subject.files.items() if _is_payload(n)}
        self._touched(locked, blobs)
        if expected is not None:
            self._expected(expected)
        if wheel_base:
            self._whole_tree(locked, blobs, None)
        elif expected is None:
            self.unproven.append("files the series does not touch: their base is a git repository")
        self._kernels(kernels)
        return self._report(release)

    def _report(self, version: Version) -> VerifyReport:
        unique: dict[str, Difference] = {}
        for difference in (*self.subject.broken, *self.differences):
            unique.setdefault(difference.path, difference)
        return VerifyReport(
            kind=self.kind,
            artifact=self.path,
            version=version,
            checked=tuple(self.checked),
            unproven=tuple(self.unproven),
            differences=tuple(unique.values()),
        )

    def _differ(self, path: str, problem: str, expected: object, found: object) -> None:
        texts = (None if x is None else str(x) for x in (expected, found))
        self.differences.append(Difference(path, problem, *texts))

    def _payload(self, version: Version, locked: LockedRelease) -> dict[str, str]:
        """Blob ids of what the patched release's tree holds, the version stamp taken back."""
        blobs = {n: f.blob for n, f in self.subject.files.items() if _is_payload(n)}
        if VERSION_FILE in blobs:
            try:
                stamped = self.subject.read(VERSION_FILE)
                plain = replace_version(stamped, version, locked.version)
                blobs[VERSION_FILE] = blob_id(plain)
            except IntegrityError as err:
                self._differ(VERSION_FILE, err.message, None, None)
        return blobs

    def _touched(self, locked: LockedRelease, blobs: Mapping[str, str]) -> None:
        net = locked.net_files()
        for path, change in sorted(net.items()):
            found = blobs.get(path.removeprefix(PREFIX), NULL_OID)
            if found != change.after:
                problem = "not the file series.lock has" if found != NULL_OID else "missing"
                if change.after == NULL_OID:
                    problem = "the series deletes this file"
                self._differ(path.removeprefix(PREFIX), problem, _blob(change.after), _blob(found))
        self.checked.append(f"{len(net)} patched files against series.lock")

    def _record(self, info: str) -> None:
        path = f"{info}/RECORD"
        if path not in self.subject.files:
            self._differ(path, "missing", None, None)
            return
        try:
            rows = parse_record(self.subject.read(path), path)
        except IntegrityError as err:
            self._differ(path, err.message, None, err.why)
            return
        files = {n: f for n, f in self.subject.files.items() if n != path}
        for name in sorted(files):
            row = rows.get(name)
            if row is None:
                self._differ(name, "an extra file: RECORD has no row for it", None, None)
            elif row != RecordRow(files[name].sha256, files[name].size):
                self._differ(
                    name, "not the file RECORD has", row.sha256 or "no hash", files[name].sha256
                )
        for name in sorted(rows):
            if name not in self.subject.files and (self.kind == "wheel" or _installed(name, info)):
                self._differ(name, "missing: RECORD has a row for it", None, None)
        self.checked.append(f"{len(files)} files against RECORD")

    def _strays(self, info: str) -> None:
        """Files no released sglang wheel has the like of: start-up hooks, scripts, other metadata."""
        for name in sorted(self.subject.files):
            top, slash, _ = name.partition("/")
            if not slash or (top.endswith((".data", ".dist-info")) and top != info):
                self._differ(name, "an extra file beside the package", None, None)

    def _identity(self, version: Version, info: str) -> None:
        path = f"{info}/METADATA"
        if path not in self.subject.files:
            self._differ(path, "missing", None, None)
            return
        stated = read_identity(self.subject.read(path))
        if stated != (PACKAGE, str(version)):
            self._differ(path, "another name or version", f"{PACKAGE} {version}", " ".join(stated))

    def _provenance(
        self, version: Version, info: str, locked: LockedRelease, tags: str | None
    ) -> Provenance | None:
        path = f"{info}/{SBOM_NAME}"
        if path not in self.subject.files:
            self._differ(path, "missing: the wheel has no provenance", None, None)
            return None
        try:
            facts = parse_sbom(self.subject.read(path), path)
        except IntegrityError as err:
            self._differ(path, err.message, None, err.why)
            return None
        wheels = {w.filename: w.sha256 for w in locked.wheels}
        if tags is not None and facts.source in wheels:
            # A wheel for one platform with the provenance of another's is neither.
            wheels = {n: s for n, s in wheels.items() if n.endswith(f"-{tags}.whl")}
        claims: tuple[tuple[str, object, object], ...] = (
            ("version", version, facts.version),
            ("release", locked.version, facts.release),
            ("sha256 of its released wheel", wheels.get(facts.source), facts.source_sha256),
            ("tree", locked.final_tree, facts.tree),
            (
                "patches",
                " ".join(f"{p.name}={p.sha256}" for p in locked.patches),
                " ".join(f"{p.name}={p.sha256}" for p in facts.patches),
            ),
        )
        for what, expected, found in claims:
            if expected != found:
                self._differ(path, f"its {what} is not the lock's", expected, found)
                break
        else:
            self.checked.append(f"provenance: {facts.source} and {len(facts.patches)} patches")
        return facts

    def _whole_tree(
        self, locked: LockedRelease, blobs: Mapping[str, str], facts: Provenance | None
    ) -> None:
        modes = {n: self.subject.files[n].mode for n in blobs}
        if facts:
            claimed = {n: EXECUTABLE if n in facts.executables else FILE for n in blobs}
            if self.kind == "wheel":
                for name in sorted(n for n in blobs if modes[n] != claimed[n]):
                    self._differ(name, "another mode", claimed[name], modes[name])
            modes = claimed
        files = {PREFIX + n: (modes[n], blob) for n, blob in blobs.items()}
        found = tree_id(files)
        if found == locked.final_tree:
            self.checked.append(f"tree {found} of {len(files)} files")
        elif not self.differences and not self.subject.broken:
            # Everything that could name a file agrees with the files: it was changed along.
            self._differ(
                f"{PACKAGE}/",
                "not the tree series.lock has, though no single file can be named without the "
                "released files to compare with",
                locked.final_tree,
                found,
            )

    def _expected(self, expected: Mapping[str, tuple[str, str]]) -> None:
        wanted = {
            p.removeprefix(PREFIX): entry
            for p, entry in expected.items()
            if p.startswith(PREFIX) and _is_payload(p.removeprefix(PREFIX))
        }
        found = {n: (f.mode, f.blob) for n, f in self.subject.files.items() if _is_payload(n)}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                texts = (" ".join(e) if e else None for e in (wanted.get(name), found.get(name)))
                self._differ(name, "not the file of the patched release", *texts)
        self.checked.append(f"{len(wanted)} files against git")

    def _bundle(self, facts: Provenance) -> None:
        bundled = {
            n.removeprefix(KERNEL_PREFIX): f
            for n, f in self.subject.files.items()
            if n.startswith(KERNEL_PREFIX)
        }
        digest = content_digest((n, 0o644, f.sha256) for n, f in bundled.items())
        tree = tree_id({n: (FILE, f.blob) for n, f in bundled.items()})
        if (digest, tree) == (facts.kernel_digest, facts.kernel_tree):
            self.checked.append(f"kernels: {len(bundled)} files, sha256 {digest}")
        else:
            self._differ(
                KERNEL_PREFIX, "not the kernels the provenance has", facts.kernel_digest, digest
            )

    def _kernels(self, kernels: Mapping[str, bytes] | None) -> None:
        if f"{KERNEL_PREFIX}__init__.py" not in self.subject.files:
            self._differ(KERNEL_PREFIX, "the kernels are missing", None, None)
        if kernels is None:
            self.unproven.append("kernels: not compared with their source")
            return
        wanted = {KERNEL_PREFIX + n: blob_id(data) for n, data in kernels.items()}
        found = {n: f.blob for n, f in self.subject.files.items() if n.startswith(KERNEL_PREFIX)}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                self._differ(
                    name, "not the kernel file of this checkout", wanted.get(name), found.get(name)
                )
        self.checked.append(f"{len(wanted)} kernel files against their source")

    def _released(
        self,
        version: Version,
        info: str,
        locked: LockedRelease,
        facts: Provenance | None,
        released: Path | None,
    ) -> None:
        own = {f"{info}/RECORD", f"{info}/METADATA", f"{info}/{SBOM_NAME}"}
        others = {
            n: f.sha256
            for n, f in self.subject.files.items()
            if not (_is_payload(n) or n.startswith(KERNEL_PREFIX) or n in own)
        }
        native = sum(n.endswith(".so") for n in others)
        if released and facts and released.is_dir():
            released = released / facts.source
        if released is None or facts is None or not released.exists():
            self.unproven.append(
                f"{native} native modules and {len(others) - native} files outside the package: "
                "held to RECORD only, for want of the released wheel"
            )
            return
        with Wheel(released) as wheel:
            check_released(wheel, locked)
            if released.name != facts.source:
                path = f"{info}/{SBOM_NAME}"
                self._differ(path, "another released wheel", released.name, facts.source)
                return
            wanted = _released_files(wheel, version, info, locked, facts)
        found = others | {n: f.sha256 for n, f in self.subject.files.items() if n in wanted}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                self._differ(name, "not the released file", wanted.get(name), found.get(name))
        self.checked.append(
            f"{len(wanted)} untouched files, {native} of them native, against {released.name}"
        )


def _released_files(
    wheel: Wheel, version: Version, info: str, locked: LockedRelease, facts: Provenance
) -> dict[str, str]:
    """Name in the fork → sha256 of every file the fork takes over from the released wheel."""
    old_info = wheel.name.dist_info
    rows = parse_record(wheel.read(f"{old_info}/RECORD"), str(wheel.path))
    changed = {p.removeprefix(PREFIX) for p in locked.net_files()}
    changed |= {VERSION_FILE, f"{old_info}/METADATA", f"{old_info}/RECORD"}
    files = {
        f"{info}/{n.removeprefix(f'{old_info}/')}" if n.startswith(f"{old_info}/") else n: row
        for n, row in rows.items()
        if n not in changed
    }
    metadata = replace_metadata(
        wheel.read(f"{old_info}/METADATA"), locked.version, version, facts.requirements
    )
    hashes = {n: row.sha256 or "" for n, row in files.items()}
    hashes[f"{info}/METADATA"] = hashlib.sha256(metadata).hexdigest()
    return hashes


def _is_payload(name: str) -> bool:
    return is_imported(name) and not name.startswith(KERNEL_PREFIX)


def _installed(name: str, info: str) -> bool:
    """Whether an installer keeps this RECORD row's file in site-packages, for good."""
    if name.endswith(".pyc") or name.startswith(("../", "/", "bin/", "Scripts/")):
        return False
    return name not in {f"{info}/{n}" for n in INSTALLER_FILES}


def _blob(blob: str) -> str | None:
    return None if blob == NULL_OID else blob
