"""Remembered verdicts: the same answer without the work, and never an answer to another question."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from lab import NEXT, TREE, TWINS, UTILS, Lab

from tool import drift, series
from tool.git import Git
from tool.upstream import Request

TEXT = TREE["sglang/srt/utils.py"]
OURS = TEXT.replace("return 3\n", "return 33\n")
NEW = "python/sglang/srt/new.py"
UPSTREAM: dict[str, str | None] = {
    "clean": TEXT + "END = 1\n",
    "moved": "START = 1\n" + TEXT,
    "merged": TEXT.replace("def f4():", "def f4(x=0):"),
    "exact": OURS,
    "conflict": TEXT.replace("return 3\n", "return 34\n"),
    "target gone": None,
}

Applies = Callable[[], int]


@pytest.fixture
def applies(monkeypatch: pytest.MonkeyPatch) -> Applies:
    """How many times a patch was applied since the last call."""
    seen: list[str] = []
    run = Git.run

    def counting(self: Git, *args: str, **kwargs: Any) -> subprocess.CompletedProcess[bytes]:
        seen.append(args[0])
        return run(self, *args, **kwargs)

    def count() -> int:
        found = seen.count("apply")
        seen.clear()
        return found

    monkeypatch.setattr(Git, "run", counting)
    return count


def carried_to(lab: Lab, upstream: str | None) -> None:
    lab.patch("answer.patch", {UTILS: OURS})
    lab.relock()
    files = {path: text for path, text in TREE.items() if path != "sglang/srt/utils.py"}
    lab.release(NEXT, files | ({} if upstream is None else {"sglang/srt/utils.py": upstream}))


def ask(lab: Lab) -> drift.Drift:
    request = Request(f"v{NEXT}", offline=True, quiet=True)
    return drift.drift(series.load(lab.root), lab.home, request, source=None)


@pytest.mark.parametrize("kind", UPSTREAM)
def test_the_same_question_has_the_same_answer(lab: Lab, applies: Applies, kind: str) -> None:
    carried_to(lab, UPSTREAM[kind])
    first = ask(lab)
    assert first.steps[0].verdict.kind == kind and applies() > 0
    assert ask(lab) == first and applies() == 0


def test_lines_of_the_conflict_come_back_byte_for_byte(lab: Lab, applies: Applies) -> None:
    line = "return 'é\x0c\u2028\\'\r\n"
    carried_to(lab, TEXT.replace("return 3\n", line))
    first = ask(lab)
    (theirs,) = first.steps[0].verdict.troubles[0].theirs
    assert theirs.added == (f"    {line}".rstrip("\n").encode(),) and applies() > 0
    assert ask(lab) == first and applies() == 0


def test_a_commit_that_is_gone_is_made_again(lab: Lab, applies: Applies) -> None:
    carried_to(lab, UPSTREAM["moved"])
    first = ask(lab)
    lab.forget_repository()
    applies()
    assert ask(lab) == first and applies() > 0
    assert lab.home.open_repository().has_objects([first.tree]) == {first.tree: True}


def test_another_patch_is_another_question(lab: Lab, applies: Applies) -> None:
    """Those before it are known still; what it meets is found out."""
    lab.patch("answer.patch", {UTILS: OURS})
    lab.patch("new.patch", {NEW: "NEW = 1\n"})
    last = lab.patch("twins.patch", {TWINS: None})
    lab.relock()
    lab.release(NEXT, TREE | {"sglang/srt/utils.py": UPSTREAM["moved"] or ""})
    before = ask(lab)
    last.write_bytes(last.read_bytes().replace(b"change twins", b"Change twins"))
    lab.relock()
    applies()
    after = ask(lab)
    assert applies() == 1
    assert after.steps[:2] == before.steps[:2]
    assert after.tree == before.tree and after.steps[2].applied != before.steps[2].applied


def test_another_base_is_another_question(lab: Lab, applies: Applies) -> None:
    carried_to(lab, UPSTREAM["clean"])
    ask(lab)
    lab.release(NEXT, TREE | {"sglang/srt/utils.py": UPSTREAM["conflict"] or ""})
    assert ask(lab).steps[0].verdict.kind == "conflict"


def test_without_what_was_kept(lab: Lab, applies: Applies) -> None:
    carried_to(lab, UPSTREAM["clean"])
    first = ask(lab)
    shutil.rmtree(lab.home.cache / "known")
    applies()
    assert ask(lab) == first and applies() > 0
