"""What a person has is never lost, and what a killed command left never stands in the way."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.lab import AGAIN, EDITED, TREE, UTILS, Lab, git
from tool import atomic
from tool.errors import EnvironmentFault
from tool.git import Git
from tool.project import checkout, transaction
from tool.project.workspace import Workspace


@pytest.fixture
def ready(lab: Lab) -> Lab:
    lab.release("0.5.23", TREE | {"sglang/.gitignore": ".env\nresults/\n*.so\n"})
    lab.patch("demo/answer.patch", {UTILS: EDITED})
    lab.patch("demo/second.patch", {UTILS: AGAIN})
    lab.relock()
    return lab


def newer(lab: Lab) -> None:
    """Edited kernels: the next apply updates the worktree."""
    (lab.root / "ada_dsa" / "__init__.py").write_text(f'"""Version {time.monotonic_ns()}."""\n')


class TestDeletion:
    def test_a_folder_prepared_in_the_old_staging_place_stays(
        self, ready: Lab, tmp_path: Path
    ) -> None:
        precious = tmp_path / "precious"
        precious.mkdir()
        (precious / "thesis.txt").write_text("three years\n")
        trap = tmp_path / "pub" / ".tool-staging" / "fork"
        trap.mkdir(parents=True)
        (trap / ".git").write_text(f"gitdir: {precious}\n")
        ready.apply(tmp_path / "pub" / "fork")
        newer(ready)
        ready.apply(tmp_path / "pub" / "fork")
        assert (precious / "thesis.txt").read_text() == "three years\n" and trap.is_dir()

    def test_a_worktree_that_names_a_foreign_admin_folder_is_refused(
        self, ready: Lab, tmp_path: Path
    ) -> None:
        precious = tmp_path / "precious"
        precious.mkdir()
        (tmp_path / "fork").mkdir()
        (tmp_path / "fork" / ".git").write_text(f"gitdir: {precious}\n")
        error = ready.apply(tmp_path / "fork", code=2)["error"]
        assert "another repository" in error["message"] and precious.is_dir()

    def test_through_a_symbolic_link(self, ready: Lab, tmp_path: Path) -> None:
        real, link = tmp_path / "big" / "fork", tmp_path / "link"
        ready.apply(real)
        link.symlink_to(real)
        newer(ready)
        result = ready.apply(link)["result"]
        assert result["state"] == "updated" and result["folder"] == str(real)
        assert link.is_symlink() and git(real, "status", "--porcelain") == ""

    def test_a_moved_worktree_is_not_cut_off(self, ready: Lab, tmp_path: Path) -> None:
        ready.apply(tmp_path / "fork")
        head = git(tmp_path / "fork", "rev-parse", "HEAD")
        (tmp_path / "fork").rename(tmp_path / "moved")
        envelope = ready.apply(tmp_path / "fork")
        (warning,) = envelope["warnings"]
        assert "git worktree repair" in warning and head[:12] in warning
        git(tmp_path / "moved", "worktree", "repair")
        assert git(tmp_path / "moved", "rev-parse", "HEAD") == head
        assert git(tmp_path / "moved", "status", "--porcelain") == ""
        assert str(tmp_path / "moved") in git(tmp_path / "fork", "worktree", "list")


class TestWorkInAWorktree:
    def test_ignored_files_go_along(self, ready: Lab, tmp_path: Path) -> None:
        tree = tmp_path / "fork"
        ready.apply(tree)
        package = tree / "python/sglang"
        (package / ".env").write_text("KEY=1\n")
        (package / "results").mkdir()
        (package / "results" / "run.json").write_text("{}\n")
        (package / "srt" / "built.so").write_bytes(b"\x7fELF")
        newer(ready)
        envelope = ready.apply(tree)
        assert envelope["result"]["state"] == "updated" and envelope["warnings"] == []
        assert (package / ".env").read_text() == "KEY=1\n"
        assert (package / "results" / "run.json").read_text() == "{}\n"
        assert (package / "srt" / "built.so").read_bytes() == b"\x7fELF"
        assert [p.name for p in tmp_path.glob("fork*")] == ["fork"]

    @pytest.mark.parametrize("flag", ["--skip-worktree", "--assume-unchanged"])
    def test_a_hidden_edit_is_refused(self, ready: Lab, tmp_path: Path, flag: str) -> None:
        tree = tmp_path / "fork"
        ready.apply(tree)
        git(tree, "update-index", flag, UTILS)
        newer(ready)
        assert ready.apply(tree)["result"]["state"] == "updated"  # a mark alone hides nothing
        git(tree, "update-index", flag, UTILS)
        (tree / UTILS).write_text("mine\n")
        newer(ready)
        error = ready.apply(tree, code=2)["error"]
        assert UTILS in error["message"] and "git update-index" in error["next"]
        assert (tree / UTILS).read_text() == "mine\n"

    def test_a_file_saved_meanwhile_is_kept(
        self, ready: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Saved after the worktree was found clean, before it was replaced."""
        tree = tmp_path / "fork"
        ready.apply(tree)
        newer(ready)
        replace = checkout._replace

        def save_and_replace(plan: checkout._Plan) -> None:
            (tree / UTILS).write_text("saved meanwhile\n")
            (tree / "new.txt").write_text("new\n")
            replace(plan)

        monkeypatch.setattr(checkout, "_replace", save_and_replace)
        (warning,) = ready.apply(tree)["warnings"]
        (backup,) = tmp_path.glob("fork.backup-*")
        assert (backup / UTILS).read_text() == "saved meanwhile\n"
        assert str(backup) in warning and "git worktree remove" in warning
        assert (tree / "new.txt").read_text() == "new\n"
        assert UTILS in git(backup, "status", "--porcelain")
        git(tree, "worktree", "remove", "--force", str(backup))


class TestWithoutAnExchange:
    """macOS has no renameat2, and some file systems refuse it: two renames, journalled."""

    @pytest.fixture(params=["missing", "refused"])
    def no_exchange(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        import ctypes

        class Library:
            def __init__(self, name: None, use_errno: bool) -> None:
                if request.param == "refused":
                    self.renameat2 = self._refuse

            def _refuse(self, *_: object) -> int:
                ctypes.set_errno(errno.EINVAL)
                return -1

        monkeypatch.setattr(ctypes, "CDLL", Library)

    def test_an_update(self, ready: Lab, tmp_path: Path, no_exchange: None) -> None:
        tree = tmp_path / "fork"
        ready.apply(tree)
        (tree / "python/sglang/.env").write_text("KEY=1\n")
        newer(ready)
        assert ready.apply(tree)["result"]["state"] == "updated"
        assert git(tree, "status", "--porcelain") == ""
        assert (tree / "python/sglang/.env").is_file()
        assert sorted(p.name for p in tmp_path.iterdir() if "tool-" in p.name) == []

    def test_stopped_between_the_renames(
        self, ready: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tree = tmp_path / "fork"
        ready.apply(tree)
        old = git(tree, "rev-parse", "HEAD")
        newer(ready)

        def stop(plan: checkout._Plan) -> None:
            plan.place.rename(plan.old)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(checkout, "_replace", stop)
            ready.apply(tree, code=130)
        assert git(tree, "rev-parse", "HEAD") == old and git(tree, "status", "--porcelain") == ""
        assert git(tree, "rev-parse", "--abbrev-ref", "HEAD") == "ada/v0.5.23"
        assert ready.apply(tree)["result"]["state"] == "updated"


class TestRecovery:
    @pytest.mark.parametrize("branch", ["ada/v0.5.23/mine", "x" * 300, "a..b", "caf\udce9"])
    def test_a_branch_that_git_cannot_make(self, ready: Lab, tmp_path: Path, branch: str) -> None:
        ready.apply(tmp_path / "fork")
        error = ready.apply(tmp_path / "other", "--branch", branch, code=2)["error"]
        assert "--branch" in error["next"]
        assert not (ready.folder / "checkout.json").exists()
        assert ready.apply(tmp_path / "fork")["result"]["state"] == "unchanged"

    @pytest.mark.parametrize("name", ["..", "../../elsewhere", "link"])
    def test_a_journal_that_names_another_folder_as_the_replaced_entry(
        self, ready: Lab, tmp_path: Path, name: str
    ) -> None:
        tree = tmp_path / "fork"
        ready.apply(tree)
        entries = ready.home.repository / "worktrees"
        (entry,) = entries.iterdir()
        elsewhere = ready.home.data / "elsewhere"
        elsewhere.mkdir()
        (entries / "link").symlink_to(elsewhere)
        head = git(tree, "rev-parse", "HEAD")
        plan = {"format": 1, "token": (entry / "ada-token").read_text(), "project": str(ready.root)}
        plan |= {"folder": str(tree), "branch": "ada/v0.5.23", "head": head, "base": head}
        plan |= {"branch_before": None, "tip_before": None, "base_before": None}
        journal = ready.folder / "checkout.json"
        journal.write_text(json.dumps({**plan, "old_admin": str(entries / name)}))
        warnings = ready.apply(tree)["warnings"]
        assert elsewhere.is_dir() and git(tree, "rev-parse", "HEAD") == head
        assert len(warnings) == 1 and "tool repair" in warnings[0]

    def test_a_folder_whose_name_is_not_utf8(self, ready: Lab, tmp_path: Path) -> None:
        tree = tmp_path / os.fsdecode(b"caf\xe9")
        assert ready.apply(tree)["result"]["state"] == "created"
        newer(ready)
        assert ready.apply(tree)["result"]["state"] == "updated"
        assert ready.apply(tree)["result"]["state"] == "unchanged"

    @pytest.mark.parametrize("name", ["checkout", "project"])
    @pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', "[" * 100_000])
    def test_a_damaged_journal_is_set_aside(
        self, ready: Lab, tmp_path: Path, name: str, content: str
    ) -> None:
        ready.apply(tmp_path / "fork")
        (ready.folder / f"{name}.json").write_text(content)
        for reader in ("status", "lint"):
            assert "tool repair" in ready.json(reader)["warnings"][0]
        planned = ready.json("repair", "--dry-run")["result"]["interrupted"]
        assert [item["action"] for item in planned] == ["set aside"]
        assert (ready.folder / f"{name}.json").is_file()
        ready.json("repair")
        assert (ready.folder / f"{name}.json.damaged-1").read_text() == content
        newer(ready)
        assert ready.apply(tmp_path / "fork")["result"]["state"] == "updated"

    def test_a_damaged_rebase_is_set_aside(self, ready: Lab) -> None:
        ready.folder.mkdir(parents=True, exist_ok=True)
        (ready.folder / "rebase.json").write_text("{")
        assert ready.json("status")["warnings"]
        ready.json("repair")
        assert ready.json("status")["warnings"] == []

    def test_an_edit_of_an_unwritable_project_is_undone_at_once(
        self, ready: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ready.apply(tmp_path / "fork")
        before = (ready.root / "series.txt").read_bytes()
        write = atomic.write

        def refuse(path: Path, data: bytes) -> bool:
            if path.name == "series.lock" and path.read_bytes() != data:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return write(path, data)

        with monkeypatch.context() as patched:
            patched.setattr(atomic, "write", refuse)
            ready.tool("drop", "demo/second.patch", "--why", "no", "--offline", code=6)
        assert (ready.root / "series.txt").read_bytes() == before
        assert (ready.root / "patches" / "demo/second.patch").is_file()
        assert not (ready.folder / "project.json").exists()
        assert ready.json("status")["warnings"] == []

    def test_reading_leaves_an_interrupted_change_alone(
        self, ready: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(transaction, "complete", lambda journal: None)
            ready.tool("drop", "demo/second.patch", "--why", "no", "--offline")
        series = (ready.root / "series.txt").read_bytes()
        assert "tool repair" in ready.json("status")["warnings"][0]
        assert (ready.root / "series.txt").read_bytes() == series
        with ready.home.exclusive():  # the journal of a command that is at work is no interruption
            assert ready.json("status")["warnings"] == []
        # Another project with the same data folder neither sees nor performs it.
        other = copy.copy(ready)
        other.root = Path(shutil.copytree(ready.root, ready.root.parent / "other"))
        assert other.json("status")["warnings"] == []
        other.tool("lock", "--offline")
        assert (ready.root / "series.txt").read_bytes() == series
        (found,) = other.json("repair", code=1)["result"]["interrupted"]
        assert found["project"] == str(ready.root) and "tool repair" in found["problem"]
        (planned,) = ready.json("repair", "--dry-run")["result"]["interrupted"]
        assert planned["action"] == "finished"
        assert (ready.root / "series.txt").read_bytes() == series
        ready.json("repair")
        assert (ready.root / "series.txt").read_bytes() != series

    def test_a_file_edited_after_the_interruption_is_kept(
        self, ready: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lock = (ready.root / "series.lock").read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(transaction, "complete", lambda journal: None)
            ready.tool("drop", "demo/second.patch", "--why", "no", "--offline")
        (ready.root / "series.txt").write_text("# mine\n")
        ready.json("repair")
        assert (ready.root / "series.txt").read_text() == "# mine\n"
        assert (ready.root / "series.lock").read_bytes() == lock
        assert not (ready.folder / "project.json").exists()


class TestTwoCommands:
    def test_a_killed_commands_child_holds_its_lock(self, tmp_path: Path) -> None:
        """The command is killed alone; its git goes on, because somebody else holds its pipe."""
        home = Workspace(tmp_path / "cache", tmp_path / "own")
        home.open_repository()
        script = (
            "import os, signal, sys\n"
            "from pathlib import Path\n"
            "from tool.project.workspace import Workspace\n"
            "home = Workspace(Path(sys.argv[1]), Path(sys.argv[2]))\n"
            "with home.exclusive():\n"
            "    child = home.open_repository().start('hash-object', '--stdin')\n"
            "    os.dup2(child.stdin.fileno(), 1)\n"
            "    print(child.pid, file=sys.stderr, flush=True)\n"
            "    if os.fork() == 0:\n"
            "        os.closerange(2, 100)\n"  # the lock too: the git alone holds it
            "        signal.pause()\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        killed = subprocess.Popen(
            [sys.executable, "-c", script, str(home.cache), str(home.data)],
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert killed.stderr is not None
        child = int(killed.stderr.readline())
        assert killed.wait() == -signal.SIGKILL
        try:
            with pytest.raises(EnvironmentFault, match="at work"), home.exclusive(wait=False):
                pass
            os.kill(child, signal.SIGKILL)
            with home.exclusive():
                pass
        finally:
            os.killpg(killed.pid, signal.SIGKILL)

    def test_locks_are_handed_to_children_that_write(self, ready: Lab) -> None:
        repository = Git(ready.home.repository)
        with ready.home.exclusive():
            (held,) = atomic.held_locks()
            child = repository.start("hash-object", "--stdin")
            inherited = Path(f"/proc/{child.pid}/fd/{held}")
            assert inherited.samefile(ready.home.data / "lock")
            child.communicate()
        assert atomic.held_locks() == ()

    def test_the_second_waits_and_says_so(self, ready: Lab, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "tool", "lock", "--offline", "--series", str(ready.root)]
        with ready.home.exclusive():
            second = subprocess.Popen(
                command,
                env=ready.environ,
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert second.stderr is not None
            assert str(os.getpid()) in second.stderr.readline()
            assert second.poll() is None
        out, _ = second.communicate(timeout=60)
        assert second.returncode == 0 and "up to date" in out

    def test_another_data_folder_is_kept_off_the_project(self, ready: Lab, tmp_path: Path) -> None:
        with ready.home.exclusive(ready.root):
            environ = ready.environ | {"TOOL_DATA_DIR": str(tmp_path / "other")}
            done = subprocess.run(
                [sys.executable, "-m", "tool", "lock", "--no-wait", "--json"]
                + ["--offline", "--series", str(ready.root)],
                env=environ, capture_output=True, text=True,
            )  # fmt: skip
        assert done.returncode == 6
        assert "another tool command" in json.loads(done.stdout)["error"]["message"]
