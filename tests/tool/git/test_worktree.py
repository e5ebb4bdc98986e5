"""What a worktree holds, read from its files and a copy of its index."""

import time
from pathlib import Path

from tests.support.lab import git
from tool.git.worktree import write_worktree


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
