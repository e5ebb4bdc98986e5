"""What a worktree holds, read from its files and a copy of its index."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.lab import EDITED, RELEASE, UTILS, Lab, git
from tool.git import worktree
from tool.git.repository import Git
from tool.git.worktree import find_worktree, list_worktrees, write_worktree


@pytest.fixture
def fork(lab: Lab, tmp_path: Path) -> Path:
    """A worktree that ``tool apply`` made."""
    return lab.fork(tmp_path / "fork", {"demo/answer.patch": {UTILS: EDITED}})


def test_a_worktree_of_the_tool_is_found(lab: Lab, fork: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(fork)
    for folder in (fork, tmp_path / "link", fork / "." / "python" / ".."):
        found = find_worktree(Git(lab.home.repository), folder)
        assert found is not None
        assert (found.folder, found.branch) == (fork, f"ada/v{RELEASE}")
        assert found.admin.parent == lab.home.repository / "worktrees"
    assert list_worktrees(Git(lab.home.repository)) == {f"ada/v{RELEASE}": fork}


def test_a_claim_that_the_repository_does_not_confirm_is_not_believed(
    lab: Lab, fork: Path, tmp_path: Path
) -> None:
    repository, pointer = lab.home.repository, (fork / ".git").read_text()
    copy = tmp_path / "copy"
    shutil.copytree(fork, copy)
    for text in (
        pointer,
        f"gitdir: {repository}",
        f"gitdir: {repository}/worktrees",
        "gitdir: ",
        "",
    ):
        (copy / ".git").write_text(text)
        assert find_worktree(Git(repository), copy) is None, text
    for content in (b"gitdir: \xff", b"gitdir: \0", b"gitdir: " + b"x/" * 9000):
        (copy / ".git").write_bytes(content)
        assert find_worktree(Git(repository), copy) is None
    assert find_worktree(Git(repository), tmp_path / "absent") is None


def test_a_copy_and_a_moved_worktree_are_named(lab: Lab, fork: Path, tmp_path: Path) -> None:
    shutil.copytree(fork, tmp_path / "copy")
    error = lab.json("export", str(tmp_path / "copy"), code=2)["error"]
    assert error["message"] == f"is a copy of the worktree {fork}"
    fork.rename(tmp_path / "moved")
    error = lab.json("export", str(tmp_path / "moved"), code=2)["error"]
    assert error["message"] == f"is a worktree that was moved here from {fork}"
    subprocess.run(error["next"].partition(": ")[2], shell=True, check=True)
    lab.tool("export", str(tmp_path / "moved"))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_no_command_runs_a_program_that_a_folder_names(
    lab: Lab, fork: Path, tmp_path: Path, kind: str
) -> None:
    """``.git`` is a hostile repository, or a file that names one, also one beside the tool's own."""
    ran, hostile = tmp_path / "ran", tmp_path / "hostile"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {ran}\nexit 1\n")
    program.chmod(0o755)
    admin = find_worktree(Git(lab.home.repository), fork)
    assert admin is not None
    shutil.copytree(lab.home.repository, hostile, symlinks=True)
    inner = hostile / "worktrees" / admin.admin.name
    settings = {
        "core.bare": "false",
        "core.fsmonitor": str(program),
        "core.sshCommand": str(program),
        "log.showSignature": "true",
        "gpg.program": str(program),
        "extensions.partialClone": "o",
        "remote.o.promisor": "true",
        "remote.o.url": "ssh://o/o",
        "remote.o.uploadpack": str(program),
        "filter.f.clean": str(program),
        "filter.f.process": str(program),
        "diff.external": str(program),
    }
    for key, value in settings.items():
        git(hostile, "config", key, value)
    (inner / "gitdir").write_text(f"{fork}/.git\n")
    (hostile / "info" / "attributes").write_text("* filter=f diff=f\n")
    shutil.rmtree(hostile / "objects")
    (hostile / "objects").mkdir()
    (fork / ".git").unlink()
    if kind == "folder":
        shutil.copytree(hostile, fork / ".git", symlinks=True)
    else:
        (fork / ".git").write_text(f"gitdir: {inner}\n")
    (fork / UTILS).write_text(EDITED + "\n")
    # The control: git itself runs the program here.
    subprocess.run(["git", "status"], cwd=fork, capture_output=True)
    assert ran.exists()
    ran.unlink()
    place = str(fork)
    for command in (
        ("export", place),
        ("refresh", "demo/answer", place),
        ("new", "demo/other", place),
        ("apply", "--offline", "--into", place),
    ):
        lab.tool(*command, code=None)
        assert not ran.exists(), command


def test_an_edit_in_the_second_the_file_was_written_counts(tmp_path: Path) -> None:
    """An edit of the same size within the same second is found: the index's own time tells git to read the
    file.
    """
    for attempt in range(50):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        git(folder, "init", "--quiet")
        file = folder / "answer.py"
        file.write_text("ANSWER = 41\n")
        git(folder, "add", ".")
        written = file.stat()
        file.write_text("ANSWER = 42\n")
        edited = file.stat()
        if int(written.st_ctime) == int(edited.st_ctime):
            break
    time.sleep(1.1)  # a person asks later; by then a copy of the index is younger than the edit
    tree = write_worktree(folder / ".git", folder)
    assert git(folder, "cat-file", "-p", f"{tree}:answer.py") == "ANSWER = 42"


# -- what a folder says, without git ---------------------------------------------------------------------


def bare(tmp_path: Path) -> Git:
    (tmp_path / "r.git" / "worktrees").mkdir(parents=True)
    return Git(tmp_path / "r.git")


def test_a_worktree_is_made_of_a_few_files(tmp_path: Path) -> None:
    repository = bare(tmp_path)
    made = []
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        made.append(worktree.add_worktree(repository, tmp_path / name / "a b", "c" * 40))
    assert [one.admin.name for one in made] == ["a-b", "a-b1"]
    for one in made:
        assert find_worktree(repository, one.folder) == one and one.branch is None
        assert (one.admin / "commondir").read_text() == "../..\n"
    (made[0].admin / "HEAD").write_text("ref: refs/heads/ada/x\n")
    assert made[0].branch == "ada/x"
    assert list_worktrees(repository) == {"ada/x": made[0].folder}
    (made[0].folder / ".git").unlink()
    assert list_worktrees(repository) == {}
    odd = worktree.add_worktree(repository, tmp_path / "---", "c" * 40)
    assert odd.admin.name == "worktree"


def test_an_entry_without_a_head_or_a_folder(tmp_path: Path) -> None:
    repository = bare(tmp_path)
    made = worktree.add_worktree(repository, tmp_path / "tree", "c" * 40)
    assert worktree.resolve_admin(repository, made.folder) == made.admin
    (made.admin / "HEAD").unlink()
    assert find_worktree(repository, made.folder) is None
    (made.admin / "HEAD").write_text("c")
    (made.admin / "gitdir").write_text("")
    assert find_worktree(repository, made.folder) is None
    assert (
        "is not a worktree of this tool"
        in worktree._not_a_worktree(repository, made.folder).message
    )
    shutil.rmtree(made.admin)
    assert worktree.resolve_admin(repository, made.folder) is None
    (tmp_path / "outside").mkdir()
    (made.folder / ".git").write_text(f"gitdir: {tmp_path / 'outside'}\n")
    assert worktree.resolve_admin(repository, made.folder) is None
    assert worktree.find_admin(made.folder) == tmp_path / "outside"
    (made.folder / ".git").write_text("something else")
    assert worktree.find_admin(made.folder) is None


def test_a_path_that_git_keeps(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"/a/b\n")
    assert worktree.read_text(file) == "/a/b\n"
    file.write_bytes(b"/a\0b")
    assert worktree.read_text(file) == worktree.read_text(tmp_path) == ""
    assert worktree.read_text(tmp_path / "gone") == worktree.read_text(file / "below") == ""
