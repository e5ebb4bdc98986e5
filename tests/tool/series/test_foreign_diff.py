"""A diff of another hand, read and written again: git makes the same files of both."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.lab import git
from tool.series.foreign_diff import read_foreign_diff, render_foreign_diff

BODY = "".join(f"line {i}\n" for i in range(40))
ROOT = "python/sglang/"
BASE = {"a.py": BODY, "b.py": "b\n", "empty.py": "", 'quo"te x.py': "q\n"}
CHANGES: dict[str, Callable[[Path], object]] = {
    "edited": lambda f: (f / "a.py").write_text(BODY.replace("line 3\n", "line three\n")),
    "renamed": lambda f: (f / "a.py").rename(f / "c.py"),
    "renamed and edited": lambda f: (
        (f / "a.py").unlink(), (f / "c.py").write_text(BODY.replace("line 3\n", "line three\n"))),
    "copied": lambda f: (
        (f / "c.py").write_text(BODY), (f / "a.py").write_text(BODY + "more\n")),
    "added": lambda f: (f / "new.py").write_text("new\n"),
    "added, empty": lambda f: (f / "new.py").write_text(""),
    "removed": lambda f: (f / "b.py").unlink(),
    "removed, empty": lambda f: (f / "empty.py").unlink(),
    "a quoted name": lambda f: (f / 'quo"te x.py').write_text("q\nr\n"),
    "without a last newline": lambda f: (f / "b.py").write_text("b\nc"),
    "several": lambda f: (
        (f / "b.py").unlink(), (f / "a.py").rename(f / "c.py"), (f / "n.py").write_text("")),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("prefix", ["-M", "--no-prefix"])
def test_git_makes_the_same_of_it(tmp_path: Path, name: str, prefix: str) -> None:
    folder = tmp_path / ROOT
    folder.mkdir(parents=True)
    for path, text in BASE.items():
        (folder / path).write_text(text)
    git(tmp_path, "init", "-q", "--initial-branch=main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "base")
    CHANGES[name](folder)
    git(tmp_path, "add", "-A")
    tree = git(tmp_path, "write-tree")
    command = ["git", "diff", "--cached", "-M", "-C", prefix]
    diff = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    files = read_foreign_diff("a diff", diff)
    rendered = render_foreign_diff(files)
    git(tmp_path, "reset", "-q", "--hard")
    subprocess.run(["git", "apply", "--index"], cwd=tmp_path, input=rendered, check=True)
    assert git(tmp_path, "write-tree") == tree
    assert read_foreign_diff("again", rendered) == files
