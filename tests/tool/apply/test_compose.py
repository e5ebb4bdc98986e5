"""What a lock, a series and the results of applying it say of each other; no repository is needed."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from packaging.version import Version

from tool.apply import check_all, compose, preimages
from tool.apply.check_all import LOCK, REPLAY, ROUND_TRIP, TWICE
from tool.apply.compose import check_patch_files, check_results, select_patches
from tool.apply.engine import Applied
from tool.errors import ConflictError, IntegrityError, ToolError, UpstreamedError, UsageError
from tool.git import NULL_OID, Git
from tool.project import Session
from tool.series import FileChange, Patch, parse_series, patchfile
from tool.series.lockfile import Lock, LockedPatch, LockedRelease
from tool.upstream import Base

V9, V23, V24 = Version("0.5.9"), Version("0.5.23"), Version("0.5.24")
A, B = "python/sglang/a.py", "python/sglang/b.py"
DIFF = (
    b"diff --git a/python/sglang/a.py b/python/sglang/a.py\n"
    b"index " + b"a" * 40 + b".." + b"b" * 40 + b" 100644\n"
    b"--- a/python/sglang/a.py\n+++ b/python/sglang/a.py\n@@ -1,2 +1,3 @@\n one\n+two\n three\n"
)
CONTENT = b"Description: s\n w\nOrigin: vendor\n---\n" + DIFF
NEW = CONTENT.replace(b"index " + b"a" * 40, b"new file mode 100644\nindex " + b"0" * 40)
NEW = NEW.replace(b" 100644\n---", b"\n---").replace(b"--- a/python/sglang/a.py", b"--- /dev/null")
NEW = NEW.replace(b"@@ -1,2 +1,3 @@\n one\n+two\n three\n", b"@@ -0,0 +1 @@\n+two\n")
BASE = Base(V23, "base", "base tree", "pypi", "v0.5.23")


def patch(name: str = "demo/a.patch", content: bytes = CONTENT) -> Patch:
    (found,) = parse_series(
        Path("/p"), f"pin 0.5.23\nrevision 1\nchange demo >=0.5.9\n    {name} ==0.5.23\n"
    ).patches
    return replace(found, content_override=content)


def applied(one: Patch, *files: FileChange, exact: bool = True, tree: str = "t1") -> Applied:
    parsed = patchfile.parse(one.name, CONTENT)
    return Applied(one.name, one.sha256, "t0", tree, "c1", files, exact, parsed)


def locked(*entries: LockedPatch, version: Version = V23) -> LockedRelease:
    return LockedRelease(version, (), "base", "base tree", entries)


CHANGE = FileChange(A, "a" * 40, "b" * 40)


def entry(one: Patch, *files: FileChange) -> LockedPatch:
    return LockedPatch(one.name, one.sha256, "t1", "c1", files or (CHANGE,))


def test_patch_files_are_those_of_the_lock() -> None:
    a, b = patch(), patch("demo/b.patch")
    check_patch_files([a, b], locked(entry(a), entry(b)))
    with pytest.raises(IntegrityError, match=r"lists demo/b.patch, demo/a.patch for 0\.5\.23"):
        check_patch_files([b, a], locked(entry(a), entry(b)))
    with pytest.raises(IntegrityError, match="is not the one that was proven") as caught:
        check_patch_files([a, b], locked(entry(a), replace(entry(b), sha256="x")))
    assert caught.value.where == "patches/demo/b.patch"


def test_results_are_those_of_the_lock() -> None:
    a = patch()
    check_results([applied(a, CHANGE)], locked(entry(a)), BASE)
    with pytest.raises(IntegrityError, match=f"{A}: the result is not the proven one"):
        other = FileChange(B, "1", "2")
        check_results(
            [applied(a, other, replace(CHANGE, after="x"))], locked(entry(a, CHANGE, other)), BASE
        )
    with pytest.raises(IntegrityError, match=f"{B}: the result"):
        check_results([applied(a, CHANGE)], locked(entry(a, CHANGE, FileChange(B, "1", "2"))), BASE)
    for changed in ({"tree": "t2"}, {"commit": "c2"}):
        result = replace(applied(a, CHANGE), **changed)
        with pytest.raises(IntegrityError, match="the resulting commit is not the proven one"):
            check_results([result], locked(entry(a)), BASE)
        # A git source has other commits below the series.
        check_results([result], locked(entry(a)), replace(BASE, source="git"))


def test_a_release_that_the_series_does_not_know() -> None:
    series = parse_series(
        Path("/p"), "pin 0.5.23\nrevision 1\nchange demo >=0.5.9\n    demo/a.patch ==0.5.23\n"
    )
    assert [p.name for p in select_patches(series, V23)] == ["demo/a.patch"]
    with pytest.raises(UsageError, match=r"no patch of the series applies to sglang 0\.5\.24"):
        select_patches(series, V24)


# -- pre-images ------------------------------------------------------------------------------------------


class Objects:
    """A repository that has some objects and refs; applying a release brings its blobs in."""

    def __init__(self, *there: str) -> None:
        self.there = set(there)
        self.refs: set[str] = set()

    def has_objects(self, oids: list[str]) -> dict[str, bool]:
        return {oid: oid in self.there for oid in oids}

    def resolve(self, ref: str) -> str | None:
        return ref if ref in self.refs else None


def test_pre_images_that_are_missing() -> None:
    a, new = patch(), patch("demo/new.patch", NEW)
    git = cast(Git, Objects())
    assert preimages.find_missing_preimages(git, [a, new]) == {"a" * 40}
    assert preimages.find_missing_preimages(git, [a], {"a" * 40}) == frozenset()
    assert preimages.find_missing_preimages(cast(Git, Objects("a" * 40)), [a]) == frozenset()
    assert list(preimages.find_orphans([new], ())) == []
    assert list(preimages.find_orphans([a, a], ())) == [(a, "a" * 40)] * 2
    added = FileChange(B, NULL_OID, "x")
    known = preimages.list_known_preimages(Lock({V23: locked(entry(a, CHANGE, added))}))
    assert known - {NULL_OID} == {"a" * 40}


def test_pre_images_are_brought_in_from_the_release_that_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a = patch()
    releases = {
        V9: locked(entry(a, FileChange(B, "c" * 40, "d" * 40)), version=V9),  # holds another blob
        V23: locked(entry(a), version=V23),
    }
    git = Objects()
    asked: list[str] = []
    notes: list[str] = []

    def resolve(_: object, request: Any) -> Base:
        asked.append(request.ref)
        return BASE

    monkeypatch.setattr(preimages, "resolve_base", resolve)
    monkeypatch.setattr(preimages, "apply_series", lambda *_: git.there.add("a" * 40))
    session = SimpleNamespace(
        lock=Lock(releases), git=git, progress=SimpleNamespace(note=notes.append),
        series=SimpleNamespace(for_release=lambda _: ()),
    )  # fmt: skip
    ensure = preimages.ensure_preimages
    ensure(cast(Session, session), [a], V24)
    assert asked == ["v0.5.23"] and "1 file(s)" in notes[0]
    ensure(cast(Session, session), [a], V24)  # now it is there
    git.there.clear()
    ensure(cast(Session, session), [a], V23)  # the release makes it by itself
    assert asked == ["v0.5.23"]
    git.refs.add("refs/ada/base/v0.5.23")
    ensure(cast(Session, session), [a], V24)
    assert len(asked) == 2 and len(notes) == 1  # nothing is downloaded, so nothing is said


# -- check -----------------------------------------------------------------------------------------------


def rules(
    monkeypatch: pytest.MonkeyPatch,
    *,
    base: Base | ToolError = BASE,
    known: tuple[str, ...] = ("a" * 40,),
    lock: LockedRelease | None = None,
    fails: ToolError | None = None,
    checks: ToolError | None = None,
) -> list[str]:
    a = patch()
    result = applied(a, CHANGE)

    def replay(*_: object) -> Any:
        if fails:
            raise fails
        yield a, result, []

    def check(*_: object) -> int:
        if checks:
            raise checks
        return 1

    monkeypatch.setattr(check_all, "_replay", replay)
    monkeypatch.setattr(check_all, "_round_trip", lambda *_: ())
    monkeypatch.setattr(check_all, "check_applied", check)
    series: Any = SimpleNamespace(for_release=lambda _: (a,))
    found = check_all._check(
        cast(Git, None), series, lock or locked(entry(a)), base, known, cast(Any, None)
    )
    assert found.release == V23
    return [one.rule for one in found.findings]


def test_what_a_check_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    a = patch()
    assert rules(monkeypatch) == []
    assert rules(monkeypatch, base=IntegrityError("another base")) == [LOCK]
    assert rules(monkeypatch, known=()) == [LOCK]
    assert rules(monkeypatch, lock=locked(replace(entry(a), tree="x"))) == [LOCK]
    assert rules(monkeypatch, lock=locked(replace(entry(a), sha256="x"))) == [LOCK]
    assert rules(monkeypatch, lock=locked(entry(a), entry(a))) == [LOCK]
    assert rules(monkeypatch, fails=ConflictError("no")) == [REPLAY]
    assert rules(monkeypatch, checks=ConflictError("no")) == [REPLAY]


@pytest.mark.parametrize(
    ("again", "message"),
    [
        (UpstreamedError("there"), None),
        (ConflictError("no", why="odd"), "it conflicts instead of being seen as there: odd"),
        (None, f"applies to its own result a second time, changing {A}"),
    ],
)
def test_a_patch_is_not_applied_twice(
    monkeypatch: pytest.MonkeyPatch, again: ToolError | None, message: str | None
) -> None:
    a = patch()

    def apply(*_: object) -> Applied:
        if again:
            raise again
        return applied(a, CHANGE)

    monkeypatch.setattr(check_all, "apply_patch", apply)
    index = SimpleNamespace(run=lambda *_: None)
    found = list(check_all._twice(cast(Git, index), a, applied(a)))
    assert [one.rule for one in found] == ([TWICE] if message else [])
    assert not message or message in found[0].message


@pytest.mark.parametrize(
    ("exact", "name", "content", "good"),
    [
        (True, "demo/a.patch", CONTENT, True),
        (True, "demo/b.patch", CONTENT, False),
        (True, "demo/a.patch", CONTENT.replace(b"+two", b"+2"), False),
        (True, "demo/a.patch", CONTENT.replace(b"@@ -1,2 +1,3", b"@@ -4,2 +4,3"), False),
        (False, "demo/a.patch", CONTENT.replace(b"@@ -1,2 +1,3", b"@@ -4,2 +4,3"), True),
        (False, "demo/a.patch", CONTENT.replace(b"+two", b"+2"), False),
        (False, "demo/a.patch", CONTENT.replace(b"vendor", b"other"), False),
    ],
)
def test_a_commit_gives_its_patch_back(
    monkeypatch: pytest.MonkeyPatch, exact: bool, name: str, content: bytes, good: bool
) -> None:
    a = patch()
    parsed = patchfile.parse("x", content)
    message = patchfile.message(parsed.header, name, "f" * 64)
    monkeypatch.setattr(check_all, "canonical_diff", lambda *_: parsed.diff)
    git = SimpleNamespace(out=lambda *_: message)
    found = list(check_all._round_trip(cast(Git, git), a, applied(a, exact=exact)))
    assert [one.rule for one in found] == ([] if good else [ROUND_TRIP])


def test_how_an_error_becomes_a_finding() -> None:
    found = check_all._finding(LOCK, IntegrityError("it differs", where="x", why="moved"))
    assert (found.where, found.message) == ("x", "it differs (moved)")
    found = check_all._finding(LOCK, IntegrityError("it differs"))
    assert (found.where, found.message) == ("series.lock", "it differs")


def test_releases_to_check() -> None:
    lock = Lock(
        {
            V24: locked(entry(patch()), version=V24),
            V23: locked(entry(patch())),
            V9: locked(version=V9),
        }
    )
    session = cast(Session, SimpleNamespace(lock=lock, series=SimpleNamespace(pin=V23)))
    assert check_all.select_releases(session, "all") == (V23, V24)
    assert check_all.select_releases(session, "v0.5.24, pin,0.5.24") == (V24, V23)
    with pytest.raises(UsageError, match="does not carry"):
        check_all.select_releases(session, "v0.5.8")


def test_one_release_after_the_other_in_as_many_threads_as_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(check_all, "_prepare", lambda _, release: release)
    monkeypatch.setattr(check_all, "_check", lambda _, __, entry, base, *___: (entry.version, base))
    session = SimpleNamespace(
        exclusive=contextlib.nullcontext, git=SimpleNamespace(), series=None,
        lock=Lock({V23: locked(), V24: locked(version=V24)}),
    )  # fmt: skip
    for jobs in (0, 1, 4):
        found = check_all.check_releases(cast(Session, session), (V24, V23), jobs=jobs)
        assert found == ((V24, V24), (V23, V23))


def test_a_composition_is_compared_with_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    a = patch()
    series = SimpleNamespace(for_release=lambda _: (a,), pin=V23)
    session = SimpleNamespace(series=series, git=None, lock=Lock({V23: locked(entry(a))}))
    monkeypatch.setattr(compose, "prepare_base", lambda *_: BASE)
    monkeypatch.setattr(compose, "apply_series", lambda *_: (applied(a, CHANGE),))
    assert compose.compose_release(cast(Session, session), V23).tip == "c1"
    monkeypatch.setattr(compose, "apply_series", lambda *_: (applied(a, CHANGE, tree="x"),))
    with pytest.raises(IntegrityError, match="is not the proven one"):
        compose.compose_release(cast(Session, session), V23)
    session.lock = Lock({V23: locked(replace(entry(a), sha256="x"))})
    with pytest.raises(IntegrityError, match="is not the one that was proven"):
        compose.compose_release(cast(Session, session), V23)
