"""One verification under way: what a set of files is compared with, and what came of it.

The reasoning is in :mod:`tool.verify.verify`.
"""

from __future__ import annotations

import bisect
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from packaging.version import Version

from tool.errors import IntegrityError, ToolError
from tool.git import EXECUTABLE, FILE, NULL_OID, blob_id, tree_id
from tool.project import SILENT, Progress
from tool.series import REQUIREMENTS, Lock, LockedRelease, LockedWheel, parse_requirements
from tool.upstream import PREFIX, is_imported
from tool.verify.beside import PACKAGE, inspect_scripts, is_kept
from tool.verify.bytecode import check_bytecode
from tool.verify.files import Difference, FileSet, FolderFiles, Unproven
from tool.wheel import (
    KERNEL_PREFIX,
    SBOM_NAME,
    VERSION_FILE,
    PatchProvenance,
    Provenance,
    RecordRow,
    Wheel,
    check_released,
    content_digest,
    find_missing_requirements,
    is_fork,
    parse_record,
    parse_sbom,
    public_release,
    read_identity,
    replace_metadata,
    replace_version,
)

Kind = Literal["wheel", "worktree", "installed"]
Outcome = Literal["proven", "not proven", "refuted"]
Fetch = Callable[[LockedRelease, LockedWheel, bool], Path]
"""Gives a released wheel as a file; the last argument says whether to download it. Raises ToolError when
it cannot."""

NO_KERNELS: Final = "the kernels' source is needed to compare with"
NO_PATCHES: Final = "the patch files of this release are needed to compare with"

_RELEASED_FOLDERS: Final = frozenset({"tools"})
"""What a released wheel may hold beside sglang: 0.5.10 to 0.5.17 have it."""
_NATIVE: Final = re.compile(r"((?:.*/)?[^/.]+)(?:\.[^/]+)?\.(?:so|pyd)")
"""A native module; the group is the name by which Python imports it, as a path."""
_UNNAMED: Final = f"{PACKAGE}/"
"""Stands in a difference for a file that cannot be named."""
_TEXT_LIMIT: Final = 300


@dataclass(frozen=True)
class VerifyReport:
    """What came of a verification.

    ``version`` is the fork's (``0.5.23+ada.1``), the release for a worktree, None when it cannot be
    told. ``checked`` are sentences for a person.
    """

    kind: Kind
    artifact: Path
    version: Version | None
    checked: tuple[str, ...]
    unproven: tuple[Unproven, ...]
    differences: tuple[Difference, ...]

    @property
    def outcome(self) -> Outcome:
        """Refuted by any difference; proven when nothing is left unproven either."""
        if self.differences:
            return "refuted"
        return "not proven" if self.unproven else "proven"

    @property
    def first(self) -> Difference | None:
        """The difference to show: a file the series touches comes before any other."""
        return self.differences[0] if self.differences else None

    def as_dict(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "artifact": str(self.artifact),
            "version": None if self.version is None else str(self.version),
            "outcome": self.outcome,
            "checked": list(self.checked),
            "unproven": [vars(u) for u in self.unproven],
            "differences": [vars(d) for d in self.differences],
        }


@dataclass
class Verification:
    """A set of files, and what was found out about it so far.

    Args:
        kernels: the kernel package's files by relative path.
        patches: what the patch files of the release say about themselves.
        released: the released wheel, or a folder that may hold it.
        fetch: gets the released wheel when ``released`` does not give it.
    """

    kind: Kind
    path: Path
    lock: Lock
    fileset: FileSet
    kernels: Mapping[str, bytes] | None = None
    patches: Callable[[Version], Sequence[PatchProvenance] | None] | None = None
    released: Path | None = None
    fetch: Fetch | None = None
    progress: Progress = SILENT
    differences: list[Difference] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    unproven: list[Unproven] = field(default_factory=list)

    def verify_distribution(self, version: Version, info: str, tags: str | None) -> VerifyReport:
        """Verify a wheel or an installed fork, whose dist-info folder is ``info``.

        ``tags`` are those of a wheel's file name.
        """
        if not is_fork(version):
            self.differences.append(
                Difference(info, "not a fork", "a version such as 0.5.23+ada.1", str(version))
            )
            return self._report(version)
        locked = self.lock.get(public_release(version))
        blobs = self._payload(version, locked)
        self._touched(locked, blobs)
        rows = self._record(info)
        self._strays(info)
        self._shadows()
        self._identity(version, info)
        facts = self._provenance(version, info, locked, tags)
        self._whole_tree(locked, blobs, facts)
        if facts:
            self._bundle(facts)
        self._kernels()
        self._released(version, info, locked, facts)
        if self.kind == "installed" and not self._is_refuted:
            self._scripts(info, rows)
            self._bytecode()
        return self._report(version)

    def verify_worktree(
        self, release: Version, expected: Mapping[str, tuple[str, str]] | None, wheel_base: bool
    ) -> VerifyReport:
        """Verify the folder ``python`` of a worktree, which has neither RECORD nor provenance."""
        locked = self.lock.get(release)
        blobs = {n: f.blob for n, f in self.fileset.files.items() if _is_payload(n)}
        self._touched(locked, blobs)
        self._shadows()
        if expected is not None:
            self._expected(expected)
        else:
            for name in sorted(self.fileset.files):
                if _is_payload(name) or name.startswith(KERNEL_PREFIX):
                    continue
                if wheel_base or name.startswith(f"{PACKAGE}/"):
                    self._differ(name, "an extra file: tool apply does not write it", None, None)
                else:
                    self._leave_open(name, "nothing at hand tells whether the git source has it")
        if wheel_base:
            self._whole_tree(locked, blobs, None)
        elif expected is None:
            reason = "their base is a git source, and series.lock holds released wheels only"
            self._leave_open("files that the series does not touch", reason)
        self._kernels()
        if not self._is_refuted:
            self._bytecode()
        return self._report(release)

    @property
    def _is_refuted(self) -> bool:
        return bool(self.differences or self.fileset.broken)

    def _report(self, version: Version) -> VerifyReport:
        unique: dict[str, Difference] = {}
        for difference in (*self.fileset.broken, *self.differences):
            unique.setdefault(difference.path, difference)
        return VerifyReport(
            kind=self.kind,
            artifact=self.path,
            version=version,
            checked=tuple(self.checked),
            unproven=tuple(
                Unproven(_printable(u.path), _printable(u.reason)) for u in self.unproven
            ),
            differences=tuple(
                replace(
                    d,
                    path=_printable(d.path),
                    expected=d.expected and _printable(d.expected),
                    found=d.found and _printable(d.found),
                )
                for d in unique.values()
            ),
        )

    def _differ(self, path: str, problem: str, expected: object, found: object) -> None:
        texts = (None if x is None else str(x) for x in (expected, found))
        self.differences.append(Difference(path, problem, *texts))

    def _leave_open(self, path: str, reason: str) -> None:
        self.unproven.append(Unproven(path, reason))

    def _read(self, path: str) -> bytes | None:
        """A metadata file; None, with a difference, when there is none that can be read."""
        if path not in self.fileset.files:
            self._differ(path, "missing", None, None)
            return None
        try:
            return self.fileset.read(path)
        except IntegrityError as err:
            self._differ(path, err.message, None, err.why)
            return None

    def _payload(self, version: Version, locked: LockedRelease) -> dict[str, str]:
        """Blob ids of what the patched release's tree holds, with the release's version in place of the
        fork's."""
        blobs = {n: f.blob for n, f in self.fileset.files.items() if _is_payload(n)}
        if VERSION_FILE in blobs:
            try:
                own = self.fileset.read(VERSION_FILE)
                blobs[VERSION_FILE] = blob_id(replace_version(own, version, locked.version))
            except IntegrityError as err:
                self._differ(VERSION_FILE, err.message, None, None)
        return blobs

    def _touched(self, locked: LockedRelease, blobs: Mapping[str, str]) -> None:
        net = locked.net_files()
        # The fork of a git ref is not in the lock: it was made anew.
        known = (
            f"the tool's result on commit {locked.commit[:12]}" if locked.commit else "series.lock"
        )
        for path, change in sorted(net.items()):
            found = blobs.get(path.removeprefix(PREFIX), NULL_OID)
            if found != change.after:
                problem = f"not the file {known} has" if found != NULL_OID else "missing"
                if change.after == NULL_OID:
                    problem = "the series deletes this file"
                self._differ(path.removeprefix(PREFIX), problem, _blob(change.after), _blob(found))
        self.checked.append(f"{len(net)} patched files against {known}")

    def _record(self, info: str) -> Mapping[str, RecordRow]:
        path = f"{info}/RECORD"
        data = self._read(path)
        if data is None:
            return {}
        try:
            rows = parse_record(data, path)
        except IntegrityError as err:
            self._differ(path, err.message, None, err.why)
            return {}
        files = {n: f for n, f in self.fileset.files.items() if n != path}
        for name in sorted(files):
            row = rows.get(name)
            if row is None:
                self._differ(name, "an extra file: RECORD has no row for it", None, None)
            elif row != RecordRow(files[name].sha256, files[name].size):
                self._differ(
                    name, "not the file RECORD has", row.sha256 or "no hash", files[name].sha256
                )
        for name in sorted(rows):
            if name not in self.fileset.files and (self.kind == "wheel" or is_kept(name, info)):
                self._differ(name, "missing: RECORD has a row for it", None, None)
        self.checked.append(f"{len(files)} files against RECORD")
        return rows

    def _strays(self, info: str) -> None:
        """Files beside the package: start-up hooks, scripts, other packages, other metadata."""
        allowed = {PACKAGE, info, *_RELEASED_FOLDERS}
        for name in sorted(self.fileset.files):
            top, slash, _ = name.partition("/")
            if not slash or top not in allowed:
                self._differ(name, "an extra file beside the package", None, None)

    def _shadows(self) -> None:
        """Native modules, packages and byte code that Python loads before a source of the same name."""
        names = sorted(self.fileset.files)
        for name in names:
            if name.endswith(".pyc"):
                self._differ(name, "byte code without a source", None, None)
            elif name.endswith((".so", ".pyd")) and (match := _NATIVE.fullmatch(name)):
                module = match[1]
                below = bisect.bisect_left(names, f"{module}/")
                if f"{module}.py" in self.fileset.files or (
                    below < len(names) and names[below].startswith(f"{module}/")
                ):
                    self._differ(name, "Python loads it before the source of that name", None, None)

    def _identity(self, version: Version, info: str) -> None:
        path = f"{info}/METADATA"
        data = self._read(path)
        if data is None:
            return
        stated = read_identity(data)
        if stated != (PACKAGE, str(version)):
            self._differ(path, "another name or version", f"{PACKAGE} {version}", " ".join(stated))

    def _provenance(
        self, version: Version, info: str, locked: LockedRelease, tags: str | None
    ) -> Provenance | None:
        path = f"{info}/{SBOM_NAME}"
        data = self._read(path)
        if data is None:
            return None
        try:
            facts = parse_sbom(data, path)
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
            ("commit", locked.commit, facts.commit),
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
            self._patch_headers(path, version, facts)
        return facts

    def _patch_headers(self, path: str, version: Version, facts: Provenance) -> None:
        """What the provenance says of each patch, beside its hash, must be what its header says."""
        patches = self.patches and self.patches(public_release(version))
        if not patches or [(p.name, p.sha256) for p in patches] != [
            (p.name, p.sha256) for p in facts.patches
        ]:
            if facts.patches:
                self._leave_open(path, NO_PATCHES)
        elif tuple(patches) != facts.patches:
            found = next(f for p, f in zip(patches, facts.patches, strict=True) if p != f)
            self._differ(path, "it says of a patch what its header does not", None, found.name)
        self.checked.append(f"provenance: {facts.source} and {len(facts.patches)} patches")

    def _whole_tree(
        self, locked: LockedRelease, blobs: Mapping[str, str], facts: Provenance | None
    ) -> None:
        modes = {n: self.fileset.files[n].mode for n in blobs}
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
        elif not self.differences and not self.fileset.broken:
            # Everything that could name a file agrees with the files: it was changed along.
            self._differ(
                _UNNAMED,
                "not the tree series.lock has, though no single file can be named without the "
                "released files to compare with",
                locked.final_tree,
                found,
            )

    def _expected(self, expected: Mapping[str, tuple[str, str]]) -> None:
        wanted = {
            p.removeprefix(PREFIX): entry
            for p, entry in expected.items()
            if p.startswith(PREFIX) and not p.startswith(PREFIX + KERNEL_PREFIX)
        }
        found = {
            n: (f.mode, f.blob)
            for n, f in self.fileset.files.items()
            if not n.startswith(KERNEL_PREFIX)
        }
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                texts = (" ".join(e) if e else None for e in (wanted.get(name), found.get(name)))
                self._differ(name, "not the file of the patched release", *texts)
        self.checked.append(f"{len(wanted)} files against the tool's repository")

    def _bundle(self, facts: Provenance) -> None:
        bundled = {
            n.removeprefix(KERNEL_PREFIX): f
            for n, f in self.fileset.files.items()
            if n.startswith(KERNEL_PREFIX)
        }
        digest = content_digest((n, 0o644, f.sha256) for n, f in bundled.items())
        tree = tree_id({n: (FILE, f.blob) for n, f in bundled.items()})
        claimed = (facts.kernel_digest, facts.kernel_tree, facts.kernel_files)
        if (digest, tree, len(bundled)) == claimed:
            self.checked.append(f"kernels: {len(bundled)} files, sha256 {digest}")
        else:
            self._differ(
                KERNEL_PREFIX, "not the kernels the provenance has", facts.kernel_digest, digest
            )

    def _kernels(self) -> None:
        found = {n: f.blob for n, f in self.fileset.files.items() if n.startswith(KERNEL_PREFIX)}
        if f"{KERNEL_PREFIX}__init__.py" not in found:
            self._differ(KERNEL_PREFIX, "the kernels are missing", None, None)
        if self.kernels is None:
            self._leave_open(KERNEL_PREFIX, NO_KERNELS)
            return
        wanted = {KERNEL_PREFIX + n: blob_id(data) for n, data in self.kernels.items()}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                self._differ(
                    name, "not the kernel file of this checkout", wanted.get(name), found.get(name)
                )
        self.checked.append(f"{len(wanted)} kernel files against their source")

    def _released(
        self, version: Version, info: str, locked: LockedRelease, facts: Provenance | None
    ) -> None:
        """Compare what the lock does not hold with the released wheel: native modules, metadata."""
        own = {f"{info}/RECORD", f"{info}/{SBOM_NAME}"}
        others = {
            n: f.sha256
            for n, f in self.fileset.files.items()
            if not (_is_payload(n) or n.startswith(KERNEL_PREFIX) or n in own)
        }
        path = reason = None
        try:
            path = self._find_released(locked, facts)
        except ToolError as err:
            reason = err.message
        if path is None or facts is None:
            for name in sorted(others):
                why = f": {reason}" if reason else ""
                self._leave_open(name, f"the released wheel is needed to compare with{why}")
            return
        with Wheel(path) as wheel:
            check_released(wheel, locked)
            if path.name != facts.source:
                where = f"{info}/{SBOM_NAME}"
                self._differ(where, "another released wheel", path.name, facts.source)
                return
            wanted = _released_files(wheel, version, info, locked, facts)
            self._requirements(wheel, info, facts)
        found = others | {n: f.sha256 for n, f in self.fileset.files.items() if n in wanted}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                self._differ(name, "not the released file", wanted.get(name), found.get(name))
        native = sum(_NATIVE.fullmatch(n) is not None for n in others)
        self.checked.append(
            f"{len(wanted)} untouched files, {native} of them native, against {path.name}"
        )

    def _find_released(self, locked: LockedRelease, facts: Provenance | None) -> Path | None:
        if facts is None:
            return None
        path = self.released
        if path is not None and path.is_dir():
            path = path / facts.source
        if path is not None and path.exists():
            return path
        wanted = next((w for w in locked.wheels if w.filename == facts.source), None)
        if self.fetch is None or wanted is None:
            return None
        # Not worth a download when a file is named already.
        return self.fetch(locked, wanted, all(d.path == _UNNAMED for d in self.differences))

    def _requirements(self, wheel: Wheel, info: str, facts: Provenance) -> None:
        """METADATA may add the requirements of the kernels and no others."""
        if self.kernels is None or REQUIREMENTS not in self.kernels:
            if facts.requirements:
                self._leave_open(f"{info}/METADATA", f"its added requirements: {NO_KERNELS}")
            return
        lines = parse_requirements(self.kernels[REQUIREMENTS].decode(errors="replace"))
        metadata = wheel.read(f"{wheel.name.dist_info}/METADATA")
        wanted = find_missing_requirements(metadata, lines)
        if wanted != facts.requirements:
            self._differ(
                f"{info}/METADATA",
                "its added requirements are not the kernels'",
                "; ".join(wanted),
                "; ".join(facts.requirements),
            )

    def _scripts(self, info: str, rows: Mapping[str, RecordRow]) -> None:
        path = f"{info}/entry_points.txt"
        data = self._read(path) if path in self.fileset.files else None
        self._take(*inspect_scripts(self.path, rows, (data or b"").decode(errors="replace")))

    def _bytecode(self) -> None:
        assert isinstance(self.fileset, FolderFiles)
        differences, unproven, count = check_bytecode(self.fileset, self.progress)
        self._take(differences, unproven)
        if count:
            self.checked.append(f"{count} byte-code files against their source")

    def _take(self, differences: Iterable[Difference], unproven: Iterable[Unproven]) -> None:
        self.differences += differences
        self.unproven += unproven


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


def _blob(blob: str) -> str | None:
    return None if blob == NULL_OID else blob


def _printable(text: str) -> str:
    """``text`` without what a terminal would obey or cannot show, and not endlessly long."""
    shown = text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + "…"
    if shown.isprintable():
        return shown
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in shown
    )
