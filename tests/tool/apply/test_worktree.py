"""``tool apply`` as a user sees it: what is written, what is refused, and that the result is reproducible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.version import Version

from tests.support.lab import EDITED, RELEASE, TREE, UTILS, Lab, git


def test_makes_a_worktree_with_one_commit_per_patch_and_the_kernels(
    ready: Lab, tmp_path: Path
) -> None:
    tree = tmp_path / "fork"
    envelope = ready.apply(tree)
    assert envelope["ok"] and envelope["result"]["state"] == "created"
    assert (tree / UTILS).read_text() == EDITED
    assert (tree / "python/sglang/srt/layers/attention/ada_dsa/__init__.py").is_file()
    subjects = git(tree, "log", "--format=%s").splitlines()
    assert subjects == [
        "bundle the ada_dsa kernels",
        "change demo/answer.patch",
        f"sglang {RELEASE}",
    ]
    assert git(tree, "rev-parse", "--abbrev-ref", "HEAD") == f"ada/v{RELEASE}"
    assert git(tree, "status", "--porcelain") == ""
    trailer = git(tree, "log", "-1", "--format=%(trailers:key=Patch-Sha256,valueonly)", "HEAD^")
    assert trailer == ready.lock.get(Version(RELEASE)).patches[0].sha256


def test_the_same_head_on_another_machine(make_lab: Callable[[str], Lab], tmp_path: Path) -> None:
    heads = set()
    for name in ("here", "there"):
        lab = make_lab(name)
        lab.patch("demo/answer.patch", {UTILS: EDITED})
        lab.relock()
        lab.apply(tmp_path / name / "tree")
        heads.add(git(tmp_path / name / "tree", "rev-parse", "HEAD"))
    assert len(heads) == 1


def test_applying_again_changes_nothing(ready: Lab, tmp_path: Path) -> None:
    tree = tmp_path / "fork"
    ready.apply(tree)
    before = {p: p.stat().st_mtime_ns for p in tree.rglob("*")}
    assert ready.apply(tree)["result"]["state"] == "unchanged"
    assert {p: p.stat().st_mtime_ns for p in tree.rglob("*")} == before


def test_edited_kernels_update_a_clean_worktree_without_touching_the_lock(
    ready: Lab, tmp_path: Path
) -> None:
    tree = tmp_path / "fork"
    ready.apply(tree)
    before = (ready.root / "series.lock").read_bytes()
    (ready.root / "ada_dsa" / "__init__.py").write_text('"""Faster kernels."""\n')
    assert ready.apply(tree)["result"]["state"] == "updated"
    bundled = tree / "python/sglang/srt/layers/attention/ada_dsa/__init__.py"
    assert bundled.read_text() == '"""Faster kernels."""\n'
    assert git(tree, "status", "--porcelain") == ""
    assert (ready.root / "series.lock").read_bytes() == before
    assert not list(tmp_path.glob(".tool-*"))


def test_running_python_in_the_worktree_does_not_make_it_dirty(ready: Lab, tmp_path: Path) -> None:
    tree = tmp_path / "fork"
    ready.apply(tree)
    cache = tree / "python/sglang/__pycache__"
    cache.mkdir()
    (cache / "x.pyc").write_bytes(b"")
    assert ready.apply(tree)["result"]["state"] == "unchanged"


@pytest.mark.parametrize("untracked", [True, False])
def test_refuses_a_dirty_worktree(ready: Lab, tmp_path: Path, untracked: bool) -> None:
    tree = tmp_path / "fork"
    ready.apply(tree)
    edited = tree / ("mine.txt" if untracked else UTILS)
    edited.write_text("my work\n")
    (ready.root / "ada_dsa" / "__init__.py").write_text('"""Newer."""\n')
    error = ready.apply(tree, code=2)["error"]
    assert "uncommitted" in error["message"] and error["where"] == str(tree)
    assert edited.read_text() == "my work\n"


def test_refuses_a_branch_with_commits_of_the_users(ready: Lab, tmp_path: Path) -> None:
    tree = tmp_path / "fork"
    ready.apply(tree)
    (tree / UTILS).write_text(EDITED + "# mine\n")
    git(tree, "commit", "-qam", "my work")
    head = git(tree, "rev-parse", "HEAD")
    error = ready.apply(tree, code=2)["error"]
    assert "commits of your own" in error["message"] and "tool export" in error["next"]
    assert git(tree, "rev-parse", "HEAD") == head


@pytest.mark.parametrize("kind", ["file", "folder", "repository"])
def test_refuses_a_foreign_folder(ready: Lab, tmp_path: Path, kind: str) -> None:
    tree = tmp_path / "fork"
    if kind == "file":
        tree.write_text("a file\n")
    else:
        tree.mkdir()
        (tree / "theirs.txt").write_text("keep\n")
    if kind == "repository":
        git(tree, "init", "-q")
    error = ready.apply(tree, code=2)["error"]
    assert "not a worktree of this tool" in error["message"]
    assert (tree if kind == "file" else tree / "theirs.txt").read_text() in ("a file\n", "keep\n")


def test_two_worktrees_need_two_branches(ready: Lab, tmp_path: Path) -> None:
    ready.apply(tmp_path / "one")
    error = ready.apply(tmp_path / "two", code=2)["error"]
    assert str(tmp_path / "one") in error["message"] and "--branch" in error["next"]
    ready.apply(tmp_path / "two", "--branch", "second")
    heads = {git(tmp_path / name, "rev-parse", "HEAD") for name in ("one", "two")}
    assert len(heads) == 1


def test_a_deleted_worktree_can_be_made_again(ready: Lab, tmp_path: Path) -> None:
    import shutil

    ready.apply(tmp_path / "fork")
    shutil.rmtree(tmp_path / "fork")
    assert ready.apply(tmp_path / "fork")["result"]["state"] == "created"
    ready.apply(tmp_path / "fork")


def test_an_edited_patch_file_is_not_what_was_proven(ready: Lab, tmp_path: Path) -> None:
    path = ready.root / "patches" / "demo/answer.patch"
    path.write_bytes(path.read_bytes().replace(b"+    return 33", b"+    return 34"))
    error = ready.apply(tmp_path / "fork", code=5)["error"]
    assert error["where"] == "patches/demo/answer.patch" and "tool lock" in error["next"]
    assert not (tmp_path / "fork").exists()


def test_a_patch_missing_from_the_lock_is_not_proven(ready: Lab, tmp_path: Path) -> None:
    ready.patch("demo/second.patch", {UTILS: EDITED.replace("return 5\n", "return 55\n")})
    error = ready.apply(tmp_path / "fork", code=5)["error"]
    assert error["where"] == "series.lock"


def test_a_damaged_lock_is_named(ready: Lab, tmp_path: Path) -> None:
    (ready.root / "series.lock").write_text("{")
    error = ready.apply(tmp_path / "fork", code=5)["error"]
    assert error["where"].endswith("series.lock")


def test_an_unknown_release_names_the_known_ones(ready: Lab, tmp_path: Path) -> None:
    error = ready.apply(tmp_path / "fork", "--sglang-ref", "v9.9.9", code=2)["error"]
    assert "9.9.9" in error["message"]


@pytest.mark.parametrize("ref", ["--upload-pack=touch x", "-v", "a..b", "x@{1}", "a b", "$(x)", ""])
def test_an_option_shaped_ref_is_only_refused(ready: Lab, tmp_path: Path, ref: str) -> None:
    error = ready.apply(tmp_path / "fork", f"--sglang-ref={ref}", code=2)["error"]
    assert "not a release or a git ref" in error["message"]


def test_a_release_line_says_what_is_wrong_and_where(ready: Lab, tmp_path: Path) -> None:
    with (ready.root / "series.txt").open("a") as handle:
        handle.write("demo/bad.patch\n")
    error = ready.apply(tmp_path / "fork", code=2)["error"]
    assert error["where"].startswith("series.txt:") and "specifier" in error["message"]


class TestGitSource:
    """The same series on sglang's own repository gives another base commit and the same files."""

    @pytest.fixture
    def upstream(self, tmp_path: Path) -> Path:
        repository = tmp_path / "upstream"
        for name, text in TREE.items():
            path = repository / "python" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (repository / "README.md").write_text("more than the wheel has\n")
        git(repository.parent, "init", "-q", str(repository))
        git(repository, "add", "-A", "-f")
        git(repository, "commit", "-qm", "release")
        git(repository, "tag", f"v{RELEASE}")
        return repository

    def test_applies_on_a_tag(self, ready: Lab, upstream: Path, tmp_path: Path) -> None:
        args = ("--source", str(upstream), "--sglang-ref", f"v{RELEASE}")
        result = ready.json("apply", "--into", str(tmp_path / "fork"), *args)["result"]
        assert result["source"] == "git" and result["base"] == git(upstream, "rev-parse", "HEAD")
        assert (tmp_path / "fork" / UTILS).read_text() == EDITED
        assert (tmp_path / "fork" / "README.md").is_file()

    def test_applies_on_a_branch_with_the_pins_patches(
        self, ready: Lab, upstream: Path, tmp_path: Path
    ) -> None:
        git(upstream, "branch", "feature")
        args = ("--source", str(upstream), "--sglang-ref", "feature")
        result = ready.json("apply", "--into", str(tmp_path / "fork"), *args)["result"]
        assert result["release"] == RELEASE

    def test_a_moved_tag_does_not_match_the_lock(
        self, ready: Lab, upstream: Path, tmp_path: Path
    ) -> None:
        (upstream / UTILS).write_text(TREE["sglang/srt/utils.py"] + "\nMOVED = True\n")
        git(upstream, "commit", "-qam", "later")
        git(upstream, "tag", "-f", f"v{RELEASE}")
        args = ("--source", str(upstream), "--sglang-ref", f"v{RELEASE}")
        error = ready.json("apply", "--into", str(tmp_path / "fork"), *args, code=5)["error"]
        assert UTILS in error["message"] and "moved tag" in error["why"]
        assert not (tmp_path / "fork").exists()

    def test_a_shallow_clone_is_refused_with_the_way_out(
        self, ready: Lab, upstream: Path, tmp_path: Path
    ) -> None:
        git(upstream, "commit", "-q", "--allow-empty", "-m", "one more, so that depth 1 cuts")
        git(upstream, "tag", "-f", f"v{RELEASE}")
        git(tmp_path, "clone", "-q", "--depth=1", f"file://{upstream}", "shallow")
        args = ("--source", str(tmp_path / "shallow"), "--sglang-ref", f"v{RELEASE}")
        error = ready.json("apply", "--into", str(tmp_path / "fork"), *args, code=6)["error"]
        assert "shallow" in error["why"] and "--unshallow" in error["next"]

    def test_a_missing_ref_and_a_missing_repository(
        self, ready: Lab, upstream: Path, tmp_path: Path
    ) -> None:
        args = ("--into", str(tmp_path / "fork"), "--sglang-ref", "nope")
        assert ready.json("apply", *args, "--source", str(upstream), code=2)["error"]
        assert ready.json("apply", *args, "--source", "file:///nowhere", code=6)["error"]
        for bad in ("--upload-pack=x", "ext::sh -c x", "ftp://x"):
            assert ready.json("apply", *args, f"--source={bad}", code=2)["error"]

    def test_a_blobless_fetch_brings_what_is_needed(
        self, ready: Lab, upstream: Path, tmp_path: Path
    ) -> None:
        git(upstream, "config", "uploadpack.allowFilter", "true")
        git(upstream, "config", "uploadpack.allowAnySHA1InWant", "true")
        args = ("--source", f"file://{upstream}", "--sglang-ref", f"v{RELEASE}")
        ready.json("apply", "--into", str(tmp_path / "fork"), *args)
        assert (tmp_path / "fork" / UTILS).read_text() == EDITED
        assert (tmp_path / "fork" / "README.md").is_file()
