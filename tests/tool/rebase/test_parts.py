"""Parts of a rebase, each at its face: its state, merges of single files, what is written, and memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tool.analysis import Block
from tool.classify import ConflictHunk, Decision, OutcomeKind
from tool.errors import (
    ConflictError,
    EnvironmentFault,
    IntegrityError,
    ToolError,
    UsageError,
)
from tool.git import NULL_OID, Git
from tool.project.session import Session
from tool.rebase import conflict, history, preview, run, watch, write
from tool.rebase.conflict import MergedFile
from tool.rebase.state import (
    STATE_FILE,
    State,
    Stop,
    check_snapshot,
    load_state,
    remove_state,
    repair_state,
    require_state,
    save_state,
    snapshot_project,
)
from tool.series import load_series, parse_series, patchfile
from tool.series.lockfile import Lock, LockedPatch, LockedRelease, LockedWheel
from tool.upstream import Base, Request

V9, V23, V24, V25 = (Version(f"0.5.{n}") for n in (9, 23, 24, 25))
SERIES = """\
pin 0.5.23
revision 1
change demo >=0.5.9
    demo/a.patch >=0.5.23
    demo/b.patch ==0.5.23
"""
CONTENT = (
    b"Description: change it\n Because 0.5.23 needs it.\nOrigin: vendor\nForwarded: no\n"
    b"Releases: >=0.5.23\nDrop-When: never\n---\n"
    b"diff --git a/python/sglang/x.py b/python/sglang/x.py\n"
    b"index " + b"a" * 40 + b".." + b"b" * 40 + b" 100644\n"
    b"--- a/python/sglang/x.py\n+++ b/python/sglang/x.py\n@@ -1,2 +1,3 @@\n one\n+two\n three\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "patches" / "demo").mkdir(parents=True)
    (folder / "series.txt").write_text(SERIES)
    for name in ("a", "b"):
        (folder / "patches" / "demo" / f"{name}.patch").write_bytes(CONTENT)
    return folder


# -- state ---------------------------------------------------------------------------------------------

STATE = State(
    root="/p", onto=V24, source=V23, base_commit="a" * 40, base_tree="b" * 40,
    wheels=(LockedWheel("w.whl", "c" * 64, 3),), folder="/w", snapshot={"series.txt": "d"},
    decisions={
        "demo/a.patch": Decision(OutcomeKind.CONFLICT, ("r",), b"\xff", how="by hand"),
        "demo/b.patch": Decision(OutcomeKind.EXACT, (), skipped="why"),
    },
    stop=Stop("demo/a.patch", OutcomeKind.STALE, ("x",)), token="e" * 32, edits=("demo/b.patch",),
)  # fmt: skip


@pytest.mark.parametrize(
    "changed", [{}, {"stop": None, "token": None, "decisions": {}, "edits": ()}]
)
def test_a_state_comes_back(tmp_path: Path, changed: dict[str, Any]) -> None:
    state = replace(STATE, **changed)
    assert load_state(tmp_path) is None
    with pytest.raises(UsageError, match="no rebase is under way"):
        require_state(tmp_path)
    save_state(tmp_path, state)
    assert load_state(tmp_path) == require_state(tmp_path) == state
    assert repair_state(tmp_path, dry_run=False) is None
    remove_state(tmp_path)
    assert load_state(tmp_path) is None


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"format": 0}, "format 0, this tool reads"),
        ({"folder": "relative"}, "folder 'relative'"),
        ({"token": "../x"}, "token '../x'"),
        ({"token": "e" * 31}, "token"),
        ({"onto": "zero"}, "Invalid version"),
        ({"base": []}, "IndexError"),
        ({"decisions": 1}, "AttributeError"),
    ],
)
def test_a_state_that_cannot_be_read(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    save_state(tmp_path, STATE)
    path = tmp_path / STATE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(IntegrityError, match="cannot be read") as caught:
        load_state(tmp_path)
    assert why in (caught.value.why or "")
    dry, done = (repair_state(tmp_path, dry_run=one) for one in (True, False))
    assert dry is not None and ", as " not in dry.what
    assert done is not None and ", as " in done.what and not path.exists()


def test_the_first_file_that_was_edited_is_named(root: Path) -> None:
    state = replace(STATE, snapshot=snapshot_project(load_series(root)))
    assert set(state.snapshot) == {"series.txt", "patches/demo/a.patch", "patches/demo/b.patch"}
    check_snapshot(state, load_series(root))
    for path in (root / "patches/demo/b.patch", root / "patches/demo/a.patch"):
        path.write_bytes(CONTENT + b" ")
        with pytest.raises(IntegrityError, match="changed since the rebase began") as caught:
            check_snapshot(state, load_series(root))
        assert caught.value.where == str(path.relative_to(root))
    (root / "patches/demo/a.patch").unlink()
    with pytest.raises(IntegrityError):
        check_snapshot(state, load_series(root))


# -- merges --------------------------------------------------------------------------------------------


class Blobs:
    def __init__(self, **contents: bytes) -> None:
        self._contents = contents

    def blobs(self, oids: Sequence[str]) -> dict[str, bytes]:
        return {oid: self._contents[oid] for oid in oids}


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "content", "conflicts"),
    [
        ("base", "base", NULL_OID, None, 0),  # the patch removes it, and nobody changed it
        ("base", "ours", NULL_OID, b"ours", 0),  # it removes what upstream changed
        ("base", NULL_OID, NULL_OID, None, 0),  # both removed it
        (NULL_OID, NULL_OID, "theirs", b"theirs", 0),  # the patch adds it
        ("base", NULL_OID, "theirs", None, 1),  # upstream removed what it edits
    ],
)
def test_a_file_that_one_side_lacks(
    base: str, ours: str, theirs: str, content: bytes | None, conflicts: int
) -> None:
    git = cast(Git, Blobs(ours=b"ours", theirs=b"theirs"))
    found = conflict._merge(git, "x.py", base, ours, theirs, "label", cast(Any, None))
    assert (found.content, found.conflicts) == (content, conflicts)
    assert (found.base, found.ours, found.theirs) == (base, ours, theirs)


class Merging(Blobs):
    """Blobs, and a git that merges files as it is told; the arguments are kept."""

    def __init__(self, folder: Path, code: int) -> None:
        super().__init__(base=b"base", ours=b"ours", theirs=b"theirs")
        self.git_dir = folder
        self.code = code
        self.asked: tuple[str, ...] = ()

    def run(self, *args: str, check: bool) -> Any:
        self.asked = args
        return SimpleNamespace(returncode=self.code, stdout=b"merged", stderr=b"cannot merge")


@pytest.mark.parametrize(("code", "fails"), [(0, False), (2, False), (127, False), (255, True)])
def test_a_file_that_all_sides_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, fails: bool
) -> None:
    merging = Merging(tmp_path, code)
    step = cast(Any, SimpleNamespace(patch=SimpleNamespace(name="demo/a.patch")))
    for version, style in (((2, 34), "--diff3"), ((2, 35), "--zdiff3")):
        monkeypatch.setattr(conflict, "require_version", lambda version=version: version)
        arguments = (cast(Git, merging), "x.py", "base", "ours", "theirs", "label", step)
        if fails:
            with pytest.raises(ToolError, match="git merge-file failed"):
                conflict._merge(*arguments)
            continue
        found = conflict._merge(*arguments)
        assert (found.content, found.conflicts) == (b"merged", code)
        assert style in merging.asked


def merged(content: bytes | None, conflicts: int = 0) -> MergedFile:
    return MergedFile("x.py", content, conflicts, "b", "o", "t")


def test_lines_that_a_person_has_to_look_at() -> None:
    marked = b"a\n<<<<<<< one\nb\n=======\nc\n>>>>>>> two\n<<<<<<< one\n"
    assert merged(marked, 2).marked_lines == [2, 7]
    assert merged(marked).marked_lines == [] and merged(None, 1).marked_lines == []

    def hunk(near: int, *added: bytes, path: str = "x.py", theirs: bool = True) -> ConflictHunk:
        ours = Block(path, 1, 1, (), added, "f")
        other = Block(path, near, near, (b"o",), (b"n",), "f")
        return ConflictHunk(path, "f", 1, ours, (other,) if theirs else ())

    text = merged(b"a\nb\nc\nb\n")
    assert text.lines_beside([hunk(5, b"b")]) == [4] and text.lines_beside([hunk(1, b"b")]) == [2]
    assert text.lines_beside([hunk(3, b"gone"), hunk(2)]) == [2, 3]
    assert text.lines_beside([hunk(0)]) == [1]
    assert text.lines_beside([hunk(5, b"b", path="y.py"), hunk(5, b"b", theirs=False)]) == []
    assert merged(b"a", 1).lines_beside([hunk(1)]) == merged(None).lines_beside([hunk(1)]) == []


def test_what_the_worktree_holds_by_now(tmp_path: Path) -> None:
    file = merged(b"<<<<<<< one\n", 1)
    assert conflict.read_from_disk(tmp_path, file) == file
    (tmp_path / "x.py").write_bytes(b"resolved\n")
    found = conflict.read_from_disk(tmp_path, file)
    assert (found.content, found.conflicts) == (b"resolved\n", 0)


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        ("python/sglang/x.py", b"x = 1\n", None),
        ("python/sglang/x.txt", b"def (:\n", None),
        ("setup.py", b"x = 1\n", "is outside the package"),
        ("python/sglang/x.py", b"a\n<<<<<<< one\n", "still has a conflict marker"),
        ("python/sglang/x.txt", b"a\n||||||| one\n", "still has a conflict marker"),
        ("python/sglang/x.txt", b"a\n>>>>>>> one\n", "still has a conflict marker"),
        ("python/sglang/x.txt", b"=======\n", None),
        ("python/sglang/x.py", b"def (:\n", "does not parse"),
        (
            "python/sglang/x.py",
            b"def f(): ...\ndef f(): ...\n",
            "f is defined twice in this file, at line 1 and here",
        ),
    ],
)
def test_a_resolved_file(path: str, content: bytes, says: str | None) -> None:
    git = cast(Git, Blobs(after=content, before=b"x = 1\n", twice=b"def f(): ...\ndef f(): ...\n"))
    if says is None:
        conflict._inspect(git, Path("/w"), path, "before", "after")
        return
    with pytest.raises((ConflictError, UsageError), match=says):
        conflict._inspect(git, Path("/w"), path, "before", "after")


def test_a_removed_file_and_one_that_was_so_before() -> None:
    git = cast(Git, Blobs(twice=b"def f(): ...\ndef f(): ...\n", broken=b"def (:\n"))
    conflict._inspect(git, Path("/w"), "python/sglang/x.py", "before", NULL_OID)
    conflict._inspect(git, Path("/w"), "python/sglang/x.py", "twice", "twice")
    for before in (NULL_OID, "broken"):
        with pytest.raises(ConflictError, match="defined twice"):
            conflict._inspect(git, Path("/w"), "python/sglang/x.py", before, "twice")


# -- what is written -----------------------------------------------------------------------------------


def locked(version: Version, *names: str) -> LockedRelease:
    patches = tuple(LockedPatch(name, "s" * 64, "t" * 40, "c" * 40, ()) for name in names)
    return LockedRelease(version, (), "b" * 40, "b" * 40, patches)


def writer(root: Path, target: Version = V24, **others: str) -> write.SeriesWriter:
    entries = [locked(V23, "demo/a.patch", "demo/b.patch")]
    lock = Lock({entry.version: entry for entry in entries})
    return write.SeriesWriter(cast(Git, None), load_series(root), lock, target)


def test_a_patch_is_bounded_where_it_was_proven_last(root: Path) -> None:
    found = writer(root)
    a, b = load_series(root).patches
    found._end(a, {V23}, OutcomeKind.CONFLICT, None)
    found._end(b, {V23}, OutcomeKind.CONFLICT, None)
    assert "demo/a.patch ==0.5.23" in str(found._text)
    assert b"Releases: ==0.5.23" in found._headers["demo/a.patch"]
    assert "demo/b.patch" not in found._headers  # its range ends there already
    with pytest.raises(UsageError, match="was proven on no other release"):
        found._end(a, set(), OutcomeKind.CONFLICT, None)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (OutcomeKind.EXACT, b"Applied-Upstream"),
        (OutcomeKind.PARTIAL, b"Skipped"),
        (OutcomeKind.CONFLICT, b"Skipped"),
    ],
)
def test_the_reason_of_a_patch_left_out(root: Path, kind: OutcomeKind, field: bytes) -> None:
    found = writer(root)
    found._end(load_series(root).patches[1], {V23}, kind, "upstream has it")
    assert field + b": 0.5.24, upstream has it\n" in found._headers["demo/b.patch"]


def test_a_reference_to_upstream_that_is_there_stays(root: Path) -> None:
    path = root / "patches/demo/b.patch"
    path.write_bytes(CONTENT.replace(b"Forwarded: no", b"Applied-Upstream: 0.5.23, PR 7"))
    found = writer(root)
    found._end(load_series(root).patches[1], {V23}, OutcomeKind.EXACT, "again")
    header = found._headers["demo/b.patch"]
    assert b"Applied-Upstream: 0.5.23, PR 7\n" in header and b"Skipped: 0.5.24, again" in header


def test_the_new_series_means_what_was_replayed(root: Path) -> None:
    found = writer(root)
    bounded = SERIES.replace(">=0.5.23\n", "==0.5.23\n")
    assert found._check(bounded, []).patches[0].releases == SpecifierSet("==0.5.23")
    with pytest.raises(UsageError, match=r"gives? v0.5.24 other patches .*: demo/a.patch"):
        found._check(SERIES, [])
    both = SERIES.replace("==0.5.23", ">=0.5.23")
    with pytest.raises(UsageError, match="than were replayed: their order"):
        found._check(both, ["demo/b.patch", "demo/a.patch"])
    other = bounded.replace("demo/b.patch ==0.5.23", "demo/b.patch ==0.5.9")
    with pytest.raises(IntegrityError, match="would change what v0.5.23 resolves to"):
        found._check(other, [])


def test_fields_that_speak_of_another_release(root: Path) -> None:
    header = patchfile.parse("x", CONTENT).header
    assert list(write._speaking_of(header, [V23])) == ["Description"]
    assert list(write._speaking_of(header, [Version("0.5.2")])) == []
    assert list(write._speaking_of(header, [])) == []
    for text, named in (("v0.5.23.", True), ("0.5.23rc1", False), ("10.5.23", False)):
        changed = replace(header, body=text)
        assert bool(list(write._speaking_of(changed, [V23]))) is named, text


@pytest.mark.parametrize(
    ("kind", "same"),
    [(OutcomeKind.CLEAN, True), (OutcomeKind.MOVED, True), (OutcomeKind.MERGED, False)],
)
def test_whether_a_patch_reads_as_in_its_file(root: Path, kind: OutcomeKind, same: bool) -> None:
    patch = load_series(root).patches[0]
    step: Any = SimpleNamespace(decision=None, outcome=SimpleNamespace(kind=kind), patch=patch)
    assert write.is_unchanged(patch, step) is same
    decided = SimpleNamespace(decision=object(), outcome=step.outcome, patch=patch)
    assert write.is_unchanged(patch, cast(Any, decided))
    other = replace(patch, content_override=CONTENT.replace(b"+two", b"+deux"))
    decided.patch = other
    assert not write.is_unchanged(patch, cast(Any, decided))


def left_out(kind: OutcomeKind, skipped: str | None) -> Any:
    decision = SimpleNamespace(skipped=skipped) if skipped != "undecided" else None
    return SimpleNamespace(
        patch=SimpleNamespace(change="demo"), decision=decision, outcome=SimpleNamespace(kind=kind)
    )


@pytest.mark.parametrize(
    ("steps", "over"),
    [
        ([left_out(OutcomeKind.EXACT, "PR 7")], True),
        ([left_out(OutcomeKind.EXACT, "PR 7"), left_out(OutcomeKind.EXACT, "PR 8")], True),
        ([left_out(OutcomeKind.EXACT, "PR 7"), left_out(OutcomeKind.CLEAN, "undecided")], False),
        ([left_out(OutcomeKind.EXACT, "PR 7"), left_out(OutcomeKind.CONFLICT, "no")], False),
        ([left_out(OutcomeKind.PARTIAL, "PR 7")], False),
        ([left_out(OutcomeKind.EXACT, None)], False),
        ([], False),
    ],
)
def test_when_a_change_is_over(root: Path, steps: list[Any], over: bool) -> None:
    found = writer(root)
    found._retire(steps)
    assert ("upstream 0.5.24: PR 7" in str(found._text)) is over


# -- memory, history and previews ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "how", "kept"),
    [
        (OutcomeKind.CONFLICT, run.BY_HAND, True),
        (OutcomeKind.CONFLICT, run.AS_MERGED, True),
        (OutcomeKind.CONFLICT, "by a remembered resolution", False),
        (OutcomeKind.STALE, run.BY_HAND, True),
        (OutcomeKind.STALE, run.AS_MERGED, False),
        (OutcomeKind.CLEAN, run.BY_HAND, False),
    ],
)
def test_which_resolutions_are_remembered(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: OutcomeKind, how: str, kept: bool
) -> None:
    monkeypatch.setattr(run, "record_resolution", lambda patch, *_: (patch.name, b""))
    patch = load_series(root).patches[0]
    decision = Decision(kind, (), CONTENT, how=how)
    found = list(run._resolved([(patch, decision, STATE.source, STATE.onto)], None))
    assert [name for name, _ in found] == (["demo/a.patch"] if kept else [])
    skipped = Decision(kind, (), None, skipped="why", how=how)
    assert not list(run._resolved([(patch, skipped, STATE.source, STATE.onto)], None))


def test_patches_to_stop_at(root: Path) -> None:
    series = load_series(root)
    names = ["demo/b.patch", "demo/a.patch", "demo/b"]
    assert run._edits(series, series.patches, V23, V24, names) == ("demo/b.patch", "demo/a.patch")
    assert run._edits(series, series.patches, V23, V24, []) == ()
    over = parse_series(root, SERIES.replace(">=0.5.9\n", "<0.5.24\n"))
    for patches, loaded in ((series.patches[:1], series), (over.patches, over)):
        with pytest.raises(UsageError, match="is not a patch that v0.5.23 hands on"):
            run._edits(loaded, patches, V23, V24, ["demo/b.patch"])


def test_a_reason_is_needed_to_leave_a_patch_out() -> None:
    with pytest.raises(UsageError, match="not left out without a reason"):
        run.skip_patch(cast(Session, None), " \n ")


def test_a_history_that_cannot_be_read(root: Path) -> None:
    series = load_series(root)
    assert history.load_history(series) == []
    path = root / history.HISTORY_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    for content in ("{", "{}", "[]", '{"rebases": 1}'):
        path.write_text(content)
        with pytest.raises(IntegrityError, match="the history cannot be read"):
            history.load_history(series)


def test_a_step_taken_again_replaces_what_it_met(root: Path) -> None:
    series, path = load_series(root), root / history.HISTORY_FILE
    row = history.HistoryRow(
        "demo/a.patch", OutcomeKind.CONFLICT, ("a|b", "c"), "by hand", None, "x"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    for source, onto in ((V23, V24), (V24, V25), (V23, V24)):
        path.write_bytes(history.add_entry(series, source, onto, [row]))
    found = history.load_history(series)
    assert [(e["from"], e["onto"]) for e in found] == [("0.5.24", "0.5.25"), ("0.5.23", "0.5.24")]
    lines = history.render_markdown(found)
    assert lines[-1] == "| demo/a.patch | conflict | x (by hand) | a\\|b<br>c |"
    undecided = history.add_entry(series, V9, V23, [replace(row, decided="", reasons=())])
    lines = history.render_markdown(json.loads(undecided)["rebases"][-1:])
    assert lines[-1] == "| demo/a.patch | conflict | x |  |"
    assert any(line.startswith("| 0.5.9 → 0.5.23 | 1 | 1 |") for line in lines)
    assert history.render_markdown([]) == ["no rebase is recorded"]


@pytest.mark.parametrize(
    ("offered", "carried", "newer"),
    [
        ((V23, V24), (V23,), V24),
        ((V23, V24), (V24,), None),
        ((V23,), (V24,), None),
        ((V23,), (), V23),
    ],
)
def test_the_new_releases_of_the_index(
    offered: tuple[Version, ...],
    carried: tuple[Version, ...],
    newer: Version | None,
) -> None:
    # A release that is locked without patches is not carried.
    entries = [locked(v, "demo/a.patch") for v in carried] + [locked(V25)]
    assert watch.find_new(Lock({e.version: e for e in entries}), offered, prereleases=False) == (
        [newer] if newer else []
    )


def test_an_index_without_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "list_wheels", dict)
    session = cast(Session, SimpleNamespace(lock=Lock({})))
    with pytest.raises(EnvironmentFault, match="offers no release"):
        watch.watch_releases(session)


def test_versions_before_a_release() -> None:
    lock = Lock({V23: locked(V23, "demo/a.patch")})
    offered = (V23, Version("0.5.24rc1"), V24, Version("0.5.25.dev1"))
    assert watch.find_new(lock, offered, prereleases=False) == [V24]
    assert watch.find_new(lock, offered, prereleases=True) == list(offered[1:])


def base(version: Version) -> Base:
    return Base(version, "c", "t", "pypi", f"v{version}")


def test_the_first_release_that_breaks_a_patch() -> None:
    """A release whose pre-images are not here says nothing; later ones are not asked in vain."""
    asked: list[Version] = []
    breaks = {V9: ["x"], V24: ["a"], V25: ["a", "b"], Version("0.5.26"): ["a"]}

    def classify(on: Base) -> Any:
        asked.append(on.release)
        if on.release == V23:
            raise EnvironmentFault("not here")
        names = {"a", "b", "x"}
        return [
            SimpleNamespace(patch=SimpleNamespace(name=n), stops=n in breaks[on.release])
            for n in sorted(names)
        ]

    bases: Iterator[Base] = (base(v) for v in (V9, V23, V24, V25, Version("0.5.26")))
    assert preview._first_breaks(bases, classify, {"a", "b"}) == {"a": V24, "b": V25}
    assert asked == [V9, V23, V24, V25]


def test_the_releases_in_between() -> None:
    class Refs:
        def out(self, *_: str) -> str:
            return "\n".join(
                f"refs/ada/base/v{v}" for v in ("0.5.25", "0.5.9", "0.5.24", "0.5.23", "x")
            )

        def resolve(self, ref: str) -> str:
            return ref

        def tree_of(self, commit: str) -> str:
            return commit

    found = preview._between(cast(Git, Refs()), V9, V25)
    assert [one.release for one in found] == [V23, V24]


@pytest.mark.parametrize(
    ("tree", "patches", "source", "stops", "same"),
    [
        ("t1", 1, "pypi", False, True),
        ("other", 1, "pypi", False, False),
        ("t1", 0, "pypi", False, None),  # nothing is locked there to compare with
        ("t1", 1, "git", False, None),
        ("t1", 1, "pypi", True, None),
    ],
)
def test_a_preview_is_compared_with_the_lock(
    monkeypatch: pytest.MonkeyPatch,
    tree: str,
    patches: int,
    source: str,
    stops: bool,
    same: bool | None,
) -> None:
    entry = locked(V24, *["demo/a.patch"] * patches)
    entry = replace(entry, patches=tuple(replace(p, tree="t1") for p in entry.patches))
    session = SimpleNamespace(
        exclusive=contextlib.nullcontext, git=None,
        series=SimpleNamespace(pin=V24, changes=(), for_release=lambda _: ()),
        lock=Lock({V23: locked(V23, "demo/a.patch"), V24: entry}),
    )  # fmt: skip
    step = SimpleNamespace(
        patch=SimpleNamespace(name="demo/a.patch"), stops=stops, applied=SimpleNamespace(tree=tree)
    )
    on = Base(V24, "c", "t", source, "v0.5.24")
    for name, value in (
        ("select_patches", ()),
        ("resolve_release", SimpleNamespace(base=on)),
        ("prepare_source", "old"),
        ("replay_series", [step]),
        ("_between", iter(())),
    ):
        monkeypatch.setattr(preview, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(preview, "recall_resolution", lambda *_: None)
    found = preview.preview_rebase(cast(Session, session), Request("pin"), source=V23)
    assert found.same_as_lock is same
    assert found.broken_since == ({"demo/a.patch": V24} if stops else {})


def test_sides_of_a_conflict_stand_in_the_index(tmp_path: Path) -> None:
    asked: list[tuple[tuple[str, ...], bytes | None]] = []

    class Index:
        def run(self, *args: str, stdin: bytes | None = None) -> None:
            asked.append((args, stdin))

    file = MergedFile("a/x.py", b"text", 1, NULL_OID, "o" * 40, "t" * 40)
    conflict._write(cast(Git, Index()), tmp_path, file)
    assert (tmp_path / "a/x.py").read_bytes() == b"text"
    rows = (asked[-1][1] or b"").decode().split("\n")
    assert rows == [
        f"0 {NULL_OID}\ta/x.py", f"100644 {'o' * 40} 2\ta/x.py", f"100644 {'t' * 40} 3\ta/x.py", "",
    ]  # fmt: skip
    conflict._write(cast(Git, Index()), tmp_path, replace(file, conflicts=0))
    assert asked[-1][0] == ("add", "--", "a/x.py")
    conflict._write(cast(Git, Index()), tmp_path, replace(file, content=None))
    assert asked[-1][0][0] == "update-index" and not (tmp_path / "a/x.py").exists()
