"""Forged installations and worktrees: tables of what somebody could put there, and what verify says.

An installation is what pip leaves. Each forgery is tried as it is and with a RECORD that fits. None is
proven: it is refuted, or the file is named among what is not proven.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import shutil
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest
from packaging.version import Version

from tests.support.forks import (
    COMMA,
    DELETED,
    NATIVE,
    PATCHES,
    SCRIPT,
    TOUCHED,
    UNTOUCHED,
    Fork,
    forge_record,
    install,
    make_fork,
    plant,
)
from tool.git.objects import blob_id
from tool.verify.bytecode import same_code
from tool.verify.checks import VerifyReport
from tool.verify.verify import verify_installed, verify_tree
from tool.wheel.overlay import KERNEL_PREFIX
from tool.wheel.sbom import PatchProvenance

Change = Callable[[Path], object]

INFO: Final = "sglang-0.5.23+ada.1.dist-info"
KERNEL: Final = KERNEL_PREFIX + "ops/logits.py"
SO: Final = "cpython-311-x86_64-linux-gnu.so"
TAG: Final = sys.implementation.cache_tag
BIN: Final = "../../../bin/sglang"


def write(name: str, data: bytes = b"evil = 1\n") -> Change:
    def change(root: Path) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return change


def append(name: str, data: bytes) -> Change:
    return lambda root: (root / name).write_bytes((root / name).read_bytes() + data)


def cached(source: str, suffix: str = "") -> str:
    folder, _, name = source.rpartition("/")
    return f"{folder}/__pycache__/{name.removesuffix('.py')}.{TAG}{suffix}.pyc"


def tamper(source: str, flags: int, *, suffix: str = "", optimize: int = 0) -> Change:
    """Byte code of another program under a header that Python accepts for ``source``.

    ``flags``: 0 time and size, 1 unchecked hash, 3 checked hash (PEP 552).
    """

    def change(root: Path) -> None:
        path = root / source
        status = path.stat()
        stamp = struct.pack("<2I", int(status.st_mtime), status.st_size)
        if flags:
            stamp = importlib.util.source_hash(path.read_bytes())
        code = compile("import evil\n", str(path), "exec", dont_inherit=True, optimize=optimize)
        data = importlib.util.MAGIC_NUMBER + struct.pack("<I", flags) + stamp + marshal.dumps(code)
        target = root / cached(source, suffix)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)

    return change


def patch_bytecode(source: str, old: bytes, new: bytes) -> Change:
    """Change a constant in the genuine byte code."""

    def change(root: Path) -> None:
        path = root / cached(source)
        data = path.read_bytes()
        assert old in data and len(old) == len(new)
        path.write_bytes(data.replace(old, new))

    return change


def make_stale(root: Path) -> None:
    tamper(UNTOUCHED, 0)(root)
    os.utime(root / UNTOUCHED, (1, 1))


def link(name: str, target: str) -> Change:
    def change(root: Path) -> None:
        path = root / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return change


def move_and_link(name: str) -> Change:
    def change(root: Path) -> None:
        elsewhere = root.parent / "elsewhere"
        (root / name).rename(elsewhere)
        (root / name).symlink_to(elsewhere)

    return change


def fifo(name: str) -> Change:
    def change(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        os.mkfifo(root / name)

    return change


def listen(name: str) -> Change:
    def change(root: Path) -> None:
        here = Path.cwd()
        os.chdir((root / name).parent)  # a socket's path must be short
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(Path(name).name)
        finally:
            os.chdir(here)

    return change


def deepen(root: Path) -> None:
    path = root / "sglang"
    for _ in range(300):
        path = path / "deep"
    path.mkdir(parents=True)
    (path / "x.py").write_bytes(b"")


def not_utf8(root: Path) -> None:
    (root / "sglang" / os.fsdecode(b"\xff.py")).write_bytes(b"")


def grow(name: str, size: int) -> Change:
    return lambda root: os.truncate(root / name, size)


# name: (what is done, the path that is named, the outcome). A path of the package that RECORD does not fit
# is refuted either way.
PACKAGE: Final[Mapping[str, tuple[Change, str | None]]] = {
    "source touched": (append(TOUCHED, b"x = 1\n"), TOUCHED),
    "source untouched": (append(UNTOUCHED, b"x = 1\n"), None),
    "package": (append("sglang/__init__.py", b"import evil\n"), None),
    "configuration": (write(COMMA, b"[]\n"), None),
    "script": (append(SCRIPT, b"evil\n"), None),
    "kernel": (append(KERNEL, b"x = 1\n"), None),
    "native": (append(NATIVE, b"x"), NATIVE),
    "source lost": (lambda root: (root / UNTOUCHED).unlink(), None),
    "source back": (write(DELETED), DELETED),
    "version": (write("sglang/_version.py", b"__version__ = '0.5.23+ada.1'\n"), None),
    "module added": (write("sglang/extra.py"), None),
    "package for a module": (write("sglang/srt/engine/__init__.py"), None),
    "kernel added": (write(KERNEL_PREFIX + "x.py"), None),
    "native for a source": (write(f"sglang/srt/engine.{SO}"), None),
    "native for the package": (write(f"sglang/__init__.{SO}"), None),
    "native for a kernel": (write(KERNEL_PREFIX + f"ops/logits.{SO}"), None),
    "native for a folder": (write("sglang/srt/layers.abi3.so"), None),
    "native added": (write("sglang/srt/more.so"), "sglang/srt/more.so"),
    "byte code beside": (write("sglang/srt/extra.pyc"), None),
    "byte code for a source": (write("sglang/srt/engine.pyc"), None),
    "program in the cache folder": (write("sglang/__pycache__/x.py"), None),
    "byte code without source": (
        write(cached("sglang/srt/gone.py")), cached("sglang/srt/gone.py")),
    "byte code by time": (tamper(UNTOUCHED, 0), cached(UNTOUCHED)),
    "byte code unchecked": (tamper(UNTOUCHED, 1), cached(UNTOUCHED)),
    "byte code checked": (tamper(UNTOUCHED, 3), cached(UNTOUCHED)),
    "byte code of the package": (tamper("sglang/__init__.py", 0), cached("sglang/__init__.py")),
    "byte code of a kernel": (tamper(KERNEL, 1), cached(KERNEL)),
    "byte code optimized": (
        tamper(UNTOUCHED, 0, suffix=".opt-1", optimize=1), cached(UNTOUCHED, ".opt-1")),
    "byte code more optimized": (
        tamper(UNTOUCHED, 1, suffix=".opt-2", optimize=2), cached(UNTOUCHED, ".opt-2")),
    "byte code constant": (patch_bytecode(TOUCHED, b"ada", b"eva"), cached(TOUCHED)),
    "byte code cut": (
        lambda root: os.truncate(root / cached(UNTOUCHED), 40), cached(UNTOUCHED)),
    "byte code longer": (append(cached(UNTOUCHED), b"\0"), cached(UNTOUCHED)),
    "byte code of other flags": (tamper(UNTOUCHED, 7), cached(UNTOUCHED)),
    "byte code link": (link(cached(UNTOUCHED), "/dev/zero"), cached(UNTOUCHED)),
    "byte code FIFO": (fifo(cached(UNTOUCHED)), cached(UNTOUCHED)),
    "FIFO": (fifo(UNTOUCHED), UNTOUCHED),
    "FIFO added": (fifo("sglang/x.py"), "sglang/x.py"),
    "socket": (listen("sglang/x.sock"), "sglang/x.sock"),
    "endless device": (link(UNTOUCHED, "/dev/zero"), UNTOUCHED),
    "silent device": (link("sglang/x.json", "/dev/tty"), "sglang/x.json"),
    "link to nothing": (link("sglang/x.json", "nowhere"), "sglang/x.json"),
    "link to itself": (link("sglang/x.json", "x.json"), "sglang/x.json"),
    "link to a folder above": (link("sglang/up", ".."), "sglang/up"),
    "folder moved": (move_and_link("sglang/srt/configs"), "sglang/srt/configs"),
    "package moved": (move_and_link("sglang"), "sglang"),
    "deep folder": (deepen, None),
    "name not UTF-8": (not_utf8, None),
    "huge file": (grow(UNTOUCHED, 1 << 40), UNTOUCHED),
    "executable": (lambda root: (root / "sglang/x").mkdir() or write("sglang/x/y")(root), None),
}  # fmt: skip

BESIDE: Final[Mapping[str, tuple[Change, str, str]]] = {
    "path file": (write("evil.pth", b"import evil\n"), "evil.pth", "not proven"),
    "path file of virtualenv": (
        write("_virtualenv.pth", b"import _virtualenv"), "_virtualenv.pth", "not proven"),
    "module of virtualenv": (write("_virtualenv.py"), "_virtualenv.py", "not proven"),
    "path file, a folder": (write("x.pth", b"/opt/x\n"), "x.pth", "not proven"),
    "path file under a known name": (
        write("distutils-precedence.pth", b"import evil\n"),
        "distutils-precedence.pth", "not proven"),
    "editable path": (
        write("__editable__.sglang-0.5.23.pth", b"/opt/sglang\n"),
        "__editable__.sglang-0.5.23.pth", "refuted"),
    "editable finder": (
        write("__editable___sglang_0_5_23_finder.py"),
        "__editable___sglang_0_5_23_finder.py", "refuted"),
    "egg link": (write("sglang.egg-link", b"/opt/sglang\n"), "sglang.egg-link", "refuted"),
    "easy-install": (write("easy-install.pth", b"/opt\n"), "easy-install.pth", "not proven"),
    "sitecustomize": (write("sitecustomize.py"), "sitecustomize.py", "not proven"),
    "sitecustomize, byte code": (write("sitecustomize.pyc"), "sitecustomize.pyc", "not proven"),
    "sitecustomize, native": (write(f"sitecustomize.{SO}"), f"sitecustomize.{SO}", "not proven"),
    "usercustomize": (write("usercustomize/__init__.py"), "usercustomize", "not proven"),
    "module sglang": (write("sglang.py"), "sglang.py", "refuted"),
    "native sglang": (write(f"sglang.{SO}"), f"sglang.{SO}", "refuted"),
    "byte code sglang": (write("sglang.pyc"), "sglang.pyc", "refuted"),
    "second distribution": (
        write("sglang-0.5.23.dist-info/METADATA"), "sglang-0.5.23.dist-info", "refuted"),
    "second fork": (
        write("sglang-0.5.23+ada.2.dist-info/METADATA"),
        "sglang-0.5.23+ada.2.dist-info", "refuted"),
    "second in capitals": (
        write("SGLang-9.dist-info/METADATA"), "SGLang-9.dist-info", "refuted"),
    "egg-info": (write("sglang-9.egg-info/PKG-INFO"), "sglang-9.egg-info", "refuted"),
    "plain egg-info": (write("sglang.egg-info"), "sglang.egg-info", "refuted"),
    "module of nobody": (write("torch.py"), "torch.py", "not proven"),
    "package of nobody": (write("torch/__init__.py"), "torch", "not proven"),
    "native module of nobody": (write(f"torch.{SO}"), f"torch.{SO}", "not proven"),
    "launcher runs something else": (
        append(BIN, b"import evil\n"), BIN, "not proven"),
    "launcher of another Python": (
        lambda site: write(BIN, (site / BIN).read_bytes().replace(b"#!/", b"#!/evil/"))(site),
        BIN, "not proven"),
    "launcher is a FIFO": (fifo(BIN), BIN, "refuted"),
    "launcher that no entry point names": (
        write("../../../bin/python3.11"), "../../../bin/python3.11", "refuted"),
    "entry point": (
        append(f"{INFO}/entry_points.txt", b"x = evil:main\n"),
        f"{INFO}/entry_points.txt", "refuted"),
    "requirement": (
        lambda site: write(f"{INFO}/METADATA", (site / INFO / "METADATA").read_bytes().replace(
            b"torch==2.14.1", b"evil"))(site),
        f"{INFO}/METADATA", "refuted"),
    "RECORD lost": (lambda site: (site / INFO / "RECORD").unlink(), f"{INFO}/RECORD", "refuted"),
    "RECORD is a FIFO": (fifo(f"{INFO}/RECORD"), f"{INFO}/RECORD", "refuted"),
    "METADATA of spaces": (
        write(f"{INFO}/METADATA", b"Version: " + b" " * (4 << 20)), f"{INFO}/METADATA", "refuted"),
    "provenance lost": (
        lambda site: shutil.rmtree(site / INFO / "sboms"), f"{INFO}/sboms/fork.cdx.json",
        "refuted"),
    "dist-info moved": (move_and_link(INFO), INFO, "refuted"),
}  # fmt: skip

STALE_OR_FOREIGN: Final[Mapping[str, tuple[Change, str]]] = {
    "byte code out of date": (make_stale, cached(UNTOUCHED)),
    "byte code of another Python": (
        write("sglang/srt/__pycache__/engine.cpython-399.pyc"),
        "sglang/srt/__pycache__/engine.cpython-399.pyc"),
    "byte code of another level": (
        write(cached(UNTOUCHED, ".opt-3")), cached(UNTOUCHED, ".opt-3")),
    "byte code of a plug-in": (
        write(f"sglang/srt/__pycache__/engine.{TAG}-pytest-8.4.1.pyc"),
        f"sglang/srt/__pycache__/engine.{TAG}-pytest-8.4.1.pyc"),
    "byte code with another magic number": (
        lambda root: write(cached(UNTOUCHED), b"\0" * 40)(root), cached(UNTOUCHED)),
}  # fmt: skip


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fork, Path]:
    folder = tmp_path_factory.mktemp("genuine")
    fork = make_fork(folder)
    return fork, install(fork.build(folder / "out").path, folder / "venv")


@pytest.fixture
def site(genuine: tuple[Fork, Path], tmp_path: Path) -> Path:
    environment = shutil.copytree(genuine[1].parents[2], tmp_path / "venv")
    copy: Path = environment / "lib" / "python3.11" / "site-packages"
    script = copy / BIN
    old = str(genuine[1].parents[2] / "bin")
    script.write_text(script.read_text().replace(old, str(environment / "bin")))
    forge_record(copy)
    return copy


def describe(_: Version) -> tuple[PatchProvenance, ...]:
    return PATCHES


def verify(fork: Fork, site: Path) -> VerifyReport:
    return verify_installed(
        site, lock=fork.lock, kernels=fork.kernels, patches=describe, released=fork.source
    )


def named(report: VerifyReport) -> set[str]:
    return {d.path for d in report.differences} | {u.path for u in report.unproven}


def test_tables_are_large_enough_and_the_original_is_proven(
    genuine: tuple[Fork, Path], site: Path
) -> None:
    assert len(PACKAGE) + len(BESIDE) + len(STALE_OR_FOREIGN) >= 60
    for folder in (genuine[1], site):  # the second was moved after its byte code was written
        report = verify(genuine[0], folder)
        assert report.outcome == "proven", (report.first, report.unproven)
        assert "7 byte-code files against their source" in report.checked


@pytest.mark.parametrize("with_record", [False, True])
@pytest.mark.parametrize("name", PACKAGE)
def test_forged_package(
    genuine: tuple[Fork, Path], site: Path, name: str, with_record: bool
) -> None:
    change, path = PACKAGE[name]
    change(site)
    if with_record and name not in ("name not UTF-8", "package moved", "huge file"):
        if name == "endless device":
            pytest.skip("no RECORD can fit a file without an end")
        forge_record(site)
    report = verify(genuine[0], site)
    assert report.outcome == "refuted", report.unproven
    assert path is None or path in named(report)


@pytest.mark.parametrize("with_record", [False, True])
@pytest.mark.parametrize("name", BESIDE)
def test_forged_surroundings(
    genuine: tuple[Fork, Path], site: Path, name: str, with_record: bool
) -> None:
    change, path, outcome = BESIDE[name]
    change(site)
    fits = (
        with_record and (site / INFO / "RECORD").is_file() and len(list(site.glob("sglang-*"))) == 1
    )
    if fits:
        forge_record(site)
    report = verify(genuine[0], site)
    if path.startswith("../") and not with_record:
        expected = "proven" if name == "launcher that no entry point names" else "refuted"
        assert report.outcome == expected  # RECORD has the script's hash, or does not know it
    elif name != "launcher is a FIFO" or not fits:
        assert report.outcome == outcome, (report.first, report.unproven)
        assert path in named(report)


@pytest.mark.parametrize("name", STALE_OR_FOREIGN)
def test_byte_code_that_python_would_not_load_is_listed(
    genuine: tuple[Fork, Path], site: Path, name: str
) -> None:
    change, path = STALE_OR_FOREIGN[name]
    change(site)
    report = verify(genuine[0], site)
    assert report.outcome == "not proven", report.first
    assert [u.path for u in report.unproven] == [path]


def test_byte_code_in_every_form_python_writes_follows_from_its_source(
    genuine: tuple[Fork, Path], site: Path
) -> None:
    import compileall
    import py_compile

    shutil.rmtree(site / "sglang" / "__pycache__")
    for mode in py_compile.PycInvalidationMode:
        for optimize in (0, 1, 2):
            compileall.compile_dir(
                site / "sglang", quiet=1, force=True, optimize=optimize, invalidation_mode=mode
            )
        report = verify(genuine[0], site)
        assert report.outcome == "proven", (report.first, report.unproven)
        assert "21 byte-code files against their source" in report.checked


def test_known_path_file_and_other_distributions_are_no_fault(
    genuine: tuple[Fork, Path], site: Path
) -> None:
    hook = (
        b"import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os.environ.get(var, 'local') == "
        b"'local'; enabled and __import__('_distutils_hack').add_shim(); \n"
    )
    write("distutils-precedence.pth", hook)(site)
    write("torch/__init__.py")(site)
    write("six.py")(site)
    write("torch-2.dist-info/RECORD", b"torch/__init__.py,,\nsix.py,,\n")(site)
    assert verify(genuine[0], site).outcome == "proven"


@pytest.mark.parametrize(
    "row",
    ["x/../../../../../../../../etc/hostname,,", "/etc/hostname,,", "x\0y,,", "x" * 9000 + ",,",
     "../../../bin/x\0,,", "../../../../../../etc/hostname,,", "torch/../../x,,", "C:/x,,"],
)  # fmt: skip
def test_record_that_leads_elsewhere(genuine: tuple[Fork, Path], site: Path, row: str) -> None:
    append(f"{INFO}/RECORD", row.encode() + b"\n")(site)
    assert verify(genuine[0], site).outcome == "refuted"


def test_kernels_and_released_wheel_missing_leave_files_unproven(
    genuine: tuple[Fork, Path], site: Path
) -> None:
    report = verify_installed(site, lock=genuine[0].lock)
    assert report.outcome == "not proven"
    assert {NATIVE, KERNEL_PREFIX, f"{INFO}/METADATA"} <= named(report)


# --- byte code --------------------------------------------------------------------------------

PROGRAM: Final = (
    "import os\nclass A:\n  x: int = 1\n  def f(self, a, *b, c=(1, 2.5, 3j, b'', None, ..., -1)):\n"
    "    return a in {'x', 'y', 1 << 80} and [f'{z}' for z in b]\n"
)


def test_same_code_ignores_file_names_and_reference_marks() -> None:
    one = compile(PROGRAM, "/one/place.py", "exec")
    other = compile(PROGRAM, "/other.py", "exec")
    assert marshal.dumps(one) != marshal.dumps(other)
    assert same_code(marshal.dumps(one), marshal.dumps(other))
    assert same_code(marshal.dumps(one), marshal.dumps(one, 2))  # without references at all


@pytest.mark.parametrize("old, new", [("1 << 80", "1 << 81"), ("2.5", "2.50001"), ("'x'", "'z'"),
                                      ("a in", "a not in"), ("def f", "def g"), ("3j", "4j"),
                                      ("int", "str"), ("c=", "d="), ("...", "None")])  # fmt: skip
def test_same_code_sees_any_change(old: str, new: str) -> None:
    one = compile(PROGRAM, "place.py", "exec")
    other = compile(PROGRAM.replace(old, new), "place.py", "exec")
    assert not same_code(marshal.dumps(one), marshal.dumps(other))


def test_damaged_byte_code_is_never_the_same_and_never_crashes() -> None:
    data = marshal.dumps(compile(PROGRAM, "place.py", "exec"))
    filename = range(data.index(b"place.py"), data.index(b"place.py") + 8)
    reference = 0x80
    for at in range(len(data)):
        for value in (0, 0xFF, data[at] ^ 1, data[at] ^ 0x20):
            other = data[:at] + bytes([value]) + data[at + 1 :]
            marked = value ^ data[at] == reference
            if other != data and at not in filename and not marked:
                same_code(data, other)
        assert not same_code(data, data[:at])
    assert not same_code(data, b"c" + b"(" * 100_000)
    doubling = b"".join(b"\xa9\x02r" + struct.pack("<I", n) * 2 for n in range(60))
    assert not same_code(data, doubling)


# --- worktrees --------------------------------------------------------------------------------

WORKTREE: Final[Mapping[str, tuple[Change, str]]] = {
    "source touched": (append(f"python/{TOUCHED}", b"x\n"), TOUCHED),
    "source untouched": (append(f"python/{UNTOUCHED}", b"x\n"), UNTOUCHED),
    "source lost": (lambda tree: (tree / "python" / UNTOUCHED).unlink(), UNTOUCHED),
    "source back": (write(f"python/{DELETED}"), DELETED),
    "source added": (write("python/sglang/extra.py"), "sglang/extra.py"),
    "mode": (lambda tree: (tree / "python" / SCRIPT).chmod(0o644), SCRIPT),
    "kernel": (append(f"python/{KERNEL}", b"x\n"), KERNEL),
    "kernel lost": (lambda tree: (tree / "python" / KERNEL).unlink(), KERNEL),
    "native for a source": (write(f"python/sglang/_version.{SO}"), f"sglang/_version.{SO}"),
    "native added": (write("python/sglang/srt/more.so"), "sglang/srt/more.so"),
    "native for the package": (write(f"python/sglang/__init__.{SO}"), f"sglang/__init__.{SO}"),
    "module beside": (write("python/torch.py"), "torch.py"),
    "package beside": (write("python/torch/__init__.py"), "torch/__init__.py"),
    "native beside": (write(f"python/torch.{SO}"), f"torch.{SO}"),
    "sglang.py": (write("python/sglang.py"), "sglang.py"),
    "sitecustomize": (write("python/sitecustomize.py"), "sitecustomize.py"),
    "usercustomize": (write("python/usercustomize.py"), "usercustomize.py"),
    "path file": (write("python/x.pth"), "x.pth"),
    "metadata": (write("python/sglang-9.dist-info/METADATA"), "sglang-9.dist-info/METADATA"),
    "egg-info": (write("python/sglang.egg-info/PKG-INFO"), "sglang.egg-info/PKG-INFO"),
    "byte code beside": (write("python/sglang/extra.pyc"), "sglang/extra.pyc"),
    "byte code without source": (
        write("python/" + cached("sglang/gone.py")), cached("sglang/gone.py")),
    "byte code by time": (tamper(f"python/{UNTOUCHED}", 0), cached(UNTOUCHED)),
    "byte code unchecked": (tamper(f"python/{UNTOUCHED}", 1), cached(UNTOUCHED)),
    "byte code of a kernel": (tamper(f"python/{KERNEL}", 3), cached(KERNEL)),
    "link": (move_and_link(f"python/{UNTOUCHED}"), UNTOUCHED),
    "link to a device": (link(f"python/{UNTOUCHED}", "/dev/zero"), UNTOUCHED),
    "folder moved": (move_and_link("python/sglang/srt"), "sglang/srt"),
    "package moved": (move_and_link("python/sglang"), "sglang"),
    "python moved": (move_and_link("python"), "python/"),
    "FIFO": (fifo("python/sglang/x"), "sglang/x"),
    "huge file": (grow(f"python/{UNTOUCHED}", 1 << 40), UNTOUCHED),
}  # fmt: skip


@pytest.mark.parametrize("with_git", [False, True])
@pytest.mark.parametrize("name", WORKTREE)
def test_forged_worktree(
    genuine: tuple[Fork, Path], tmp_path: Path, name: str, with_git: bool
) -> None:
    fork, tree = genuine[0], tmp_path / "tree"
    expected = plant(fork, tree)
    change, path = WORKTREE[name]
    change(tree)
    report = verify_tree(
        tree,
        lock=fork.lock,
        version=fork.version,
        kernels=fork.kernels,
        expected=expected if with_git else None,
    )
    assert report.outcome == "refuted", report.unproven
    assert path in named(report) or (not with_git and "sglang/" in named(report))


def test_what_is_expected_and_what_is_found(genuine: tuple[Fork, Path], tmp_path: Path) -> None:
    fork, tree = genuine[0], tmp_path / "tree"
    plant(fork, tree)
    (tree / "python" / TOUCHED).unlink()
    write(f"python/{DELETED}", b"back = 1\n")(tree)
    report = verify_tree(tree, lock=fork.lock, version=fork.version, kernels=fork.kernels)
    shown = {d.path: (d.expected, d.found) for d in report.differences}
    blobs = {c.path.removeprefix("python/"): c for p in fork.locked.patches for c in p.files}
    assert shown[TOUCHED] == (blobs[TOUCHED].after, None)
    assert shown[DELETED] == (None, blob_id(b"back = 1\n"))


def test_module_in_the_root_of_a_worktree_is_listed(
    genuine: tuple[Fork, Path], tmp_path: Path
) -> None:
    fork, tree = genuine[0], tmp_path / "tree"
    plant(fork, tree)
    for name in ("torch.py", f"triton.{SO}", "notes.txt"):
        (tree / name).write_bytes(b"")
    report = verify_tree(tree, lock=fork.lock, kernels=fork.kernels)
    assert report.outcome == "not proven"
    assert named(report) == {"torch.py", f"triton.{SO}"}


def test_byte_code_is_compared_with_a_verified_source_alone(
    genuine: tuple[Fork, Path], site: Path
) -> None:
    """Of a source that was changed, the source is named, and not what was made of it before."""
    fork, _ = genuine
    write(UNTOUCHED)(site)
    report = verify(fork, site)
    assert {d.path for d in report.differences} == {UNTOUCHED}
    assert not any("byte-code" in text for text in report.checked)
