"""Staging, without a GPU and without an index: cut, refuse, unpack, probe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.serving.support import flavours, stage, stage_parts
from tests.serving.support.stage_parts import BLOCKS, MIB, Manifest
from tool.errors import IntegrityError, UsageError

ROOT = stage_parts.ROOT


def tree(folder: Path, **files: bytes) -> Path:
    """A tree as ``prepare`` makes it: two modules, of which the fork changed one."""
    for site, module in (("stack", b"A = 1\n"), ("fork", b"A = 2\n")):
        package = folder / site / "sglang"
        package.mkdir(parents=True)
        (package / "same.py").write_bytes(b"B = 1\n" * 100)
        (package / "changed.py").write_bytes(module)
    for name, content in files.items():
        (folder / "stack" / name).write_bytes(content)
    (folder / "stack" / "run.sh").write_bytes(b"#!/bin/sh\n")
    (folder / "stack" / "run.sh").chmod(0o755)
    stage_parts.share(folder / "fork", folder / "stack")
    return folder


def parts(
    folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch, *, block: int = 4096
) -> list[Path]:
    """The parts of a tree, of one block each."""
    monkeypatch.setattr(stage_parts, "BLOCK", block)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest("9.9", stage._tag(), stage_parts.cut(made, folder, limit=1))
    found = sorted(folder.glob("part*"), key=lambda path: int(path.name[4:]))
    for part in found:
        (part / stage_parts.MANIFEST).write_text(manifest.dump())
    return found


def test_parts_become_the_tree_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tree(tmp_path / "tree", random=os.urandom(9000))
    found = parts(tmp_path / "stage", made, monkeypatch)
    assert len(found) > 3
    home = tmp_path / "home"
    assert stage.install_parts(found[2:], home) == [f"{home}: still missing: part1, part2"]
    assert not (home / "stack").exists()
    lines = stage.install_parts(found[1::-1], home)
    assert lines[-1] == f"{home}: sglang 9.9, stack and fork"
    for file in made.rglob("*"):
        there = home / file.relative_to(made)
        if file.is_file():
            assert there.read_bytes() == file.read_bytes()
            assert os.access(there, os.X_OK) == os.access(file, os.X_OK)
    same = (home / site / "sglang" / "same.py" for site in ("stack", "fork"))
    assert len({path.stat().st_ino for path in same}) == 1
    assert stage.install_parts(found, home) == [f"{home}: nothing to do"]


def test_a_changed_file_changes_the_blocks_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tree(tmp_path / "tree", random=os.urandom(40_000))
    old = Manifest.load(parts(tmp_path / "stage", made, monkeypatch)[0])
    (made / "fork" / "sglang" / "changed.py").write_bytes(b"A = 3\n")
    new = Manifest.load(parts(tmp_path / "stage", made, monkeypatch)[0])
    same = [a == b for a, b in zip(old.parts, new.parts, strict=True)]
    assert all(same[:8]) and not all(same)


def test_another_preparation_replaces_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    one = parts(tmp_path / "1", tree(tmp_path / "a", gone=b"1"), monkeypatch)
    two = parts(tmp_path / "2", tree(tmp_path / "b"), monkeypatch)
    stage.install_parts(one, home)
    assert (home / "stack" / "gone").is_file()
    stage.install_parts(two[:1], home)
    stage.install_parts(two[1:], home)
    assert not (home / "stack" / "gone").exists()


def test_a_damaged_part_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = parts(tmp_path / "s", tree(tmp_path / "t"), monkeypatch, block=MIB)
    (part,) = found
    good = (part / BLOCKS).read_bytes()
    (part / BLOCKS).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="its first block is that of no part"):
        stage.install_parts([part], tmp_path / "home")
    (part / BLOCKS).unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        stage.install_parts([part], tmp_path / "home")


def test_a_damaged_later_block_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_parts, "BLOCK", 4096)
    folder = tmp_path / "s"
    folder.mkdir()
    cut = stage_parts.cut(tree(tmp_path / "t", random=os.urandom(9000)), folder, limit=MIB)
    (folder / "part1" / stage_parts.MANIFEST).write_text(Manifest("9", stage._tag(), cut).dump())
    file = folder / "part1" / BLOCKS
    good = file.read_bytes()
    file.write_bytes(good[:-9] + b"?" + good[-8:])
    with pytest.raises(IntegrityError, match="not the block of the manifest"):
        stage.install_parts([folder / "part1"], tmp_path / "home")
    assert not (tmp_path / "home" / "stack").exists()


def test_parts_of_two_preparations_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = parts(tmp_path / "1", tree(tmp_path / "a", file=b"1"), monkeypatch)
    two = parts(tmp_path / "2", tree(tmp_path / "b", file=b"2"), monkeypatch)
    with pytest.raises(UsageError, match="different preparations"):
        stage.install_parts([*one, *two], tmp_path / "home")


def test_parts_for_another_python_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = parts(tmp_path / "1", tree(tmp_path / "a"), monkeypatch)[0]
    found = json.loads((part / stage_parts.MANIFEST).read_text())
    (part / stage_parts.MANIFEST).write_text(json.dumps({**found, "python": "cp39"}))
    with pytest.raises(UsageError, match="the parts are for cp39"):
        stage.install_parts([part], tmp_path / "home")


@pytest.mark.parametrize(
    "content", [None, "not json", "{}", '{"release": 1, "python": 2, "parts": [[{}]]}']
)
def test_a_folder_that_is_no_part_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / stage_parts.MANIFEST).write_text(content)
    with pytest.raises(UsageError, match="not a part"):
        Manifest.load(tmp_path)


def test_the_command_line_prints_one_error_and_its_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", stage.__name__, "install", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == UsageError.exit_code
    assert done.stderr.startswith(f"error: {tmp_path}: not a part\n")
    assert "next: python -m tests.serving.support.stage prepare" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_release_without_a_list_is_named() -> None:
    with pytest.raises(UsageError, match="sglang 0.1.2 needs are not listed") as caught:
        stage_parts.requirements("0.1.2")
    assert flavours.RELEASE in str(caught.value)


def test_an_index_gives_the_release_and_its_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], fault: str, **given: Any) -> str:
        commands.append(list(command))
        if "tool" in command:
            out = Path(command[command.index("--out") + 1])
            out.mkdir(parents=True)
            (out / "sglang-9.9+ada.1-py3-none-any.whl").touch()
        return ""

    monkeypatch.setattr(stage_parts, "run", run)
    stage.install_index("9.9", tmp_path)
    stack, build, fork = commands
    assert "sglang==9.9" in stack and "--no-deps" not in stack
    assert str(tmp_path / "stack") in stack
    assert build[build.index("--sglang-ref") + 1] == "v9.9"
    assert "--no-deps" in fork and str(tmp_path / "fork") in fork
    assert fork[-1].endswith("sglang-9.9+ada.1-py3-none-any.whl")


def test_what_is_left_out_and_what_stays(tmp_path: Path) -> None:
    for name in (
        "sgl_kernel/sm100/ops.so",
        "sgl_kernel/sm90/ops.so",
        "sglang/a/b.pyi",
        "torch/x.pyi",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    stage_parts.slim(tmp_path)
    kept = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert kept == {"sgl_kernel/sm90/ops.so", "sglang/a/b.pyi"}


@pytest.mark.skipif(shutil.which("strip") is None, reason="no strip")
def test_a_library_is_stripped_and_sglangs_own_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stripped: list[str] = []
    monkeypatch.setattr(stage_parts, "STRIPPED_FROM", 1)
    monkeypatch.setattr(stage_parts, "run", lambda command, *_, **__: stripped.extend(command))
    for name in ("torch/lib/liba.so", "torch/lib/libb.so.2", "sglang/native.so", "torch/c.source"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"xy")
    stage_parts.slim(tmp_path)
    assert stripped[3:] == [str(tmp_path / f"torch/lib/lib{n}") for n in ("a.so", "b.so.2")]


def test_the_machines_libraries_are_linked_where_none_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("machine/nvidia/cu13/lib", "machine/nvidia/nccl/lib", "stack/nvidia/nccl/lib"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "machine"))
    assert stage.link_cuda(tmp_path / "stack") == ["nvidia/cu13"]
    assert (tmp_path / "stack/nvidia/cu13").resolve() == tmp_path / "machine/nvidia/cu13"
    assert not (tmp_path / "stack/nvidia/nccl").is_symlink()


def test_a_module_that_fails_and_one_that_aborts_are_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "PROBE", "stand_in")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "stand_in.py").write_text(
        "import json, os\n"
        'print(json.dumps({"begin": "a"}))\n'
        'print(json.dumps({"module": "a", "ok": True, "says": "1.0", "seconds": 0.1}))\n'
        'print(json.dumps({"begin": "b"}))\n'
        'print(json.dumps({"module": "b", "ok": False, "says": "ImportError: no b", "seconds": 0}))\n'
        'print(json.dumps({"begin": "c"}), flush=True)\nos.abort()\n'
    )
    lines, good = stage.check(["fork"])
    assert not good
    assert lines[0].startswith("fork  ok   a 1.0")
    assert lines[1].startswith("fork  FAIL b ImportError: no b")
    assert lines[2].startswith("fork  FAIL the process ended with -6 at c")


def test_requirements_are_pinned_once() -> None:
    seen: dict[str, str] = {}
    for line in stage_parts.requirements(flavours.RELEASE).read_text().splitlines():
        if text := line.partition("#")[0].strip():
            requirement = Requirement(text)
            assert str(requirement.specifier).startswith("=="), text
            key = requirement.name.lower().replace("_", "-")
            assert key not in seen, f"{text} and {seen[key]}"
            seen[key] = text
    assert seen["sglang"] == f"sglang=={flavours.RELEASE}"
    assert seen["apache-tvm-ffi"] == "apache-tvm-ffi==0.1.11"  # tilelang aborts beside a newer one
