"""Hostile sizes and types: the command ends, in bounded memory, without a traceback."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support.forks import UNTOUCHED, make_fork, plant, rewrite, write_project
from tool.wheel.archive import WheelWriter
from tool.wheel.sbom import SBOM_NAME
from tool.wheel.version import find_missing_requirements, read_identity, replace_metadata

INFO: Final = "sglang-0.5.23+ada.1.dist-info"
MEBIBYTE: Final = 1 << 20
ADDRESS_SPACE: Final = 512 * MEBIBYTE


class Project:
    """A project folder with a lock and kernels, on which the real command runs as a process."""

    def __init__(self, root: Path) -> None:
        self.fork = make_fork(root)
        self.wheel = self.fork.build(root / "out").path
        self.root = root / "project"
        write_project(self.fork, self.root)
        self.environment = os.environ | {
            "TOOL_CACHE_DIR": str(root / "cache"),
            "TOOL_DATA_DIR": str(root / "data"),
        }

    def verify(self, artifact: Path) -> subprocess.CompletedProcess[str]:
        """Run ``tool verify`` in an address space of 512 MiB; it must end."""

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))

        return subprocess.run(
            [sys.executable, "-m", "tool", "verify", str(artifact), "--offline", "--json",
             "--series", str(self.root)],
            capture_output=True, text=True, timeout=180, env=self.environment, preexec_fn=limit,
            cwd=Path(__file__).parents[3],
        )  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("limits"))


def check_refuted(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert "Traceback" not in done.stderr and done.returncode == 5, done.stderr[-2000:]
    envelope: dict[str, dict[str, object]] = json.loads(done.stdout)
    return envelope["result"]


def zeros(count: int) -> bytes:
    return bytes(count * MEBIBYTE)


def bomb(members: int, size: int, stated: int) -> bytes:
    """An archive whose members are ``size`` MiB of zeros each; the headers state ``stated`` MiB."""
    deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed, crc = b"", 0
    for _ in range(size):
        packed += deflate.compress(zeros(1))
        crc = zlib.crc32(zeros(1), crc)
    packed += deflate.flush()
    out, directory = io.BytesIO(), b""
    for number in range(members):
        name = b"sglang/%d.py" % number
        common = (0, 8, 0, 33, crc, len(packed), stated * MEBIBYTE, len(name), 0)
        entry = (b"PK\x01\x02", 788, 20, *common, 0, 0, 0, 0o100644 << 16, out.tell())
        directory += struct.pack("<4s6H3I5H2I", *entry) + name
        out.write(struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, *common) + name + packed)
    start = out.tell()
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, members, members, len(directory), start, 0)
    return out.getvalue() + directory + end


def many_members(name: Callable[[int], str], count: int) -> bytes:
    out = io.BytesIO()
    writer = WheelWriter(out)
    for number in range(count):
        writer.store(name(number), 0o644, b"")
    writer.close()
    return out.getvalue()


ARCHIVES: Final[Mapping[str, Callable[[], bytes]]] = {
    "600 MiB of zeros": lambda: bomb(1, 600, 600),
    "600 MiB of zeros, 1 MiB stated": lambda: bomb(1, 600, 1),
    "4 TiB stated": lambda: bomb(2000, 1, 2000),
    "65,000 members": lambda: many_members(lambda n: f"sglang/{n}.py", 65_000),
    "deep names": lambda: many_members(lambda n: f"{n}/" + "a/" * 250 + "x", 40_000),
    "long names": lambda: many_members(lambda n: f"{n:05}" + "x" * 500, 60_000),
    "60 MiB without a zip in it": lambda: zeros(60),
    "60 MiB of end records": lambda: (b"PK\x05\x06" + bytes(18)) * (60 * MEBIBYTE // 22),
    "directory of 60 MiB": lambda: (
        zeros(60) + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 9, 9, 60 * MEBIBYTE, 0, 0)
    ),
}
MEMBERS: Final[Mapping[str, tuple[str, Callable[[], bytes]]]] = {
    "METADATA of 40 KB of spaces": (f"{INFO}/METADATA", lambda: b"Version:" + b" " * 40_000),
    "METADATA of 15 MB of spaces": (f"{INFO}/METADATA", lambda: b"Name:" + b" " * 15_000_000),
    "METADATA of 15 MB of lines": (f"{INFO}/METADATA", lambda: b"\n " * 7_500_000),
    "METADATA of 500,000 versions": (f"{INFO}/METADATA", lambda: b"Version: 1\n" * 500_000),
    "METADATA of 60 MB": (f"{INFO}/METADATA", lambda: b"x" * 60_000_000),
    "RECORD of 60 MB": (f"{INFO}/RECORD", lambda: b"a" * 60_000_000),
    "RECORD of 1,500,000 rows": (
        f"{INFO}/RECORD", lambda: b"".join(b"%d,,\n" % n for n in range(1_500_000))),
    "RECORD of quotes": (f"{INFO}/RECORD", lambda: b'"' * 5_000_000),
    "RECORD with a size of 5,000 digits": (
        f"{INFO}/RECORD", lambda: b"a,," + b"9" * 5000 + b"\n"),
    "RECORD not UTF-8": (f"{INFO}/RECORD", lambda: b"\xff\xfe,,\n"),
    "provenance, deep": (f"{INFO}/{SBOM_NAME}", lambda: b"[" * 5_000_000),
    "provenance, wide": (f"{INFO}/{SBOM_NAME}", lambda: b"[" + b"{}," * 4_000_000 + b"{}]"),
    "provenance, long number": (f"{INFO}/{SBOM_NAME}", lambda: b"9" * 5000),
    "provenance, not UTF-8": (f"{INFO}/{SBOM_NAME}", lambda: b'"\xff"'),
    "provenance of 60 MB": (f"{INFO}/{SBOM_NAME}", lambda: b'"' + b"x" * 60_000_000),
    "version file of quotes": ("sglang/_version.py", lambda: b"'" * 15_000_000),
    "source of 63 MB": (UNTOUCHED, lambda: b"#" * 63_000_000),
}  # fmt: skip


LARGE: Final = (
    "65,000 members",
    "deep names",
    "long names",
    "METADATA of 15 MB of lines",
    "METADATA of 60 MB",
    "RECORD of 60 MB",
    "provenance of 60 MB",
    "provenance, wide",
    "source of 63 MB",
    "version file of quotes",
)


def sample(names: Iterable[str]) -> list[object]:
    marks = pytest.mark.exhaustive
    return [pytest.param(n, marks=marks) if n in LARGE else n for n in names]


@pytest.mark.parametrize("name", sample(ARCHIVES))
def test_hostile_archive(project: Project, tmp_path: Path, name: str) -> None:
    path = tmp_path / project.wheel.name
    data = ARCHIVES[name]()
    assert len(data) < 64 * MEBIBYTE
    path.write_bytes(data)
    check_refuted(project.verify(path))


@pytest.mark.parametrize("name", sample(MEMBERS))
def test_hostile_member(project: Project, tmp_path: Path, name: str) -> None:
    path = tmp_path / project.wheel.name
    path.write_bytes(project.wheel.read_bytes())
    member, make = MEMBERS[name]
    rewrite(path, lambda files: files.update({member: (make(), 0o644)}))
    check_refuted(project.verify(path))


@pytest.mark.parametrize("target", ["fifo", "/dev/zero", "/dev/tty", "folder"])
def test_an_artifact_that_is_no_file_is_refused_at_once(
    project: Project, tmp_path: Path, target: str
) -> None:
    path = tmp_path / project.wheel.name
    if target == "fifo":
        os.mkfifo(path)
    elif target == "folder":
        path.mkdir()
    else:
        path.symlink_to(target)
    done = project.verify(path)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_worktree_with_a_fifo_and_an_endless_link(project: Project, tmp_path: Path) -> None:
    plant(project.fork, tmp_path / "tree")
    package = tmp_path / "tree" / "python" / "sglang"
    os.mkfifo(package / "x.py")
    (package / "zero.py").symlink_to("/dev/zero")
    (package / "_version.py").unlink()
    os.mkfifo(package / "_version.py")
    done = project.verify(tmp_path / "tree")
    assert done.returncode == 2 and "does not say which release" in done.stdout
    (package / "_version.py").unlink()
    (package / "_version.py").symlink_to("/dev/zero")
    assert project.verify(tmp_path / "tree").returncode == 2
    plant(project.fork, tmp_path / "again")
    (tmp_path / "again/python/sglang/zero.py").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "again/python/sglang/x.py")
    result = check_refuted(project.verify(tmp_path / "again"))
    assert {d["path"] for d in result["differences"]} >= {"sglang/x.py", "sglang/zero.py"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "metadata",
    [b"Version:" + b" " * 1_000_000, b"Name: " * 300_000, b"Requires-Dist: a" + b"\n " * 500_000],
)
def test_metadata_is_read_in_linear_time(metadata: bytes) -> None:
    """A quadratic pattern would take hours here; the suite's own time limit would end it."""
    from packaging.version import Version

    read_identity(metadata)
    with pytest.raises(Exception, match="does not state"):
        replace_metadata(metadata, Version("1"), Version("2"), ["b"])


def test_requirements_of_metadata_that_is_not_text() -> None:
    metadata = b"Name: sglang\nRequires-Dist: torch\n >=2\n\n\xff"
    assert find_missing_requirements(metadata, ["torch"]) == ()
