"""``tool export``: a worktree's commits back to files."""

from __future__ import annotations

from pathlib import Path

from tests.support.lab import AGAIN, UTILS, Lab, git


class TestExport:
    def test_is_the_inverse_of_apply(self, lab: Lab, fork: Path) -> None:
        files = {
            p: (p.read_bytes(), p.stat().st_mtime_ns)
            for p in (lab.root / "patches").rglob("*.patch")
        }
        result = lab.json("export", str(fork))["result"]
        assert result == {
            "written": [],
            "kept": ["demo/first.patch", "demo/second.patch"],
            "removed": {},
            "order": [],
            "files": {},
        }
        assert files == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files}

    def test_writes_only_what_changed(self, lab: Lab, fork: Path) -> None:
        first = (lab.root / "patches" / "demo/first.patch").read_bytes()
        text = (fork / UTILS).read_text().replace("return 2020", "return 2021")
        (fork / UTILS).write_text(text)
        sha = git(fork, "log", "--format=%H", "--grep=Patch-Name: demo/second.patch")
        git(fork, "commit", "-qam", "wip", "--fixup", sha)
        git(fork, "-c", "sequence.editor=true", "rebase", "-qi", "--autosquash", "HEAD~4")
        result = lab.json("export", str(fork))["result"]
        assert result["written"] == ["demo/second.patch"]
        assert (lab.root / "patches" / "demo/first.patch").read_bytes() == first
        assert b"+    return 2021" in (lab.root / "patches" / "demo/second.patch").read_bytes()
        lab.relock()
        lab.apply(fork.parent / "again", "--branch", "again")
        assert (fork.parent / "again" / UTILS).read_text() == text

    def test_an_edited_message_edits_the_header(self, lab: Lab, fork: Path) -> None:
        message = git(fork, "log", "-1", "--format=%B", "HEAD^").replace(
            "Forwarded: no", "Forwarded: yes"
        )
        git(fork, "reset", "-q", "--hard", "HEAD^")
        git(fork, "commit", "-q", "--amend", "-m", message)
        assert lab.json("export", str(fork))["result"]["written"] == ["demo/second.patch"]
        assert b"\nForwarded: yes\n" in (lab.root / "patches" / "demo/second.patch").read_bytes()

    def test_refuses_a_dirty_tree_an_unnamed_commit_and_a_second_one(
        self, lab: Lab, fork: Path
    ) -> None:
        (fork / UTILS).write_text(AGAIN + "# more\n")
        assert "uncommitted" in lab.json("export", str(fork), code=2)["error"]["message"]
        git(fork, "commit", "-qam", "mine")
        error = lab.json("export", str(fork), code=2)["error"]
        assert "no Patch-Name" in error["message"] and "mine" in error["where"]
        git(
            fork,
            "commit",
            "-q",
            "--amend",
            "-m",
            "mine\n\nOrigin: vendor\nPatch-Name: demo/first.patch",
        )
        assert "second commit" in lab.json("export", str(fork), code=2)["error"]["message"]
        git(
            fork,
            "commit",
            "-q",
            "--amend",
            "-m",
            "mine\n\nOrigin: vendor\nPatch-Name: demo/third.patch",
        )
        assert "series.txt" in lab.json("export", str(fork), code=2)["error"]["message"]

    def test_refuses_a_change_to_the_bundled_kernels(self, lab: Lab, fork: Path) -> None:
        (fork / "python/sglang/srt/layers/attention/ada_dsa/__init__.py").write_text("x = 1\n")
        sha = git(fork, "log", "-1", "--format=%H", "HEAD^")
        git(
            fork,
            "commit",
            "-qam",
            git(fork, "log", "-1", "--format=%B", sha).replace("second", "third"),
        )
        (lab.root / "series.txt").write_text(
            (lab.root / "series.txt").read_text() + "demo/third.patch ==0.5.23\n"
        )
        assert "ada_dsa/" in lab.json("export", str(fork), code=2)["error"]["next"]

    def test_refuses_a_folder_that_is_not_ours(self, lab: Lab, fork: Path, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        assert (
            "not a worktree" in lab.json("export", str(tmp_path / "x"), code=2)["error"]["message"]
        )
