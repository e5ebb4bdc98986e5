"""``tool drop RELEASE``: lock, series and history stay consistent when the support of a release ends."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from packaging.version import Version

from tests.support.kills import POINTS, SAMPLE, kill_after, read_project, restore, timed
from tests.support.lab import B_ONLY, NEXT, TREE, TWINS, UTILS, Lab, git
from tests.support.rebases import check, onto, project, rebase
from tool.series import load_series

STOCK = TREE["sglang/srt/utils.py"]
ANSWER = STOCK.replace("return 3\n", "return 33\n")
OLD = "0.5.22"
SPAN = (OLD, "0.5.23", NEXT)


def make(lab: Lab) -> Lab:
    """Three releases. demo/answer.patch begins with the file of the oldest, which the others lack."""
    for release in SPAN:
        head = "" if release == OLD else "# more\n"
        lab.release(release, TREE | {"sglang/srt/utils.py": head + STOCK})
    lab.patch("demo/answer.patch", {UTILS: ANSWER}, on=OLD, releases=f">={OLD},<={NEXT}")
    lab.patch("demo/twins.patch", {TWINS: B_ONLY}, on=OLD, releases=f">={OLD},<={NEXT}")
    lab.patch("demo/own.patch", {"python/sglang/srt/own.py": "A = 1\n"}, on=OLD)
    lab.relock(*SPAN)
    return lab


def retire(lab: Lab, release: str, code: int = 0) -> dict[str, object]:
    envelope = lab.json("drop", release, "--why", "nobody uses it", "--offline", code=code)
    found: dict[str, object] = envelope["result"] or envelope["error"]
    return found


def test_the_first_release(lab: Lab) -> None:
    make(lab)
    done = retire(lab, f"v{OLD}")
    assert done["removed"] == ["demo/own.patch"]
    assert done["written"] == ["demo/answer.patch", "demo/twins.patch"]
    assert done["releases"] == [
        "0.5.23",
        NEXT,
    ]  # the answer began with a file of the retired release
    text = (lab.root / "series.txt").read_text()
    assert f"demo/answer.patch >=0.5.23,<={NEXT}" in text
    assert f"# demo/own.patch went with v{OLD}: nobody uses it" in text
    assert not (lab.root / "patches/demo/own.patch").exists()
    assert Version(OLD) not in lab.lock.releases
    history = json.loads((lab.root / "rebase-history.json").read_text())
    assert history["retired"] == [{"release": OLD, "why": "nobody uses it"}]
    assert f"- {OLD}: nobody uses it" in lab.tool("history").stdout
    lab.forget_repository()
    (lab.home.wheels / f"sglang-{OLD}-py3-none-any.whl").unlink()
    check(lab)


def test_one_in_the_middle(lab: Lab) -> None:
    make(lab)
    lab.tool("lock", "--pin", NEXT)
    retire(lab, "0.5.23")
    series = load_series(lab.root)
    assert [p.name for p in series.for_release(Version("0.5.23"))] == []
    assert len(series.for_release(Version(NEXT))) == 2
    check(lab)
    retire(lab, OLD)
    assert f"demo/answer.patch =={NEXT}" in (lab.root / "series.txt").read_text()
    check(lab)


@pytest.mark.parametrize("points", [SAMPLE, pytest.param(POINTS, marks=pytest.mark.exhaustive)])
def test_kill_at_random_points(lab: Lab, points: int) -> None:
    """SIGKILL at random moments: the project is the old one or the new one, and the same command ends."""
    make(lab)
    old, contents = project(lab), read_project(lab)
    words = ("drop", f"v{OLD}", "--why", "nobody uses it", "--offline")
    whole = timed(lab, *words, code=0)
    new = project(lab)
    rng, seen = random.Random(0), {"old": 0, "new": 0}
    for _ in range(points):
        restore(lab, contents)
        kill_after(lab, rng.uniform(0, whole), *words)
        lab.tool("repair")  # as any command that writes, it completes what was being written
        found = project(lab)
        assert found in (old, new), "neither the old state nor the new one"
        seen["new" if found == new else "old"] += 1
        assert not (lab.folder / "project.json").exists()
        lab.tool(*words, code=2 if found == new else 0)
        assert project(lab) == new
    git(lab.home.repository, "fsck", "--no-dangling")
    assert seen["old"], "no kill came before the end: the test measured nothing"


def test_it_can_be_carried_again(lab: Lab, elsewhere: None) -> None:
    make(lab)
    retire(lab, NEXT)
    check(lab)
    onto(lab)
    assert "retired" not in json.loads((lab.root / "rebase-history.json").read_text())
    check(lab)


@pytest.mark.parametrize("release", ["0.5.24rc1", "0.5.24.dev20261101"])
def test_a_version_before_the_release(lab: Lab, elsewhere: None, release: str) -> None:
    """Carried, retired, and then the release itself: what was decided early lands without a stop."""
    make(lab)
    retire(lab, NEXT)
    conflicts = STOCK.replace("return 3\n", "return 4\n")
    lab.release(release, TREE | {"sglang/srt/utils.py": conflicts})
    stopped = rebase(lab, "--onto", f"v{release}", "--offline", code=3)
    (Path(stopped["worktree"]) / UTILS).write_text(conflicts.replace("return 4\n", "return 44\n"))
    rebase(lab, "--continue")
    check(lab)
    retire(lab, release)
    assert Version(release) not in lab.lock.releases
    check(lab)
    lab.release(NEXT, TREE | {"sglang/srt/utils.py": conflicts})
    done = onto(lab, "--from", "0.5.23")
    assert len(done["remembered"]) == 1
    check(lab)


def test_refused(lab: Lab) -> None:
    make(lab)
    before = project(lab)
    error = retire(lab, "0.5.23", code=2)
    assert "is the pin" in str(error["message"]) and "tool lock --pin" in str(error["next"])
    assert "0.5.21" in str(retire(lab, "0.5.21", code=2)["message"])
    assert lab.json("drop", OLD, "--why", " ", code=2)["error"]["next"] == "--why TEXT"
    assert project(lab) == before


def test_not_during_a_rebase(lab: Lab, elsewhere: None) -> None:
    make(lab)
    lab.release("0.5.25", TREE | {"sglang/srt/utils.py": STOCK.replace("return 3\n", "return 4\n")})
    rebase(lab, "--onto", "0.5.25", "--offline", code=3)
    before = project(lab)
    error = retire(lab, OLD, code=2)
    assert "a rebase onto v0.5.25 is under way" in str(error["message"])
    assert project(lab) == before


def test_a_file_is_still_a_patch(lab: Lab) -> None:
    make(lab)
    done = lab.json("drop", "own.patch", "--why", "no more", "--offline")["result"]
    assert done["removed"] == ["demo/own.patch"]
    check(lab)
