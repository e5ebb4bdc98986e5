"""Options of a stopped rebase: --edit, --restart, showing the stop again, and --skip."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.lab import NEXT, TREE, UTILS, Lab
from tests.support.rebases import (
    ANSWER,
    LIMITS,
    MERGED,
    OURS,
    SOURCE,
    THEIRS,
    check,
    conflicting,
    onto,
    project,
    rebase,
    upgrade,
)
from tool.project import staged_path, transaction
from tool.rebase import state as rebase_state

MOVED = {"sglang/srt/limits.py": "X = 0\n" + SOURCE}
BOTH = OURS.replace("compute_everything()", "compute_everything(needed=True)")
HELPER = "def clamp_to_limits(value):\n    return max(FIRST, min(THIRD, value))\n\n\n"


pytestmark = pytest.mark.usefixtures("elsewhere")


def one(lab: Lab, text: str, upstream: str) -> None:
    """A series of one patch that turns the stock file into ``text``; the next release has ``upstream``."""
    lab.release("0.5.23", TREE | {"sglang/srt/limits.py": SOURCE})
    lab.patch("demo/limits.patch", {LIMITS: text})
    lab.relock()
    upgrade(lab, {"sglang/srt/limits.py": upstream})


def written(lab: Lab, name: str = "demo/limits-v0.5.24.patch") -> str:
    return (lab.root / "patches" / name).read_text()


class TestEdit:
    def test_it_stops_at_a_patch_that_carries(self, three: Lab) -> None:
        upgrade(three, MOVED)
        stopped = onto(three, "--edit", "limits", code=3)
        assert stopped["asked"] and stopped["marked"] == {}
        assert (stopped["stop"]["patch"], stopped["stop"]["outcome"]) == (
            "demo/limits.patch",
            "moved",
        )
        path = Path(stopped["worktree"]) / LIMITS
        assert path.read_text() == "X = 0\n" + OURS
        path.write_text(path.read_text().replace("minimum_size", "smallest_size"))
        result = rebase(three, "--continue")
        (row,) = [p for p in result["patches"] if p["patch"] == "demo/limits.patch"]
        assert (row["decided"], row["file"]) == ("by hand", "demo/limits-v0.5.24.patch")
        assert "smallest_size" in written(three) and "minimum_size" not in written(three)
        assert not list((three.home.data).glob("resolutions/*")), "nothing was in conflict"
        check(three)

    def test_unchanged_it_keeps_its_file(self, three: Lab) -> None:
        upgrade(three, MOVED)
        onto(three, "--edit", "demo/limits.patch", code=3)
        result = rebase(three, "--continue")
        (row,) = [p for p in result["patches"] if p["patch"] == "demo/limits.patch"]
        assert (row["decided"], row["file"]) == ("as merged", "demo/limits.patch")
        check(three)

    def test_several_in_order_and_after_a_restart_and_a_kill(self, three: Lab) -> None:
        upgrade(three, MOVED)
        asked = ("--edit", "twins", "--edit", "answer", "--edit", "demo/twins.patch")
        assert onto(three, *asked, code=3)["stop"]["patch"] == "demo/answer.patch"
        assert rebase(three, "--continue", code=3)["stop"]["patch"] == "demo/twins.patch"
        assert (
            rebase(three, "--restart", "--offline", code=3)["stop"]["patch"] == "demo/answer.patch"
        )
        state = rebase_state.load_state(three.folder)
        assert state and state.stop and state.token
        # As a kill leaves it that comes before the worktree is whole.
        folder = Path(state.folder)
        folder.rename(staged_path(folder, state.token))
        assert rebase(three, code=3)["state"] == "interrupted"
        assert rebase(three, "--continue", code=3)["stop"]["patch"] == "demo/answer.patch"
        assert rebase(three, "--continue", code=3)["stop"]["patch"] == "demo/twins.patch"
        assert rebase(three, "--continue")["state"] == "carried"
        check(three)

    def test_a_remembered_resolution_does_not_answer_for_it(self, three: Lab) -> None:
        path = conflicting(three)
        before = {n: (three.root / n).read_bytes() for n in project(three)}
        path.write_text(MERGED)
        rebase(three, "--continue")
        for name in project(three).keys() - before.keys():
            (three.root / name).unlink()
        for name, data in before.items():
            (three.root / name).write_bytes(data)
        stopped = onto(three, "--edit", "limits", code=3)
        assert stopped["stop"]["outcome"] == "conflict" and not stopped["asked"]
        rebase(three, "--abort")
        assert onto(three)["remembered"], "without it, it does"

    @pytest.mark.parametrize("name", ["nothing", "demo/other-release.patch"])
    def test_a_patch_that_is_not_carried(self, three: Lab, name: str) -> None:
        upgrade(three, MOVED)
        before = project(three)
        error = onto(three, "--edit", name, code=2)
        assert name in error["message"] and "demo/limits.patch" in error["why"]
        assert project(three) == before and rebase_state.load_state(three.folder) is None

    def test_of_a_change_that_is_over(self, three: Lab) -> None:
        three.regroup("demo/twins.patch", "other", ">=0.5.9,<0.5.24")
        upgrade(three, MOVED)
        assert "other/twins.patch" in onto(three, "--edit", "twins", code=2)["message"]

    def test_only_with_onto(self, three: Lab) -> None:
        conflicting(three)
        assert "--onto" in rebase(three, "--continue", "--edit", "twins", code=2)["message"]


class TestForgetting:
    def _second(self, lab: Lab) -> Path:
        """Two conflicts, the first of them resolved; returns the worktree."""
        changed = TREE["sglang/srt/utils.py"].replace("return 3\n", "return 3.0\n")
        upgrade(lab, {"sglang/srt/limits.py": THEIRS, "sglang/srt/utils.py": changed})
        tree = Path(onto(lab, code=3)["worktree"])
        (tree / UTILS).write_text(ANSWER.replace("return 33\n", "return 33.3\n"))
        assert rebase(lab, "--continue", code=3)["stop"]["patch"] == "demo/limits.patch"
        return tree

    @pytest.mark.parametrize("way", ["restart", "abort"])
    def test_a_resolution_that_did_not_land_is_taken_back(self, three: Lab, way: str) -> None:
        self._second(three)
        if way == "restart":
            again = rebase(three, "--restart", "--offline", code=3)
        else:
            rebase(three, "--abort")
            again = onto(three, code=3)
        assert again["stop"]["patch"] == "demo/answer.patch" and again["remembered"] == []
        assert "<<<<<<<" in (Path(again["worktree"]) / UTILS).read_text()

    def test_one_that_landed_is_remembered(self, three: Lab) -> None:
        tree = self._second(three)
        assert not list(three.home.data.glob("resolutions/*"))
        (tree / LIMITS).write_text(MERGED)
        rebase(three, "--continue")
        assert len(list(three.home.data.glob("resolutions/*"))) == 2

    def test_a_kill_while_it_lands_loses_none(
        self, three: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only the journal was written. The next command writes the project and the resolutions."""
        (self._second(three) / LIMITS).write_text(MERGED)
        before = project(three)

        with monkeypatch.context() as patched:
            patched.setattr(transaction, "complete", lambda journal: None)
            three.tool("rebase", "--continue")
        assert project(three) == before and (three.folder / "project.json").is_file()
        three.tool("repair")
        assert (three.root / "patches" / "demo/limits-v0.5.24.patch").is_file()
        assert len(list(three.home.data.glob("resolutions/*"))) == 2
        assert rebase_state.load_state(three.folder) is None
        check(three)

    def test_abort_of_one_killed_after_its_state_was_removed(
        self, three: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        conflicting(three).write_text(MERGED)
        before = project(three)
        journal = three.folder / "project.json"
        unlink = Path.unlink

        def spare(path: Path, missing_ok: bool = False) -> None:
            if path != journal:
                unlink(path, missing_ok)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", spare)
            rebase(three, "--continue")
        assert project(three) != before and journal.is_file()
        assert rebase_state.load_state(three.folder) is None
        rebase(three, "--abort")
        assert project(three) == before and not journal.exists()
        assert not list(three.home.data.glob("resolutions/*"))


class TestPartial:
    def test_left_out_it_retires_nothing(self, lab: Lab) -> None:
        one(lab, BOTH, OURS)
        text = lab.tool("rebase", "--onto", f"v{NEXT}", "--offline", code=4).stdout
        assert (
            "next: if what upstream lacks is still needed: tool rebase --continue; if it is not: "
            in text
        )
        rebase(lab, "--skip", "--why", "the rest is not needed")
        header = (lab.root / "patches" / "demo/limits.patch").read_text()
        assert "Skipped: 0.5.24, the rest is not needed\n" in header
        assert "Applied-Upstream" not in header
        assert "change demo >=0.5.9\n" in (lab.root / "series.txt").read_text()
        check(lab)

    def test_gone_on_with_it_keeps_the_rest(self, lab: Lab) -> None:
        one(lab, BOTH, OURS)
        onto(lab, code=4)
        (row,) = rebase(lab, "--continue")["patches"]
        assert (row["outcome"], row["decided"]) == ("partial", "as merged")
        added = [line for line in written(lab).split("\n") if line.startswith("+ ")]
        assert added == ["+    last = compute_everything(needed=True)"]
        check(lab)

    def test_all_of_it_upstream_still_retires_the_change(self, lab: Lab) -> None:
        one(lab, OURS, OURS)
        onto(lab, code=4)
        rebase(lab, "--skip", "--why", "merged as #9")
        assert "<0.5.24 upstream 0.5.24" in (lab.root / "series.txt").read_text()


class TestWhereWasI:
    def test_status_and_the_stop_again(self, three: Lab) -> None:
        path = conflicting(three)
        first = rebase(three, code=3)
        assert first["stop"]["patch"] == "demo/limits.patch" and first["marked"][LIMITS]
        text = three.tool("rebase", code=3).stdout
        for part in (
            "stopped at demo/limits.patch: conflict",
            "page_size",
            str(path.parents[3]),
            "next:",
        ):
            assert part in text
        found = three.json("status")["result"]["rebase"]
        assert (found["onto"], found["patch"], found["outcome"]) == (
            NEXT,
            "demo/limits.patch",
            "conflict",
        )
        assert found["worktree"] == str(path.parents[3])
        text = three.tool("status").stdout
        assert "rebase under way: v0.5.23 -> v0.5.24" in text and "next: tool rebase" in text

    def test_it_shows_the_worktree_as_it_is_now_and_leaves_it_alone(self, three: Lab) -> None:
        path = conflicting(three)
        path.write_text(MERGED)
        state = (three.folder / "rebase.json").read_bytes()
        assert rebase(three, code=3)["marked"] == {}
        assert "nothing is left to resolve" in three.tool("rebase", code=3).stdout
        assert path.read_text() == MERGED
        assert (three.folder / "rebase.json").read_bytes() == state
        rebase(three, "--continue")

    def test_interrupted(self, three: Lab) -> None:
        conflicting(three)
        state = rebase_state.load_state(three.folder)
        assert state and state.token
        Path(state.folder).rename(staged_path(Path(state.folder), state.token))
        assert "tool rebase --continue" in three.tool("rebase", code=3).stdout
        found = three.json("status")["result"]["rebase"]
        assert found["patch"] is None and "--continue" in found["next_step"]

    def test_without_a_rebase(self, three: Lab) -> None:
        assert "no rebase is under way" in rebase(three, code=2)["message"]
        assert three.json("status")["result"]["rebase"] is None
        assert "rebase" not in three.tool("status").stdout


class TestWhatIsSaid:
    def test_a_merge_beside_what_upstream_changed(self, lab: Lab) -> None:
        """Of two files one conflicts. The other is merged, although upstream changed it too."""
        lab.release("0.5.23", TREE | {"sglang/srt/limits.py": SOURCE})
        ours = TREE["sglang/srt/utils.py"].replace("    return 5\n", "    return 5.5\n")
        lab.patch("demo/limits.patch", {LIMITS: OURS, UTILS: ours})
        lab.relock()
        theirs = TREE["sglang/srt/utils.py"].replace("\ndef f5():", "# five\ndef f5():")
        upgrade(lab, {"sglang/srt/limits.py": THEIRS, "sglang/srt/utils.py": theirs})
        stopped = onto(lab, code=3)
        assert list(stopped["marked"]) == [LIMITS]
        line = (Path(stopped["worktree"]) / UTILS).read_text().split("\n").index("    return 5.5")
        assert stopped["beside"] == {UTILS: [line + 1]}
        text = lab.tool("rebase", code=3).stdout
        assert (
            f"{UTILS} is merged; upstream changed lines beside those of the patch: "
            f"look at line {line + 1} in the worktree" in text
        )

    def test_elsewhere_and_nothing_done_about_it(self, lab: Lab) -> None:
        one(
            lab,
            SOURCE.replace("class Pool", HELPER + "class Pool"),
            SOURCE + "\n\n" + HELPER.rstrip() + "\n",
        )
        stopped = onto(lab, code=4)
        assert stopped["stop"]["outcome"] == "elsewhere"
        error = rebase(lab, "--continue", code=3)
        path = Path(stopped["worktree"]) / LIMITS
        lines = path.read_text().split("\n")
        at = [n for n, line in enumerate(lines, 1) if line.startswith("def clamp_to_limits")]
        assert error["where"] == f"{path}:{at[1]}" and f"line {at[0]}" in error["message"]
        assert "--continue" in error["next"] and "--skip" in error["next"]
        rebase(lab, "--skip", "--why", "as #7")

    def test_new_files_that_speak_of_the_old_release(self, lab: Lab) -> None:
        one(lab, OURS, THEIRS)
        path = lab.root / "patches" / "demo/limits.patch"
        text = path.read_text().replace("Drop-When: never", "Drop-When: 0.5.23 is out of use.")
        path.write_text(text.replace("Because", "In 0.5.23, not in 0.5.23.post1: because"))
        lab.relock()
        (Path(onto(lab, code=3)["worktree"]) / LIMITS).write_text(MERGED)
        done = lab.tool("rebase", "--continue").stdout
        assert "patches/demo/limits-v0.5.24.patch: Description, Drop-When still names" in done
        assert "Drop-When: 0.5.23" in written(lab), "only its author knows better words"

    @pytest.mark.parametrize("words", ["10.5.23 or 0.5.230", "0.5.23.post1", "0.5.24"])
    def test_other_releases_are_not_named(self, lab: Lab, words: str) -> None:
        one(lab, OURS, THEIRS)
        path = lab.root / "patches" / "demo/limits.patch"
        path.write_text(path.read_text().replace("Drop-When: never", f"Drop-When: {words}"))
        lab.relock()
        (Path(onto(lab, code=3)["worktree"]) / LIMITS).write_text(MERGED)
        assert rebase(lab, "--continue")["dated"] == {}

    def test_a_clean_rename_leaves_nothing_to_resolve(self, lab: Lab) -> None:
        one(lab, OURS, SOURCE)
        upgrade(lab, {"sglang/srt/limits.py": None, "sglang/srt/bounds.py": SOURCE})
        text = lab.tool("rebase", "--onto", f"v{NEXT}", "--offline", code=3).stdout
        assert "nothing is left to resolve" in text
        (row,) = rebase(lab, "--continue")["patches"]
        assert row["decided"] == "as merged"
        check(lab)
