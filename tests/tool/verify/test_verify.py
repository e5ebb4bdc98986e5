"""Every difference between a fork and the lock is found and named, and nothing else is reported."""

from __future__ import annotations

import compileall
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from packaging.version import Version

from tests.support.forks import (
    ADDED,
    COMMA,
    DELETED,
    KERNELS,
    NATIVE,
    PATCHED,
    PATCHES,
    SCRIPT,
    TOUCHED,
    UNTOUCHED,
    Fork,
    lock_for,
    make_fork,
    plant,
    release_files,
    rewrite,
    write_project,
    write_wheel,
)
from tool.cli.commands.verify import report_verification
from tool.errors import EnvironmentFault, IntegrityError, UsageError
from tool.git import objects as gitid
from tool.project.checkout import tip_ref
from tool.project.session import Session
from tool.project.workspace import Workspace
from tool.series import lockfile
from tool.series.lockfile import Lock, LockedRelease, LockedWheel
from tool.series.model import Series, load_series
from tool.verify.checks import VerifyReport
from tool.verify.verify import (
    verify_artifact,
    verify_installed,
    verify_tree,
    verify_wheel,
)
from tool.wheel import sbom as provenance
from tool.wheel import version as stamp
from tool.wheel.archive import Wheel
from tool.wheel.overlay import KERNEL_PREFIX
from tool.wheel.sbom import PatchProvenance

INFO = "sglang-0.5.23+ada.1.dist-info"
KERNEL = KERNEL_PREFIX + "ops/logits.py"
Files = dict[str, tuple[bytes, int]]
Change = Callable[[Files], None]


@pytest.fixture
def fork(tmp_path: Path) -> Fork:
    return make_fork(tmp_path)


@pytest.fixture
def wheel(fork: Fork, tmp_path: Path) -> Path:
    return fork.build(tmp_path / "out").path


def describe(_: Version) -> Sequence[PatchProvenance]:
    return PATCHES


def first(report: VerifyReport) -> tuple[str, str]:
    """Path and problem of the first difference. There must be one, and the command exits with 5."""
    assert report.first is not None and report.outcome == "refuted"
    assert report_verification(report).exit_code == 5
    json.dumps(report.as_dict())
    return report.first.path, report.first.problem


# --- wheels -----------------------------------------------------------------------------------


def test_built_wheel_holds(fork: Fork, wheel: Path) -> None:
    report = verify_wheel(wheel, lock=fork.lock)
    assert report.outcome == "not proven" and report.first is None
    assert report.version == Version("0.5.23+ada.1")
    assert any(fork.locked.final_tree in text for text in report.checked)
    left = {u.path for u in report.unproven}
    assert left == {
        NATIVE,
        METADATA,
        f"{INFO}/WHEEL",
        f"{INFO}/entry_points.txt",
        KERNEL_PREFIX,
        SBOM,
    }
    shown = report_verification(report)
    assert shown.exit_code == 1 and "NOT PROVEN" in shown.lines[0]
    assert any(NATIVE in line and "released wheel" in line for line in shown.lines)


@pytest.mark.parametrize("as_folder", [False, True])
def test_with_kernels_and_released_wheel_nothing_is_unproven(
    fork: Fork, wheel: Path, as_folder: bool
) -> None:
    released = fork.source.parent if as_folder else fork.source
    report = verify_wheel(
        wheel, lock=fork.lock, kernels=fork.kernels, released=released, patches=describe
    )
    assert report.outcome == "proven", report.first
    assert report.unproven == ()
    shown = report_verification(report)
    assert shown.exit_code == 0 and shown.lines[0].endswith(": proven")


def test_two_touched_files_are_not_hidden_by_a_third(fork: Fork, wheel: Path) -> None:
    def change(files: Files) -> None:
        for name in (TOUCHED, ADDED, UNTOUCHED):
            files[name] = (b"evil\n", 0o644)

    rewrite(wheel, change, record=True)
    report = verify_wheel(wheel, lock=fork.lock)
    assert [d.path for d in report.differences] == [TOUCHED, ADDED]


def put(name: str, data: bytes, mode: int = 0o644) -> Change:
    return lambda files: files.update({name: (data, mode)})


def flip(name: str) -> Change:
    def change(files: Files) -> None:
        data, mode = files[name]
        files[name] = (data[:-2] + bytes([data[-2] ^ 1]) + data[-1:], mode)

    return change


def drop(name: str) -> Change:
    return lambda files: files.pop(name) and None


def chmod(name: str, mode: int) -> Change:
    return lambda files: files.update({name: (files[name][0], mode)})


def sub(name: str, old: bytes, new: bytes) -> Change:
    def change(files: Files) -> None:
        data, mode = files[name]
        assert old in data
        files[name] = (data.replace(old, new), mode)

    return change


def claim(**facts: object) -> Change:
    """Provenance in the tool's own form with other content."""

    def change(files: Files) -> None:
        stated = provenance.parse_sbom(files[SBOM][0], SBOM)
        files[SBOM] = (provenance.render_sbom(replace(stated, **facts)), 0o644)  # type: ignore[arg-type]

    return change


METADATA = f"{INFO}/METADATA"
RECORD = f"{INFO}/RECORD"
SBOM = f"{INFO}/{provenance.SBOM_NAME}"

# What an accident does: RECORD stays as it was. (change, path, words of the problem)
ACCIDENTS = {
    "touched file": (flip(TOUCHED), TOUCHED, "not the file series.lock has"),
    "touched file lost": (drop(ADDED), ADDED, "missing"),
    "deleted file is back": (put(DELETED, b"OLD = True\n"), DELETED, "the series deletes"),
    "other file": (flip(UNTOUCHED), UNTOUCHED, "not the file RECORD has"),
    "name with commas": (flip(COMMA), COMMA, "not the file RECORD has"),
    "native module": (flip(NATIVE), NATIVE, "not the file RECORD has"),
    "kernel": (flip(KERNEL), KERNEL, "not the file RECORD has"),
    "file lost": (drop(UNTOUCHED), UNTOUCHED, "missing: RECORD"),
    "native module lost": (drop(NATIVE), NATIVE, "missing: RECORD"),
    "file added": (put("sglang/extra.py", b""), "sglang/extra.py", "RECORD has no row"),
    "metadata": (sub(METADATA, b"torch==", b"torch>="), METADATA, "not the file RECORD has"),
    "provenance lost": (drop(SBOM), SBOM, "missing"),
    "record lost a row": (sub(RECORD, b"sglang/__init__", b"sglang/__other_"),
                          "sglang/__init__.py", "RECORD has no row"),
    "record names a file twice": (sub(RECORD, ADDED.encode(), UNTOUCHED.encode()),
                                  RECORD, "is broken"),
    "record unquoted": (sub(RECORD, b'"', b""), RECORD, "is broken"),
    "mode": (chmod(UNTOUCHED, 0o755), UNTOUCHED, "another mode"),
    "script lost its mode": (chmod(SCRIPT, 0o644), SCRIPT, "another mode"),
}  # fmt: skip

# What an attacker does: RECORD is forged to match.
FORGERIES = {
    "touched file": (flip(TOUCHED), TOUCHED, "not the file series.lock has"),
    "other file": (flip(UNTOUCHED), "sglang/", "not the tree series.lock has"),
    "file added": (put("sglang/extra.py", b""), "sglang/", "not the tree"),
    "file lost": (drop(COMMA), "sglang/", "not the tree"),
    "kernel": (flip(KERNEL), KERNEL_PREFIX, "not the kernels the provenance has"),
    "kernel added": (put(KERNEL_PREFIX + "x.py", b""), KERNEL_PREFIX, "not the kernels"),
    "all kernels lost": (
        lambda files: [files.pop(n) for n in list(files) if n.startswith(KERNEL_PREFIX)] and None,
        KERNEL_PREFIX, "not the kernels"),
    "start-up hook": (put("evil.pth", b"import evil"), "evil.pth", "beside the package"),
    "data folder": (put("sglang-0.5.23+ada.1.data/scripts/x", b""),
                    "sglang-0.5.23+ada.1.data/scripts/x", "beside the package"),
    "second metadata": (put("torch-9.dist-info/METADATA", b""),
                        "torch-9.dist-info/METADATA", "beside the package"),
    "version": (sub(METADATA, b"Version: 0.5.23+ada.1", b"Version: 0.5.23"), METADATA,
                "another name or version"),
    "stamp": (sub("sglang/_version.py", b"+ada.1", b""), "sglang/_version.py", "does not set"),
    "patch list": (claim(patches=PATCHES[:1]), SBOM, "patches is not the lock's"),
    "patch content": (claim(patches=(replace(PATCHES[0], sha256="d" * 64), PATCHES[1])),
                      SBOM, "patches is not the lock's"),
    "ancestor": (claim(source_sha256="d" * 64), SBOM, "released wheel is not the lock's"),
    "tree": (claim(tree="d" * 40), SBOM, "tree is not the lock's"),
    "executables": (claim(executables=()), SCRIPT, "another mode"),
    "provenance": (sub(SBOM, b'"specVersion": "1.6"', b'"specVersion": "1.7"'), SBOM,
                   "not one this tool wrote"),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCIDENTS)
def test_accident_is_found_and_named(fork: Fork, wheel: Path, name: str) -> None:
    change, path, words = ACCIDENTS[name]
    rewrite(wheel, change)
    found, problem = first(verify_wheel(wheel, lock=fork.lock))
    assert (found, words in problem) == (path, True), problem


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery_is_found(fork: Fork, wheel: Path, name: str) -> None:
    change, path, words = FORGERIES[name]
    rewrite(wheel, change, record=True)
    found, problem = first(verify_wheel(wheel, lock=fork.lock))
    assert (found, words in problem) == (path, True), problem


@pytest.mark.parametrize("path", [UNTOUCHED, NATIVE, METADATA, f"{INFO}/entry_points.txt"])
def test_released_wheel_names_a_forged_file(fork: Fork, wheel: Path, path: str) -> None:
    rewrite(wheel, flip(path), record=True)
    report = verify_wheel(wheel, lock=fork.lock, released=fork.source)
    named = {d.path: d.problem for d in report.differences}
    assert named[path] == "not the released file"


def test_released_wheel_names_an_extra_native_module(fork: Fork, wheel: Path) -> None:
    rewrite(wheel, put("sglang/evil.so", b"\x7fELF"), record=True)
    report = verify_wheel(wheel, lock=fork.lock)  # the lock alone cannot know, and says so
    assert report.outcome == "not proven"
    assert "sglang/evil.so" in {u.path for u in report.unproven}
    found = first(verify_wheel(wheel, lock=fork.lock, released=fork.source))
    assert found == ("sglang/evil.so", "not the released file")


def test_forged_kernel_and_provenance_fall_to_the_kernels_source(
    fork: Fork, tmp_path: Path
) -> None:
    evil = replace(fork, kernels={**KERNELS, "ops/logits.py": b"K = 666\n"})
    wheel = evil.build(tmp_path / "evil").path
    assert KERNEL_PREFIX in {u.path for u in verify_wheel(wheel, lock=fork.lock).unproven}
    path, problem = first(verify_wheel(wheel, lock=fork.lock, kernels=fork.kernels))
    assert (path, problem) == (KERNEL, "not the kernel file of this checkout")


def test_damaged_member_is_named(fork: Fork, wheel: Path) -> None:
    with Wheel(wheel) as opened:
        member = opened.members[UNTOUCHED]
    data = bytearray(wheel.read_bytes())
    data[member.offset + member.packed // 2] ^= 0xFF
    wheel.write_bytes(data)
    path, problem = first(verify_wheel(wheel, lock=fork.lock))
    assert path == UNTOUCHED and "damaged" in problem


def test_archive_tricks_are_differences_not_errors(fork: Fork, wheel: Path) -> None:
    rewrite(wheel, put("../../evil.py", b""), record=True)
    path, problem = first(verify_wheel(wheel, lock=fork.lock))
    assert "evil.py" in path and "must not hold this member" in problem
    wheel.write_bytes(wheel.read_bytes()[:-30])
    assert "damaged" in first(verify_wheel(wheel, lock=fork.lock))[1]


def test_stock_wheel_is_not_a_fork(fork: Fork) -> None:
    assert first(verify_wheel(fork.source, lock=fork.lock))[1] == "not a fork"


def test_fork_of_another_release_under_this_ones_name(fork: Fork, tmp_path: Path) -> None:
    other = make_fork(tmp_path, "0.5.22").build(tmp_path / "other").path
    renamed = other.rename(other.with_name("sglang-0.5.23+ada.1-py3-none-any.whl"))
    assert verify_wheel(renamed, lock=fork.lock).outcome == "refuted"


def test_release_the_lock_does_not_carry(wheel: Path) -> None:
    with pytest.raises(UsageError, match=r"does not carry sglang 0\.5\.23"):
        verify_wheel(wheel, lock=Lock({}))


def test_fork_under_an_older_series_is_refused(fork: Fork, wheel: Path) -> None:
    patched = {**PATCHED, f"python/{UNTOUCHED}": b"newer series\n"}
    newer = lock_for(fork.source, patched)
    path, problem = first(verify_wheel(wheel, lock=Lock({newer.version: newer})))
    assert (path, problem) == (UNTOUCHED, "not the file series.lock has")


def test_wheel_retagged_for_another_platform(fork: Fork, wheel: Path) -> None:
    renamed = wheel.rename(wheel.with_name("sglang-0.5.23+ada.1-cp312-cp312-linux_x86_64.whl"))
    path, problem = first(verify_wheel(renamed, lock=fork.lock))
    assert path == SBOM and "released wheel" in problem


def test_released_wheel_must_be_the_locked_one(fork: Fork, wheel: Path) -> None:
    write_wheel(fork.source.parent, "0.5.23", {**release_files("0.5.23"), NATIVE: (b"x", 0o755)})
    with pytest.raises(IntegrityError):
        verify_wheel(wheel, lock=fork.lock, released=fork.source)


# --- installed --------------------------------------------------------------------------------


def pip_install(wheel: Path, environment: Path, *options: str) -> Path:
    """Install into an environment that holds nothing else, not even pip; its site-packages."""
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index",
         "--quiet", "--disable-pip-version-check", *options, str(wheel)],
        check=True, capture_output=True, env={**os.environ, "PIP_CONFIG_FILE": os.devnull},
    )  # fmt: skip
    (site,) = environment.glob("lib/python3*/site-packages")
    return site


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site-packages that pip filled. The fork is reproducible, so all tests share one."""
    folder = tmp_path_factory.mktemp("environment")
    return pip_install(make_fork(folder).build(folder / "out").path, folder / "venv")


@pytest.fixture
def installed(environment: Path, tmp_path: Path) -> Path:
    return shutil.copytree(environment, tmp_path / "site-packages")


def test_installed_fork_holds(fork: Fork, environment: Path) -> None:
    installed = environment
    assert list(installed.glob("sglang/**/__pycache__/*.pyc"))
    report = verify_installed(
        installed,
        lock=fork.lock,
        kernels=fork.kernels,
        released=fork.source.parent,
        patches=describe,
    )
    assert report.outcome == "proven", (report.first, report.unproven)
    assert any("byte-code files" in text for text in report.checked)
    python = installed.parents[2] / "bin" / "python"
    code = (
        "import importlib.metadata as m, sglang; "
        "d = m.distribution('sglang'); print(d.version, sglang.__version__); "
        "assert all(f.locate().is_file() for f in d.files)"
    )
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0.5.23+ada.1", "0.5.23+ada.1"]


def test_modes_and_leftovers_of_an_installation_do_not_matter(fork: Fork, installed: Path) -> None:
    (installed / SCRIPT).chmod(0o644)
    (installed / UNTOUCHED).chmod(0o755)
    (installed / INFO / "direct_url.json").unlink()
    (installed / INFO / "INSTALLER").write_text("another\n")
    shutil.rmtree(installed / "sglang" / "__pycache__")
    linked = installed / COMMA
    linked.rename(installed.parent / "cached.json")
    linked.symlink_to(installed.parent / "cached.json")
    report = verify_installed(
        installed, lock=fork.lock, kernels=fork.kernels, released=fork.source, patches=describe
    )
    assert report.outcome == "proven", (report.first, report.unproven)


def overwrite(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda site: (site / name).write_bytes(data) and None


def link_folder(site: Path) -> None:
    (site / "sglang/srt/configs").rename(site.parent / "elsewhere")
    (site / "sglang/srt/configs").symlink_to(site.parent / "elsewhere")


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        (overwrite(TOUCHED, b"evil\n"), TOUCHED, "not the file series.lock has"),
        (overwrite(UNTOUCHED, b"evil\n"), UNTOUCHED, "not the file RECORD has"),
        (overwrite(NATIVE, b"evil\n"), NATIVE, "not the file RECORD has"),
        (overwrite("sglang/extra.py", b"evil\n"), "sglang/extra.py", "RECORD has no row"),
        (overwrite(DELETED, b"evil\n"), DELETED, "the series deletes"),
        (overwrite(METADATA, b"evil\n"), METADATA, "not the file RECORD has"),
        (overwrite(RECORD, b"evil\n"), RECORD, "is broken"),
        (lambda site: (site / UNTOUCHED).unlink(), UNTOUCHED, "missing"),
        (lambda site: (site / KERNEL).unlink(), KERNEL, "missing"),
        (lambda site: (site / RECORD).unlink(), RECORD, "missing"),
        (lambda site: (site / SBOM).unlink(), SBOM, "missing"),
        (link_folder, "sglang/srt/configs", "a link where a folder should be"),
    ],
)
def test_spoiled_installation_is_named(
    fork: Fork, installed: Path, change: Callable[[Path], None], path: str, words: str
) -> None:
    change(installed)
    found, problem = first(verify_installed(installed, lock=fork.lock))
    assert (found, words in problem) == (path, True), problem


def test_stock_installation_is_not_a_fork(fork: Fork, tmp_path: Path) -> None:
    site = pip_install(fork.source, tmp_path / "stock", "--no-compile")
    assert (site / COMMA).is_file()
    assert first(verify_installed(site, lock=fork.lock))[1] == "not a fork"


def test_folder_without_sglang(fork: Fork, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no installed distribution"):
        verify_installed(tmp_path, lock=fork.lock)


# --- worktrees --------------------------------------------------------------------------------


def test_worktree_holds(fork: Fork, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    expected = plant(fork, tree)
    compileall.compile_dir(tree / "python", quiet=1)
    (tree / "notes.txt").write_text("beside the package")
    for more in ({}, {"expected": expected}):
        report = verify_tree(tree, lock=fork.lock, kernels=fork.kernels, **more)  # type: ignore[arg-type]
        assert report.outcome == "proven", (report.first, report.unproven)
    assert [u.path for u in verify_tree(tree, lock=fork.lock).unproven] == [KERNEL_PREFIX]
    assert gitid.tree_id(expected) == fork.locked.final_tree


@pytest.mark.parametrize("with_git", [False, True])
@pytest.mark.parametrize(
    ("change", "path"),
    [
        (overwrite(f"python/{TOUCHED}", b"evil\n"), TOUCHED),
        (overwrite(f"python/{UNTOUCHED}", b"evil\n"), UNTOUCHED),
        (overwrite("python/sglang/extra.py", b"evil\n"), "sglang/extra.py"),
        (lambda tree: (tree / "python" / COMMA).unlink(), COMMA),
        (lambda tree: (tree / "python" / SCRIPT).chmod(0o644), SCRIPT),
        (overwrite(f"python/{KERNEL}", b"evil\n"), KERNEL),
        (lambda tree: shutil.rmtree(tree / "python" / KERNEL_PREFIX), KERNEL_PREFIX),
    ],
)
def test_spoiled_worktree_is_named(
    fork: Fork, tmp_path: Path, change: Callable[[Path], None], path: str, with_git: bool
) -> None:
    expected = plant(fork, tmp_path / "tree")
    change(tmp_path / "tree")
    report = verify_tree(
        tmp_path / "tree",
        lock=fork.lock,
        kernels=fork.kernels,
        expected=expected if with_git else None,
    )
    nameable = with_git or path in (TOUCHED, KERNEL, KERNEL_PREFIX)
    assert first(report)[0] == (path if nameable else "sglang/")


def test_link_in_a_worktree_is_named(fork: Fork, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    plant(fork, tree)
    target = (tree / "python" / UNTOUCHED).rename(tmp_path / "outside.py")
    (tree / "python" / UNTOUCHED).symlink_to(target)
    path, problem = first(verify_tree(tree, lock=fork.lock))
    assert (path, problem) == (UNTOUCHED, "a link where a file should be")


def test_worktree_on_a_git_base_is_proven_where_the_lock_reaches(
    fork: Fork, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    expected = plant(fork, tree)
    more = tree / "python/sglang/test/only_in_git.py"
    more.write_bytes(b"")
    assert verify_tree(tree, lock=fork.lock).outcome == "refuted"
    partial = verify_tree(tree, lock=fork.lock, wheel_base=False)
    assert partial.outcome == "not proven" and "base is a git source" in partial.unproven[0].reason
    known = {"lock": fork.lock, "kernels": fork.kernels, "wheel_base": False, "expected": expected}
    assert verify_tree(tree, **known).outcome == "refuted"  # type: ignore[arg-type]
    expected["python/sglang/test/only_in_git.py"] = ("100644", gitid.blob_id(b""))
    assert verify_tree(tree, **known).outcome == "proven"  # type: ignore[arg-type]
    (tree / "python" / TOUCHED).write_bytes(b"evil\n")
    assert first(verify_tree(tree, lock=fork.lock, wheel_base=False))[0] == TOUCHED


def test_worktree_that_does_not_state_its_release(fork: Fork, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    plant(fork, tree)
    (tree / "python" / stamp.VERSION_FILE).unlink()
    with pytest.raises(UsageError, match="which release"):
        verify_tree(tree, lock=fork.lock)
    report = verify_tree(tree, lock=fork.lock, version=fork.version)
    assert first(report)[0] == "sglang/"


# --- the command ------------------------------------------------------------------------------


@dataclass
class Checkout:
    """A checkout of this project around a synthetic series, and the tool's folders."""

    fork: Fork
    series: Series
    workspace: Workspace

    def verify(self, artifact: Path, *, offline: bool = True) -> VerifyReport:
        session = Session(self.series.root, self.workspace, offline=offline)
        session.series = self.series
        return verify_artifact(session, artifact)


@pytest.fixture
def checkout(fork: Fork, tmp_path: Path) -> Checkout:
    root = tmp_path / "project"
    write_project(fork, root)
    series = load_series(root)
    workspace = Workspace(tmp_path / "cache", tmp_path / "data")
    workspace.wheels.mkdir(parents=True)
    return Checkout(fork, series, workspace)


def test_command_tells_the_three_kinds_apart(
    checkout: Checkout, wheel: Path, installed: Path, tmp_path: Path
) -> None:
    plant(checkout.fork, tmp_path / "tree")
    shutil.copy(checkout.fork.source, checkout.workspace.wheels)
    for artifact, kind in (
        (wheel, "wheel"),
        (installed, "installed"),
        (tmp_path / "tree", "worktree"),
    ):
        report = checkout.verify(artifact)
        assert (report.kind, report.outcome) == (kind, "proven"), (report.first, report.unproven)


def test_command_uses_the_released_wheel_of_the_cache(checkout: Checkout, wheel: Path) -> None:
    left = checkout.verify(wheel).unproven
    assert NATIVE in {u.path for u in left} and all("not in the cache" in u.reason for u in left)
    shutil.copy(checkout.fork.source, checkout.workspace.wheels)
    assert checkout.verify(wheel).unproven == ()


def test_command_downloads_the_released_wheel_when_it_is_needed(
    checkout: Checkout, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetch(session: Session, locked: LockedRelease, wanted: LockedWheel) -> Path:
        asked.append(wanted.filename)
        if len(asked) == 1:
            raise EnvironmentFault("the package index cannot be reached")
        return checkout.fork.source

    monkeypatch.setattr("tool.verify.verify.fetch_wheel", fetch)
    left = checkout.verify(wheel, offline=False).unproven
    assert NATIVE in {u.path for u in left} and "cannot be reached" in left[0].reason
    assert checkout.verify(wheel, offline=False).outcome == "proven"
    assert asked == [checkout.fork.source.name] * 2
    rewrite(wheel, flip(TOUCHED), record=True)
    assert first(checkout.verify(wheel, offline=False))[0] == TOUCHED
    assert len(asked) == 2  # a file is named without it


def test_command_compares_kernels_with_the_checkout(checkout: Checkout, wheel: Path) -> None:
    (checkout.series.kernel_dir / "ops" / "logits.py").write_bytes(b"K = 2\n")
    assert first(checkout.verify(wheel)) == (KERNEL, "not the kernel file of this checkout")


def git(folder: Path, *args: str) -> str:
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    for who in ("AUTHOR", "COMMITTER"):
        environment |= {
            f"GIT_{who}_NAME": "t",
            f"GIT_{who}_EMAIL": "t@t",
            f"GIT_{who}_DATE": "946684800 +0000",
        }
    done = subprocess.run(
        ["git", *args], cwd=folder, check=True, capture_output=True, text=True, env=environment
    )
    return done.stdout.strip()


@pytest.mark.parametrize("wheel_base", [True, False])
def test_command_names_any_file_of_a_worktree_from_the_tools_repository(
    checkout: Checkout, tmp_path: Path, wheel_base: bool
) -> None:
    tree = tmp_path / "tree"
    plant(checkout.fork, tree)
    if not wheel_base:
        (tree / "python/sglang/only_in_git.py").write_bytes(b"")
        (tree / "python/pyproject.toml").write_bytes(b"")
    kernels = (tree / "python" / KERNEL_PREFIX).rename(tmp_path / "kernels")
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "patched")
    patched = git(tree, "rev-parse", "HEAD")
    kernels.rename(tree / "python" / KERNEL_PREFIX)
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", f"bundle\n\nSglang-Release: {checkout.fork.version}\n")
    locked = replace(checkout.fork.locked, base_commit=patched if wheel_base else "1" * 40)
    lockfile.save(checkout.series.lock_path, Lock({locked.version: locked}))
    own = checkout.workspace.open_repository()
    own.run("fetch", "--quiet", str(tree / ".git"), "HEAD:refs/heads/ada/v1")
    own.run("update-ref", tip_ref("ada/v1"), "refs/heads/ada/v1")
    linked = tmp_path / "linked"
    git(own.git_dir, "worktree", "add", "--quiet", str(linked), "ada/v1")
    (tmp_path / "link").symlink_to(linked)
    for folder in (linked, tmp_path / "link"):
        assert checkout.verify(folder).outcome == "proven", checkout.verify(folder).first
    (linked / "python" / UNTOUCHED).write_bytes(b"evil\n")
    assert first(checkout.verify(linked)) == (UNTOUCHED, "not the file of the patched release")
    # A commit of the user's is no testimony for itself.
    git(linked, "commit", "--quiet", "-a", "-m", f"x\n\nSglang-Release: {locked.version}\n")
    assert first(checkout.verify(linked))[0] == UNTOUCHED
    # Nor is the repository in which the forger made it.
    if not wheel_base:
        (tree / "python" / UNTOUCHED).write_bytes(b"evil\n")
        git(tree, "commit", "--quiet", "-a", "--amend", "--no-edit")
        assert first(checkout.verify(tree))[0] in (
            "sglang/",
            "python/pyproject.toml",
            "pyproject.toml",
        )


# --- the real releases ------------------------------------------------------------------------

REAL: Mapping[str, str] = {
    "0.5.9": "sglang/srt/layers/attention/nsa/nsa_indexer.py",
    "0.5.23": "sglang/srt/server_args.py",
}


@pytest.mark.index
@pytest.mark.parametrize("version", REAL)
def test_real_release_installs_and_verifies(
    released_wheel: Callable[[str], Path], tmp_path: Path, version: str
) -> None:
    source, touched = released_wheel(version), REAL[version]
    with Wheel(source) as opened:
        edited = opened.read(touched) + b"# edited\n"
        commas = next(n for n in opened.members if "," in n)
    patched: dict[str, bytes | None] = {f"python/{touched}": edited}
    fork = Fork(source, lock_for(source, patched, PATCHES[:1]), patched, patches=PATCHES[:1])
    wheel = fork.build(tmp_path / "out").path
    known = {"lock": fork.lock, "kernels": fork.kernels, "released": source}
    known["patches"] = lambda _: PATCHES[:1]
    whole = verify_wheel(wheel, **known)  # type: ignore[arg-type]
    assert whole.outcome == "proven", (whole.first, whole.unproven)

    site = pip_install(wheel, tmp_path / "venv", "--no-compile")
    assert verify_installed(site, **known).outcome == "proven"  # type: ignore[arg-type]
    (site / commas).write_bytes(b"{}")
    assert first(verify_installed(site, lock=fork.lock))[0] == commas
