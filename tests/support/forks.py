"""Small sglang releases as real zip files, for the tests of build and verify, and ways to damage them."""

from __future__ import annotations

import compileall
import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.version import Version

from tool.git.objects import FILE, NULL_OID, blob_id, file_mode, tree_id
from tool.series import lockfile, patchfile
from tool.series.lockfile import FileChange, Lock, LockedPatch, LockedRelease, LockedWheel
from tool.wheel.archive import Wheel
from tool.wheel.overlay import KERNEL_PREFIX, BuiltWheel, build_fork_wheel
from tool.wheel.record import RecordRow, format_record
from tool.wheel.sbom import PatchProvenance

COMMA = "sglang/srt/configs/E=8,N=64,device_name=X,block_shape=[128, 128].json"
SCRIPT = "sglang/test/run.sh"
NATIVE = "sglang/srt/_core.cpython-311-x86_64-linux-gnu.so"
TOUCHED = "sglang/srt/dsa.py"
DELETED = "sglang/srt/old.py"
ADDED = "sglang/srt/new.py"
UNTOUCHED = "sglang/srt/engine.py"

METADATA = """\
Metadata-Version: 2.4
Name: sglang
Version: {version}
License: first line
        
        Version: 2.0 is a line of the licence
Requires-Dist: torch==2.14.1
Requires-Dist: tilelang==0.1.12
Requires-Dist: ray>=2; extra == "ray"
Provides-Extra: ray

# About

Version: 1.0 of this text
Requires-Dist: nothing
"""  # noqa: W293  (METADATA folds a blank licence line into spaces)

PATCHED: Mapping[str, bytes | None] = {
    f"python/{TOUCHED}": b"def route():\n    return 'ada'\n",
    f"python/{DELETED}": None,
    f"python/{ADDED}": b"ADDED = True\n",
}
KERNELS: Mapping[str, bytes] = {
    "__init__.py": b"",
    "ops/logits.py": b"K = 1\n",
    "requirements.txt": b"triton>=3.5  # for tl.gather\ntilelang>=0.1.11\n",
}
_PATCH = """\
Description: change a file
 Because it is needed.
{fields}
Releases: ==0.5.23
Drop-When: never
---
diff --git a/python/sglang/srt/{name}.py b/python/sglang/srt/{name}.py
new file mode 100644
index 0000000000000000000000000000000000000000..257cc5642cb1a054f08cc83f2d943e56fd3ebe99
--- /dev/null
+++ b/python/sglang/srt/{name}.py
@@ -0,0 +1 @@
+foo
"""
PATCH_FILES: Mapping[str, tuple[str, bytes]] = {
    "kernel-swap/v0.5.23.patch": (
        "kernel-swap",
        _PATCH.format(name="swap", fields="Origin: vendor\nForwarded: no").encode(),
    ),
    "sharing/v0.5.23.patch": (
        "sharing",
        _PATCH.format(
            name="share",
            fields="Origin: backport\nApplied-Upstream: 0.6.0, https://example.org/pull/7",
        ).encode(),
    ),
}
"""Name → change and content of the patches that PATCHES describes."""
PATCHES = tuple(
    PatchProvenance.from_header(
        name,
        hashlib.sha256(content).hexdigest(),
        change,
        dict(patchfile.parse(name, content).header.fields),
    )
    for name, (change, content) in PATCH_FILES.items()
)


def release_files(version: str) -> dict[str, tuple[bytes, int]]:
    """The files of a release without RECORD: name → (content, permissions)."""
    info = f"sglang-{version}.dist-info"
    stated = f"\nversion: str\n\n__version__ = version = '{version}'\n__version_tuple__ = (0, 5)\n"
    return {
        "sglang/__init__.py": (b"from sglang._version import __version__\n", 0o644),
        "sglang/_version.py": (stated.encode(), 0o644),
        TOUCHED: (b"def route():\n    return 'stock'\n" * 40, 0o664),
        DELETED: (b"OLD = True\n", 0o644),
        UNTOUCHED: (b"ENGINE = 1\n" * 200, 0o644),
        COMMA: (b"{}\n", 0o644),
        SCRIPT: (b"#!/bin/sh\necho run\n", 0o755),
        NATIVE: (b"\x7fELF" + bytes(range(256)) * 8, 0o755),
        f"{info}/METADATA": (METADATA.format(version=version).encode(), 0o644),
        f"{info}/WHEEL": (
            b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            0o644,
        ),
        f"{info}/entry_points.txt": (b"[console_scripts]\nsglang = sglang.cli:main\n", 0o644),
    }


def write_wheel(
    folder: Path,
    version: str,
    files: Mapping[str, tuple[bytes, int]],
    tags: str = "py3-none-any",
) -> Path:
    """A wheel as setuptools writes it: deflated, with real dates and a RECORD."""
    rows = [(n, RecordRow(hashlib.sha256(d).hexdigest(), len(d))) for n, (d, _) in files.items()]
    record = f"sglang-{version}.dist-info/RECORD"
    data = format_record([*rows, (record, RecordRow(None, None))])
    path = folder / f"sglang-{version}-{tags}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("sglang/")
        for name, (content, mode) in [*files.items(), (record, (data, 0o664))]:
            info = zipfile.ZipInfo(name, (2026, 10, 30, 1, 4, 36))
            info.external_attr = (0o100000 | mode) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def lock_for(
    source: Path,
    patched: Mapping[str, bytes | None],
    patches: Sequence[PatchProvenance] = PATCHES,
    *,
    base_commit: str = "1" * 40,
) -> LockedRelease:
    """What ``tool lock`` would record for one patch series on ``source``, computed from its content."""
    with Wheel(source) as wheel:
        files = {
            f"python/{n}": (file_mode(m.mode), blob_id(wheel.read(n)))
            for n, m in wheel.members.items()
            if n.startswith("sglang/") and not n.endswith(".so")
        }
        version, sha256 = wheel.name.version, wheel.sha256()
    base = tree_id(files)
    changes = []
    for path, data in patched.items():
        mode, before = files.pop(path, (FILE, NULL_OID))
        after = NULL_OID if data is None else blob_id(data)
        changes.append(FileChange(path, before, after))
        if data is not None:
            files[path] = (mode, after)
    entries = tuple(
        LockedPatch(p.name, p.sha256, tree_id(files), "3" * 40, tuple(changes) if not i else ())
        for i, p in enumerate(patches)
    )
    wheels = (LockedWheel(source.name, sha256, source.stat().st_size),)
    return LockedRelease(version, wheels, base_commit, base, entries)


@dataclass
class Fork:
    """A release on disk with its lock entry, ready to build. Fields may be replaced before building."""

    source: Path
    locked: LockedRelease
    patched: Mapping[str, bytes | None] = field(default_factory=lambda: dict(PATCHED))
    kernels: Mapping[str, bytes] = field(default_factory=lambda: dict(KERNELS))
    requires: Sequence[str] = ("triton>=3.5", "tilelang>=0.1.11")
    patches: Sequence[PatchProvenance] = PATCHES

    @property
    def lock(self) -> Lock:
        return Lock({self.locked.version: self.locked})

    @property
    def version(self) -> Version:
        return self.locked.version

    def build(self, out: Path, revision: int = 1) -> BuiltWheel:
        return build_fork_wheel(
            self.source,
            out,
            locked=self.locked,
            revision=revision,
            patched=self.patched,
            kernels=self.kernels,
            requires=self.requires,
            patches=self.patches,
        )


def make_fork(folder: Path, version: str = "0.5.23") -> Fork:
    source = write_wheel(folder, version, release_files(version))
    return Fork(source, lock_for(source, PATCHED))


def write_project(fork: Fork, root: Path) -> None:
    """A project folder with the fork's kernels, patches and lock, as the command reads it."""
    files = {f"ada_dsa/{name}": data for name, data in fork.kernels.items()}
    lines = [f"pin {fork.version}", "revision 1"]
    for name, (change, content) in PATCH_FILES.items():
        lines += [f"change {change} >=0.5.9", f"    {name} =={fork.version}"]
        files[f"patches/{name}"] = content
    files["series.txt"] = "\n".join([*lines, ""]).encode()
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    lockfile.save(root / "series.lock", fork.lock)


def rewrite(
    wheel: Path, change: Callable[[dict[str, tuple[bytes, int]]], None], *, record: bool = False
) -> None:
    """Change a wheel's members in place. ``record``: also forge RECORD to match, as an attacker would."""
    with zipfile.ZipFile(wheel) as archive:
        files = {
            i.filename: (archive.read(i), (i.external_attr >> 16) & 0o777)
            for i in archive.infolist()
            if not i.is_dir()
        }
    change(files)
    listing = next(n for n in files if n.endswith(".dist-info/RECORD"))
    if record:
        rows = [
            (n, RecordRow(hashlib.sha256(d).hexdigest(), len(d)))
            for n, (d, _) in files.items()
            if n != listing
        ]
        files[listing] = (format_record([*rows, (listing, RecordRow(None, None))]), 0o644)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, (content, mode) in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o100000 | mode) << 16
            archive.writestr(info, content)


def install(wheel: Path, environment: Path) -> Path:
    """Install a wheel as pip does, without its slowness; the site-packages folder.

    Python's own byte code is written, a script for each entry point, and the installer's notes.
    """
    site = environment / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (info,) = site.glob("*.dist-info")
    script = environment / "bin" / "sglang"
    script.parent.mkdir()
    script.write_text(
        f"#!{script.parent}/python3\n# -*- coding: utf-8 -*-\nimport re\nimport sys\n"
        "from sglang.cli import main\nif __name__ == '__main__':\n"
        "    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])\n"
        "    sys.exit(main())\n"
    )
    (info / "INSTALLER").write_text("pip\n")
    (info / "REQUESTED").write_text("")
    (info / "direct_url.json").write_text("{}")
    compileall.compile_dir(site / "sglang", quiet=1)
    forge_record(site)
    return site


def forge_record(site: Path) -> None:
    """Write the RECORD that fits what is in the package, the dist-info folder and the scripts now."""
    (info,) = site.glob("sglang-*.dist-info")
    rows = []
    scripts = [site / "../../../bin" / p.name for p in (site / "../../../bin").glob("*")]
    for path in sorted([*(site / "sglang").rglob("*"), *info.rglob("*"), *scripts]):
        name = str(path).removeprefix(f"{site}/")
        if not path.is_file() or name == f"{info.name}/RECORD":
            continue
        row = RecordRow(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
        rows.append((name, RecordRow(None, None) if name.endswith(".pyc") else row))
    (info / "RECORD").write_bytes(
        format_record([*rows, (f"{info.name}/RECORD", RecordRow(None, None))])
    )


def plant(fork: Fork, folder: Path) -> dict[str, tuple[str, str]]:
    """The worktree ``tool apply`` writes; returns what git would list for it, kernels left out."""
    contents: dict[str, tuple[bytes, int]] = {
        n: f
        for n, f in release_files(str(fork.version)).items()
        if n.startswith("sglang/") and not n.endswith(".so")
    }
    for path, data in fork.patched.items():
        name = path.removeprefix("python/")
        mode = contents.pop(name, (b"", 0o644))[1]
        if data is not None:
            contents[name] = (data, mode)
    listing = {f"python/{n}": (file_mode(m), blob_id(d)) for n, (d, m) in contents.items()}
    for name, data in fork.kernels.items():
        contents[KERNEL_PREFIX + name] = (data, 0o644)
    for name, (data, mode) in contents.items():
        path_ = folder / "python" / name
        path_.parent.mkdir(parents=True, exist_ok=True)
        path_.write_bytes(data)
        path_.chmod(mode)
    return listing
