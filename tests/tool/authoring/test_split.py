"""`tool refresh --split`, and the pre-images that an edit must not take away."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version

from tests.support.lab import TREE, UTILS, Lab, git
from tests.support.rebases import check
from tool.apply.preimages import find_orphans, list_known_preimages
from tool.series import model as series

STOCK = TREE["sglang/srt/utils.py"]
ANSWER = STOCK.replace("return 3\n", "return 33\n")
LATER = ANSWER.replace("return 20\n", "return 2020\n")
RELEASES = ("0.5.21", "0.5.22", "0.5.23")
ALL = ">=0.5.21,<=0.5.23"


@pytest.fixture
def shared(lab: Lab) -> Lab:
    """Two patches of one source file, the second on top of the first. Each patch file stands for three
    releases.
    """
    for release in RELEASES:
        lab.release(release, TREE | {"sglang/more.py": f"RELEASE = '{release}'\n"})
    lab.patch("demo/answer.patch", {UTILS: ANSWER}, releases=ALL)
    lab.patch("demo/later.patch", {UTILS: LATER}, releases=ALL)
    lab.relock(*RELEASES)
    return lab


def names(lab: Lab, release: str) -> list[str]:
    return [p.name for p in series.load_series(lab.root).for_release(Version(release))]


def files(lab: Lab) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in lab.root.rglob("*") if path.is_file()}


def edited(lab: Lab, release: str, old: str, new: str) -> Path:
    """A worktree of ``release`` with an uncommitted change."""
    folder = lab.root.parent / f"fork-{release}"
    lab.apply(folder, "--sglang-ref", f"v{release}")
    text = (folder / UTILS).read_text()
    assert old in text
    (folder / UTILS).write_text(text.replace(old, new, 1))
    return folder


class TestSplit:
    def test_from_that_release_on(self, shared: Lab) -> None:
        before = (shared.root / "patches" / "demo/answer.patch").read_bytes()
        trees = {r: shared.lock.get(Version(r)).final_tree for r in RELEASES}
        folder = edited(shared, "0.5.22", "return 33\n", "return 3333\n")
        done = shared.json("refresh", "answer", str(folder), "--split", "--offline")["result"]
        assert done["patch"] == "demo/answer-v0.5.22.patch"
        assert done["releases"] == ["0.5.22", "0.5.23"]
        old = (shared.root / "patches" / "demo/answer.patch").read_bytes()
        assert old == before.replace(ALL.encode(), b"==0.5.21")
        new = (shared.root / "patches" / "demo/answer-v0.5.22.patch").read_text()
        assert "Releases: >=0.5.22,<=0.5.23\n" in new and "+    return 3333\n" in new
        assert names(shared, "0.5.21")[0] == "demo/answer.patch"
        assert (
            names(shared, "0.5.22")[0] == names(shared, "0.5.23")[0] == "demo/answer-v0.5.22.patch"
        )
        assert shared.lock.get(Version("0.5.21")).final_tree == trees["0.5.21"]
        assert shared.lock.get(Version("0.5.23")).final_tree != trees["0.5.23"]
        check(shared)

    def test_a_later_patch_still_applies_everywhere(self, shared: Lab) -> None:
        """demo/later.patch stays one file for all three releases, because 0.5.21 still has its pre-image."""
        folder = edited(shared, "0.5.22", "return 33\n", "return 3333\n")
        done = shared.json("refresh", "answer", str(folder), "--split", "--offline")["result"]
        assert done["written"] == ["demo/answer-v0.5.22.patch"]
        assert "demo/later.patch" in names(shared, "0.5.21") and "demo/later.patch" in names(
            shared, "0.5.23"
        )
        shared.forget_repository()
        check(shared)

    def test_a_later_patch_whose_pre_image_goes_is_written_anew(self, lab: Lab) -> None:
        for release in RELEASES:
            lab.release(release, TREE | {"sglang/more.py": f"RELEASE = '{release}'\n"})
        lab.patch("demo/answer.patch", {UTILS: ANSWER}, releases=ALL)
        lab.patch("demo/later.patch", {UTILS: LATER}, on="0.5.22", releases=">=0.5.22,<=0.5.23")
        lab.relock(*RELEASES)
        folder = edited(lab, "0.5.22", "return 33\n", "return 3333\n")
        done = lab.json("refresh", "answer", str(folder), "--split", "--offline")["result"]
        assert set(done["written"]) == {"demo/answer-v0.5.22.patch", "demo/later.patch"}
        assert (
            names(lab, "0.5.22")
            == names(lab, "0.5.23")
            == ["demo/answer-v0.5.22.patch", "demo/later.patch"]
        )
        lab.forget_repository()
        check(lab)

    def test_twice(self, shared: Lab) -> None:
        folder = edited(shared, "0.5.22", "return 33\n", "return 3333\n")
        shared.tool("refresh", "answer", str(folder), "--split", "--offline")
        folder = edited(shared, "0.5.23", "return 3333\n", "return 333333\n")
        shared.tool("refresh", "answer-v0.5.22", str(folder), "--split", "--offline")
        assert names(shared, "0.5.22")[0] == "demo/answer-v0.5.22.patch"
        assert names(shared, "0.5.23")[0] == "demo/answer-v0.5.23.patch"
        check(shared)

    def test_files_for_other_releases_are_named(self, shared: Lab) -> None:
        """Whoever refreshes a patch is told which of its files are not edited."""
        folder = edited(shared, "0.5.22", "return 33\n", "return 3333\n")
        said = shared.tool("refresh", "answer", str(folder), "--split", "--offline").stdout
        line = "patches/demo has files for other releases; they stay as they are: "
        assert f"{line}answer.patch\n" in said
        folder = edited(shared, "0.5.23", "return 3333\n", "return 333333\n")
        done = shared.json("refresh", "answer-v0.5.22", str(folder), "--split", "--offline")
        assert done["result"]["kept"] == ["demo/answer.patch", "demo/answer-v0.5.22.patch"]
        folder = edited(shared, "0.5.22", "return 3333\n", "return 3334\n")
        said = shared.tool("refresh", "answer-v0.5.22", str(folder), "--offline").stdout
        assert f"{line}answer.patch, answer-v0.5.23.patch\n" in said

    def test_no_other_file(self, shared: Lab) -> None:
        folder = edited(shared, "0.5.22", "return 33\n", "return 3333\n")
        assert "other releases" not in shared.tool("refresh", "answer", str(folder)).stdout

    def test_nothing_is_before(self, shared: Lab) -> None:
        before = (shared.root / "series.txt").read_bytes()
        folder = edited(shared, "0.5.21", "return 33\n", "return 3333\n")
        error = shared.json("refresh", "answer", str(folder), "--split", "--offline", code=2)[
            "error"
        ]
        assert "no release before v0.5.21" in error["message"]
        assert error["next"] == "tool refresh demo/answer.patch"
        assert (shared.root / "series.txt").read_bytes() == before

    def test_a_later_patch_that_does_not_fit_changes_nothing(self, shared: Lab) -> None:
        lines = STOCK.split("\n")
        at = lines.index("    return 20")
        before = files(shared)
        # Next to the line the later patch changes: its own lines are others then.
        folder = edited(shared, "0.5.22", lines[at - 1] + "\n", lines[at - 1] + "  # twenty\n")
        error = shared.json("refresh", "answer", str(folder), "--split", "--offline", code=3)[
            "error"
        ]
        assert error["message"] and error["next"]
        assert files(shared) == before


class TestOrphans:
    def _orphaned(self, lab: Lab) -> str:
        """demo/later.patch has a pre-image that no release has. This repository still holds the blob."""
        for release in RELEASES:
            lab.release(release, TREE)
        lab.patch(
            "demo/answer.patch", {UTILS: STOCK.replace("return 3\n", "return 3.3\n")}, releases=ALL
        )
        lab.patch(
            "demo/later.patch",
            {
                UTILS: STOCK.replace("return 3\n", "return 3.3\n").replace(
                    "return 20\n", "return 2020\n"
                )
            },
            releases=ALL,
        )
        lab.relock(*RELEASES)
        loaded = series.load_series(lab.root)
        (later,) = [p for p in loaded.patches if p.name == "demo/later.patch"]
        ((_, blob),) = find_orphans([later], ())
        path = lab.root / "patches" / "demo/answer.patch"
        path.write_bytes(path.read_bytes().split(b"---\n", 1)[0] + b"---\n" + _diff(lab, ANSWER))
        return blob

    def test_check_finds_one(self, lab: Lab) -> None:
        blob = self._orphaned(lab)
        lab.relock(*RELEASES)
        result = lab.json("check", "--offline", code=1)["result"]
        found = [f for r in result["releases"] for f in r["findings"]]
        assert {f["where"] for f in found} == {"patches/demo/later.patch"}
        assert blob[:12] in found[0]["message"] and "tool refresh" in found[0]["message"]

    def test_an_edit_may_not_make_one(self, shared: Lab) -> None:
        """Only 0.5.21 has the pre-image of demo/later.patch, which stands for three releases."""
        folder = edited(shared, "0.5.22", "return 33\n", "return 3333\n")
        shared.tool("refresh", "answer", str(folder), "--split", "--offline")
        assert not list(
            find_orphans(series.load_series(shared.root).patches, list_known_preimages(shared.lock))
        )
        before = files(shared)
        first = edited(shared, "0.5.21", "return 33\n", "return 333\n")
        error = shared.json("refresh", "answer", str(first), "--offline", code=3)["error"]
        assert (
            error["where"] == "patches/demo/later.patch"
            and "no release would give" in error["message"]
        )
        assert "tool refresh demo/later.patch --split" in error["next"]
        assert files(shared) == before
        # What it says helps: a worktree without a change splits the patch as it is.
        git(folder, "stash", "-q")
        shared.apply(folder, "--sglang-ref", "v0.5.22")
        shared.tool("refresh", "later", str(folder), "--split", "--offline")
        assert names(shared, "0.5.22") == ["demo/answer-v0.5.22.patch", "demo/later-v0.5.22.patch"]
        shared.tool("refresh", "answer", str(first), "--offline")
        shared.forget_repository()
        check(shared)


def _diff(lab: Lab, text: str) -> bytes:
    """From the stock utils.py to ``text``."""
    from tests.support.lab import tree_diff

    base = lab.lock.get(Version("0.5.23")).base_tree
    return tree_diff(lab.home.repository, base, {UTILS: text})
