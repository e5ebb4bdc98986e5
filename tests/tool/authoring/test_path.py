"""What an author meets on the way: worktrees that stay clean, leftovers, changes that begin and end."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version

from tests.support.lab import B_ONLY, NEXT, RELEASE, TREE, TWINS, UTILS, Lab, git
from tests.support.rebases import check
from tool.series import load_series

STOCK = TREE["sglang/srt/utils.py"]
ANSWER = STOCK.replace("return 3\n", "return 33\n")
WORDS = ("--drop-when", "never", "--subject", "Answer more", "--reason", "Because it asks.")
MORE = "python/sglang/srt/more.py"


@pytest.fixture
def fork(lab: Lab, tmp_path: Path) -> Path:
    return lab.fork(
        tmp_path / "fork",
        {"demo/answer.patch": {UTILS: ANSWER}, "demo/twins.patch": {TWINS: B_ONLY}},
    )


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


class TestWorktree:
    """After new and refresh it holds the series as it is, and nothing that was there is gone."""

    def assert_up_to_date(self, lab: Lab, fork: Path) -> None:
        assert git(fork, "status", "--porcelain") == ""
        assert lab.apply(fork)["result"]["state"] == "unchanged"
        assert lab.json("export", str(fork))["result"]["written"] == []

    def test_after_new(self, lab: Lab, fork: Path) -> None:
        (fork / MORE).write_text("MORE = 1\n")
        kept = fork / "python/sglang/__pycache__/x.pyc"
        kept.parent.mkdir()
        kept.write_text("ignored")
        age = (fork / UTILS).stat().st_mtime_ns
        done = lab.json("new", "more", str(fork), "--change", "demo", *WORDS, "--offline")["result"]
        assert done["worktree_moved"] is True and done["files"] == {MORE: "added"}
        self.assert_up_to_date(lab, fork)
        assert kept.read_text() == "ignored" and (fork / UTILS).stat().st_mtime_ns == age

    def test_after_refresh(self, lab: Lab, fork: Path) -> None:
        (fork / UTILS).write_text(ANSWER.replace("return 33\n", "return 3333\n"))
        (fork / MORE).write_text("MORE = 1\n")
        done = lab.json("refresh", "answer", str(fork), "--offline")["result"]
        assert done["files"] == {MORE: "added", UTILS: "changed"}
        self.assert_up_to_date(lab, fork)
        text = lab.tool("refresh", "answer", str(fork), "--offline", code=2).stderr
        assert "no uncommitted changes" in text

    def test_the_kernels_of_the_project_come_along(self, lab: Lab, fork: Path) -> None:
        (lab.root / "ada_dsa" / "more.py").write_text("K = 1\n")
        (fork / MORE).write_text("MORE = 1\n")
        lab.tool("new", "more", str(fork), "--change", "demo", *WORDS, "--offline")
        assert (fork / "python/sglang/srt/layers/attention/ada_dsa/more.py").is_file()
        self.assert_up_to_date(lab, fork)

    def test_a_patch_it_does_not_contain(self, lab: Lab, fork: Path) -> None:
        """The series got the patch after the worktree was made."""
        lab.patch("demo/later.patch", {MORE: "MORE = 1\n"})
        lab.relock()
        (fork / UTILS).write_text(ANSWER.replace("return 33\n", "return 3333\n"))
        error = lab.json("refresh", "later", str(fork), "--offline", code=2)["error"]
        assert "does not contain demo/later.patch yet" in error["message"]
        assert "tool apply" in error["next"]
        git(fork, "stash", "-q", "-u")
        lab.apply(fork)
        git(fork, "stash", "pop", "-q")
        lab.tool("refresh", "later", str(fork), "--offline")
        check(lab)


class TestWhatGoesIn:
    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("utils.py.orig", b"x\n", "leftover"),
            ("utils.py.rej", b"x\n", "leftover"),
            ("utils.py~", b"x\n", "leftover"),
            (".utils.py.swp", b"x\0", "binary"),
            (".utils.py.swo", b"x\n", "leftover"),
            ("#utils.py#", b"x\n", "leftover"),
            ("image.png", b"\x89PNG\0", "binary"),
            ("more.py", b"'''\n=======\n'''\n", "conflict marker"),
            ("more.json", b"<<<<<<< ours\n", "conflict marker"),
        ],
    )
    def test_leftovers_are_refused(
        self, lab: Lab, fork: Path, name: str, content: bytes, words: str
    ) -> None:
        before = files(lab.root)
        (fork / "python/sglang/srt" / name).write_bytes(content)
        (fork / UTILS).write_text(ANSWER.replace("return 33\n", "return 3333\n"))
        for command in (["refresh", "answer"], ["new", "more"]):
            args = ["--change", "demo", *WORDS] if command[0] == "new" else []
            error = lab.json(*command, str(fork), *args, "--offline", code=2)["error"]
            assert words in error["message"] and name in f"{error['where']} {error['message']}"
        assert files(lab.root) == before
        assert (fork / "python/sglang/srt" / name).read_bytes() == content

    def test_a_link_a_mode_and_a_repository(self, lab: Lab, fork: Path) -> None:
        link = fork / "python/sglang/srt/link.py"
        link.symlink_to("utils.py")
        args = ("new", "more", str(fork), "--change", "demo", *WORDS, "--offline")
        assert "symlink" in lab.json(*args, code=2)["error"]["message"]
        link.unlink()
        (fork / UTILS).chmod(0o755)
        assert "changes the mode" in lab.json(*args, code=2)["error"]["message"]
        (fork / UTILS).chmod(0o644)
        inner = fork / "python/sglang/srt/inner"
        inner.mkdir()
        git(inner, "init", "-q")
        git(inner, "commit", "-q", "--allow-empty", "-m", "x")
        assert "a repository of its own" in lab.json(*args, code=2)["error"]["message"]

    def test_each_file_is_printed(self, lab: Lab, fork: Path) -> None:
        (fork / MORE).write_text("MORE = 1\n")
        (fork / TWINS).unlink()
        args = ("new", "more", str(fork), "--change", "demo", *WORDS, "--offline")
        text = lab.tool(*args).stdout
        assert f"\n  added {MORE}\n" in text and f"\n  removed {TWINS}\n" in text


class TestChanges:
    def test_a_new_one_goes_on(self, lab: Lab, fork: Path) -> None:
        (fork / MORE).write_text("MORE = 1\n")
        lab.tool("new", "more", str(fork), "--change", "other", *WORDS, "--offline")
        check(lab)
        lab.release(NEXT, TREE | {"sglang/version.py": "__version__ = '0.5.24'\n"})
        lab.tool("rebase", "--onto", f"v{NEXT}", "--offline")
        names = [p.name for p in load_series(lab.root).for_release(Version(NEXT))]
        assert names == ["demo/answer.patch", "demo/twins.patch", "other/more.patch"]

    def test_one_that_is_over_gets_no_patch(self, lab: Lab, fork: Path) -> None:
        text = (lab.root / "series.txt").read_text()
        (lab.root / "series.txt").write_text(text + "change old ==0.5.9\n    old/x.patch ==0.5.9\n")
        (fork / MORE).write_text("MORE = 1\n")
        args = ("new", "more", str(fork), "--change", "old", *WORDS, "--offline")
        error = lab.json(*args, code=2)["error"]
        assert "is over" in error["message"] and error["where"].startswith("series.txt:")

    def test_dropping_its_last_patch(self, lab: Lab, fork: Path) -> None:
        lab.regroup("demo/twins.patch", "other", ">=0.5.23")
        before = files(lab.root / "patches")
        done = lab.json("drop", "twins", "--why", "no more", "--offline")["result"]
        assert (done["removed"], done["written"]) == (["other/twins.patch"], [])
        del before[lab.root / "patches/other/twins.patch"]
        assert files(lab.root / "patches") == before
        text = (lab.root / "series.txt").read_text()
        assert "# change other >=0.5.23\n" in text and "was dropped: no more" in text
        check(lab)

    def test_dropping_leaves_a_patch_that_was_merged_alone(self, lab: Lab) -> None:
        """It was written on the file of the later release, which still gives its pre-image."""
        lab.release("0.5.22", TREE)
        lab.release(RELEASE, TREE | {"sglang/srt/utils.py": "# more\n" + STOCK})
        spec = ">=0.5.22,<=0.5.23"
        lab.patch("demo/answer.patch", {UTILS: "# more\n" + ANSWER}, releases=spec)
        lab.patch("demo/twins.patch", {TWINS: B_ONLY}, releases=spec)
        lab.relock("0.5.22", RELEASE)
        before = files(lab.root / "patches")
        lab.tool("drop", "twins", "--why", "no more", "--offline")
        del before[lab.root / "patches/demo/twins.patch"]
        assert files(lab.root / "patches") == before
        check(lab)

    @pytest.mark.parametrize("name", ["../x", "a/b", "Upper", "x y", "x" * 300, "\udcff"])
    def test_a_name_that_is_none(self, lab: Lab, fork: Path, name: str) -> None:
        (fork / MORE).write_text("MORE = 1\n")
        args = ("new", name, str(fork), "--change", "demo", *WORDS, "--offline")
        assert "is not a patch file name" in lab.tool(*args, code=2).stderr


class TestOrphans:
    def _reordered(self, lab: Lab, fork: Path) -> None:
        """Two patches of one file change places by hand: each begins with a blob that nothing gives."""
        lab.patch("demo/second.patch", {UTILS: ANSWER.replace("return 20\n", "return 2020\n")})
        lab.relock()
        path = lab.root / "series.txt"
        lines = path.read_text().splitlines()
        first = next(line for line in lines if "answer" in line)
        lines.remove(first)
        path.write_text("\n".join([*lines, first, ""]))

    def test_lock_refuses_and_names_the_way(self, lab: Lab, fork: Path) -> None:
        self._reordered(lab, fork)
        before = (lab.root / "series.lock").read_bytes()
        error = lab.json("lock", "--offline", code=3)["error"]
        assert error["where"] == "patches/demo/second.patch"
        assert "no release of series.lock would give" in error["message"]
        assert (lab.root / "series.lock").read_bytes() == before
        assert "tool refresh demo/second.patch" in error["next"]
        lab.tool("refresh", "second", str(fork), "--offline")
        lab.tool("lock", "--offline")
        lab.forget_repository()
        check(lab)
