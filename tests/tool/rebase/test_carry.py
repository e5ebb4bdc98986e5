"""``tool rebase --patch``: one patch to releases that the series carries already, forwards and backwards."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from tests.support.kills import POINTS, SAMPLE, kill_after, read_project, restore, timed
from tests.support.lab import B_ONLY, TREE, TWINS, UTILS, Lab, git
from tests.support.rebases import check, project, rebase
from tool.series import load_series

STOCK = TREE["sglang/srt/utils.py"]
ANSWER = STOCK.replace("return 3\n", "return 33\n")
OLDEST, OLDER, OWN, LATER, LATEST = "0.5.21", "0.5.22", "0.5.23", "0.5.24", "0.5.25"
OTHERS = (OLDEST, OLDER, LATER, LATEST)
WORDS = ("--drop-when", "never", "--subject", "Answer more", "--reason", "Because it asks.")
CONFLICTS = STOCK.replace("return 3\n", "return 4\n")


def carry(lab: Lab, onto: str, *args: str, code: int = 0) -> dict[str, Any]:
    return rebase(lab, "--patch", "answer", "--onto", onto, "--offline", *args, code=code)


def series_of(lab: Lab, release: str) -> list[str]:
    return [p.name for p in load_series(lab.root).for_release(Version(release))]


def content(lab: Lab, release: str, into: Path, path: str = UTILS) -> str:
    lab.apply(into / release, "--sglang-ref", f"v{release}")
    return (into / release / path).read_text()


def make(lab: Lab, tmp_path: Path, utils: dict[str, str]) -> Lab:
    """Five releases that carry demo/twins.patch, and answer/answer.patch made by tool new on 0.5.23."""
    spec = f">={OLDEST},<={LATEST}"
    for release in (OLDEST, OLDER, OWN, LATER, LATEST):
        lab.release(release, TREE | {"sglang/srt/utils.py": utils.get(release, STOCK)})
    lab.patch("demo/twins.patch", {TWINS: B_ONLY}, releases=spec)
    lab.relock(OLDEST, OLDER, OWN, LATER, LATEST)
    fork = tmp_path / "fork"
    lab.apply(fork)
    (fork / UTILS).write_text(utils.get(OWN, STOCK).replace("return 3\n", "return 33\n"))
    said = lab.tool("new", "answer", str(fork), "--change", "answer", *WORDS, "--offline").stdout
    assert f"v{OLDER}, v{LATER}, v{LATEST} and 1 older have no such patch\n" in said
    assert "next: tool rebase --patch answer/answer.patch --onto all" in said
    return lab


@pytest.fixture(autouse=True)
def _here(elsewhere: None) -> None:
    """Worktrees of a rebase are made in the current folder."""


def test_to_every_release(lab: Lab, tmp_path: Path) -> None:
    make(lab, tmp_path, {OLDEST: "A = 1\n" + STOCK})
    done = carry(lab, "all")
    # The nearest first, so that each release begins with what its neighbour has.
    assert [row["release"] for row in done["patches"]] == [OLDER, OLDEST, LATER, LATEST]
    whole = f"kept, now >={OLDEST},<={LATEST}"  # not how far it had come at each step
    assert {row["became"] for row in done["patches"]} == {whole}
    text = (lab.root / "series.txt").read_text()
    assert f"change answer >={OLDEST}\n" in text
    assert f"answer/answer.patch >={OLDEST},<={LATEST}" in text
    for release in OTHERS:
        assert series_of(lab, release) == ["demo/twins.patch", "answer/answer.patch"]
        assert "return 33\n" in content(lab, release, tmp_path / "trees")
    check(lab)
    lab.forget_repository()
    check(lab)


def test_a_list_of_releases(lab: Lab, tmp_path: Path) -> None:
    make(lab, tmp_path, {})
    assert carry(lab, f"v{LATER},{OLDER}")["releases"] == [OLDER, LATER]
    assert series_of(lab, OLDEST) == series_of(lab, LATEST) == ["demo/twins.patch"]
    check(lab)


def test_the_series_stands_there_already(lab: Lab, tmp_path: Path) -> None:
    """A gap: a file may not claim the release between two that it stands for."""
    make(lab, tmp_path, {})
    done = carry(lab, LATEST)
    assert done["patches"][0]["became"] == f"new file answer/answer-v{LATEST}.patch"
    check(lab)
    carry(lab, LATER)
    check(lab)


def test_each_release_begins_with_what_its_neighbour_has(lab: Lab, tmp_path: Path) -> None:
    """0.5.24 conflicts, and 0.5.25 has the same code: what was decided for the one serves the other."""
    make(lab, tmp_path, {LATER: CONFLICTS, LATEST: CONFLICTS + "\nA = 1\n"})
    before = project(lab)
    stopped = carry(lab, "all", code=3)
    assert stopped["stop"]["outcome"] == "conflict" and stopped["onto"] == LATER
    assert stopped["stop"]["patch"] == f"answer/answer-v{LATER}.patch"
    assert project(lab) == before  # nothing is written before everything is decided
    shown = lab.tool("rebase", code=3).stdout
    assert (
        f"stopped at answer/answer-v{LATER}.patch on v{LATER}: conflict\n"
        f"  releases with an answer: v{OLDER}, v{OLDEST}; left after this one: v{LATEST}\n" in shown
    )
    assert (stopped["done"], stopped["left"]) == ([OLDER, OLDEST], [LATEST])
    rebasing = lab.json("status")["result"]["rebase"]
    assert rebasing["onto"] == LATER and rebasing["alone"] == "answer/answer.patch"
    merged = Path(stopped["worktree"]) / UTILS
    assert "<<<<<<< sglang v0.5.24" in merged.read_text()
    assert git(merged.parent, "log", "-1", "--format=%s") == "change demo/twins.patch"
    merged.write_text(CONFLICTS.replace("return 4\n", "return 44\n"))
    done = rebase(lab, "--continue")
    assert [row["decided"] for row in done["patches"]] == ["", "", "by hand", ""]
    assert [row["file"] for row in done["patches"][2:]] == [f"answer/answer-v{LATER}.patch"] * 2
    assert not Path(stopped["worktree"]).exists()
    for release in (LATER, LATEST):
        assert "return 44\n" in content(lab, release, tmp_path / "trees")
    check(lab)
    lab.forget_repository()
    check(lab)


def test_an_answer_is_remembered(lab: Lab, tmp_path: Path) -> None:
    make(lab, tmp_path, {LATER: CONFLICTS})
    saved = {path: path.read_bytes() for path in lab.root.rglob("*") if path.is_file()}
    stopped = carry(lab, LATER, code=3)
    assert "left after this one" not in lab.tool("rebase", code=3).stdout  # it is the only one
    (Path(stopped["worktree"]) / UTILS).write_text(CONFLICTS.replace("return 4\n", "return 44\n"))
    rebase(lab, "--continue")
    after = project(lab)
    for path in set(lab.root.rglob("*.patch")) - saved.keys():
        path.unlink()
    for path, data in saved.items():
        path.write_bytes(data)
    again = carry(lab, LATER)
    assert len(again["remembered"]) == 1 and project(lab) == after


def test_abort_and_restart(lab: Lab, tmp_path: Path) -> None:
    make(lab, tmp_path, {OLDEST: CONFLICTS, LATEST: CONFLICTS})
    before = project(lab)
    stopped = carry(lab, "all", code=3)
    (Path(stopped["worktree"]) / UTILS).write_text(CONFLICTS.replace("return 4\n", "return 44\n"))
    second = rebase(lab, "--continue", code=3)
    assert (stopped["onto"], second["onto"]) == (OLDEST, LATEST)
    assert (second["done"], second["left"]) == ([OLDER, OLDEST, LATER], [])
    assert "; left after this one: none\n" in lab.tool("rebase", code=3).stdout
    assert rebase(lab, "--restart", code=3)["onto"] == OLDEST
    assert rebase(lab, "--abort") == {"state": "aborted"}
    assert project(lab) == before and not Path(stopped["worktree"]).exists()
    assert "no rebase is under way" in lab.tool("rebase", code=2).stderr


@pytest.mark.parametrize("stage", ["start", "continue"])
@pytest.mark.parametrize("points", [SAMPLE, pytest.param(POINTS, marks=pytest.mark.exhaustive)])
def test_kill_at_random_points(lab: Lab, tmp_path: Path, stage: str, points: int) -> None:
    """SIGKILL at random moments of a start that stops, or of the --continue that writes all releases.

    After a kill either --abort gives the old bytes or those of the end, or the rebase goes on to its end.
    """
    make(lab, tmp_path, {LATEST: CONFLICTS})
    start = ("rebase", "--patch", "answer", "--onto", "all", "--offline")
    merged = Path.cwd() / "sglang-answer-rebase" / UTILS

    def resolve() -> None:
        merged.write_text(CONFLICTS.replace("return 4\n", "return 44\n"))

    old, contents = project(lab), read_project(lab)
    whole = timed(lab, *start, code=3)
    resolve()
    resume = timed(lab, "rebase", "--continue", code=0)
    new = project(lab)
    rng, seen = random.Random(stage), 0
    for number in range(points):
        restore(lab, contents)
        if stage == "start":
            kill_after(lab, rng.uniform(0, whole), *start)
        else:
            lab.json(*start, code=3)
            resolve()
            kill_after(lab, rng.uniform(0, resume), "rebase", "--continue")
        under_way = any((lab.folder / f"{name}.json").exists() for name in ("rebase", "project"))
        seen += under_way
        if number % 2:
            if under_way:
                rebase(lab, "--abort")
            assert project(lab) in (old, new), "neither the old state nor the new one"
        elif under_way or project(lab) == old:
            words = ("rebase", "--continue") if under_way else start
            if lab.tool(*words, code=None).exit_code:
                resolve()
                rebase(lab, "--continue")
        if not number % 2:
            assert project(lab) == new
        assert not (lab.folder / "rebase.json").exists()
        assert not (lab.folder / "project.json").exists()
        assert not merged.exists()
    git(lab.home.repository, "fsck", "--no-dangling")
    assert seen, "no kill came while there was something to lose: the test measured nothing"


def test_a_release_is_left_out(lab: Lab, tmp_path: Path) -> None:
    make(lab, tmp_path, {OLDEST: CONFLICTS})
    carry(lab, f"{OLDER},{OLDEST}", code=3)
    done = rebase(lab, "--skip", "--why", "it answers already")
    assert done["releases"] == [OLDER]
    header = (lab.root / "patches/answer/answer.patch").read_text()
    assert f"Skipped: {OLDEST}, it answers already\n" in header
    assert f"change answer >={OLDER}\n" in (lab.root / "series.txt").read_text()
    assert series_of(lab, OLDEST) == ["demo/twins.patch"]
    check(lab)


def test_only_the_one_release_is_left_out(lab: Lab, tmp_path: Path) -> None:
    make(lab, tmp_path, {LATER: CONFLICTS})
    carry(lab, LATER, code=3)
    assert rebase(lab, "--skip", "--why", "it answers already")["releases"] == []
    check(lab)


def test_upstream_has_it(lab: Lab, tmp_path: Path) -> None:
    make(lab, tmp_path, {LATER: ANSWER})
    stopped = carry(lab, "all", code=4)
    assert stopped["stop"]["outcome"] == "exact"
    rebase(lab, "--abort")


def test_a_later_patch_does_not_apply_after_it(lab: Lab, tmp_path: Path) -> None:
    """The answer belongs to a change that comes first; on 0.5.24 a later patch changes the same line."""
    make(lab, tmp_path, {})
    lab.root.joinpath("patches/last").mkdir()
    text = (lab.root / "series.txt").read_text()
    lab._lines = text.rstrip("\n").split("\n") + [f"change last >={LATER}"]
    lab.patch("last/last.patch", {UTILS: CONFLICTS}, on=LATER)
    lab.relock(LATER)
    before = project(lab)
    error = carry(lab, "all", code=3)
    assert error["where"] == "patches/last/last.patch"
    assert f"does not apply on v{LATER} after answer/answer-v{LATER}.patch" in error["message"]
    assert project(lab) == before
    assert "no rebase is under way" in lab.tool("rebase", code=2).stderr
    assert carry(lab, f"{OLDER},{OLDEST}")["releases"] == [OLDEST, OLDER]
    check(lab)


@pytest.mark.parametrize(
    ("onto", "message", "next_step"),
    [
        (OWN, f"v{OWN} has answer/answer.patch already", "tool refresh answer/answer.patch"),
        ("0.5.26", "does not carry sglang 0.5.26 yet", "tool rebase --onto v0.5.26"),
        ("main", "'main' is not a release", "write it as"),
    ],
)
def test_refused(lab: Lab, tmp_path: Path, onto: str, message: str, next_step: str) -> None:
    make(lab, tmp_path, {})
    before = project(lab)
    error = carry(lab, f"{LATER},{onto}", code=2)
    assert message in error["message"] and next_step in error["next"]
    assert project(lab) == before


def test_a_change_that_upstream_ended(lab: Lab, tmp_path: Path) -> None:
    make(lab, tmp_path, {})
    path = lab.root / "series.txt"
    text = path.read_text().replace(
        f"change answer >={OWN}", f"change answer >={OWN},<{LATEST} upstream {LATEST}: PR 7"
    )
    path.write_text(text)
    error = carry(lab, LATEST, code=2)
    assert f"not on v{LATEST}" in error["message"] and "PR 7" in error["why"]
    assert carry(lab, "all")["releases"] == [OLDEST, OLDER, LATER]
    assert f"change answer >={OLDEST},<{LATEST} upstream {LATEST}: PR 7" in path.read_text()
    check(lab)


def test_nothing_to_do(lab: Lab, tmp_path: Path) -> None:
    make(lab, tmp_path, {})
    carry(lab, "all")
    assert "every release that needs answer has" in carry(lab, "all", code=2)["message"]


def test_options_that_do_not_go_together(lab: Lab) -> None:
    for args in (
        ["--patch", "answer"],
        ["--patch", "answer", "--onto", LATER, "--from", OWN],
        ["--patch", "answer", "--onto", LATER, "--edit", "twins"],
    ):
        assert "--patch goes with --onto" in rebase(lab, *args, code=2)["message"]


def test_a_patch_that_the_next_release_would_lack(lab: Lab, tmp_path: Path) -> None:
    """It was made on the pin, and a later release is supported: the series is carried on from that one."""
    make(lab, tmp_path, {})
    lab.release("0.5.26", TREE)
    for command in ("drift", "rebase"):
        (warning,) = lab.json(command, "--onto", "v0.5.26", "--offline")["warnings"]
        assert "the change answer is needed on v0.5.26, and v0.5.25 has no patch of it" in warning
        assert warning.endswith(f"tool rebase --patch answer/answer.patch --onto v{LATEST}")
    carry(lab, "all")
    lab.release("0.5.27", TREE)
    assert lab.json("rebase", "--onto", "v0.5.27", "--offline")["warnings"] == []
    assert "answer/answer.patch" in series_of(lab, "0.5.27")
    check(lab)


def test_a_change_that_was_left_out_is_not_missed(lab: Lab, tmp_path: Path) -> None:
    make(lab, tmp_path, {LATEST: CONFLICTS})
    carry(lab, f"{LATER},{LATEST}", code=3)
    rebase(lab, "--skip", "--why", "it answers already")
    lab.release("0.5.26", TREE)
    assert lab.json("drift", "--onto", "v0.5.26", "--offline")["warnings"] == []
