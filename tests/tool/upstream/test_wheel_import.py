"""A wheel as a commit: every wheel of a release gives the same commit id."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.version import Version

from tests.support.lab import TREE, Lab
from tests.tool.wheel.test_zip_structure import ARCHIVE, FORGED, mutate
from tool.errors import IntegrityError
from tool.project.workspace import Workspace
from tool.series import lockfile
from tool.upstream import wheel_import

V = Version("7.0")


def make(
    path: Path, members: dict[str, bytes], *, mode: int = 0o100644, reverse: bool = False
) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(members, reverse=reverse):
            info = zipfile.ZipInfo(
                name, (2001, 2, 3, 4, 5, 6) if reverse else (2020, 1, 1, 0, 0, 0)
            )
            info.external_attr = (0o100755 if name.endswith(".sh") else mode) << 16
            archive.writestr(info, members[name])
    return path


def test_order_dates_native_modules_and_metadata_do_not_matter(lab: Lab, tmp_path: Path) -> None:
    files = {name: text.encode() for name, text in TREE.items()} | {"sglang/run.sh": b"#!/bin/sh\n"}
    one = make(
        tmp_path / "one.whl", files | {"sglang/x.so": b"1", "sglang-1.dist-info/METADATA": b"1"}
    )
    two = make(tmp_path / "two.whl", files | {"sglang/y.so": b"2"}, mode=0o100664, reverse=True)
    git = lab.home.open_repository()
    first = wheel_import.import_wheel(git, one, V)
    assert first == wheel_import.import_wheel(git, two, V)
    listing = git.out("ls-tree", "-r", first)
    assert "100755 blob" in listing and "python/sglang/run.sh" in listing
    assert ".so" not in listing and "dist-info" not in listing


@pytest.mark.parametrize("name", ["sglang/../../evil.py", "sglang/.git/hooks/x", "sglang/a\\b.py"])
def test_hostile_member_names_are_refused(lab: Lab, tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "bad.whl", {"sglang/a.py": b"", name: b""})
    with pytest.raises(IntegrityError, match="unsafe"):
        wheel_import.import_wheel(lab.home.open_repository(), path, Version("9.9"))
    assert lab.home.open_repository().resolve(wheel_import.release_ref(Version("9.9"))) is None


def test_a_truncated_wheel_leaves_no_ref(lab: Lab, tmp_path: Path) -> None:
    path = make(tmp_path / "cut.whl", {"sglang/a.py": b"x" * 5000})
    data = path.read_bytes()
    path.write_bytes(data[:2000] + b"\0" * 500 + data[2500:])
    with pytest.raises(IntegrityError):
        wheel_import.import_wheel(lab.home.open_repository(), path, Version("9.9"))
    assert lab.home.open_repository().resolve(wheel_import.release_ref(Version("9.9"))) is None


def test_any_damage_is_refused_in_the_same_way(lab: Lab, tmp_path: Path) -> None:
    """Encrypted members, unknown methods, broken names and streams: zipfile has an error for each."""
    git, path = lab.home.open_repository(), tmp_path / "bad.whl"
    fuzzed = (mutate(ARCHIVE, random.Random(seed)) for seed in range(150))
    refused = 0
    for number, data in enumerate([*(change(ARCHIVE) for change in FORGED.values()), *fuzzed]):
        path.write_bytes(data)
        try:
            tree = wheel_import.compute_base_tree(path)
        except IntegrityError as error:
            refused += 1
            assert error.where == str(path)
        else:
            assert number % 10 or git.tree_of(wheel_import.import_wheel(git, path, V)) == tree
            continue
        if number % 3 == 0:  # git is started for each
            with pytest.raises(IntegrityError):
                wheel_import.import_wheel(git, path, V)
    assert refused > 100


@pytest.mark.index
@pytest.mark.parametrize("release", ["0.5.9", "0.5.23"])
def test_a_real_release_gives_the_locked_commit(
    released_wheel: Callable[[str], Path], tmp_path: Path, release: str
) -> None:
    path = released_wheel(release)
    git = Workspace(tmp_path / "c", tmp_path / "d").open_repository()
    commit = wheel_import.import_wheel(git, path, Version(release))
    root = Path(__file__).parents[3]
    locked = lockfile.load(root / "series.lock").get(Version(release))
    assert (commit, git.tree_of(commit)) == (locked.base_commit, locked.base_tree)
