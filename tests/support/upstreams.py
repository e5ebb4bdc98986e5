"""An upstream in miniature: a git repository with the files of the release of a lab, and commits after it."""

from __future__ import annotations

from pathlib import Path

from tests.support.lab import RELEASE, TREE, git
from tests.support.rebases import SOURCE, THEIRS

FILES = TREE | {"sglang/srt/limits.py": SOURCE}


class Upstream:
    """``folder`` is the repository. Its branch ``main`` begins with the commit of release 0.5.23."""

    def __init__(self, folder: Path, *, tag: bool = True) -> None:
        self.folder = folder
        git(folder.parent, "init", "-q", "-b", "main", str(folder))
        self.release = self.commit("release 0.5.23", FILES | {"../README.md": "sglang\n"})
        if tag:
            git(folder, "tag", f"v{RELEASE}")

    def commit(self, title: str, files: dict[str, str | None] | None = None) -> str:
        """Write files (None deletes one) by their name in the wheel, and commit; returns the id."""
        for name, text in (files or {}).items():
            path = self.folder / "python" / name
            if text is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        git(self.folder, "add", "-A", "-f")
        git(self.folder, "commit", "-q", "--allow-empty", "-m", title)
        return git(self.folder, "rev-parse", "HEAD")

    def rename_page(self) -> str:
        """The commit that demo/limits.patch conflicts with, between commits that touch nothing."""
        self.commit("docs: one")
        self.commit("docs: two")
        found = self.commit("pool: name the size of a page (#42)", {"sglang/srt/limits.py": THEIRS})
        self.commit("docs: three")
        return found
