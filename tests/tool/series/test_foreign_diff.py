"""A diff of another hand, read and written again: git makes the same files of both."""

# ruff: noqa: E501  (a row of a table is one line)
from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.lab import git
from tool.errors import UsageError
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


ONE = "diff --git a/python/sglang/x.py b/python/sglang/x.py\n"
NAMES = "--- a/python/sglang/x.py\n+++ b/python/sglang/x.py\n"
HUNK = "@@ -1 +1,2 @@\n one\n+two\n"
MOVED = "rename from python/sglang/x.py\nrename to python/sglang/y.py\n"


@pytest.mark.parametrize(
    ("diff", "words"),
    [
        (ONE + NAMES + HUNK + ONE + NAMES + HUNK, "x.py is changed twice"),
        (ONE, "no hunks"),
        (ONE + NAMES, "no hunks"),
        (ONE + MOVED, "does not name python/sglang/x.py and python/sglang/y.py"),
        (ONE + MOVED.replace("from ", 'from "'), "is not a file name: a quote is not closed"),
        (ONE.replace("b/python/sglang/x", "b/python/sglang/y") + NAMES, "not those of one file"),
        (ONE + NAMES.replace("--- a/python/sglang/x", "--- a/python/sglang/y") + HUNK, "does not name"),
        (ONE + NAMES.replace("+++ b/python/sglang/x", "+++ b/python/sglang/y") + HUNK, "does not name"),
        (ONE + NAMES.replace("+++", "++") + HUNK, "does not name"),
        (ONE + "new file mode 100644\n--- /dev/null\n+++ b/python/sglang/x.py\n" + HUNK, "added or removed whole"),
        (
            ONE + "deleted file mode 100644\n--- a/python/sglang/x.py\n+++ /dev/null\n@@ -1,2 +1 @@\n one\n-two\n",
            "added or removed whole",
        ),
        (ONE + "new file mode 100644\n" + NAMES + HUNK, "does not name /dev/null"),
        (ONE + "new file mode 120000\n", "is a symlink"),
        (ONE + "index 1..2 120000\n" + NAMES + HUNK, "is a symlink"),
        (ONE + NAMES + HUNK + "-- \n2.39\n" + NAMES, "a line of a diff stands outside the hunks"),
        (ONE.replace("python/sglang/x", "setup") + NAMES, "setup.py"),
        (
            "diff --git a/setup.py b/python/sglang/y.py\nrename from setup.py\nrename to python/sglang/y.py\n",
            "is outside python/sglang/",
        ),
        (ONE + "GIT binary patch\n", "binary"),
    ],
)  # fmt: skip
def test_a_diff_that_does_not_agree_with_itself(diff: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_foreign_diff("mail", diff.encode())
    assert words in caught.value.message and "of the decoded diff" in (caught.value.where or "")


def test_a_footer_and_the_line_ends_of_a_mail_program() -> None:
    (plain,) = read_foreign_diff("mail", (ONE + NAMES + HUNK).encode())
    assert [h.new_len for h in plain.hunks] == [2] and not (plain.created or plain.deleted)
    with_footer = (ONE + NAMES + HUNK + "-- \n2.39.5\n").replace("\n", "\r\n")
    assert read_foreign_diff("mail", with_footer.encode()) == (plain,)
    # A file whose own lines end so keeps them.
    (kept,) = read_foreign_diff("mail", (ONE + NAMES + HUNK.replace("two\n", "two\r\n")).encode())
    assert kept.hunks[0].lines[-1] == b"+two\r"


def test_names_with_a_space_can_be_split_in_one_way() -> None:
    names = "diff --git a/python/sglang/x y.py b/python/sglang/z y.py\n"
    moved = "rename from python/sglang/x y.py\nrename to python/sglang/z y.py\n"
    (found,) = read_foreign_diff("mail", (names + moved).encode())
    assert (found.source, found.path) == ("python/sglang/x y.py", "python/sglang/z y.py")
    assert (found.moved, found.hunks) == ("rename", ())
