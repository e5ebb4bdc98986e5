"""Checks of an applied patch, on made-up files: what it touched, what it added, and where it landed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from packaging.version import Version

from tests.support.lab import EDITED, UTILS, Lab
from tool.analysis import parse_outline
from tool.apply import check_all, checks, engine, kernels
from tool.apply.compose import Composition
from tool.apply.lock import recompute_commits
from tool.errors import (
    ConflictError,
    EnvironmentFault,
    IntegrityError,
    UpstreamedError,
    UsageError,
)
from tool.git import NULL_OID, Git, TreeChange
from tool.series import FileChange, load_series, patchfile
from tool.series.lockfile import Lock
from tool.upstream import Base

DIFF = b"""\
diff --git a/python/sglang/x.py b/python/sglang/x.py
index %(a)b..%(b)b 100644
--- a/python/sglang/x.py
+++ b/python/sglang/x.py
@@ -1,2 +1,3 @@
 one
+two
 three
@@ -8,2 +9,2 @@
 eight
-nine
+NINE
diff --git a/python/sglang/y.py b/python/sglang/y.py
index %(b)b..%(a)b 100644
--- a/python/sglang/y.py
+++ b/python/sglang/y.py
@@ -5,1 +5,2 @@
 five
+six
""" % {b"a": b"a" * 40, b"b": b"b" * 40}
X, Y = "python/sglang/x.py", "python/sglang/y.py"
PARSED = patchfile.parse("x.patch", b"Description: s\nOrigin: vendor\n---\n" + DIFF)


def applied(*paths: str, exact: bool = True) -> engine.Applied:
    files = tuple(FileChange(path, "a" * 40, "b" * 40) for path in paths)
    return engine.Applied("demo/x.patch", "s", "t", "t", "c", files, exact, PARSED)


@dataclass(frozen=True)
class Run:
    old_line: int
    removed: tuple[bytes, ...]
    new_line: int
    added: tuple[bytes, ...]


class Outlines:
    """The runs between two blobs, and what a blob's outline says."""

    def __init__(
        self, runs: dict[tuple[str, str], Sequence[Run]], unbound: dict[str, set[str]] | None = None
    ) -> None:
        self._runs = runs
        self._unbound = unbound or {}

    def runs(self, before: str, after: str) -> Sequence[Run]:
        return self._runs[before, after]

    def or_empty(self, blob: str) -> Any:
        names = self._unbound.get(blob, set())
        return SimpleNamespace(
            unbound=frozenset(names),
            source="\n".join(sorted(names)).encode(),
            symbol_at=lambda line: "f" if line < 10 else "g",
        )


def outlines(runs: Any = None, unbound: Any = None) -> Any:
    return cast(Any, Outlines(runs or {}, unbound))


def test_a_patch_changes_the_files_that_it_names() -> None:
    checks._check_paths(applied(X, Y))
    with pytest.raises(ConflictError, match="z.py was changed, though the patch does not name it"):
        checks._check_paths(applied(X, Y, "python/sglang/z.py"))
    with pytest.raises(UpstreamedError, match="y.py needs no change here"):
        checks._check_paths(applied(X))


def test_lines_that_an_exact_patch_adds() -> None:
    change = FileChange(X, "a" * 40, "b" * 40)
    assert checks.list_added_lines(applied(X, Y), change, outlines()) == {2, 10}
    other = replace(change, path=Y)
    assert checks.list_added_lines(applied(X, Y), other, outlines()) == {6}


def test_lines_that_a_merged_patch_adds() -> None:
    """They are where the merge put them; a new file is as the patch has it."""
    merged = outlines({("a" * 40, "b" * 40): [Run(1, (), 5, (b"x", b"y")), Run(8, (b"z",), 9, ())]})
    change = FileChange(X, "a" * 40, "b" * 40)
    assert checks.list_added_lines(applied(X, exact=False), change, merged) == {5, 6}
    new = replace(change, before=NULL_OID)
    assert checks.list_added_lines(applied(X, exact=False), new, outlines()) == {2, 10}


@pytest.mark.parametrize(
    ("before", "unbound", "found"),
    [
        ("a", {"b": {"x", "y"}, "a": {"x"}}, ["y"]),
        ("a", {"a": {"x"}}, []),
        (NULL_OID, {"b": {"y", "x"}, NULL_OID: {"x"}}, ["x", "y"]),
    ],
)
def test_names_that_nothing_binds(
    before: str, unbound: dict[str, set[str]], found: list[str]
) -> None:
    change = FileChange(X, before, "b")
    assert checks.find_newly_unbound(change, outlines(unbound=unbound)) == found


@pytest.mark.parametrize(
    ("landed", "says"),
    [
        (Run(2, (), 3, (b"two",)), None),  # the same symbol, a line later
        (Run(2, (), 12, (b"two",)), r"wanted .*two.* f.*, found .*two.* g"),
        (Run(2, (), 2, (b"deux",)), r"wanted .*two.*, found .*deux"),
        (Run(2, (b"one",), 2, (b"two",)), r"wanted None, found .*one"),
    ],
)
def test_a_hunk_lands_in_the_symbol_it_was_written_for(landed: Run, says: str | None) -> None:
    change = FileChange(X, "c", "d")
    known = outlines({("a", "b"): [Run(1, (), 2, (b"two",))], ("c", "d"): [landed]})
    if says is None:
        checks._check_placement(applied(X), change, "a", "b", known)
        return
    with pytest.raises(ConflictError, match=f"a hunk is not where it was written for: {says}"):
        checks._check_placement(applied(X), change, "a", "b", known)
    # Nothing to compare where the file is the one that the patch was written for.
    checks._check_placement(applied(X), replace(change, before="a"), "a", "b", outlines())


ONE, TWO = b"def f(): ...\n", b"def f(): ...\ndef f(): ...\n"


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (ONE, ONE, None),
        (ONE, TWO, "f is now defined twice"),
        (TWO, TWO + b"x = 1\n", None),  # upstream has it twice already
        (None, ONE, None),
        (None, TWO, "f is now defined twice"),
        (ONE, b"def (:\n", "does not parse after the patch"),
        (ONE, ONE + b"unknown()\n", f"unknown {checks.UNBOUND}"),
    ],
)
def test_a_python_file_after_the_patch(
    before: bytes | None, after: bytes, says: str | None
) -> None:
    texts = {"old": before, "new": after}

    def of(oid: str) -> Any:
        text = texts[oid]
        assert text is not None
        return parse_outline(text)

    known = cast(Any, SimpleNamespace(of=of, or_empty=of))
    change = FileChange(X, "old" if before is not None else NULL_OID, "new")
    if says is None:
        checks._check_python(applied(X), change, known)
        return
    with pytest.raises(ConflictError, match=says):
        checks._check_python(applied(X), change, known)


def test_references_of_added_lines_that_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [SimpleNamespace(line=2, message="imports x, and there is no such module")]
    asked: list[frozenset[int]] = []

    def find(_: object, path: str, lines: frozenset[int], __: object) -> Any:
        asked.append(lines)
        return found

    monkeypatch.setattr(checks, "find_unresolved", find)
    known = cast(Any, SimpleNamespace(syntax=lambda *_: None))
    change = FileChange(X, "a" * 40, "b" * 40)
    (one,) = checks.find_dangling(applied(X), change, known, cast(Any, None))
    assert (one.place, one.message) == (f"{X} (line 2 with the patch)", found[0].message)
    assert asked == [{2, 10}]
    # A patch that adds no line of the file refers to nothing.
    other = FileChange("python/sglang/z.py", "a" * 40, "b" * 40)
    assert checks.find_dangling(applied(X), other, known, cast(Any, None)) == []
    assert len(asked) == 1


def test_a_blank_line_belongs_to_no_symbol() -> None:
    change = FileChange(X, "c", "d")
    apart = [Run(8, (), 8, (b"x",)), Run(20, (), 20, (b"",))]
    known = outlines({("a", "b"): [Run(9, (), 9, (b"x", b""))], ("c", "d"): apart})
    checks._check_placement(applied(X), change, "a", "b", known)


def test_lines_of_a_file_that_is_added_or_removed() -> None:
    assert list(checks.changed_lines(NULL_OID, "b", outlines())) == []
    assert list(checks.changed_lines("a", NULL_OID, outlines())) == []


# -- applying ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modes", "refused"),
    [
        (("100644", "100644"), False),
        (("100755", "100755"), False),
        (("000000", "100644"), False),
        (("100644", "000000"), False),
        (("100644", "100755"), True),
        (("000000", "120000"), True),
        (("120000", "120000"), True),
    ],
)
def test_a_patch_changes_no_modes(
    monkeypatch: pytest.MonkeyPatch, modes: tuple[str, str], refused: bool
) -> None:
    change = TreeChange(X, *modes, "a", "b")
    monkeypatch.setattr(engine, "changed_files", lambda *_: [change])
    patch = cast(Any, SimpleNamespace(name="demo/x.patch"))
    if not refused:
        found = engine._changes(cast(Any, None), "t", "u", patch)
        assert found == (FileChange(X, "a", "b"),)
        return
    with pytest.raises(IntegrityError, match=f"mode {modes[0]} became {modes[1]}"):
        engine._changes(cast(Any, None), "t", "u", patch)


def test_a_series_without_patches_is_the_base() -> None:
    base = Base(Version("0.5.23"), "commit", "tree", "pypi", "v0.5.23")
    assert (Composition(base, ()).tip, Composition(base, ()).tree) == ("commit", "tree")
    last = replace(applied(X), commit="later", tree="last")
    assert (Composition(base, (last,)).tip, Composition(base, (last,)).tree) == ("later", "last")


def test_what_the_environment_lacks_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(check_all, "prepare_base", fail)
    release = Version("0.5.23")
    error: Exception = IntegrityError("another wheel")
    assert check_all._prepare(cast(Any, None), release) is error
    error = EnvironmentFault("no network")
    with pytest.raises(EnvironmentFault):
        check_all._prepare(cast(Any, None), release)


def test_upstream_has_something_where_the_kernels_go(ready: Lab) -> None:
    git = ready.home.open_repository()
    files = {"sglang/srt/layers/attention/ada_dsa/own.py": "", "sglang/srt/utils.py": ""}
    ready.release("0.5.24", files)
    base = ready._base("0.5.24")
    with pytest.raises(ConflictError, match="has its own python/sglang/srt/layers"):
        kernels.commit_kernels(git, base, base.commit, ready.root / "ada_dsa")


def test_commits_are_computed_again_from_the_lock_they_stand_in(ready: Lab) -> None:
    """A new header gives new commits; a lock that is not that of the series gives an error."""
    series, lock = load_series(ready.root), ready.lock
    (patch,) = series.patches
    header = patch.content.replace(b"Because it is needed", b"Because it is wanted")
    renewed = recompute_commits(lock, series, {patch.name: header})
    (before,), (after,) = (one.get(Version("0.5.23")).patches for one in (lock, renewed))
    assert after.tree == before.tree and after.commit != before.commit
    assert recompute_commits(lock, series, {}) == lock
    assert recompute_commits(lock, series, {"demo/other.patch": header}) == lock
    path = ready.root / "patches" / patch.name
    path.write_bytes(header)
    with pytest.raises(IntegrityError, match="does not match the series on v0.5.23"):
        recompute_commits(lock, load_series(ready.root), {patch.name: header})
    entry = lock.get(Version("0.5.23"))
    moved = replace(entry, patches=(replace(before, commit="f" * 40),))
    with pytest.raises(IntegrityError, match="does not match the series on v0.5.23"):
        recompute_commits(Lock({moved.version: moved}), series, {patch.name: header})


def test_the_intended_blobs_of_new_and_removed_files_need_no_git() -> None:
    files = tuple(
        replace(file, before=before, after=after)
        for file, (before, after) in zip(
            PARSED.files, ((NULL_OID, "n"), ("o", NULL_OID)), strict=True
        )
    )
    found = checks.compute_intended(cast(Any, None), replace(PARSED, files=files))
    assert found == {X: "n", Y: NULL_OID}


@pytest.mark.parametrize("named", [True, False])
def test_the_result_that_a_patch_names_is_made_only_where_it_is_not_here(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    lab.patch("demo/edit.patch", {UTILS: EDITED})
    git = Git(lab.home.repository)
    (patch,) = load_series(lab.root).patches
    parsed = patchfile.parse(patch.name, patch.content)
    (file,) = parsed.files
    git.out("hash-object", "-w", "--stdin", stdin=EDITED.encode())
    if not named:
        wrong = git.out("hash-object", "-w", "--stdin", stdin=b"another result\n")
        parsed = replace(parsed, files=(replace(file, after=wrong),))
    else:
        monkeypatch.setattr(checks, "private_index", None)
    assert checks.compute_intended(git, parsed) == {file.path: file.after}


def test_a_patch_that_does_not_apply_names_its_files(lab: Lab) -> None:
    lab.patch("demo/answer.patch", {UTILS: EDITED})
    lab.relock()
    lab.release("0.5.24", {"sglang/srt/utils.py": "def f3():\n    return 4\n"})
    path = lab.root / "series.txt"
    path.write_text(path.read_text().replace("==0.5.23", ">=0.5.23"))
    with pytest.raises(ConflictError, match=f"does not apply: {UTILS}"):
        lab.relock("0.5.24")
    with pytest.raises(UsageError):
        lab.lock.get(Version("0.5.25"))
