"""A project whose releases have a wheel for each of two Pythons and two machines, as sglang's have.

The wheels can be installed: RECORD, native modules and requirements are there, and the packages that they
require are small wheels of an index that stands for PyPI.
"""

from __future__ import annotations

import platform
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.version import Version

from tests.support.forks import write_wheel
from tests.support.lab import EDITED, TREE, UTILS, Lab
from tool.series import lockfile
from tool.series.lockfile import LockedRelease, LockedWheel
from tool.upstream import wheel_import
from tool.upstream.download import hash_file

HERE = f"cp{sys.version_info[0]}{sys.version_info[1]}"
OTHER = f"cp{sys.version_info[0]}{sys.version_info[1] + 1}"
MACHINE = platform.machine()
MACHINES = (MACHINE, "aarch64" if MACHINE == "x86_64" else "x86_64")
TAGS = tuple(f"{python}-{python}-manylinux_2_17_{m}" for python in (HERE, OTHER) for m in MACHINES)
NATIVE = "sglang/srt/_core.so"
"""Holds the tags of its wheel, so that an installation says which wheel it came from."""
SCRIPT = "sglang/srt/run.sh"
METADATA = """\
Metadata-Version: 2.4
Name: sglang
Version: {version}
Requires-Python: >=3.8
Requires-Dist: triton==3.6.0
Requires-Dist: ray>=2; extra == "ray"
Provides-Extra: ray

About sglang.
"""
REQUIRED = {"triton": "3.6.0", "ray": "2.1"}


def release_wheels(
    lab: Lab, version: str, *, tags: Sequence[str] = TAGS, files: Mapping[str, str] = TREE
) -> list[Path]:
    """Put the wheels of ``version`` into the cache and its entry into series.lock."""
    stated = f"\n__version__ = version = '{version}'\n__version_tuple__ = (0, 5)\n"
    texts = dict(files) | {
        "sglang/_version.py": stated,
        "sglang/version.py": f'__version__ = "{version}"\n',
        f"sglang-{version}.dist-info/METADATA": METADATA.format(version=version),
    }
    common = {name: (text.encode(), 0o644) for name, text in texts.items()}
    paths = []
    for number, tag in enumerate(tags):
        own = {
            # As in 0.5.23: some wheels have other files executable than those that gave the base commit.
            SCRIPT: (b"#!/bin/sh\n", 0o644 if number % 2 else 0o755),
            NATIVE: (tag.encode(), 0o755),
            f"sglang-{version}.dist-info/WHEEL": (_wheel_file(tag).encode(), 0o644),
        }
        paths.append(write_wheel(lab.home.wheels, version, common | own, tag))
    git, release = lab.home.open_repository(), Version(version)
    git.run("update-ref", "-d", wheel_import.release_ref(release))
    commit = wheel_import.import_wheel(git, paths[0], release)
    wheels = tuple(LockedWheel(p.name, hash_file(p), p.stat().st_size) for p in sorted(paths))
    entry = LockedRelease(release, wheels, commit, git.tree_of(commit), ())
    lockfile.save(lab.root / "series.lock", lab.lock.with_release(entry))
    return paths


def make_shippable(lab: Lab) -> Lab:
    """Give the lab's release such wheels, and its series one patch."""
    for path in lab.home.wheels.glob("*.whl"):
        path.unlink()
    release_wheels(lab, "0.5.23")
    lab.patch("demo/answer.patch", {UTILS: EDITED})
    lab.relock()
    return lab


def write_stock_index(folder: Path, wheels: list[Path]) -> Path:
    """An index of ``wheels`` and of the packages that they require."""
    files = [*wheels, *(_write_small(folder, name, v) for name, v in REQUIRED.items())]
    for path in files:
        page = folder / "simple" / path.name.partition("-")[0] / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        if path.parent != folder:
            (folder / path.name).write_bytes(path.read_bytes())
        with page.open("a") as out:
            out.write(f'<a href="../../{path.name}">{path.name}</a><br>\n')
    return folder


def _wheel_file(tag: str) -> str:
    return f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: {tag}\n"


def _write_small(folder: Path, name: str, version: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(f"{info}/WHEEL", _wheel_file("py3-none-any"))
        archive.writestr(f"{info}/RECORD", "")
    return path
