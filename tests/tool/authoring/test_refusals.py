"""What an author is refused, each refusal at its function and by its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests.support.lab import B_ONLY, EDITED, TWINS, UTILS, Lab
from tool.authoring import edit, export, mail, worktree
from tool.authoring.edit import HeaderFields
from tool.authoring.worktree import Branch, EditedWorktree
from tool.errors import ConflictError, UsageError
from tool.git import NULL_OID, Git, GitFailed, TreeChange
from tool.project import Session
from tool.series import parse_series, patchfile
from tool.series.lockfile import Lock, LockedPatch, LockedRelease

V23 = Version("0.5.23")
PATH = "python/sglang/x.py"
DIFF = (
    b"diff --git a/python/sglang/x.py b/python/sglang/x.py\n"
    b"index " + b"a" * 40 + b".." + b"b" * 40 + b" 100644\n"
    b"--- a/python/sglang/x.py\n+++ b/python/sglang/x.py\n@@ -1,2 +1,3 @@\n one\n+two\n three\n"
)
FIELDS = HeaderFields("demo/mine.patch", "demo", "Change it", "Because.", "never")
BRANCH = Branch(Path("/tree"), Path("/admin"), "ada/x", "h" * 40, "h" * 40, "b" * 40)


@pytest.fixture
def series(tmp_path: Path) -> Any:
    text = "pin 0.5.23\nrevision 1\nchange demo >=0.5.9,<0.5.24\n    demo/a.patch ==0.5.23\n"
    (tmp_path / "series.txt").write_text(text)
    return parse_series(tmp_path, text)


# -- the worktree ----------------------------------------------------------------------------------------


class Refs:
    def __init__(self, refs: Mapping[str, str]) -> None:
        self._refs = refs

    def resolve(self, ref: str) -> str | None:
        return self._refs.get(ref)


TIP, BASE = worktree.tip_ref("ada/x"), worktree.base_ref("ada/x")


@pytest.mark.parametrize(
    ("name", "refs", "found"),
    [
        ("ada/x", {TIP: "t", BASE: "b"}, True),
        (None, {TIP: "t", BASE: "b"}, False),
        ("ada/x", {BASE: "b"}, False),
        ("ada/x", {TIP: "t"}, False),
    ],
)
def test_a_branch_that_apply_made(
    monkeypatch: pytest.MonkeyPatch, name: str | None, refs: dict[str, str], found: bool
) -> None:
    monkeypatch.setattr(worktree, "read_head", lambda *_: (Path("/admin"), "h", name))
    session = cast(Session, SimpleNamespace(git=Refs(refs)))
    if found:
        branch = worktree.open_branch(session, Path("/tree"))
        assert (branch.head, branch.tip, branch.base) == ("h", "t", "b")
        return
    with pytest.raises(UsageError, match="is not on a branch that tool apply made"):
        worktree.open_branch(session, Path("/tree"))


@pytest.mark.parametrize(
    ("branch", "says"),
    [
        (replace(BRANCH, head="c" * 40), "has commits of your own"),
        (replace(BRANCH, base="e" * 40), "is not of a release in series.lock"),
    ],
)
def test_a_worktree_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, branch: Branch, says: str
) -> None:
    monkeypatch.setattr(worktree, "open_branch", lambda *_: branch)
    lock = Lock({V23: LockedRelease(V23, (), "b" * 40, "t", ())})
    found = SimpleNamespace(git=None, lock=lock, series=SimpleNamespace(pin=V23))
    monkeypatch.setattr(worktree, "find_release_of", lambda *_: Version("0.5.99"))
    with pytest.raises(UsageError, match=says):
        worktree.read_worktree(cast(Session, found), Path("/tree"))


@pytest.mark.parametrize(
    ("path", "mode", "says"),
    [
        (PATH, "100644", None),
        (PATH, "000000", None),
        (PATH, "120000", "is a symlink"),
        (PATH, "160000", "is a repository of its own"),
        (f"{worktree.DESTINATION}/x.py", "100644", "changes the bundled kernels"),
        (f"{worktree.DESTINATION}2/x.py", "100644", None),
    ],
)
def test_what_a_patch_may_not_hold(path: str, mode: str, says: str | None) -> None:
    change = TreeChange(path, "100644", mode, "a", "b")
    if says is None:
        worktree._check_change(Path("/tree"), change)
        return
    with pytest.raises(UsageError, match=says):
        worktree._check_change(Path("/tree"), change)


def test_what_became_of_a_file() -> None:
    for before, after, said in (
        ("a", "b", "changed"),
        (NULL_OID, "b", "added"),
        ("a", NULL_OID, "removed"),
    ):
        assert worktree.describe_change(TreeChange(PATH, "", "", before, after)) == said


def test_a_worktree_without_changes() -> None:
    found = EditedWorktree(BRANCH, V23, "t", b"", {})
    with pytest.raises(UsageError, match="has no uncommitted changes"):
        found.require_changes()
    replace(found, diff=DIFF).require_changes()


# -- edits -----------------------------------------------------------------------------------------------


def author(series: Any, lock: Lock | None = None) -> Any:
    return SimpleNamespace(git=None, series=series, lock=lock or Lock({}))


def test_a_patch_that_would_change_nothing(series: Any) -> None:
    with pytest.raises(UsageError, match="demo/mine.patch would change nothing"):
        edit._add(author(series), FIELDS, V23, "t", "t")


def test_a_change_that_is_over(series: Any) -> None:
    with pytest.raises(UsageError, match="the change demo is over"):
        edit._add(author(series), FIELDS, Version("0.5.24"), "t", "u")


def test_a_patch_that_no_release_has(series: Any) -> None:
    (patch,) = series.patches
    with pytest.raises(UsageError, match="demo/a.patch is on no release of series.lock"):
        edit._list_checked(author(series), patch)
    entries = [
        LockedRelease(Version(v), (), "b", "t", (LockedPatch("demo/a.patch", "s", "t", "c", ()),))
        for v in ("0.5.23", "0.5.9")
    ]
    found = author(series, Lock({e.version: e for e in entries}))
    assert edit._list_checked(found, patch) == [Version("0.5.9"), V23]


def test_names_of_new_patches(series: Any) -> None:
    edit._check_name(series, FIELDS)
    with pytest.raises(UsageError, match="is not a patch file name"):
        edit._check_name(series, replace(FIELDS, name="demo/Mine.patch"))
    for name, there in (("demo/a.patch", False), ("demo/b.patch", True)):
        path = series.root / "patches" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if there:
            path.write_text("")
        with pytest.raises(UsageError, match=f"{name} exists already"):
            edit._check_name(series, replace(FIELDS, name=name))


def test_the_header_of_a_new_patch() -> None:
    names = [key for key, _ in FIELDS.header("==0.5.23").fields]
    assert names == ["Origin", "Forwarded", "Releases", "Drop-When"]
    fields = dict(replace(FIELDS, author="A <a@b>").header("==0.5.23").fields)
    assert fields["Author"] == "A <a@b>" and fields["Releases"] == "==0.5.23"


def test_a_mail_that_says_nothing(series: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    base = SimpleNamespace(tree="t")
    made = SimpleNamespace(git=None, series=series, applied=lambda _: (base, ()))
    monkeypatch.setattr(edit, "Author", lambda _: made)
    monkeypatch.setattr(edit, "apply_mail", lambda *_: "u")
    added: list[HeaderFields] = []
    monkeypatch.setattr(edit, "_add", lambda _, told, *__: added.append(told))
    session = cast(Session, SimpleNamespace(series=series, exclusive=contextlib.nullcontext))
    silent = replace(FIELDS, subject="", why="")
    for subject, body, good in (("s", "w", True), ("", "w", False), ("s", "", False)):
        found = mail.Mail(subject, body, "A", ())
        monkeypatch.setattr(edit, "read_mail", lambda *_, found=found: found)
        if good:
            edit.import_patch(session, silent, b"", V23)
            edit.import_patch(session, FIELDS, b"", V23)
            continue
        with pytest.raises(UsageError, match="does not say what it does and why"):
            edit.import_patch(session, silent, b"", V23)
    assert [(one.subject, one.why) for one in added] == [("s", "w"), ("Change it", "Because.")]


def test_a_reason_is_needed_to_drop_a_patch() -> None:
    with pytest.raises(UsageError, match="not dropped without a reason"):
        edit.drop_patch(cast(Session, None), "a", " \n")


def test_refresh_of_what_is_not_there_or_would_vanish(lab: Lab, tmp_path: Path) -> None:
    fork = lab.fork(tmp_path / "fork", {"demo/answer.patch": {UTILS: EDITED}})
    lab.patch("demo/old.patch", {TWINS: B_ONLY}, releases="==0.5.9")
    before = {path: path.read_bytes() for path in lab.root.rglob("*") if path.is_file()}

    def refused(name: str) -> str:
        error = lab.json("refresh", name, str(fork), "--offline", code=2)["error"]
        return str(error["message"])

    assert "demo/old.patch does not apply to v0.5.23" in refused("demo/old.patch")
    assert "has no uncommitted changes" in refused("answer")
    (fork / UTILS).write_text(EDITED.replace("return 33\n", "return 3\n"))
    assert "nothing of demo/answer.patch would be left" in refused("answer")
    assert before == {path: path.read_bytes() for path in before}


# -- mails -----------------------------------------------------------------------------------------------


def test_a_mail_that_git_cannot_read(tmp_path: Path) -> None:
    class Failing:
        git_dir = tmp_path

        def run(self, *_: str, **__: Any) -> Any:
            raise GitFailed("git mailinfo failed", why="empty patch")

    content = b"From: a <a@b>\nSubject: s\n\nwhy\n---\n" + DIFF
    with pytest.raises(UsageError, match="git cannot read the mail") as caught:
        mail.read_mail(cast(Git, Failing()), "m", content)
    assert caught.value.why == "empty patch"


@pytest.mark.parametrize(
    ("content", "is_mail"),
    [
        (b"From: a\nSubject: b\n\n", True),
        (b"From 0123 Mon Sep 17\nSubject: b\n\n", True),
        (b"FROM: a\n\n", True),
        (b"To: a\n\n", False),
        (b"a diff\nFrom: a\n", False),
        (b"", False),
    ],
)
def test_whether_it_begins_like_a_mail(content: bytes, is_mail: bool) -> None:
    assert mail._is_mail(content) is is_mail


def test_words_before_a_diff() -> None:
    assert len(mail._read_files("m", b"some words\n\n" + DIFF)) == 1
    for content in (b"", b"words\n", b"words diff --git a/x b/x\n"):
        with pytest.raises(UsageError, match="holds no git diff"):
            mail._read_files("m", content)
    with pytest.raises(UsageError, match="its message holds something"):
        mail._read_files("m", b"--- a/x\n+++ b/x\n" + DIFF)


def test_several_mails() -> None:
    one = (
        b"From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\nSubject: a\n\n"
        + DIFF
    )
    with pytest.raises(UsageError, match="holds several mails"):
        mail.read_mail(cast(Git, None), "m", one + one)


def test_a_diff_of_another_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old lines of each hunk stand where it says; a new file has none."""
    files = mail.read_foreign_diff("m", DIFF)

    def check(text: bytes) -> None:
        git = SimpleNamespace(blobs=lambda oids: dict.fromkeys(oids, text))
        monkeypatch.setattr(mail, "find_blobs", lambda *_: {PATH: "a" if text else NULL_OID})
        mail._check_places(cast(Git, git), "t", files, "m")

    check(b"one\nthree\n")
    for text in (b"zero\none\nthree\n", b"one\n", b"one\ntwo\nthree\n", b""):
        with pytest.raises(ConflictError, match=f"{PATH} line 1 is not what the diff says"):
            check(text)


def test_what_git_said() -> None:
    assert mail.read_reason(b"error: a\nnote\nerror: b\n") == "a; b"
    assert mail.read_reason(b"note\n") is None


class FailingIndex:
    def __init__(self, code: int) -> None:
        self._code = code

    def run(self, *_: str, **__: Any) -> Any:
        return SimpleNamespace(returncode=self._code, stderr=b"error: patch failed: x.py:1\n")

    def out(self, *_: str) -> str:
        return "after"


def test_a_diff_that_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    monkeypatch.setattr(mail, "_check_places", lambda *_: None)
    monkeypatch.setattr(mail, "canonical_diff", lambda *_: b"")
    found = mail.Mail("s", "w", "a", ())
    for code in (0, 1):
        index = contextlib.nullcontext(FailingIndex(code))
        monkeypatch.setattr(mail, "private_index", lambda *_, index=index: index)
        if code == 0:
            assert mail.apply_mail(cast(Git, None), "t", found, "m") == "after"
            continue
        with pytest.raises(ConflictError, match="does not apply to the series as it is") as caught:
            mail.apply_mail(cast(Git, None), "t", found, "m")
        assert caught.value.why == "patch failed: x.py:1"


# -- export ----------------------------------------------------------------------------------------------


def commit(name: str | None = "demo/a.patch", *parents: str, extra: str = "") -> Any:
    header = patchfile.parse_header("x", "Description: Change it\n Because.\nOrigin: vendor")
    text = patchfile.message(header, name, "f" * 64) if name else f"Change it\n\nBecause.\n{extra}"
    return SimpleNamespace(
        oid="c" * 40, parents=parents or ("p" * 40,), message=text, summary="Change it"
    )


def read(
    monkeypatch: pytest.MonkeyPatch, series: Any, commits: Sequence[Any], *paths: str
) -> export._Commits:
    changes = [TreeChange(path, "100644", "100644", "a", "b") for path in paths]
    monkeypatch.setattr(export, "list_commits", lambda *_: commits)
    monkeypatch.setattr(export, "changed_files", lambda *_: changes)
    monkeypatch.setattr(export, "canonical_diff", lambda *_: DIFF)
    git = SimpleNamespace(find=lambda _: "k" * 40)
    return export._read_commits(cast(Git, git), series, BRANCH, V23)


def test_commits_that_are_patches(monkeypatch: pytest.MonkeyPatch, series: Any) -> None:
    found = read(monkeypatch, series, [commit()], PATH)
    assert list(found.contents) == ["demo/a.patch"]
    assert found.files == {"demo/a.patch": {PATH: "changed"}}


KERNEL = f"{export.DESTINATION}/x.py"
BUNDLE = f"\n{export.TREE_TRAILER}: {'k' * 40}\n"


@pytest.mark.parametrize(
    ("commits", "paths", "says"),
    [
        ([commit("demo/a.patch", "p", "q")], (PATH,), "is a merge"),
        ([commit()], (), "changes nothing, and demo/a.patch with it"),
        ([commit(None)], (PATH,), "has no Patch-Name trailer"),
        ([commit(), commit()], (PATH,), "is a second commit of demo/a.patch"),
        (
            [commit("demo/b.patch")],
            (PATH,),
            "belongs to demo/b.patch, which series.txt does not list",
        ),
        ([commit()], (PATH, KERNEL), "changes the bundled kernels"),
        ([commit(None)], (KERNEL,), "changes the bundled kernels"),
        (
            [commit(None, extra=BUNDLE)],
            (KERNEL, PATH),
            f"changes {PATH} in the commit that bundles",
        ),
    ],
)
def test_commits_that_are_none(
    monkeypatch: pytest.MonkeyPatch,
    series: Any,
    commits: list[Any],
    paths: tuple[str, ...],
    says: str,
) -> None:
    with pytest.raises(UsageError, match=says):
        read(monkeypatch, series, commits, *paths)


def test_the_commit_of_the_kernels_is_left_out(
    monkeypatch: pytest.MonkeyPatch, series: Any
) -> None:
    assert read(monkeypatch, series, [commit(None, extra=BUNDLE)], KERNEL).contents == {}


def test_a_branch_of_no_known_release() -> None:
    git = SimpleNamespace(out=lambda *_: "a commit of mine\n")
    with pytest.raises(UsageError, match="is on a branch whose release is not known"):
        worktree.find_release_of(cast(Git, git), BRANCH)
    git.out = lambda *_: f"bundle\n\n{worktree.RELEASE_TRAILER}: 0.5.23\n"
    assert worktree.find_release_of(cast(Git, git), BRANCH) == V23


@pytest.mark.parametrize(
    ("others", "spec"),
    [
        ({"0.5.9", "0.5.24"}, ">=0.5.9,<=0.5.24,!=0.5.23"),
        ({"0.5.9"}, "==0.5.9"),
        ({"0.5.24", "0.5.25"}, ">=0.5.24,<=0.5.25"),
    ],
)
def test_a_range_without_a_release(others: set[str], spec: str) -> None:
    found = export._exclude({Version(v) for v in others}, V23)
    assert found == spec and not SpecifierSet(found).contains(V23)


@pytest.mark.parametrize(
    ("now", "order"),
    [
        (["demo/a.patch", "demo/b.patch"], []),
        (["demo/b.patch", "demo/a.patch"], ["demo/b.patch", "demo/a.patch", "demo/new.patch"]),
        (["demo/b.patch"], []),
    ],
)
def test_the_order_of_commits(tmp_path: Path, now: list[str], order: list[str]) -> None:
    lines = "".join(f"    demo/{n}.patch ==0.5.23\n" for n in ("a", "b", "new"))
    loaded = parse_series(tmp_path, f"pin 0.5.23\nrevision 1\nchange demo >=0.5.9\n{lines}")
    git = SimpleNamespace(out=lambda *_: "demo/a.patch\ndemo/b.patch\n")
    removed = [n for n in ("demo/a.patch", "demo/b.patch") if n not in now]
    assert export._find_order(cast(Git, git), loaded, BRANCH, V23, now, removed) == order


def test_an_order_that_only_the_series_changed(tmp_path: Path) -> None:
    """The commits are as they were made: what was reordered in series.txt since stays so."""
    lines = "".join(f"    demo/{n}.patch ==0.5.23\n" for n in ("b", "a"))
    loaded = parse_series(tmp_path, f"pin 0.5.23\nrevision 1\nchange demo >=0.5.9\n{lines}")
    git = SimpleNamespace(out=lambda *_: "demo/a.patch\ndemo/b.patch\n")
    now = ["demo/a.patch", "demo/b.patch"]
    assert export._find_order(cast(Git, git), loaded, BRANCH, V23, now, []) == []
