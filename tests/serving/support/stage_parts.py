"""The stack of one sglang release, stock and forked, as files small enough to send.

``prepare`` makes one tree with two folders: ``stack`` (sglang as released and what it needs) and ``fork``
(the wheel of ``tool build``; files that are as released are hard links). The tree goes into one tar stream,
cut into blocks that are compressed apart; a part is a folder with some of the blocks and the manifest of
all. So parts can be unpacked in any order and on all cores, and a changed kernel changes the last part only.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.serving.support import fatbin
from tool.errors import EnvironmentFault, IntegrityError, UsageError

HERE: Final = Path(__file__).parents[1]
ROOT: Final = HERE.parents[1]
PREPARE: Final = "python -m tests.serving.support.stage prepare"
MANIFEST: Final = "manifest.json"
BLOCKS: Final = "blocks.xz"
SITES: Final = ("stack", "fork")
MIB: Final = 1 << 20
BLOCK: Final = 16 * MIB
"""Bytes of the tar stream that are compressed together."""
PRESET: Final = 1
"""Of xz. 6 makes the parts a twentieth smaller and takes four times as long."""
GLIBC: Final = (5, *range(12, 40))
"""manylinux_2_N tags of the target: pip compares platform tags exactly when it is given any."""

LEFT_OUT: Final = (
    # Compiled kernels for other GPUs, or for attention that DSA models do not use.
    "sgl_kernel/flash_ops.*",
    "sgl_kernel/infllm_ops.*",
    "sgl_kernel/sm100/*",
    # Sources that nothing compiles on a Hopper GPU, and documents.
    "flashinfer/data/csrc/cake_*",
    "flashinfer/data/csrc/kda/*",
    "flashinfer/data/csrc/gdn/*",
    "flashinfer/data/csrc/blackwell_*",
    "flashinfer/data/csrc/experimental/*",
    "flashinfer/data/cutlass/examples/*",
    "flashinfer/data/cutlass/python/*",
    "flashinfer/data/cutlass/test/*",
    "flashinfer/data/cutlass/docs/*",
    "flashinfer/data/cutlass/media/*",
    "flashinfer/data/cccl/python/*",
    "flashinfer/fused_moe/backends/cudnn_frost/artifacts/*",
    "flashinfer/experimental/*.cu*",
    "flashinfer/experimental/*.json",
    "flashinfer/experimental/*.ptx",
    "flashinfer/experimental/*.h*",
    "flashinfer/moe_ep/*.cu*",
    "tilelang/3rdparty/composable_kernel/*",
    "tilelang/3rdparty/tvm/src/*",
    "tilelang/src/op/*",
    "tilelang/src/transform/*",
    "tilelang/src/layout/*",
    "z3/include/*",
    "z3/lib/libz3.so.*",  # the same file twice: z3 opens libz3.so
    "xgrammar/lib/*.a",
    "nvidia/nccl/include/*",
    # Tools of Triton and torch that compiling and serving do not start.
    "triton/plugins/*",
    "triton/instrumentation/*",
    "triton/FileCheck",
    "triton/_C/libproton.so",
    "triton/backends/amd/include/*",
    "triton/backends/nvidia/lib/cupti*",
    "triton/backends/nvidia/bin/cuobjdump",
    "triton/backends/nvidia/bin/nvdisasm",
    "triton/backends/nvidia/bin/ptxas-blackwell",
    "torch/bin/protoc*",
    "torch/test/*",
    "*.pyi",
)
"""Files of the stack that are not sent, as patterns of their paths. ``*`` matches slashes too."""
LIBRARY: Final = re.compile(r"\.so(\.\d+)*$")
STRIPPED_FROM: Final = 300_000
"""Bytes from which on a library is worth stripping."""


@dataclass(frozen=True)
class Block:
    """``size`` bytes of a part's file; unpacked they are ``raw`` bytes of the tar stream from ``at`` on."""

    at: int
    raw: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The blocks of every part of one preparation. ``python`` is a tag: ``cp312``."""

    release: str
    python: str
    parts: tuple[tuple[Block, ...], ...]

    def dump(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @property
    def key(self) -> str:
        """sha256, the same for all parts of a preparation."""
        return sha256(self.dump().encode())

    @classmethod
    def load(cls, part: Path) -> Manifest:
        """Raises UsageError when ``part`` is no folder that ``prepare`` made."""
        try:
            found = json.loads((part / MANIFEST).read_text(encoding="utf-8"))
            parts = tuple(tuple(Block(**one) for one in blocks) for blocks in found["parts"])
            return cls(found["release"], found["python"], parts)
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise UsageError(
                "not a part", where=str(part), why=f"{MANIFEST}: {err}", next_step=PREPARE
            ) from err


def requirements(release: str) -> Path:
    """The file that lists the packages of a release's stack.

    Raises:
        UsageError: there is none for this release.
    """
    path = HERE / f"requirements-{release}.txt"
    if not path.is_file():
        known = sorted(p.stem.removeprefix("requirements-") for p in HERE.glob("requirements-*"))
        raise UsageError(
            f"the packages that sglang {release} needs are not listed",
            where=str(path),
            why=f"there are lists for {', '.join(known)}",
            next_step=f"write {path.name}, from the pins in the released wheel's metadata",
        )
    return path


def prepare(release: str, python: str, into: Path, limit: int) -> Manifest:
    """Fetch, build, slim and cut; write the folders ``part1`` ... under ``into``.

    Args:
        release: of sglang, ``0.5.23``.
        python: of the target, ``3.12``.
        limit: bytes of a part.

    Raises:
        EnvironmentFault: pip, ``tool build`` or strip failed.
        UsageError: there is no list of packages for the release.
    """
    listed = requirements(release)
    into.mkdir(parents=True, exist_ok=True)
    (into / ".gitignore").write_text("*\n", encoding="utf-8")
    tree, tag = into / "tree", f"cp{python.replace('.', '')}"
    shutil.rmtree(tree, ignore_errors=True)
    stack, fork = (tree / site for site in SITES)
    platform = [
        word
        for n in (*(f"_2_{n}" for n in GLIBC), "2014", "2010", "1")
        for word in ("--platform", f"manylinux{n}_x86_64")
    ]
    command = [*pip_install(stack), *platform, "--only-binary=:all:", "--python-version", python]
    command += ["--implementation", "cp", "--requirement", str(listed)]
    run(command, "pip cannot fetch the packages", timeout=1800)
    wheel = build_fork(release, tag, into / "wheel")
    shutil.unpack_archive(wheel, fork, "zip")
    slim(stack)
    share(fork, stack)
    manifest = Manifest(release, tag, cut(tree, into, limit))
    for folder in into.glob("part*"):
        (folder / MANIFEST).write_text(manifest.dump(), encoding="utf-8")
    return manifest


def pip_install(target: Path) -> list[str]:
    """pip's command for exactly the packages that are named, into ``target``."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    return [*command, "--disable-pip-version-check", "--target", str(target)]


def build_fork(release: str, python: str, folder: Path, packages: Path | None = None) -> Path:
    """The wheel of ``tool build``, in ``folder``. ``packages`` may have what the tool imports."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "tool", "build", "--quiet", "--sglang-ref", f"v{release}"]
    command += ["--python", python, "--machine", "x86_64", "--out", str(folder)]
    path = [str(packages)] if packages else []
    path += filter(None, [os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    run(command, "the fork wheel cannot be built", timeout=900, environment=environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def slim(stack: Path) -> None:
    """Delete what LEFT_OUT names, the device code of other GPUs, and symbols that only debuggers read.

    sglang itself stays as released, so that ``tool verify`` holds for the fork that shares its files.
    """
    libraries = []
    for path in sorted(stack.rglob("*")):
        name = path.relative_to(stack).as_posix()
        if name.startswith("sglang/") or path.is_symlink() or not path.is_file():
            continue
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in LEFT_OUT):
            path.unlink()
        elif LIBRARY.search(name) and path.stat().st_size > STRIPPED_FROM:
            path.chmod(path.stat().st_mode | 0o200)
            fatbin.prune(path)
            libraries.append(str(path))
    if libraries:
        command = ["strip", "--strip-unneeded", "--preserve-dates", *libraries]
        run(command, "strip failed", timeout=600)


def share(fork: Path, stack: Path) -> None:
    """Make every file of the fork that is as in the stack a hard link to it."""
    for path in sorted(fork.rglob("*")):
        released = stack / path.relative_to(fork)
        if not path.is_file() or not released.is_file():
            continue
        if path.read_bytes() == released.read_bytes():
            path.unlink()
            path.hardlink_to(released)


def cut(tree: Path, into: Path, limit: int) -> tuple[tuple[Block, ...], ...]:
    """Write the blocks of the parts ``into/part1`` ...

    A block that an earlier preparation left in ``into/blocks`` is not compressed again.
    """
    for old in into.glob("part*"):
        shutil.rmtree(old)
    cache, stream = into / "blocks", into / "tree.tar"
    cache.mkdir(exist_ok=True)
    with tarfile.open(stream, "w") as archive:
        for site in SITES:
            archive.add(tree / site, site, filter=_plain)
    places = range(0, stream.stat().st_size, BLOCK)
    parts: list[list[Block]] = []
    free = 0
    with ProcessPoolExecutor() as pool:
        packed = pool.map(partial(_pack, stream, cache), places)
        for at, (raw, file) in zip(places, packed, strict=True):
            size = file.stat().st_size
            if size > free:
                parts.append([])
                free = limit
            free -= size
            folder = into / f"part{len(parts)}"
            folder.mkdir(exist_ok=True)
            packed_bytes = file.read_bytes()
            with (folder / BLOCKS).open("ab") as out:
                out.write(packed_bytes)
            parts[-1].append(Block(at, raw, len(packed_bytes), sha256(packed_bytes)))
    stream.unlink()
    return tuple(tuple(blocks) for blocks in parts)


def _pack(stream: Path, cache: Path, at: int) -> tuple[int, Path]:
    """The number of bytes of the block at ``at``, and the file that has it compressed."""
    with stream.open("rb") as opened:
        opened.seek(at)
        raw = opened.read(BLOCK)
    file = cache / f"{sha256(raw)}.xz"
    if not file.exists():
        temp = file.with_suffix(f".{os.getpid()}")
        temp.write_bytes(lzma.compress(raw, preset=PRESET))
        temp.replace(file)
    return len(raw), file


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without what differs between two preparations of the same files."""
    member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
    return member


def unpack(part: Path, blocks: Sequence[Block], stream: Path) -> None:
    """Write a part's blocks to their places in the tar stream, on all cores.

    Raises:
        IntegrityError: a block is missing or not the one of the manifest.
    """
    stream.touch()
    starts, at = [], 0
    for block in blocks:
        starts.append(at)
        at += block.size
    with ProcessPoolExecutor() as pool:
        jobs = [
            pool.submit(_unpack, part / BLOCKS, start, block, stream)
            for start, block in zip(starts, blocks, strict=True)
        ]
        for job in jobs:
            job.result()


def _unpack(file: Path, start: int, block: Block, stream: Path) -> None:
    with file.open("rb") as opened:
        opened.seek(start)
        packed = opened.read(block.size)
    if (got := sha256(packed)) != block.sha256:
        raise IntegrityError(
            "not the block of the manifest",
            where=f"{file}, byte {start}",
            why=f"sha256 {got}, in the manifest {block.sha256}",
            next_step="send the part again",
        )
    with stream.open("r+b") as out:
        out.seek(block.at)
        out.write(lzma.decompress(packed))


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


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
    shown = " ".join(command)[:400]
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
