"""``tool check`` on all releases, and its findings when something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version

from tests.support.lab import EDITED, TREE, TWINS, UTILS, Lab, header
from tool.series import lockfile

LATER = TREE | {"sglang/srt/utils.py": "# a line more\n" + TREE["sglang/srt/utils.py"]}


@pytest.fixture
def two(lab: Lab) -> Lab:
    """Two releases that share one patch; on the later release it is merged."""
    lab.release("0.5.24", LATER)
    lab.patch("demo/answer.patch", {UTILS: EDITED}, releases=">=0.5.23,<=0.5.24")
    lab.relock("0.5.23", "0.5.24")
    return lab


def final_tree(lab: Lab, release: str) -> str:
    return lab.lock.get(Version(release)).final_tree


def findings(lab: Lab, *args: str, code: int = 1) -> list[dict[str, str]]:
    result = lab.json("check", "--offline", *args, code=code)["result"]
    return [f for release in result["releases"] for f in release["findings"]]


def test_all_releases_hold(two: Lab) -> None:
    result = two.json("check", "--offline", "-j", "2")["result"]
    assert [(r["release"], r["exact"], r["merged"]) for r in result["releases"]] == [
        ("0.5.23", 1, 0),
        ("0.5.24", 0, 1),
    ]
    assert result["findings"] == 0
    assert result["releases"][1]["tree"] == final_tree(two, "0.5.24")


def test_a_list_of_releases(two: Lab) -> None:
    result = two.json("check", "--offline", "--refs", "v0.5.24")["result"]
    assert [r["release"] for r in result["releases"]] == ["0.5.24"]
    assert "not carry" in two.json("check", "--refs", "v0.5.1", code=2)["error"]["message"]


def test_a_preimage_of_another_release_is_brought_in(two: Lab) -> None:
    """A new machine that asks only for the later release still merges from the right blob."""
    two.forget_repository()
    assert findings(two, "--refs", "v0.5.24", code=0) == []


def test_an_edited_patch_file(two: Lab) -> None:
    path = two.root / "patches" / "demo/answer.patch"
    path.write_bytes(path.read_bytes().replace(b"Because", b"Perhaps because"))
    found = findings(two)
    assert {f["rule"] for f in found} == {"lock"} and len(found) == 4
    assert found[0]["where"] == "patches/demo/answer.patch"


def test_the_table_marks_each_rule(two: Lab) -> None:
    good = two.tool("check", "--offline").stdout.splitlines()
    path = two.root / "patches" / "demo/answer.patch"
    path.write_bytes(path.read_bytes().replace(b"Because", b"Perhaps because"))
    bad = two.tool("check", "--offline", code=1).stdout.splitlines()
    assert good[0].split("  ")[0] == "release" and " lock " in good[0]
    for line, other in zip(good[1:3], bad[1:3], strict=True):
        marks, others = (
            [word for word in text.split() if word in ("ok", "FAILED")] for text in (line, other)
        )
        assert marks == ["ok"] * 4 and others == ["ok", "FAILED", "ok", "ok"]


def test_a_lock_with_another_tree(two: Lab) -> None:
    path = two.root / "series.lock"
    tree = final_tree(two, "0.5.23")
    path.write_text(path.read_text().replace(tree, "1" * 40))
    (found,) = findings(two)
    assert found["rule"] == "lock" and "not the proven one" in found["message"]


def test_a_patch_that_does_not_apply(two: Lab) -> None:
    two.release("0.5.24", TREE | {"sglang/srt/utils.py": EDITED.replace("33", "34")})
    entries = two.lock.releases
    first, last = entries[min(entries)], entries[max(entries)]
    lockfile.save(two.root / "series.lock", two.lock.with_release(lock_like(last, first)))
    found = findings(two)
    assert any(f["rule"] == "replay" and "does not apply" in f["message"] for f in found)


def lock_like(
    entry: lockfile.LockedRelease, other: lockfile.LockedRelease
) -> lockfile.LockedRelease:
    """``entry`` with the patches of ``other``."""
    return lockfile.LockedRelease(
        entry.version, entry.wheels, entry.base_commit, entry.base_tree, other.patches
    )


def test_a_patch_file_that_export_would_not_write(lab: Lab) -> None:
    path = lab.patch("demo/answer.patch", {UTILS: EDITED})
    path.write_bytes(path.read_bytes().replace(b"@@ def f2():\n", b"@@ \n"))
    lab.relock()
    (found,) = findings(lab)
    assert found["rule"] == "round trip" and found["where"] == "patches/demo/answer.patch"


def test_files_that_appear_and_go_are_seen_as_there(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    lab.patch("demo/files.patch", {"python/sglang/srt/new.py": "NEW = 1\n", TWINS: None})
    lab.relock()
    assert findings(lab, code=0) == []
    assert not list(empty.iterdir()), "git apply --3way checked something out into our folder"


def test_findings_name_every_release(two: Lab) -> None:
    (two.root / "patches" / "demo/answer.patch").write_bytes(header("==0.5.23") + b"nonsense\n")
    found = findings(two)
    assert len(found) >= 2 and all("demo/answer.patch" in f["where"] for f in found)
