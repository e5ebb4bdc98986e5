"""Whole answers of ``tool drift``: the same question again costs little more than starting Python.

An answer follows from its question, the project's files, the releases in the repository, git, and
what reads version numbers. All of them name its entry, files by their content. What it rests on must
still be in the repository, as for a single verdict (:mod:`tool.verdict_cache`), which is where a
question that differs a little finds most of its answer.

Nothing that reads the series, applies or compares is imported here: that would cost as much again as
all the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import packaging

from tool import git, landing
from tool.git import Git
from tool.home import Home
from tool.project import LOCK_FILE, PATCH_DIR, SERIES_FILE
from tool.report import Report


@dataclass(frozen=True)
class Answer:
    """``rests_on``: the objects that must be there for it to hold; None: it also follows from what is
    not here, such as another repository, and is never kept."""

    report: Report
    rests_on: frozenset[str] | None


def ask(
    home: Home, root: Path, question: tuple[str | None, ...], work: Callable[[Git], Answer]
) -> Report:
    """The kept answer to ``question`` about the project in ``root``, or what ``work`` finds.

    ``work`` is called with the data folder's lock held.

    Raises:
        ToolError: as ``work``.
    """
    with home.exclusive():
        repository = home.open_repository()
        landing.recover(repository, home)
        store = home.store
        words = _words(repository, root, question)
        kept = store.get(*words)
        if kept is not None and all(repository.has_objects(kept["rests_on"]).values()):
            return Report(kept["result"], kept["lines"], kept["exit_code"])
        answer = work(repository)
        # A file edited or a release imported meanwhile: nobody knows which state this answers for.
        if answer.rests_on is not None and words == _words(repository, root, question):
            store.put(vars(answer.report) | {"rests_on": sorted(answer.rests_on)}, *words)
        return answer.report


def _words(repository: Git, root: Path, question: tuple[str | None, ...]) -> tuple[object, ...]:
    """All that the answer to ``question`` follows from."""
    files = [root / SERIES_FILE, root / LOCK_FILE, *sorted((root / PATCH_DIR).glob("*.patch"))]
    project = [(f.name, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files if f.is_file()]
    releases = repository.out("for-each-ref", "--format=%(refname) %(objectname)", "refs/ada/base")
    return "drift", question, project, releases, git.version(), packaging.__version__
