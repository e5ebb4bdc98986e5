"""Which remembered resolution is tried first, and which is not used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from packaging.version import Version

from tool.classify import Decision, OutcomeKind
from tool.errors import EnvironmentFault
from tool.project import Session
from tool.project.workspace import Workspace
from tool.rebase import rerere
from tool.series import parse_series, patchfile
from tool.upstream import Base

V23, V24 = Version("0.5.23"), Version("0.5.24")
PATH = "python/sglang/x.py"
CONTENT = (
    b"Description: s\n w\nOrigin: vendor\n---\n"
    b"diff --git a/python/sglang/x.py b/python/sglang/x.py\n"
    b"index " + b"a" * 40 + b".." + b"b" * 40 + b" 100644\n"
    b"--- a/python/sglang/x.py\n+++ b/python/sglang/x.py\n@@ -1,2 +1,3 @@\n one\n+two\n three\n"
)
TEXT = "pin 0.5.23\nrevision 1\nchange demo >=0.5.9\n    demo/a.patch ==0.5.23\n"


@pytest.fixture
def step(tmp_path: Path) -> Any:
    (patch,) = parse_series(tmp_path, TEXT).patches
    patch = replace(patch, content_override=CONTENT)
    outcome = SimpleNamespace(kind=OutcomeKind.CONFLICT, reasons=("they clash",))
    return SimpleNamespace(patch=patch, parent="c", parent_tree="t", outcome=outcome)


def decided(content: bytes) -> Decision:
    return Decision(OutcomeKind.CONFLICT, (), content, how="by hand")


def resolved(word: bytes, oid: bytes) -> bytes:
    return CONTENT.replace(b"+two", b"+" + word).replace(b"a" * 40, oid * 40)


def recall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Any, now: str, good: dict[bytes, Any]
) -> str | None:
    """Which word the resolution has that is taken; ``good``: what replaying each gives."""

    def replay(_: object, __: object, base: Base, patches: list[Any], **___: object) -> Any:
        assert (base.commit, base.tree) == ("c", "t")
        word = next(w for w in good if b"+" + w in patches[0].content)
        if isinstance(good[word], Exception):
            raise good[word]
        return (SimpleNamespace(outcome=SimpleNamespace(carries=good[word])),)

    monkeypatch.setattr(rerere, "replay_series", replay)
    monkeypatch.setattr(rerere, "find_blobs", lambda *_: {PATH: now * 40})
    session = SimpleNamespace(git=None, series=None, workspace=Workspace(tmp_path, tmp_path))
    base = Base(V24, "base", "tree", "pypi", "v0.5.24")
    found = rerere.recall_resolution(cast(Session, session), base, step)
    if found is None:
        return None
    decision, resolution = found
    content = decision.content
    assert content is not None and decision.how == f"by a {resolution}"
    assert str(resolution) == "remembered resolution of demo/a.patch, v0.5.23 -> v0.5.24"
    assert patchfile.parse("x", content).header == patchfile.parse("x", CONTENT).header
    return next(w.decode() for w in good if b"+" + w in content)


def test_the_nearest_that_carries_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Any
) -> None:
    none: dict[bytes, Any] = {}
    assert recall(tmp_path, monkeypatch, step, "d", none) is None
    for word, oid in ((b"deux", b"c"), (b"zwei", b"d")):
        name, body = rerere.record_resolution(
            step.patch, decided(resolved(word, oid)), V23, str(V24)
        )
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(body)
    both: dict[bytes, Any] = {b"deux": True, b"zwei": True}
    assert recall(tmp_path, monkeypatch, step, "d", both) == "zwei"
    assert recall(tmp_path, monkeypatch, step, "c", both) == "deux"
    assert recall(tmp_path, monkeypatch, step, "d", {**both, b"zwei": False}) == "deux"
    gone = EnvironmentFault("a blob is gone")
    assert recall(tmp_path, monkeypatch, step, "d", {**both, b"zwei": gone}) == "deux"
    assert recall(tmp_path, monkeypatch, step, "d", dict.fromkeys(both, False)) is None


def test_what_another_version_wrote_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Any
) -> None:
    name, body = rerere.record_resolution(
        step.patch, decided(resolved(b"deux", b"c")), V23, str(V24)
    )
    key = Path(name).name.split("-")[0]
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(body)
    for number, content in enumerate(("{", "[]", '{"other": 1}')):
        (tmp_path / name).with_name(f"{key}-{number}.json").write_text(content)
    (tmp_path / name).with_name("another-1.json").write_bytes(body)
    assert recall(tmp_path, monkeypatch, step, "d", {b"deux": True}) == "deux"


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        (OutcomeKind.EXACT, True),
        (OutcomeKind.SQUASHED, False),
        (OutcomeKind.PARTIAL, False),
        (OutcomeKind.CONFLICT, False),
    ],
)
def test_what_was_left_out_is_left_out_where_upstream_has_it_in_the_same_way(
    tmp_path: Path, step: Any, kind: OutcomeKind, taken: bool
) -> None:
    left_out = Decision(OutcomeKind.EXACT, (), skipped="upstream #42")
    name, body = rerere.record_resolution(step.patch, left_out, V23, "upstream/main (abc)")
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(body)
    step.outcome = SimpleNamespace(kind=kind, reasons=("it is there",))
    session = SimpleNamespace(git=FakeGit(), series=None, workspace=Workspace(tmp_path, tmp_path))
    base = Base(V24, "base", "tree", "pypi", "v0.5.24")
    found = rerere.recall_resolution(cast(Session, session), base, step)
    if not taken:
        assert found is None
        return
    assert found is not None and (found[0].skipped, found[0].reasons) == (
        "upstream #42",
        ("it is there",),
    )
    assert str(found[1]) == "remembered resolution of demo/a.patch, v0.5.23 -> upstream/main (abc)"


class FakeGit:
    """A tree without files."""

    def find(self, _: str) -> None:
        return None
