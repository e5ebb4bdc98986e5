"""`tool export` is the inverse of `tool apply`, whatever was done to the commits."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version

from tests.support.lab import B_ONLY, RELEASE, TREE, TWINS, UTILS, Lab, git
from tool.series import load_series

STOCK = TREE["sglang/srt/utils.py"]
FIRST = STOCK.replace("return 3\n", "return 33\n")
SECOND = FIRST.replace("return 20\n", "return 2020\n")
NAMES = ["demo/first.patch", "demo/second.patch", "demo/twins.patch"]


@pytest.fixture
def fork(lab: Lab, tmp_path: Path) -> Path:
    return lab.fork(
        tmp_path / "fork",
        {
            "demo/first.patch": {UTILS: FIRST},
            "demo/second.patch": {UTILS: SECOND},
            "demo/twins.patch": {TWINS: B_ONLY},
        },
    )


def rebase(fork: Path, *steps: str) -> None:
    """`git rebase -i` with these lines: ``pick 2`` is the second commit above the release."""
    count = git(fork, "rev-list", "--count", "refs/ada/landed/ada/v0.5.23/base..HEAD")
    commits = git(fork, "rev-list", "--reverse", f"-{count}", "HEAD").split()
    lines = [f"{how} {commits[int(at) - 1]}" for how, at in map(str.split, steps)]
    todo = fork.parent / "todo"
    todo.write_text("".join(f"{line}\n" for line in [*lines, f"pick {commits[-1]}"]))
    editor = ("-c", f"sequence.editor=cp {todo}", "-c", "core.editor=true")
    git(fork, *editor, "rebase", "-qi", f"HEAD~{count}")


def names(lab: Lab, release: str = RELEASE) -> list[str]:
    return [p.name for p in load_series(lab.root).for_release(Version(release))]


def assert_comes_back(lab: Lab, fork: Path) -> None:
    """What was exported gives the same files on a machine that never saw the worktree."""
    wanted = {p: (fork / p).read_bytes() for p in (UTILS, TWINS)}
    lab.tool("lock", "--offline")
    assert lab.json("lint")["result"]["findings"] == []
    lab.forget_repository()
    assert lab.json("check", "--offline")["result"]["findings"] == 0
    lab.apply(fork.parent / "again")
    assert {p: (fork.parent / "again" / p).read_bytes() for p in wanted} == wanted


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_commit_that_is_gone(lab: Lab, fork: Path, at: int) -> None:
    rebase(fork, *(f"pick {i + 1}" for i in range(3) if i != at))
    done = lab.json("export", str(fork))["result"]
    assert done["removed"] == {NAMES[at]: None}
    assert names(lab) == [n for n in NAMES if n != NAMES[at]]
    assert not (lab.root / "patches" / NAMES[at]).exists()
    assert f"{NAMES[at]} ==0.5.23 was removed" in (lab.root / "series.txt").read_text()
    assert_comes_back(lab, fork)


def test_commits_in_another_order(lab: Lab, fork: Path) -> None:
    rebase(fork, "pick 2", "pick 3", "pick 1")
    done = lab.json("export", str(fork))["result"]
    assert done["order"] == ["demo/second.patch", "demo/twins.patch", "demo/first.patch"]
    assert names(lab) == done["order"]
    text = lab.tool("export", str(fork)).stdout
    assert "0 written" in text and "new order" not in text.partition("0 written")[0]
    assert_comes_back(lab, fork)


@pytest.mark.parametrize(("command", "known"), [("squash", True), ("fixup", False)])
def test_a_squashed_commit(lab: Lab, fork: Path, command: str, known: bool) -> None:
    rebase(fork, "pick 1", f"{command} 2", "pick 3")
    done = lab.json("export", str(fork))["result"]
    assert done["removed"] == {"demo/second.patch": "demo/first.patch" if known else None}
    text = (lab.root / "patches/demo/first.patch").read_text()
    assert "return 33" in text and "return 2020" in text
    assert text.count("Origin:") == 1 and "Patch-Name" not in text
    assert ("change demo/second.patch" in text) == known
    assert_comes_back(lab, fork)


def test_changes_change_places(lab: Lab, fork: Path) -> None:
    lab.regroup("demo/twins.patch", "other", ">=0.5.23")
    lab.apply(fork)
    rebase(fork, "pick 1", "pick 3", "pick 2")
    error = lab.json("export", str(fork), code=2)["error"]
    assert "do not stand together" in error["message"]
    rebase(fork, "pick 2", "pick 1", "pick 3")
    done = lab.json("export", str(fork))["result"]
    assert done["order"] == ["other/twins.patch", "demo/first.patch", "demo/second.patch"]
    assert_comes_back(lab, fork)


def test_a_patch_of_several_releases_stays_for_the_others(lab: Lab, tmp_path: Path) -> None:
    lab.release("0.5.24", TREE | {"sglang/more.py": "M = 1\n"})
    lab.release("0.5.25", TREE | {"sglang/more.py": "M = 2\n"})
    spec = ">=0.5.23,<=0.5.25"
    lab.patch("demo/first.patch", {UTILS: FIRST}, releases=spec)
    lab.patch("demo/twins.patch", {TWINS: B_ONLY}, releases=spec)
    lab.relock("0.5.23", "0.5.24", "0.5.25")
    fork = tmp_path / "fork"
    lab.apply(fork, "--sglang-ref", "v0.5.24")
    git(fork, "-c", "sequence.editor=sed -i 1d", "rebase", "-qi", "HEAD~3")
    assert lab.json("export", str(fork))["result"]["removed"] == {"demo/first.patch": None}
    assert names(lab, "0.5.24") == ["demo/twins.patch"]
    assert names(lab, "0.5.23") == names(lab, "0.5.25") == ["demo/first.patch", "demo/twins.patch"]
    lab.tool("lock", "--offline")
    assert lab.json("lint")["result"]["findings"] == []
    assert lab.json("check", "--offline")["result"]["findings"] == 0


def test_a_patch_the_series_got_since_is_not_removed(lab: Lab, fork: Path) -> None:
    lab.patch("demo/later.patch", {"python/sglang/srt/later.py": "L = 1\n"})
    lab.relock()
    rebase(fork, "pick 1", "pick 3")
    lab.tool("export", str(fork))
    assert names(lab) == ["demo/first.patch", "demo/twins.patch", "demo/later.patch"]


def test_all_or_nothing(lab: Lab, fork: Path) -> None:
    """An export that fails at its last commit has written nothing."""
    before = {p: p.read_bytes() for p in lab.root.rglob("*") if p.is_file()}
    (fork / UTILS).write_text(SECOND.replace("return 2020", "return 2021"))
    git(fork, "commit", "-qam", "mine\n\nPatch-Name: demo/none.patch")
    rebase(fork, "pick 2", "pick 1", "pick 3", "pick 4")
    assert "series.txt does not list" in lab.json("export", str(fork), code=2)["error"]["message"]
    assert {p: p.read_bytes() for p in lab.root.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("utils.py.orig", "x\n", "leftover"),
        ("x.md", "=======\n", "conflict marker"),
        ("x.bin", "a\0b", "binary"),
    ],
)
def test_leftovers_are_refused(lab: Lab, fork: Path, name: str, text: str, words: str) -> None:
    git(fork, "reset", "-q", "--hard", "HEAD~1")
    (fork / "python/sglang/srt" / name).write_text(text)
    git(fork, "add", "-A", "-f")
    git(fork, "commit", "-q", "--amend", "--no-edit")
    error = lab.json("export", str(fork), code=2)["error"]
    assert words in error["message"] and name in str(error)


def test_a_symlink_is_refused(lab: Lab, fork: Path) -> None:
    git(fork, "reset", "-q", "--hard", "HEAD~1")
    (fork / "python/sglang/srt/link.py").symlink_to("/etc/passwd")
    git(fork, "add", "-A")
    git(fork, "commit", "-q", "--amend", "--no-edit")
    assert "symlink" in lab.json("export", str(fork), code=2)["error"]["message"]


def test_a_change_in_the_commit_of_the_kernels(lab: Lab, fork: Path) -> None:
    """That commit is not exported, so a change in it would be lost without a word."""
    (fork / UTILS).write_text(SECOND + "A = 1\n")
    git(fork, "commit", "-qa", "--amend", "--no-edit")
    error = lab.json("export", str(fork), code=2)["error"]
    assert UTILS in error["message"] and "bundles the kernels" in error["message"]


def test_a_trailer_of_the_kernels_hides_no_patch(lab: Lab, fork: Path) -> None:
    text = git(fork, "log", "-1", "--format=%B", "HEAD~1").replace(
        "Origin", "Kernels-Tree: 1\nOrigin"
    )
    git(fork, "reset", "-q", "--hard", "HEAD~1")
    git(fork, "commit", "-q", "--amend", "-m", text)
    assert "only tool apply" in lab.json("export", str(fork), code=2)["error"]["message"]


def test_another_repository_is_not_opened(lab: Lab, fork: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / ".git").write_text(f"gitdir: {other / '.git'}\n")
    for command in (["export"], ["refresh", "first"]):
        error = lab.json(*command, str(tmp_path / "trap"), code=2)["error"]
        assert "not a worktree of this tool" in error["message"]
