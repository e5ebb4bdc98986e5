"""Staging, without a GPU and without an index: slim, split, refuse, install, probe."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.serving.support import flavours, stage, stage_parts
from tests.serving.support.stage_parts import MIB, Manifest
from tool.errors import IntegrityError, UsageError

ROOT = stage_parts.ROOT


def wheel(folder: Path, name: str, files: dict[str, bytes], version: str = "1.0") -> Path:
    """A small wheel with a RECORD as the format has it."""
    info = f"{name}-{version}.dist-info"
    members = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, data in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        quoted = f'"{path}"' if "," in path else path
        rows.append(f"{quoted},sha256={digest},{len(data)}")
    rows.append(f"{info}/RECORD,,")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/RECORD", "\n".join(rows) + "\n")
    return path


def parts(tmp_path: Path, wheels: list[tuple[str, Path]], limit: int = MIB) -> list[Path]:
    """Folders as ``prepare`` leaves them."""
    manifest = stage_parts.split(wheels, "9.9", stage._tag(), limit)
    by_name = {path.name: path for _, path in wheels}
    folders = []
    for number in sorted({one.part for one in manifest.files}):
        folder = tmp_path / "stage" / f"part{number}"
        folder.mkdir(parents=True)
        (folder / stage_parts.MANIFEST).write_text(manifest.dump())
        for one in manifest.files:
            if one.part == number:
                (folder / one.name).write_bytes(by_name[one.name].read_bytes())
        folders.append(folder)
    return folders


def test_slim_leaves_members_out_and_record_agrees(tmp_path: Path) -> None:
    kept = {"pkg/__init__.py": b"x = 1\n", "pkg/a,b.json": b"{}", "pkg/sm90/ops.so": b"90" * 500}
    path = wheel(tmp_path, "pkg", {**kept, "pkg/sm100/ops.so": b"100" * 500, "pkg/flash.so": b"f"})
    assert stage_parts.slim(path, ("pkg/sm100/*", "pkg/flash.*")) == 2
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        assert {name for name in names if name.startswith("pkg/")} == set(kept)
        record = archive.read("pkg-1.0.dist-info/RECORD").decode()
    assert "sm100" not in record and '"pkg/a,b.json",sha256=' in record
    assert len(record.splitlines()) == len(names)


def test_split_fills_parts_and_keeps_every_wheel(tmp_path: Path) -> None:
    wheels = []
    for index, size in enumerate((70, 50, 40, 30, 5)):
        path = tmp_path / f"p{index}-1.0-py3-none-any.whl"
        path.write_bytes(bytes([index]) * size)
        wheels.append(("deps" if index else "fork", path))
    manifest = stage_parts.split(wheels, "9.9", "cp312", 100)
    assert sorted(one.name for one in manifest.files) == sorted(path.name for _, path in wheels)
    loads: dict[int, int] = {}
    for one in manifest.files:
        loads[one.part] = loads.get(one.part, 0) + one.bytes
    assert loads == {1: 100, 2: 95}
    assert {one.site for one in manifest.files if one.name.startswith("p0")} == {"fork"}


def test_a_wheel_larger_than_a_part_is_named(tmp_path: Path) -> None:
    path = tmp_path / "big-1.0-py3-none-any.whl"
    path.write_bytes(b"x" * 200)
    with pytest.raises(UsageError, match="big-1.0.*larger than a part") as caught:
        stage_parts.split([("deps", path)], "9.9", "cp312", 100)
    assert "SLIM" in str(caught.value)


def test_parts_and_tree_travel_together() -> None:
    """What git does not ignore goes over with each part: both must fit, with something to spare."""
    budget = stage_parts.budget()
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    tracked = sum(
        (ROOT / name).stat().st_size for name in listed if name and (ROOT / name).is_file()
    )
    assert budget + tracked <= stage_parts.TRAVELS - stage_parts.RESERVE
    assert budget > 32 * MIB


def test_install_is_idempotent_and_names_missing_parts(tmp_path: Path) -> None:
    wheels = [
        (
            "stock",
            wheel(
                tmp_path / "w",
                "one",
                {"one.py": b"A = 1\n", "big": random.Random(1).randbytes(4096)},
            ),
        ),
        ("deps", wheel(tmp_path / "w", "two", {"two/__init__.py": b"B = 2\n"})),
        ("deps", wheel(tmp_path / "w", "three", {"three.py": b"C = 3\n"})),
    ]
    largest = max(path.stat().st_size for _, path in wheels)
    folders = parts(tmp_path, wheels, limit=largest + 20)
    assert len(folders) == 2
    home = tmp_path / "home"
    first = stage.install_parts(folders[:1], home)
    assert first[-1] == "part2: not installed yet, 2 wheel(s)"
    second = stage.install_parts(folders[1:], home)
    assert not any("not installed" in line for line in second)
    assert (home / "stock" / "one.py").is_file()
    assert (home / "deps" / "two" / "__init__.py").is_file()
    assert (home / "deps" / "three.py").is_file()
    assert stage.install_parts(folders, home) == [f"{home}: nothing to do"]


def test_a_rebuilt_wheel_replaces_the_old_one(tmp_path: Path) -> None:
    old = wheel(tmp_path / "old", "one", {"one/a.py": b"A = 1\n", "one/gone.py": b""})
    home = tmp_path / "home"
    stage.install_parts(parts(tmp_path / "1", [("fork", old)]), home)
    new = wheel(tmp_path / "new", "one", {"one/a.py": b"A = 2\n"}, version="1.1")
    stage.install_parts(parts(tmp_path / "2", [("fork", new)]), home)
    assert (home / "fork" / "one" / "a.py").read_bytes() == b"A = 2\n"
    assert not (home / "fork" / "one" / "gone.py").exists()
    assert [path.name for path in (home / "fork").glob("*.dist-info")] == ["one-1.1.dist-info"]


def test_a_damaged_wheel_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    wheels = [("deps", wheel(tmp_path / "w", "one", {"one.py": b""}))]
    (folder,) = parts(tmp_path, wheels)
    path = folder / wheels[0][1].name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match="not the file of the manifest"):
        stage.install_parts([folder], tmp_path / "home")
    path.unlink()
    with pytest.raises(IntegrityError, match=r"1 wheel\(s\) of the part are not in its folder"):
        stage.install_parts([folder], tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_parts_of_two_preparations_are_refused(tmp_path: Path) -> None:
    one = parts(tmp_path / "1", [("deps", wheel(tmp_path / "a", "one", {"one.py": b"1"}))])
    two = parts(tmp_path / "2", [("deps", wheel(tmp_path / "b", "one", {"one.py": b"2"}))])
    with pytest.raises(UsageError, match="different preparations"):
        stage.install_parts([*one, *two], tmp_path / "home")


def test_parts_for_another_python_are_refused(tmp_path: Path) -> None:
    (folder,) = parts(tmp_path, [("deps", wheel(tmp_path / "a", "one", {"one.py": b"1"}))])
    found = json.loads((folder / stage_parts.MANIFEST).read_text())
    (folder / stage_parts.MANIFEST).write_text(json.dumps({**found, "python": "cp39"}))
    with pytest.raises(UsageError, match="the parts are for cp39"):
        stage.install_parts([folder], tmp_path / "home")


@pytest.mark.parametrize(
    "content", [None, "not json", "{}", '{"release": 1, "python": 2, "files": [{}]}']
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


def test_requirements_are_pinned_once_and_apart() -> None:
    """A package in two files would be in the deps site in one version and on the machine in another."""
    seen: dict[str, str] = {}
    for name in ("requirements.txt", "requirements-machine.txt", "requirements-peers.txt"):
        for line in (stage.HERE / name).read_text().splitlines():
            if text := line.partition("#")[0].strip():
                requirement = Requirement(text)
                assert str(requirement.specifier).startswith("=="), text
                key = requirement.name.lower().replace("_", "-")
                assert seen.setdefault(key, text) == text, f"{text} and {seen[key]}"
    assert seen["torch"] == "torch==2.11.0"
    assert flavours.RELEASE == "0.5.17"  # these pins are that release's
