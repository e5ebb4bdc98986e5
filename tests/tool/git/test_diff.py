"""Diffs in fixed forms, and the process that makes many of them."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.lab import Lab
from tests.tool.git.test_repository import children
from tool.git import Git, Run, changed_runs
from tool.git.repository import GitFailed


def write(git: Git, text: str) -> str:
    return git.out("hash-object", "-w", "--stdin", stdin=text.encode())


def test_runs_between_two_blobs(lab: Lab) -> None:
    git = Git(lab.home.repository)
    before, after = write(git, "a\nb\nc\nd\n"), write(git, "x\na\nB\nB\nc\nd")
    runs = list(changed_runs(git, before, after))
    assert runs == [
        Run(0, 1, (), (b"x",)),
        Run(2, 3, (b"b",), (b"B", b"B")),
        Run(4, 6, (b"d",), (b"d",)),  # without its newline
    ]
    assert list(changed_runs(git, before, before)) == []


def test_a_line_of_a_file_cannot_end_an_answer(lab: Lab) -> None:
    git = Git(lab.home.repository)
    before = write(git, "end\n")
    trees = git.make_tree("file", before)
    after = write(git, f"end {trees} {trees}\n\n{trees} {trees}\n" * 40_000)
    (run,) = changed_runs(git, before, after)
    assert len(run.added) == 120_000
    (back,) = changed_runs(git, after, before)
    assert back.removed == run.added


def test_one_process_compares_all(lab: Lab) -> None:
    git = Git(lab.home.repository)
    blobs = [write(git, f"{n}\n") for n in range(5)]
    list(changed_runs(git, *blobs[:2]))
    started = children()
    for before, after in zip(blobs, blobs[1:], strict=False):
        (run,) = changed_runs(git, before, after)
        assert run.old_line == run.new_line == 1
    assert children() == started


def test_trees_that_are_not_there(lab: Lab) -> None:
    git = Git(lab.home.repository)
    tree = git.make_tree("file", write(git, "a\n"))
    with pytest.raises(GitFailed, match="compare"):
        git.compare_trees(tree, "1" * 40, "-p")
    with pytest.raises(GitFailed, match="diff-tree"):
        list(changed_runs(git, "1" * 40, "2" * 40))


def test_a_process_that_died_is_an_error(lab: Lab) -> None:
    git = Git(lab.home.repository)
    tree = git.make_tree("file", write(git, "a\n"))
    before = children()
    git.compare_trees(tree, tree)
    (reader,) = set(children()) - set(before)
    os.kill(int(reader), signal.SIGKILL)
    with pytest.raises(GitFailed, match="diff-tree"):
        git.compare_trees(tree, tree)
