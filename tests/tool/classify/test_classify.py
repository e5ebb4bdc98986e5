"""Every verdict on a small repository, and the near misses that must not get it.

The patch is written for 0.5.23; each test makes its own 0.5.24 and asks `tool drift` about it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.lab import B_ONLY, NEXT, TREE, TWIN, TWINS, UTILS, Lab
from tests.support.rebases import LIMITS, STOCK, WANTED
from tool.analysis.changes import Block
from tool.classify.upstreamed import summarize

SOURCE = '''\
"""Limits."""

FIRST = 1
SECOND = 2
THIRD = 3


class Pool:
    def size(self):
        total = self.blocks * self.page
        reserve = self.reserve
        return total - reserve

    def grow(self, amount):
        checked = self.check(amount)
        self.blocks += checked
        self.log("grown by", checked)
        return self.blocks


def final():
    last = compute_everything()
    return last
'''
OURS = SOURCE.replace(STOCK, WANTED)
HELPER = "def clamp_to_limits(value):\n    return max(FIRST, min(THIRD, value))\n\n\n"

Drift = Callable[..., dict[str, Any]]


@pytest.fixture
def drift(lab: Lab) -> Drift:
    """The outcome of a patch, from the files that it makes and the files that 0.5.24 has."""

    def run(
        patched: dict[str, str | None], upstream: dict[str, str | None], *, code: int
    ) -> dict[str, Any]:
        before = TREE | {"sglang/srt/limits.py": SOURCE}
        lab.release("0.5.23", before)
        lab.patch("demo/ours.patch", patched)
        lab.relock()
        state = (lab.root / "series.lock").read_bytes(), (lab.root / "series.txt").read_bytes()
        after = before | {path.removeprefix("python/"): text for path, text in upstream.items()}
        lab.release(NEXT, {path: text for path, text in after.items() if text is not None})
        state = (lab.root / "series.lock").read_bytes(), (lab.root / "series.txt").read_bytes()
        result = lab.json("drift", "--onto", f"v{NEXT}", "--offline", code=code)["result"]
        assert state == (
            (lab.root / "series.lock").read_bytes(),
            (lab.root / "series.txt").read_bytes(),
        )
        (patch,) = result["patches"]
        assert patch["reasons"] and all(patch["reasons"])
        assert result["carries"] is (code == 0)
        return patch

    return run


class TestItCarries:
    def test_clean_when_the_file_did_not_change(self, drift: Drift) -> None:
        assert drift({LIMITS: OURS}, {UTILS: "x = 1\n"}, code=0)["outcome"] == "clean"

    def test_clean_when_only_lines_far_below_changed(self, drift: Drift) -> None:
        upstream = SOURCE.replace("return last", "return last + 1")
        assert drift({LIMITS: OURS}, {LIMITS: upstream}, code=0)["outcome"] == "clean"

    def test_moved_names_the_symbol_and_the_distance(self, drift: Drift) -> None:
        upstream = SOURCE.replace("FIRST = 1\n", "ZERO = 0\nHALF = 0.5\nFIRST = 1\n")
        patch = drift({LIMITS: OURS}, {LIMITS: upstream}, code=0)
        assert patch["outcome"] == "moved"
        assert patch["reasons"] == [
            f"{LIMITS}, Pool.size (line 10 when the patch was written): line 12 of the release (+2)"
        ]

    def test_merged_when_the_lines_around_are_others(self, drift: Drift) -> None:
        upstream = SOURCE.replace("return total - reserve", "return total - 2 * reserve")
        patch = drift({LIMITS: OURS}, {LIMITS: upstream}, code=0)
        assert patch["outcome"] == "merged" and LIMITS in patch["reasons"][0]

    def test_the_right_one_of_two_twins(self, drift: Drift) -> None:
        moved = "".join(f"P{i} = {i}\n" for i in range(7)) + TWIN
        patch = drift({TWINS: B_ONLY}, {TWINS: moved}, code=0)
        assert patch["outcome"] == "moved" and "B.run" in patch["reasons"][0]

    def test_upstream_changed_the_other_twin_alike(self, drift: Drift) -> None:
        """Upstream made the change in class A. That is no reason to drop the change in class B."""
        a_only = TWIN.replace("x + 1", "x + 2", 1)
        assert drift({TWINS: B_ONLY}, {TWINS: a_only}, code=0)["outcome"] == "clean"


class TestUpstreamHasIt:
    def test_exact(self, drift: Drift) -> None:
        patch = drift({LIMITS: OURS}, {LIMITS: OURS}, code=1)
        assert patch["outcome"] == "exact"
        assert "Pool.size" in patch["reasons"][0] and "minimum_size" in patch["reasons"][0]

    def test_exact_beside_other_work_in_the_file(self, drift: Drift) -> None:
        upstream = OURS.replace("FIRST = 1", "FIRST = 10").replace("return last", "return last + 1")
        assert drift({LIMITS: OURS}, {LIMITS: upstream}, code=1)["outcome"] == "exact"

    def test_exact_for_a_file_that_both_add_and_one_both_delete(self, drift: Drift) -> None:
        edits = {"python/sglang/srt/new.py": "NEW_SETTING = 1\n", TWINS: None}
        assert drift(edits, edits, code=1)["outcome"] == "exact"

    def test_squashed_into_a_larger_change(self, drift: Drift) -> None:
        upstream = OURS.replace(
            "        reserve = self.reserve\n", "        reserve = 2 * self.spare\n"
        )
        assert drift({LIMITS: OURS}, {LIMITS: upstream}, code=1)["outcome"] == "squashed"

    def test_elsewhere_the_same_function_in_another_place(self, drift: Drift) -> None:
        patch = drift(
            {LIMITS: SOURCE.replace("class Pool", HELPER + "class Pool")},
            {LIMITS: SOURCE + "\n\n" + HELPER.rstrip() + "\n"},
            code=1,
        )
        assert patch["outcome"] == "elsewhere"
        assert "clamp_to_limits is defined already" in patch["reasons"][0]

    def test_elsewhere_the_lines_in_another_symbol(self, drift: Drift) -> None:
        upstream = SOURCE.replace(STOCK, "        total = self.rounded\n").replace(
            "        checked = self.check(amount)\n", WANTED
        )
        patch = drift({LIMITS: OURS}, {LIMITS: upstream}, code=1)
        assert patch["outcome"] == "elsewhere" and "Pool.grow" in patch["reasons"][0]

    def test_partial_one_file_of_two(self, drift: Drift) -> None:
        patch = drift({LIMITS: OURS, TWINS: B_ONLY}, {LIMITS: OURS}, code=1)
        assert patch["outcome"] == "partial" and LIMITS in patch["reasons"][0]

    def test_partial_one_hunk_of_two(self, drift: Drift) -> None:
        both = OURS.replace("last = compute_everything()", "last = compute_everything(needed=True)")
        patch = drift({LIMITS: both}, {LIMITS: OURS}, code=1)
        assert patch["outcome"] == "partial"
        assert any("minimum_size" in line for line in patch["reasons"])


class TestNearMisses:
    """Upstream made almost the same change. Counting that as upstreamed would lose a change silently."""

    @pytest.mark.parametrize(
        "line",
        [
            WANTED.replace("minimum_size", "minimum_sizes"),
            WANTED.replace("max(", "min("),
            WANTED.replace(", self", ",  self"),  # white space alone
            WANTED.replace("        total", "\t    total"),
            WANTED.rstrip("\n") + "  # keep\n",
            "        # " + WANTED.strip() + "\n",
        ],
        ids=["a letter", "another function", "a space", "a tab", "a comment", "commented out"],
    )
    def test_almost_the_same_line(self, drift: Drift, line: str) -> None:
        upstream = SOURCE.replace(STOCK, line)
        assert drift({LIMITS: OURS}, {LIMITS: upstream}, code=1)["outcome"] == "conflict"

    def test_the_lines_added_without_those_removed(self, drift: Drift) -> None:
        upstream = SOURCE.replace(STOCK, STOCK.replace("=", "+=") + WANTED + STOCK)
        verdict = drift({LIMITS: OURS}, {LIMITS: upstream}, code=1)["outcome"]
        assert verdict == "conflict"

    def test_the_same_change_in_the_other_twin_and_another_one_here(self, drift: Drift) -> None:
        """Reverse-apply alone would find the lines in class A and report the patch as upstreamed."""
        a, b = TWIN[: TWIN.index("class B")], TWIN[TWIN.index("class B") :]
        upstream = a.replace("x + 1", "x + 2") + b.replace("x + 1", "x * 77")
        verdict = drift({TWINS: B_ONLY}, {TWINS: upstream}, code=1)["outcome"]
        assert verdict == "conflict"

    def test_short_common_lines_are_no_evidence(self, drift: Drift) -> None:
        """`return None` in the same method says nothing about a patch that adds it elsewhere in it."""
        ours = SOURCE.replace("        return total - reserve\n", "        return None\n")
        upstream = SOURCE.replace(
            "        return total - reserve\n",
            "        if not total:\n            return 0\n        return None or total\n",
        )
        assert drift({LIMITS: ours}, {LIMITS: upstream}, code=1)["outcome"] == "conflict"

    def test_a_removal_upstream_made_with_the_whole_method(self, drift: Drift) -> None:
        ours = SOURCE.replace('        self.log("grown by", checked)\n', "")
        start, end = SOURCE.index("    def grow"), SOURCE.index("\n\ndef final")
        upstream = SOURCE[:start] + SOURCE[end:]
        patch = drift({LIMITS: ours}, {LIMITS: upstream}, code=1)
        assert patch["outcome"] == "target gone" and "Pool.grow is gone" in patch["reasons"][0]


class TestConflicts:
    """A stop of `tool rebase` lists each conflicting hunk, and nothing else."""

    CONFLICT = SOURCE.replace(STOCK, "        total = self.blocks * self.page_size\n")

    def conflicts(
        self, lab: Lab, patched: str, upstream: dict[str, str | None], into: Path
    ) -> list[dict[str, Any]]:
        before = TREE | {"sglang/srt/limits.py": SOURCE}
        lab.release("0.5.23", before)
        lab.patch("demo/ours.patch", {LIMITS: patched})
        lab.relock()
        after = {path.removeprefix("python/"): text for path, text in upstream.items()}
        lab.release(NEXT, {n: t for n, t in (before | after).items() if t is not None})
        words = ("--onto", f"v{NEXT}", "--into", str(into), "--offline")
        result: dict[str, Any] = lab.json("rebase", *words, code=3)["result"]
        return list(result["stop"]["conflicts"])

    def test_a_hunk_that_upstream_left_alone_is_none(self, lab: Lab, tmp_path: Path) -> None:
        ours = OURS.replace("return last\n", "return last or None\n")
        (found,) = self.conflicts(lab, ours, {LIMITS: self.CONFLICT}, tmp_path / "r")
        assert found["symbol"] == "Pool.size" and len(found["upstream"]) == 2

    def test_a_file_that_is_where_it_was_has_no_other_name(self, lab: Lab, tmp_path: Path) -> None:
        copy = "python/sglang/srt/other.py"
        upstream = {LIMITS: self.CONFLICT, copy: SOURCE}
        (found,) = self.conflicts(lab, OURS, upstream, tmp_path / "r")
        assert found["renamed_to"] is None

    def test_a_file_whose_code_moved_has(self, lab: Lab, tmp_path: Path) -> None:
        moved = "python/sglang/srt/other.py"
        upstream = {LIMITS: f"from .other import *\n\n{HELPER}", moved: SOURCE}
        found = self.conflicts(lab, OURS, upstream, tmp_path / "r")
        assert {one["renamed_to"] for one in found} == {moved}


@pytest.mark.parametrize(
    ("removed", "added", "text"),
    [
        ((b"old\n",), (b"  new\n", b"more\n"), "+new (+2/-1 lines)"),
        ((b"old\n", b"gone\n"), (), "-old (+0/-2 lines)"),
        ((b"old\n",), (b"\n",), "-old (+1/-1 lines)"),
    ],
)
def test_a_change_in_a_line(
    removed: tuple[bytes, ...], added: tuple[bytes, ...], text: str
) -> None:
    assert summarize(Block("x.py", 1, 1, removed, added, "f")) == text


class TestTheTargetIsGone:
    def test_a_deleted_file(self, drift: Drift) -> None:
        patch = drift({LIMITS: OURS}, {LIMITS: None}, code=1)
        assert patch["outcome"] == "target gone"
        assert patch["reasons"] == [f"{LIMITS} is gone"]

    def test_a_renamed_file(self, drift: Drift) -> None:
        upstream = {LIMITS: None, "python/sglang/srt/bounds.py": SOURCE.replace("FIRST", "LOWEST")}
        patch = drift({LIMITS: OURS}, upstream, code=1)
        assert patch["outcome"] == "target gone"
        assert "now python/sglang/srt/bounds.py (100% alike)" in patch["reasons"][0]

    def test_a_file_that_became_a_stub(self, drift: Drift) -> None:
        upstream = {
            LIMITS: "from sglang.srt.bounds import *\n",
            "python/sglang/srt/bounds.py": SOURCE.replace("class Pool", "class BlockPool"),
        }
        patch = drift({LIMITS: OURS}, upstream, code=1)
        assert patch["outcome"] == "target gone"
        stub, lost = patch["reasons"]
        assert stub.startswith(f"{LIMITS} is a stub, its code is in python/sglang/srt/bounds.py")
        assert "Pool.size is gone" in lost and "as BlockPool.size" in lost

    def test_a_renamed_method(self, drift: Drift) -> None:
        upstream = SOURCE.replace("def size(self)", "def length(self, unit)").replace(
            STOCK, "        total = self.blocks * unit\n"
        )
        long = "        a = 1\n        b = 2\n        c = 3\n        d = 4\n"
        base = {LIMITS: upstream.replace("        return total -", long + "        return total -")}
        patch = drift({LIMITS: OURS}, base, code=1)
        assert patch["outcome"] in ("target gone", "conflict")
        assert "Pool.size" in patch["reasons"][0]


def test_the_first_release_that_breaks_it(lab: Lab) -> None:
    lab.release("0.5.23", TREE | {"sglang/srt/limits.py": SOURCE})
    lab.patch("demo/ours.patch", {LIMITS: OURS})
    lab.relock()
    broken = SOURCE.replace(STOCK, "        total = 0\n")
    lab.release("0.5.24", TREE | {"sglang/srt/limits.py": SOURCE + "\n"})
    lab.release("0.5.25", TREE | {"sglang/srt/limits.py": broken})
    lab.release("0.5.26", TREE | {"sglang/srt/limits.py": broken + "\n"})
    result = lab.json("drift", "--onto", "v0.5.26", "--offline", code=1)["result"]
    assert result["patches"][0]["first_broken_by"] == "0.5.25"
    assert result["summary"] == {"conflict": 1}


def test_each_patch_has_its_own_first_release_that_breaks_it(lab: Lab) -> None:
    lab.release("0.5.23", TREE | {"sglang/srt/limits.py": SOURCE})
    lab.patch("demo/ours.patch", {LIMITS: OURS})
    lab.patch("demo/twins.patch", {TWINS: B_ONLY})
    lab.patch("demo/answer.patch", {UTILS: TREE["sglang/srt/utils.py"] + "ANSWER = 1\n"})
    lab.relock()
    limits = {"sglang/srt/limits.py": SOURCE.replace(STOCK, "        total = 0\n")}
    twins = {"sglang/srt/twins.py": TWIN.replace("y = x + 1", "y = x")}
    lab.release("0.5.24", TREE | limits)
    lab.release("0.5.25", TREE | limits | twins)
    result = lab.json("drift", "--onto", "v0.5.25", "--offline", code=1)["result"]
    assert {p["patch"]: p["first_broken_by"] for p in result["patches"]} == {
        "demo/ours.patch": "0.5.24",
        "demo/twins.patch": "0.5.25",
        "demo/answer.patch": None,
    }


def test_a_release_older_than_the_series_knows(lab: Lab) -> None:
    lab.patch("demo/ours.patch", {TWINS: B_ONLY})
    lab.relock()
    lab.release("0.5.1", TREE)
    error = lab.json("drift", "--onto", "v0.5.1", "--offline", code=2)["error"]
    assert "nothing older" in error["message"] and "--from" in error["next"]
    patch = lab.json("drift", "--onto", "v0.5.1", "--from", "v0.5.23", "--offline")["result"]
    assert patch["carries"]


def test_an_unknown_release_and_an_edited_patch(lab: Lab) -> None:
    lab.patch("demo/ours.patch", {TWINS: B_ONLY})
    lab.relock()
    error = lab.json("drift", "--onto", "v0.5.99", "--offline", code=6)["error"]
    assert "0.5.99" in error["message"] and error["next"]
    path = lab.root / "patches" / "demo/ours.patch"
    path.write_bytes(path.read_bytes().replace(b"needed", b"wanted"))
    lab.release(NEXT, TREE)
    error = lab.json("drift", "--onto", f"v{NEXT}", "--offline", code=5)["error"]
    assert error["where"] == "patches/demo/ours.patch"
