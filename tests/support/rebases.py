"""Helpers of the tests of `tool rebase`: a series of three patches, and releases that conflict."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tests.support.lab import B_ONLY, NEXT, TREE, TWINS, UTILS, Lab, git

LIMITS = "python/sglang/srt/limits.py"
SOURCE = """\
FIRST = 1
SECOND = 2
THIRD = 3


class Pool:
    def size(self):
        total = self.blocks * self.page
        return total - self.reserve


def final():
    last = compute_everything()
    return last
"""
STOCK = "        total = self.blocks * self.page\n"
WANTED = "        total = max(self.blocks * self.page, self.minimum_size)\n"
OURS = SOURCE.replace(STOCK, WANTED)
THEIRS = SOURCE.replace(STOCK, "        total = self.blocks * self.page_size\n")
MERGED = SOURCE.replace(STOCK, WANTED.replace("self.page,", "self.page_size,"))
ANSWER = TREE["sglang/srt/utils.py"].replace("return 3\n", "return 33\n")


def make_upstream(folder: Path, *titles: str) -> Path:
    """A repository of sglang: the release's tree, empty commits with these titles, the next release's tag."""
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for name, text in TREE.items():
        path = folder / "python" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "add", ".")
    for title in ("All of it", *titles):
        git(folder, "commit", "-q", "--allow-empty", "-m", title)
    git(folder, "tag", f"v{NEXT}")
    return folder


def three_patches(lab: Lab) -> Lab:
    """Release 0.5.23 with three patches and with comments that a person wrote."""
    lab.release("0.5.23", TREE | {"sglang/srt/limits.py": SOURCE})
    lab.patch("demo/answer.patch", {UTILS: ANSWER})
    lab.patch("demo/limits.patch", {LIMITS: OURS})
    lab.patch("demo/twins.patch", {TWINS: B_ONLY})
    path = lab.root / "series.txt"
    text = path.read_text().replace(
        "    demo/limits.patch ==", "    # kept\n    demo/limits.patch    =="
    )
    path.write_text(text.replace("==0.5.23\n    # kept", "==0.5.23  # why\n    # kept"))
    lab.relock()
    return lab


def upgrade(lab: Lab, changes: dict[str, str | None], version: str = NEXT) -> None:
    files = TREE | {"sglang/srt/limits.py": SOURCE} | changes
    lab.release(version, {path: text for path, text in files.items() if text is not None})


def project(lab: Lab) -> dict[str, str]:
    """The hash of every file of the project, by path."""
    return {
        path.relative_to(lab.root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(lab.root.rglob("*"))
        if path.is_file()
    }


def rebase(lab: Lab, *args: str, code: int = 0) -> dict[str, Any]:
    envelope = lab.json("rebase", *args, code=code)
    return envelope["result"] or envelope["error"]


def onto(lab: Lab, *args: str, code: int = 0) -> dict[str, Any]:
    return rebase(lab, "--onto", f"v{NEXT}", "--offline", *args, code=code)


def check(lab: Lab) -> None:
    assert lab.json("check", "--offline")["result"]["findings"] == 0
    assert lab.json("lint")["result"]["findings"] == []


def conflicting(lab: Lab) -> Path:
    """Stop at demo/limits.patch; returns the worktree's file with the markers."""
    upgrade(lab, {"sglang/srt/limits.py": THEIRS})
    stopped = onto(lab, code=3)
    assert stopped["stop"]["patch"] == "demo/limits.patch"
    return Path(stopped["worktree"]) / LIMITS
