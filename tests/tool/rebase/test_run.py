"""``tool rebase`` on small repositories: what it writes, where it stops, and that nothing is lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import ClassVar

import pytest
from packaging.version import Version

from tests.support.kills import POINTS, SAMPLE, kill_after, read_project, restore, timed
from tests.support.lab import NEXT, TREE, TWIN, TWINS, UTILS, Lab, git
from tests.support.rebases import (
    LIMITS,
    MERGED,
    OURS,
    SOURCE,
    STOCK,
    THEIRS,
    WANTED,
    check,
    conflicting,
    onto,
    project,
    rebase,
    upgrade,
)
from tool.rebase import run
from tool.series import model as series

pytestmark = pytest.mark.usefixtures("elsewhere")


class TestItCarries:
    def test_clean_patches_keep_their_files(self, three: Lab) -> None:
        upgrade(three, {"sglang/__init__.py": "x = 1\n"})
        lines = (three.root / "series.txt").read_text()
        result = onto(three)
        assert result["state"] == "carried"
        assert {p["file"] for p in result["patches"]} == {
            "demo/answer.patch",
            "demo/limits.patch",
            "demo/twins.patch",
        }
        expected = lines.replace("==0.5.23", ">=0.5.23,<=0.5.24")
        assert (three.root / "series.txt").read_text() == expected
        assert "# why" in expected and "# kept" in expected
        check(three)

    def test_a_changed_one_becomes_a_new_file(self, three: Lab) -> None:
        upgrade(three, {"sglang/srt/limits.py": SOURCE.replace("class Pool:", "class Pool(Base):")})
        before = (three.root / "patches" / "demo/limits.patch").read_bytes()
        result = onto(three)
        (row,) = [p for p in result["patches"] if p["patch"] == "demo/limits.patch"]
        assert (row["outcome"], row["file"]) == ("merged", "demo/limits-v0.5.24.patch")
        assert (three.root / "patches" / "demo/limits.patch").read_bytes() == before
        text = (three.root / "patches" / "demo/limits-v0.5.24.patch").read_text()
        assert "Releases: ==0.5.24" in text and "Pool(Base)" in text
        loaded = series.load_series(three.root)
        assert [p.name for p in loaded.for_release(Version("0.5.23"))] == [
            "demo/answer.patch",
            "demo/limits.patch",
            "demo/twins.patch",
        ]
        assert [p.name for p in loaded.for_release(Version(NEXT))] == [
            "demo/answer.patch",
            "demo/limits-v0.5.24.patch",
            "demo/twins.patch",
        ]
        check(three)

    def test_the_old_release_still_gives_its_tree(self, three: Lab) -> None:
        tree = three.lock.get(Version("0.5.23")).final_tree
        upgrade(three, {"sglang/srt/limits.py": SOURCE.replace("class Pool:", "class Pool(Base):")})
        onto(three)
        assert three.lock.get(Version("0.5.23")).final_tree == tree
        three.forget_repository()
        check(three)

    def test_an_open_range_gets_its_upper_bound(self, lab: Lab) -> None:
        lab.release("0.5.23", TREE | {"sglang/srt/limits.py": SOURCE})
        lab.patch("demo/limits.patch", {LIMITS: OURS}, releases=">=0.5.23")
        lab.relock()
        upgrade(lab, {"sglang/srt/limits.py": SOURCE.replace("class Pool:", "class Pool(Base):")})
        onto(lab)
        assert "demo/limits.patch ==0.5.23\n" in (lab.root / "series.txt").read_text()
        check(lab)

    def test_release_after_release_and_a_fresh_machine(self, three: Lab) -> None:
        moved = {"sglang/srt/utils.py": "A = 1\n" + TREE["sglang/srt/utils.py"]}
        upgrade(three, moved, "0.5.24")
        upgrade(three, {"sglang/srt/utils.py": "B = 1\n" + moved["sglang/srt/utils.py"]}, "0.5.25")
        onto(three)
        rebase(three, "--onto", "v0.5.25", "--offline")
        assert len(list((three.root / "patches" / "demo").iterdir())) == 3
        check(three)
        three.forget_repository()
        assert three.json("check", "--refs", "v0.5.25", "--offline")["result"]["findings"] == 0

    def test_backwards(self, three: Lab) -> None:
        upgrade(three, {"sglang/__init__.py": "x = 1\n"}, "0.5.22")
        rebase(three, "--onto", "v0.5.22", "--from", "v0.5.23", "--offline")
        assert ">=0.5.22,<=0.5.23" in (three.root / "series.txt").read_text()
        check(three)

    def test_a_change_that_is_over_is_not_carried(self, three: Lab) -> None:
        path = three.root / "series.txt"
        path.write_text(
            path.read_text().replace(
                "change demo >=0.5.9", "change demo >=0.5.9,<0.5.24 upstream 0.5.24: PR 7"
            )
        )
        three.regroup("demo/twins.patch", "other", ">=0.5.9")
        upgrade(three, {})
        result = onto(three)
        verdicts = {p["patch"]: p["outcome"] for p in result["patches"]}
        assert (
            verdicts["demo/answer.patch"] == "retired" and verdicts["other/twins.patch"] == "clean"
        )
        check(three)

    def test_the_history_is_recorded(self, three: Lab) -> None:
        upgrade(three, {"sglang/srt/limits.py": "X = 0\n" + SOURCE})
        onto(three)
        lines = three.tool("history").stdout
        assert "| 0.5.23 → 0.5.24 | 3 |" in lines and "demo/limits.patch" in lines


class TestItStops:
    def test_at_the_patch_with_markers_and_the_hunk(self, three: Lab) -> None:
        before = project(three)
        upgrade(three, {"sglang/srt/limits.py": THEIRS})
        before["series.lock"] = project(three)["series.lock"]
        stopped = onto(three, code=3)
        (trouble,) = stopped["stop"]["conflicts"]
        assert (trouble["path"], trouble["symbol"]) == (LIMITS, "Pool.size")
        assert "+        total = self.blocks * self.page_size" in trouble["upstream"]
        tree = Path(stopped["worktree"])
        text = (tree / LIMITS).read_text()
        assert "<<<<<<< sglang v0.5.24" in text and "||||||| " in text
        assert git(tree, "diff", "--name-only", "--diff-filter=U") == LIMITS
        assert "return 33" in (tree / UTILS).read_text(), "the patches before it are in"
        assert "x + 2" not in (tree / TWINS).read_text(), "those after it are not"
        assert project(three) == before
        rebase(three, "--abort")

    def test_the_message_for_a_person(self, three: Lab) -> None:
        upgrade(three, {"sglang/srt/limits.py": THEIRS})
        text = three.tool("rebase", "--onto", f"v{NEXT}", "--offline", code=3).stdout
        for part in ("demo/limits.patch", LIMITS, "Pool.size", "page_size", "next: ", "--continue"):
            assert part in text

    def test_continue(self, three: Lab) -> None:
        path = conflicting(three)
        error = rebase(three, "--continue", code=3)
        assert "conflict marker" in error["message"] and LIMITS in error["where"]
        path.write_text(MERGED + "def broken(:\n")
        assert "does not parse" in rebase(three, "--continue", code=3)["message"]
        path.write_text(THEIRS)
        assert "nothing of demo/limits.patch" in rebase(three, "--continue", code=3)["message"]
        path.write_text(MERGED)
        result = rebase(three, "--continue")
        (row,) = [p for p in result["patches"] if p["patch"] == "demo/limits.patch"]
        assert row["decided"] == "by hand" and row["file"] == "demo/limits-v0.5.24.patch"
        assert not path.exists()
        check(three)
        three.apply(three.root.parent / "fork", "--sglang-ref", f"v{NEXT}")
        assert (three.root.parent / "fork" / LIMITS).read_text() == MERGED

    def test_leftovers_beside_a_resolved_file(self, three: Lab) -> None:
        path = conflicting(three)
        path.write_text(MERGED)
        for name in ("limits.py.orig", "limits.py~", "#limits.py#"):
            left = path.with_name(name)
            left.write_text("x\n")
            error = rebase(three, "--continue", code=3)
            assert "leftover" in error["message"] and name in error["where"]
            left.unlink()
        path.write_text(MERGED + 'NOTE = """\n=======\n"""\n')
        assert "conflict marker" in rebase(three, "--continue", code=3)["message"]
        path.with_name("limits.so").write_bytes(b"\x7fELF\0")
        path.write_text(MERGED)
        assert "is binary" in rebase(three, "--continue", code=2)["message"]
        path.with_name("limits.so").unlink()
        assert rebase(three, "--continue")["state"] == "carried"

    def test_continue_after_committing_in_the_worktree(self, three: Lab) -> None:
        path = conflicting(three)
        path.write_text(MERGED)
        git(path.parent, "add", "-A")
        git(path.parent, "commit", "-qm", "mine")
        assert rebase(three, "--continue")["state"] == "carried"
        check(three)

    def test_a_file_outside_the_package_is_refused(self, three: Lab) -> None:
        path = conflicting(three)
        path.write_text(MERGED)
        (path.parents[3] / "notes.txt").write_text("hm\n")
        assert "outside the package" in rebase(three, "--continue", code=2)["message"]

    def test_skip_needs_a_reason_that_lands_in_the_header(self, three: Lab) -> None:
        conflicting(three)
        assert rebase(three, "--skip", code=2)["next"]
        rebase(three, "--skip", "--why", "  ", code=2)
        result = rebase(three, "--skip", "--why", "waits for\nissue 7")
        (row,) = [p for p in result["patches"] if p["patch"] == "demo/limits.patch"]
        assert row["file"] is None
        header = (three.root / "patches" / "demo/limits.patch").read_text()
        assert "Skipped: 0.5.24, waits for issue 7\n" in header
        check(three)

    def test_abort_leaves_every_byte(self, three: Lab) -> None:
        path = conflicting(three)
        before = project(three)
        path.write_text(MERGED)
        rebase(three, "--abort")
        assert project(three) == before
        assert not path.exists() and not (three.folder / "rebase.json").exists()
        assert len(git(three.home.repository, "worktree", "list").splitlines()) == 1
        assert "no rebase" in rebase(three, "--abort", code=2)["message"]

    def test_restart_forgets_decisions(self, three: Lab) -> None:
        conflicting(three)
        rebase(three, "--skip", "--why", "x", code=0)
        # A second conflict, so that the first decision is still open when we restart.
        lab = three
        upgrade(lab, {"sglang/srt/limits.py": THEIRS, "sglang/srt/utils.py": "x = 1\n"}, "0.5.25")
        first = rebase(lab, "--onto", "v0.5.25", "--from", "v0.5.23", "--offline", code=3)
        assert first["stop"]["patch"] == "demo/answer.patch"
        second = rebase(lab, "--skip", "--why", "no", code=3)
        assert second["stop"]["patch"] == "demo/limits.patch"
        again = rebase(lab, "--restart", "--offline", code=3)
        assert again["stop"]["patch"] == "demo/answer.patch"
        rebase(lab, "--abort")


class TestUpstreamHasIt:
    def test_it_stops_with_evidence_and_a_person_retires_it(self, three: Lab) -> None:
        path = three.root / "series.txt"
        three.regroup("demo/twins.patch", "twins", ">=0.5.9")
        three.regroup("demo/limits.patch", "limits", ">=0.5.9")
        upgrade(three, {"sglang/srt/limits.py": OURS})
        stopped = onto(three, code=4)
        assert (
            stopped["stop"]["outcome"] == "exact" and "Pool.size" in stopped["stop"]["reasons"][0]
        )
        result = rebase(three, "--skip", "--why", "merged as #123")
        assert result["state"] == "carried"
        header = (three.root / "patches" / "limits/limits.patch").read_text()
        assert "Applied-Upstream: 0.5.24, merged as #123\n" in header
        assert "change limits >=0.5.9,<0.5.24 upstream 0.5.24: merged as PR 123" in path.read_text()
        check(three)

    def test_the_part_upstream_lacks_is_kept(self, three: Lab) -> None:
        both = OURS.replace("compute_everything()", "compute_everything(needed=True)")
        diff = three.diff({TWINS: TWIN, LIMITS: both})
        (three.root / "patches" / "demo/limits.patch").write_bytes(
            (three.root / "patches" / "demo/twins.patch").read_bytes().partition(b"---\n")[0]
            + b"---\n"
            + _from_stock(three, both)
        )
        assert diff
        three.relock()
        upgrade(three, {"sglang/srt/limits.py": OURS})
        stopped = onto(three, code=4)
        assert stopped["stop"]["outcome"] == "partial"
        rebase(three, "--continue")  # the worktree holds what is left
        text = (three.root / "patches" / "demo/limits-v0.5.24.patch").read_text()
        assert "needed=True" in text and "minimum_size" not in text.split("---\n", 1)[1]
        check(three)


def _from_stock(lab: Lab, text: str) -> bytes:
    """The diff from the stock limits.py to ``text``."""
    from tests.support.lab import tree_diff

    base = lab.lock.get(Version("0.5.23")).base_tree
    return tree_diff(lab.home.repository, base, {LIMITS: text})


def test_a_renamed_file_is_merged_where_it_went(three: Lab) -> None:
    renamed = SOURCE.replace("FIRST", "LOWEST")
    upgrade(three, {"sglang/srt/limits.py": None, "sglang/srt/bounds.py": renamed})
    stopped = onto(three, code=3)
    assert stopped["stop"]["outcome"] == "target gone"
    assert "bounds.py" in stopped["stop"]["reasons"][0]
    there = Path(stopped["worktree"]) / "python/sglang/srt/bounds.py"
    assert there.read_text() == renamed.replace(STOCK, WANTED)
    rebase(three, "--continue")
    text = (three.root / "patches" / "demo/limits-v0.5.24.patch").read_text()
    assert "bounds.py" in text and "limits.py" not in text.split("---\n", 1)[1]
    check(three)


class TestRemembered:
    def test_a_resolution_is_used_again_and_named(self, three: Lab) -> None:
        path = conflicting(three)
        path.write_text(MERGED)
        before = project(three)
        rebase(three, "--continue")
        after = project(three)
        _reset(three, before)
        result = onto(three)
        assert result["remembered"] == [
            "remembered resolution of demo/limits.patch, v0.5.23 -> v0.5.24"
        ]
        (row,) = [p for p in result["patches"] if p["patch"] == "demo/limits.patch"]
        assert "remembered" in row["decided"]
        changed = {name for name, digest in project(three).items() if after.get(name) != digest}
        assert changed == {"rebase-history.json"}
        check(three)

    def test_not_where_the_code_is_another(self, three: Lab) -> None:
        path = conflicting(three)
        path.write_text(MERGED)
        before = project(three)
        rebase(three, "--continue")
        _reset(three, before)
        other = SOURCE.replace(STOCK, "        total = sum(self.sizes)\n")
        upgrade(three, {"sglang/srt/limits.py": other})
        stopped = onto(three, code=3)
        assert stopped["remembered"] == [] and stopped["stop"]["patch"] == "demo/limits.patch"


def _reset(lab: Lab, before: dict[str, str]) -> None:
    """The project as it was before the rebase, as version control would restore it."""
    for name in project(lab).keys() - before.keys():
        (lab.root / name).unlink()
    for name in ("demo/answer.patch", "demo/limits.patch", "demo/twins.patch"):
        path = lab.root / "patches" / name
        path.write_bytes(path.read_bytes().replace(b">=0.5.23,<=0.5.24", b"==0.5.23"))
    text = (lab.root / "series.txt").read_text().replace(">=0.5.23,<=0.5.24", "==0.5.23")
    kept = [line for line in text.split("\n") if "v0.5.24" not in line]
    (lab.root / "series.txt").write_text("\n".join(kept))
    upgrade(lab, {"sglang/srt/limits.py": THEIRS})
    lab.relock()


class TestBadInput:
    def test_two_at_once(self, three: Lab) -> None:
        conflicting(three)
        error = onto(three, code=2)
        assert "under way" in error["message"] and "--abort" in error["next"]
        with three.home.exclusive():
            assert (
                "another tool command"
                in rebase(three, "--continue", "--no-wait", code=6)["message"]
            )

    def test_a_release_that_is_carried(self, three: Lab) -> None:
        error = rebase(three, "--onto", "v0.5.23", "--offline", code=2)
        assert "carries sglang 0.5.23 already" in error["message"]

    def test_older_than_the_series_knows(self, three: Lab) -> None:
        upgrade(three, {}, "0.5.1")
        error = rebase(three, "--onto", "v0.5.1", "--offline", code=2)
        assert "nothing older" in error["message"] and "--from" in error["next"]

    def test_not_in_the_cache(self, three: Lab) -> None:
        error = rebase(three, "--onto", "v0.5.99", "--offline", code=6)
        assert "0.5.99" in error["message"]

    def test_a_git_ref(self, three: Lab) -> None:
        error = rebase(three, "--onto", "main", "--offline", code=6)
        assert "was never fetched" in error["message"]
        before = project(three)
        error = rebase(three, "--onto", "main", "--source", "pypi", code=2)
        assert "is not a release" in error["message"] and project(three) == before

    def test_an_edited_patch(self, three: Lab) -> None:
        path = three.root / "patches" / "demo/limits.patch"
        path.write_bytes(path.read_bytes().replace(b"needed", b"wanted"))
        upgrade(three, {})
        assert onto(three, code=5)["where"] == "patches/demo/limits.patch"

    def test_a_project_edited_meanwhile(self, three: Lab) -> None:
        path = conflicting(three)
        path.write_text(MERGED)
        with (three.root / "series.txt").open("a") as handle:
            handle.write("# a thought\n")
        error = rebase(three, "--continue", code=5)
        assert error["where"] == "series.txt" and "--restart" in error["next"]

    def test_the_place_for_the_worktree_is_taken(self, three: Lab, tmp_path: Path) -> None:
        upgrade(three, {"sglang/srt/limits.py": THEIRS})
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "work.txt").write_text("precious\n")
        error = onto(three, "--into", str(tmp_path / "mine"), code=2)
        assert "--into" in error["next"]
        assert (tmp_path / "mine" / "work.txt").read_text() == "precious\n"

    def test_a_damaged_state(self, three: Lab) -> None:
        conflicting(three)
        (three.folder / "rebase.json").write_text("{")
        assert "cannot be read" in rebase(three, "--continue", code=5)["message"]

    def test_no_action_and_two(self, three: Lab) -> None:
        rebase(three, code=2)
        rebase(three, "--abort", "--restart", code=2)
        assert "no rebase" in rebase(three, "--continue", code=2)["message"]


# -- killed -------------------------------------------------------------------------------------


START = ("rebase", "--onto", f"v{NEXT}", "--offline")


@pytest.mark.parametrize("stage", ["start", "continue"])
@pytest.mark.parametrize("points", [SAMPLE, pytest.param(POINTS, marks=pytest.mark.exhaustive)])
def test_kill_at_random_points(three: Lab, stage: str, points: int) -> None:
    """SIGKILL at random moments of a start that stops, or of the --continue that finishes the rebase.

    After a kill either --abort must restore the old bytes, or the rebase must continue to its end. The
    two alternate, and both must hold again in the next round.
    """
    upgrade(three, {"sglang/srt/limits.py": THEIRS})
    folder = Path.cwd() / f"sglang-v{NEXT}-rebase"
    old = project(three)
    contents = read_project(three)
    whole = timed(three, *START, code=3)
    (folder / LIMITS).write_text(MERGED)
    resume = timed(three, "rebase", "--continue", code=0)
    new = project(three)
    assert new != old
    rng = random.Random(stage)
    seen = {"old": 0, "new": 0}
    for number in range(points):
        restore(three, contents)
        if stage == "start":
            kill_after(three, rng.uniform(0, whole), *START)
        else:
            three.json(*START, code=3)
            (folder / LIMITS).write_text(MERGED)
            kill_after(three, rng.uniform(0, resume), "rebase", "--continue")
        if number % 2:
            _abort(three)
            found = project(three)
            assert found in (old, new), "neither the old state nor the new one"
            seen["new" if found == new else "old"] += 1
        else:
            _finish(three, folder)
            assert project(three) == new
        assert not (three.folder / "rebase.json").exists()
        assert not (three.folder / "project.json").exists()
        assert not folder.exists()
    git(three.home.repository, "fsck", "--no-dangling")
    assert not list((three.home.repository / "worktrees").glob("*")), "stale worktree entries"
    assert seen["old"], "no kill came before the end: the test measured nothing"


def _abort(lab: Lab) -> None:
    state = lab.folder / "rebase.json"
    if state.exists() or (lab.folder / "project.json").exists():
        rebase(lab, "--abort")


def _finish(lab: Lab, folder: Path) -> None:
    """Continue from the state that the kill left, as a person would."""
    if (lab.folder / "rebase.json").exists():
        done = lab.tool("rebase", "--continue", code=None)
    elif "demo/limits-v0.5.24.patch" not in project_names(lab):
        done = lab.tool(*START, code=None)
    else:
        lab.tool("repair")  # as any command that writes, it completes what was being written
        return
    assert done.exit_code in (0, 3), done.stderr
    if done.exit_code == 3:
        (folder / LIMITS).write_text(MERGED)
        rebase(lab, "--continue")


def project_names(lab: Lab) -> set[str]:
    return {
        path.relative_to(lab.root / "patches").as_posix()
        for path in (lab.root / "patches").rglob("*.patch")
    }


def test_a_series_that_is_not_the_locked_one_elsewhere_is_refused(lab: Lab) -> None:
    """series.txt was edited for an older release, and nobody ran `tool lock`."""
    lab.release("0.5.22", TREE)
    lab.patch(
        "demo/answer.patch", {UTILS: TREE["sglang/srt/utils.py"] + "A = 1\n"}, releases=">=0.5.22"
    )
    lab.relock("0.5.22", "0.5.23")
    upgrade(lab, {})
    path = lab.root / "series.txt"
    path.write_text(path.read_text().replace("answer.patch >=0.5.22", "answer.patch >=0.5.23"))
    before = project(lab)
    error = onto(lab, code=5)
    assert "v0.5.22" in error["message"] and "tool check" in error["next"]
    assert project(lab) == before


class TestOptions:
    @pytest.mark.parametrize(
        "words",
        [
            ("--skip",),
            ("--why", "W"),
            ("--continue", "--why", "W"),
            ("--skip", "--continue", "--why", "W"),
            ("--abort", "--restart"),
            ("--onto", f"v{NEXT}", "--continue"),
            ("--edit", "demo/twins.patch"),
            ("--edit", "demo/twins.patch", "--continue"),
            ("--skip", "--why", " "),
        ],
    )
    def test_that_do_not_go_together(self, three: Lab, words: tuple[str, ...]) -> None:
        conflicting(three)
        state = (three.folder / "rebase.json").read_bytes()
        error = rebase(three, *words, code=2)
        assert error["next"] and (three.folder / "rebase.json").read_bytes() == state

    @pytest.mark.parametrize(
        "words", [("--continue",), ("--skip", "--why", "W"), ("--abort",), ("--restart",), ()]
    )
    def test_without_a_rebase(self, three: Lab, words: tuple[str, ...]) -> None:
        before = project(three)
        error = rebase(three, *words, code=2)
        assert error["message"] == "no rebase is under way" and "--onto" in error["next"]
        assert project(three) == before


class TestInterrupted:
    """The same command again ends as if it had not been interrupted."""

    COMMANDS: ClassVar = {
        "--onto": ("--onto", f"v{NEXT}", "--offline"),
        "--continue": ("--continue",),
        "--skip": ("--skip", "--why", "W"),
        "--restart": ("--restart",),
    }

    @pytest.mark.parametrize(
        ("command", "place"),
        [(c, p) for c in COMMANDS for p in ("open_worktree", "replay_series")]
        + [("--onto", "_begin"), ("--restart", "_begin")],
    )
    def test_again(
        self, three: Lab, monkeypatch: pytest.MonkeyPatch, command: str, place: str
    ) -> None:
        """Two patches conflict: a decision on the first leads to the second."""
        upgrade(
            three,
            {"sglang/srt/limits.py": THEIRS, "sglang/srt/twins.py": TWIN.replace("x + 1", "x")},
        )
        if command != "--onto":
            worktree = Path(onto(three, code=3)["worktree"])
            (worktree / LIMITS).write_text(MERGED)
        words = self.COMMANDS[command]
        before = project(three)

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(run, place, stop)
            assert rebase(three, *words, code=130)
        assert project(three) == before
        stopped = rebase(three, *words, code=3)["stop"]["patch"]
        decided = command in ("--continue", "--skip")
        assert stopped == ("demo/twins.patch" if decided else "demo/limits.patch")
