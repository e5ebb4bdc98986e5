"""What a machine without a package index needs to serve sglang, as folders small enough to send.

A part is a folder of wheels with a ``manifest.json`` that lists the files of all parts: their site
(``deps``, ``stock``, ``fork``, ``peers``), sha256, size in bytes and part. Every wheel is as its index
has it, except those of SLIM: there the named members are left out and RECORD no longer lists them.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tool.errors import EnvironmentFault, IntegrityError, UsageError

HERE: Final = Path(__file__).parents[1]
ROOT: Final = HERE.parents[1]
MANIFEST: Final = "manifest.json"
MIB: Final = 1 << 20
TRAVELS: Final = 64 * MIB
"""The most that goes over at once, the repository's files included."""
RESERVE: Final = 2 * MIB
"""Left free for what is edited after the parts were made."""
GLIBC: Final = (5, *range(12, 40))
"""manylinux_2_N tags of the target: pip compares platform tags exactly when it is given any."""

SLIM: Final = {
    # FlashAttention 3 (1.1 GB), InfLLM attention, and the code of other GPUs than sm_90.
    "sglang_kernel": ("sgl_kernel/flash_ops.*", "sgl_kernel/infllm_ops.*", "sgl_kernel/sm100/*"),
    "xgrammar": ("xgrammar/lib/*.a",),
    # The same file twice: z3 opens this name, and TileLang finds what is loaded by its soname.
    "z3_solver": ("z3/include/*", "z3/lib/libz3.so.*", "*.data/*"),
    "tilelang": (
        "tilelang/3rdparty/composable_kernel/*",
        "tilelang/3rdparty/tvm/src/*",
        "tilelang/src/op/*",
        "tilelang/src/transform/*",
        "tilelang/src/layout/*",
    ),
}
"""Members left out, by distribution, as patterns."""


@dataclass(frozen=True)
class Staged:
    """A wheel in a part. ``part`` counts from 1."""

    name: str
    site: str
    sha256: str
    bytes: int
    part: int

    @property
    def distribution(self) -> str:
        return self.name.split("-", 1)[0]

    @property
    def dist_info(self) -> str:
        return "-".join(self.name.split("-", 2)[:2]) + ".dist-info"


@dataclass(frozen=True)
class Manifest:
    """All files of one preparation. ``python`` is a tag: ``cp312``."""

    release: str
    python: str
    files: tuple[Staged, ...]

    def dump(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def load(cls, part: Path) -> Manifest:
        """Raises UsageError when ``part`` is no folder that `pack` made."""
        try:
            found = json.loads((part / MANIFEST).read_text(encoding="utf-8"))
            files = tuple(Staged(**one) for one in found["files"])
            return cls(found["release"], found["python"], files)
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise UsageError(
                "not a part",
                where=str(part),
                why=f"{MANIFEST}: {err}",
                next_step="python -m tests.serving.support.stage prepare",
            ) from err


def budget(root: Path = ROOT) -> int:
    """Bytes a part may have beside the files of the repository that git does not ignore."""
    listed = _output(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], root)
    tree = sum(
        (root / name).lstat().st_size for name in listed.split("\0") if (root / name).exists()
    )
    return TRAVELS - RESERVE - tree


def prepare(
    release: str, python: str, into: Path, limit: int, sites: Iterable[str]
) -> tuple[Manifest, Path]:
    """Fetch, slim and build what ``sites`` hold, and write the parts under ``into``.

    Args:
        release: of sglang, ``0.5.17``.
        python: of the target, ``3.12``.
        limit: bytes of a part.

    Raises:
        EnvironmentFault: a child process failed.
        UsageError: a wheel alone is larger than ``limit``.
    """
    into.mkdir(parents=True, exist_ok=True)
    (into / ".gitignore").write_text("*\n", encoding="utf-8")
    wanted = tuple(sites)
    with tempfile.TemporaryDirectory(dir=into, prefix=".prepare.") as temp:
        found: list[tuple[str, Path]] = []
        for site in wanted:
            folder = Path(temp) / site
            folder.mkdir()
            if site == "fork":
                build_fork(release, f"cp{python.replace('.', '')}", folder)
            else:
                download(site, release, python, folder)
            found += [(site, _slimmed(wheel)) for wheel in sorted(folder.glob("*.whl"))]
        manifest = split(found, release, f"cp{python.replace('.', '')}", limit)
        for old in into.glob("part*"):
            shutil.rmtree(old)
        by_name = {wheel.name: wheel for _, wheel in found}
        for number in sorted({one.part for one in manifest.files}):
            part = into / f"part{number}"
            part.mkdir()
            (part / MANIFEST).write_text(manifest.dump(), encoding="utf-8")
            for one in manifest.files:
                if one.part == number:
                    by_name[one.name].replace(part / one.name)
    return manifest, into


def requirements(site: str, release: str) -> list[str]:
    """pip's arguments that name the packages of a site other than ``fork``."""
    if site == "stock":
        return [f"sglang=={release}"]
    name = "requirements.txt" if site == "deps" else f"requirements-{site}.txt"
    return ["--requirement", str(HERE / name)]


def download(site: str, release: str, python: str, folder: Path) -> None:
    """Wheels of a site for ``python`` on x86_64 Linux, into ``folder``."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    command += ["--python-version", python, "--implementation", "cp", "--dest", str(folder)]
    for tag in (
        *(f"manylinux_2_{n}" for n in GLIBC),
        "manylinux2014",
        "manylinux2010",
        "manylinux1",
    ):
        command += ["--platform", f"{tag}_x86_64"]
    run([*command, *requirements(site, release)], "pip cannot fetch the wheels", timeout=1800)


def build_fork(release: str, python: str, folder: Path, packages: Path | None = None) -> None:
    """The wheel of `tool build`, into ``folder``. ``packages`` may have what the tool imports."""
    command = [sys.executable, "-m", "tool", "build", "--quiet", "--sglang-ref", f"v{release}"]
    command += ["--python", python, "--machine", "x86_64", "--out", str(folder)]
    path = [str(packages)] if packages else []
    path += filter(None, [os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    run(command, "the fork wheel cannot be built", timeout=900, environment=environment)


def slim(source: Path, patterns: Sequence[str]) -> int:
    """Replace the wheel by one without the members that match; the others keep their bytes.

    Returns the number of members left out.
    """
    from tool.wheelfile import Wheel, WheelWriter, format_record, parse_record

    target = source.with_suffix(".slim")
    with Wheel(source) as wheel, target.open("wb") as out:
        records = [name for name in wheel.members if name.endswith(".dist-info/RECORD")]
        if len(records) != 1:
            raise IntegrityError(f"the wheel has {len(records)} RECORD files", where=source.name)
        record = records[0]
        gone = {m for m in wheel.members if any(fnmatch.fnmatch(m, p) for p in patterns)}
        writer = WheelWriter(out)
        for name in wheel.members:
            if name != record and name not in gone:
                writer.copy(wheel, name, name)
        rows = parse_record(wheel.read(record), source.name)
        kept = ((name, row) for name, row in rows.items() if name not in gone)
        writer.store(record, 0o644, format_record(kept))
        writer.close()
    target.replace(source)
    return len(gone)


def split(found: Iterable[tuple[str, Path]], release: str, python: str, limit: int) -> Manifest:
    """Place each wheel in the first part that still has room, the largest first.

    Raises:
        UsageError: a wheel is larger than ``limit`` bytes.
    """
    room: list[int] = []
    files = []
    for site, wheel in sorted(found, key=lambda pair: (-pair[1].stat().st_size, pair[1].name)):
        size = wheel.stat().st_size
        if size > limit:
            raise UsageError(
                "a wheel is larger than a part may be",
                where=wheel.name,
                why=f"{size / MIB:.1f} MiB, a part has {limit / MIB:.1f} MiB",
                next_step="name members of it in SLIM (tests/serving/stage_parts.py), or raise --limit",
            )
        part = next((n for n, free in enumerate(room) if free >= size), len(room))
        if part == len(room):
            room.append(limit)
        room[part] -= size
        files.append(Staged(wheel.name, site, digest(wheel), size, part + 1))
    return Manifest(release, python, tuple(sorted(files, key=lambda one: (one.part, one.name))))


def digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def run(
    command: Sequence[str],
    fault: str,
    *,
    timeout: float,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run in the repository root and return stdout.

    Raises:
        EnvironmentFault: exit code other than 0, or longer than ``timeout`` seconds.
    """
    shown = " ".join(command)
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired as err:
        raise EnvironmentFault(fault, where=shown, why=f"no end after {timeout:.0f} s") from err
    if done.returncode != 0:
        why = "\n        ".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise EnvironmentFault(fault, where=shown, why=why)
    return done.stdout


def _output(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise EnvironmentFault(
            "git cannot list the tree", where=str(folder), why=done.stderr.strip()
        )
    return done.stdout


def _slimmed(wheel: Path) -> Path:
    if patterns := SLIM.get(wheel.name.split("-", 1)[0]):
        slim(wheel, patterns)
    return wheel
