"""The git runner: no configuration of the user, and no input of an attacker, changes what git does."""

from __future__ import annotations

import gc
import os
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from packaging.version import Version

from tests.support.lab import NEXT, TREE, UTILS, Lab, git
from tool.errors import EnvironmentFault, UsageError
from tool.git import history, isolation, repository
from tool.git.objects import blob_id
from tool.git.repository import Git, GitFailed, check_ref, failure
from tool.upstream import wheel_import


@pytest.mark.parametrize(
    "text",
    ["--help", "-x", "a..b", "a//b", "x.lock", "a/.b", "a@{1}", "a b", "a\nb", "", "a^", "a:b"],
)
def test_check_ref_refuses_what_is_not_plainly_a_ref(text: str) -> None:
    with pytest.raises(UsageError):
        check_ref(text)


@pytest.mark.parametrize("text", ["main", "v0.5.23", "feature/x-1", "0123abc", "release_1.0+x"])
def test_check_ref_accepts_refs(text: str) -> None:
    assert check_ref(text) == text


def test_users_configuration_and_environment_change_nothing(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.patch(
        "demo/answer.patch",
        {UTILS: TREE["sglang/srt/utils.py"].replace("return 3\n", "return 33\n")},
    )
    lab.relock()
    first = lab.apply(tmp_path / "one")["result"]["head"]
    config = tmp_path / "gitconfig"
    config.write_text(
        "[user]\n\tname = Mallory\n\temail = m@example.invalid\n[core]\n\tautocrlf = true\n\thooksPath = "
        f"{tmp_path}/hooks\n[commit]\n\tgpgSign = true\n[apply]\n\twhitespace = fix\n"
        "[diff]\n\tnoprefix = true\n"
        "[i18n]\n\tcommitEncoding = latin1\n"
    )
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("post-checkout", "reference-transaction", "post-index-change"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/hook-ran\n")
        (hooks / name).chmod(0o755)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nonexistent")
    monkeypatch.setenv("GIT_AUTHOR_DATE", "2001-01-01T00:00:00Z")
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    assert lab.apply(tmp_path / "two", "--branch", "two")["result"]["head"] == first
    assert not (tmp_path / "hook-ran").exists()


def test_missing_objects_are_an_environment_fault(lab: Lab) -> None:
    with pytest.raises(EnvironmentFault, match="is missing"):
        Git(lab.home.repository).blobs(["1" * 40])


def children() -> list[str]:
    """Processes that this process started and that are still running."""
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()


def test_a_process_that_stays_sees_what_others_write(lab: Lab) -> None:
    repository = Git(lab.home.repository)
    new = blob_id(b"written later\n")
    assert repository.resolve("refs/heads/later") is None
    assert repository.has_objects([new]) == {new: False}
    others = Git(lab.home.repository)
    assert others.out("hash-object", "-w", "--stdin", stdin=b"written later\n") == new
    base = others.resolve(wheel_import.release_ref(Version("0.5.23")))
    assert base is not None
    others.run("update-ref", "refs/heads/later", base)
    others.run("pack-refs", "--all")
    assert repository.blobs([new]) == {new: b"written later\n"}
    assert repository.resolve("refs/heads/later") == base
    others.run("update-ref", "-d", "refs/heads/later")
    assert repository.resolve("refs/heads/later") is None


def test_a_process_that_stays_ends_with_the_last_that_may_ask(lab: Lab) -> None:
    before = children()
    repository = Git(lab.home.repository)
    index = replace(repository, index_file=lab.home.data / "index")
    new = blob_id(b"")
    assert repository.has_objects([new]) == index.has_objects([new])
    assert len(children()) == len(before) + 1
    del repository
    assert len(children()) == len(before) + 1
    del index
    assert children() == before


def test_a_process_that_died_is_an_error(lab: Lab) -> None:
    before = children()
    repository = Git(lab.home.repository)
    new = blob_id(b"")
    repository.has_objects([new])
    (reader,) = set(children()) - set(before)
    os.kill(int(reader), signal.SIGKILL)
    with pytest.raises(GitFailed, match="cat-file"):
        repository.has_objects([new])


def test_the_content_of_an_object_is_asked_for_once(lab: Lab) -> None:
    repository = Git(lab.home.repository)
    small, large = (
        repository.out("hash-object", "-w", "--stdin", stdin=text)
        for text in (b"kept\n", b"too large to be kept" * (1 << 16))
    )
    repository.blobs([large])
    before = children()
    assert repository.blobs([small]) == {small: b"kept\n"}
    os.kill(int(before[-1]), signal.SIGKILL)
    assert repository.blobs([small]) == {small: b"kept\n"}
    with pytest.raises(GitFailed, match="cat-file"):
        repository.blobs([large])


def test_a_process_that_stays_answers_where_a_thousand_files_are_open(lab: Lab) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2048), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert Git(lab.home.repository).find("1" * 40) is None
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("command", [("check",), ("drift", "--onto", f"v{NEXT}")])
def test_the_processes_of_a_command_end_with_it_without_garbage_collection(
    ready: Lab, command: tuple[str, ...]
) -> None:
    ready.release(NEXT, TREE)
    gc.collect()
    before = children()
    gc.disable()
    try:
        ready.tool(*command, "--offline", code=None)
        assert children() == before
    finally:
        gc.enable()


def test_threads_do_not_take_each_others_answers(lab: Lab) -> None:
    repository = Git(lab.home.repository)
    base = repository.resolve(wheel_import.release_ref(Version("0.5.23")))
    names = [f"{base}:python/{path}" for path in TREE] * 20
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(repository.find, names))
    assert found == [blob_id(text.encode()) for text in TREE.values()] * 20


def test_a_full_disk_is_told_from_other_failures() -> None:
    full = failure(("write-tree",), 128, b"fatal: write error: No space left on device\n")
    assert isinstance(full, EnvironmentFault) and full.next_step
    assert isinstance(failure(("write-tree",), 128, b"fatal: other\n"), GitFailed)


def test_the_repository_is_a_plain_one_a_person_can_read(lab: Lab) -> None:
    assert git(lab.home.repository, "fsck", "--strict") == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("error: unable to write file x\nfatal: y: No space left on device", "no space left"),
        ("fatal: sha1 file 'a/index.lock' write error. Out of diskspace", "no space left"),
        ("fatal: prepare: cannot update ref 'r': couldn't write 'r.lock'", "could not write"),
        ("error: unable to write file x", "could not write"),
        ("fatal: bad object", "exit code 128"),
    ],
)
def test_what_git_could_not_write_is_told_from_other_failures(words: str, message: str) -> None:
    error = failure(("x",), 128, words.encode())
    assert message in error.message
    assert isinstance(error, EnvironmentFault) == ("write" in words)
    assert "space" in f"{error.message} {error.next_step}" or "write" not in words


# -- a git that is not there, old, or does not answer --------------------------------------------------


def test_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(EnvironmentFault, match="git is not installed"):
        Git(tmp_path).run("version")
    repository.installed_version.cache_clear()
    try:
        with pytest.raises(EnvironmentFault, match="git is not installed"):
            repository.installed_version()
    finally:
        repository.installed_version.cache_clear()


def test_a_git_that_does_not_end(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="git -c did not finish in 0 s"):
        Git(tmp_path).run("-c", "alias.hang=!sleep 5", "hang", timeout=0.05)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("git version 2.32.0", (2, 32)),
        ("git version 2.39.5 (Apple Git-154)", (2, 39)),
        ("git version 3.0", (3, 0)),
        ("git version 2.31.9", None),
        ("git version 1.99", None),
        ("git", None),
    ],
)
def test_the_oldest_git(
    monkeypatch: pytest.MonkeyPatch, said: str, found: tuple[int, int] | None
) -> None:
    monkeypatch.setattr(repository, "installed_version", lambda: said)
    if found is not None:
        assert repository.require_version() == found
        return
    with pytest.raises(EnvironmentFault, match="is too old"):
        repository.require_version()


def test_objects_that_are_not_there(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    found = lab.home.open_repository()
    with pytest.raises(EnvironmentFault, match="1{12}"):
        found.tree_of("1" * 40)
    with pytest.raises(EnvironmentFault, match="1{12}"):
        found.blobs(["1" * 40])

    class Silent:
        def register(self, *_: object) -> None: ...
        def poll(self, _: float) -> list[object]:
            return []

    monkeypatch.setattr(repository.select, "poll", Silent)
    with pytest.raises(EnvironmentFault, match="git cat-file did not answer in"):
        found.blobs(["2" * 40])


def test_a_commit_that_is_not_there() -> None:
    class Empty:
        def commit(self, oid: str) -> None:
            raise ValueError(oid)

    with pytest.raises(EnvironmentFault, match="1{12}"):
        history._read(cast(Any, Empty()), "1" * 40, "here")


def test_a_repository_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(isolation, "_create", refuse)
    assert isolation.isolated_folder(tmp_path) is None  # no repository yet
    (tmp_path / "objects").mkdir()
    with pytest.raises(EnvironmentFault, match="the repository of the tool cannot be written"):
        isolation.isolated_folder(tmp_path)
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "config").write_text("")
    assert isolation.isolated_folder(tmp_path) == tmp_path / "tool"
    assert isolation.isolated_folder(tmp_path / "worktrees" / "x") == tmp_path / "tool"
