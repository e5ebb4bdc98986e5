"""What upstream did to one file, found in files that are given as text; no git takes part."""

# ruff: noqa: E501  (a row of a table is one line)

from __future__ import annotations

import difflib
import hashlib
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tool.analysis import (
    Block,
    Outlines,
    Source,
    changed_blocks,
    format_lines,
    is_significant,
)
from tool.analysis.outline import Outline
from tool.classify.classify import Classifier, _format_clashes
from tool.classify.outcome import ConflictHunk
from tool.classify.renames import Rename, RenameDetector, _likeness
from tool.classify.semantics import find_semantic_conflicts
from tool.classify.upstreamed import FileVersions, UpstreamDetector, summarize
from tool.classify.vocabulary import Vocabulary, has_word
from tool.git import NULL_OID, Git
from tool.git.diff import Run

PATH = "python/sglang/x.py"


class Contents:
    """Blobs by id and trees as tables of paths, as far as the classifier asks git for them."""

    def __init__(self) -> None:
        self.texts: dict[str, bytes] = {}
        self.trees: dict[str, dict[str, str]] = {}
        self.answers: dict[str, str] = {}
        self.asked: list[tuple[str, ...]] = []

    def add(self, text: str) -> str:
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.texts[oid] = text.encode()
        return oid

    def tree(self, name: str, files: dict[str, str]) -> str:
        self.trees[name] = {path: self.add(text) for path, text in files.items()}
        return name

    def blobs(self, oids: list[str]) -> dict[str, bytes]:
        return {oid: self.texts[oid] for oid in oids}

    def find(self, spec: str) -> str | None:
        tree, _, path = spec.partition(":")
        return self.trees[tree].get(path)

    def out(self, *args: str) -> str:
        return self.answers[args[0]]

    def run(self, *args: str, check: bool) -> Any:
        self.asked.append(args)
        return SimpleNamespace(stdout=self.answers.get(args[0], "").encode())


class TextOutlines(Outlines):
    """Outlines that compare two texts without git."""

    def runs(self, before: str, after: str) -> tuple[Run, ...]:
        texts = self._git.blobs([before, after])
        old, new = (texts[oid].split(b"\n") for oid in (before, after))
        codes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        return tuple(
            Run(i + (j > i), k + (m > k), tuple(old[i:j]), tuple(new[k:m]))
            for tag, i, j, k, m in codes
            if tag != "equal"
        )


@pytest.fixture
def git() -> Contents:
    return Contents()


@pytest.fixture
def outlines(git: Contents) -> Outlines:
    return TextOutlines(cast(Git, git))


def versions(
    git: Contents, outlines: Outlines, before: str, result: str, current: str
) -> FileVersions:
    ids = [git.add(text) if text else NULL_OID for text in (before, result, current)]
    intended = changed_blocks(cast(Git, git), PATH, ids[0], ids[1], outlines)
    return FileVersions(PATH, *ids, intended)


# -- blocks and sources ----------------------------------------------------------------------------------


def block(old: int, removed: int, **changed: Any) -> Block:
    lines = tuple(b"old %d" % n for n in range(removed))
    return Block(PATH, old, changed.pop("new", old), lines, changed.pop("added", ()), "f")


@pytest.mark.parametrize(
    ("one", "other", "touch"),
    [
        (block(10, 2), block(12, 1), True),
        (block(10, 2), block(13, 1), True),  # one line apart
        (block(10, 2), block(14, 1), False),
        (block(10, 0), block(11, 1), True),
        (block(10, 0), block(12, 1), False),
    ],
)
def test_whether_two_changes_touch(one: Block, other: Block, touch: bool) -> None:
    assert one.touches(other) is touch and other.touches(one) is touch


def test_how_a_change_is_named() -> None:
    found = Block(PATH, 0, 3, (b"a",), (b"b", b"\xff"), "f")
    assert found.place == f"{PATH}, f (line 1 when the patch was written)"
    assert list(found.format()) == ["-a", "+b", "+\ufffd"]
    assert summarize(found) == "+b (+2/-1 lines)"
    assert summarize(Block(PATH, 1, 1, (b" a ",), (b"", b" "), "f")) == "-a (+2/-1 lines)"
    assert found.same_change(Block(PATH, 9, 9, (b"a",), (b"b", b"\xff"), "f"))
    assert not found.same_change(Block(PATH, 0, 3, (b"a",), (b"b", b"\xff"), "g"))


def test_how_line_numbers_are_read() -> None:
    assert format_lines([3]) == "line 3"
    assert format_lines([3, 8]) == "lines 3 and 8"
    assert format_lines([3, 8, 12]) == "lines 3, 8 and 12"


SOURCE = "x = 1\n\n\ndef f():\n    a = 1\n    return a\n\n\ndef g():\n    a = 1\n    return a\n"


def test_lines_of_a_file(git: Contents, outlines: Outlines) -> None:
    found = Source(cast(Git, git), outlines, git.add(SOURCE))
    twice = [b"    a = 1", b"    return a"]
    assert found.find(twice) == [5, 10] and found.find([]) == [] and found.find([b"gone"]) == []
    assert (found.count(twice, "f"), found.count(twice, "h")) == (1, 0)
    assert found.has("<module>") and found.has("f") and not found.has("h")
    assert list(found.body("g")) == [b"def g():", *twice] and list(found.body("h")) == []
    broken = Source(cast(Git, git), outlines, git.add("def (:\n"))
    assert not broken.parses and broken.has("<module>") and found.parses
    empty = Source(cast(Git, git), outlines, NULL_OID)
    assert empty.parses and list(empty.lines) == [b""] and not empty.has("f")


def test_changes_of_a_file(git: Contents, outlines: Outlines) -> None:
    def blocks(before: str, after: str) -> list[tuple[Any, ...]]:
        found = changed_blocks(cast(Git, git), PATH, before, after, outlines)
        return [(b.old_line, b.new_line, len(b.removed), len(b.added), b.symbol) for b in found]

    old = git.add(SOURCE)
    assert blocks(old, old) == []
    assert blocks(NULL_OID, old) == [(0, 0, 0, 12, "<module>")]
    assert blocks(old, NULL_OID) == [(0, 0, 12, 0, "<module>")]
    assert blocks(old, git.add(SOURCE.replace("x = 1\n", "x = 2\n"))) == [(1, 1, 1, 1, "<module>")]
    inserted = SOURCE.replace("def g():\n", "def g():\n    b = 2\n")
    assert blocks(old, git.add(inserted)) == [(9, 10, 0, 1, "g")]
    assert blocks(git.add(inserted), old) == [(10, 9, 1, 0, "g")]


@pytest.mark.parametrize(
    ("lines", "enough"),
    [
        ([b"else:"], False), ([b"    return None"], False), ([b"}", b"", b")"], False),
        ([b"if self:", b"return True"], False), ([b"total = self.blocks * self.page"], True),
    ],
)  # fmt: skip
def test_text_that_is_found_by_chance(lines: list[bytes], enough: bool) -> None:
    assert is_significant(lines) is enough


# -- upstream has it -------------------------------------------------------------------------------------

LONG = "    total = blocks_of_memory * page_size\n"
OTHER = "    wanted = another_value_entirely + page_size\n"
STOCK = (
    f"def f():\n    first = 1\n{LONG}    last = 2\n\n\ndef g():\n    return compute_everything()\n"
)
OURS = STOCK.replace(LONG, OTHER)


@pytest.mark.parametrize(
    ("before", "result", "current", "holds"),
    [
        (STOCK, OURS, STOCK, False),
        (STOCK, OURS, OURS, True),
        (STOCK, OURS, OURS.replace("first = 1", "first = 9"), True),
        # Upstream added the lines and kept what the patch removes.
        (STOCK, OURS, STOCK.replace(LONG, LONG + OTHER), False),
        # It has them in another function.
        (STOCK, OURS, STOCK.replace("def g():\n", "def g():\n" + OTHER), False),
        # Removal: the neighbours of the removed lines have to meet.
        (STOCK, STOCK.replace(LONG, ""), STOCK.replace(LONG, ""), True),
        (STOCK, STOCK.replace(LONG, ""), STOCK.replace(LONG, "    more = 3\n"), False),
        (STOCK, STOCK.replace(LONG, ""), STOCK.replace(LONG, "").replace("first = 1", "first = 3"), False),
        (STOCK, STOCK.replace(LONG, ""), STOCK, False),
        # Addition alone.
        (STOCK, STOCK.replace(LONG, LONG + OTHER), STOCK.replace("def g", "x = 1\ndef g").replace(LONG, LONG + OTHER), True),
        (STOCK, STOCK.replace(LONG, LONG + OTHER), STOCK.replace("    last = 2\n", "    last = 2\n" + OTHER), True),
        # Nothing but common words.
        (STOCK, STOCK.replace(LONG, LONG + "    pass\n"), STOCK.replace("    last = 2\n", "    last = 2\n    pass\n    more = 3\n"), False),
        # The function is gone, and its lines with it.
        (STOCK, STOCK.replace(LONG, ""), STOCK[STOCK.index("def g") :], False),
    ],
)  # fmt: skip
def test_whether_a_release_holds_a_change(
    git: Contents, outlines: Outlines, before: str, result: str, current: str, holds: bool
) -> None:
    aim = versions(git, outlines, before, result, current)
    (wanted,) = aim.intended
    assert UpstreamDetector(cast(Git, git), outlines).holds(aim, wanted) is holds


def test_whether_it_holds_it_elsewhere(git: Contents, outlines: Outlines) -> None:
    def where(before: str, current: str, result: str = OURS) -> str | None:
        aim = versions(git, outlines, before, result, current)
        return UpstreamDetector(cast(Git, git), outlines).elsewhere(aim, aim.intended[0])

    there = STOCK.replace("def g():\n", "def g():\n" + OTHER)
    assert where(STOCK, there) == (
        f"{PATH}, g (line 8 of the release): the release has there: +{OTHER.strip()} (+1/-1 lines)"
    )
    assert where(STOCK, STOCK) is None and where(STOCK, OURS) is None and where(STOCK, "") is None
    # It was there before: upstream did nothing.
    assert where(there, there, there.replace(LONG, OTHER)) is None
    short = "    x = 1\n"
    moved = STOCK.replace("def g():\n", "def g():\n" + short)
    assert where(STOCK, moved, STOCK.replace(LONG, short)) is None


# -- names and lines that are left over ------------------------------------------------------------------


def conflicts(
    git: Contents, outlines: Outlines, before: str, result: str, current: str
) -> list[str]:
    aim = versions(git, outlines, before, result, current)
    contents = {
        oid: git.texts[oid] for oid in (aim.before, aim.result, aim.current) if oid != NULL_OID
    }
    return list(find_semantic_conflicts(aim, contents, outlines))


def test_more_of_what_a_patch_replaces(git: Contents, outlines: Outlines) -> None:
    more = STOCK.replace("def g():\n", "def g():\n" + LONG)
    found = conflicts(git, outlines, STOCK, OURS, more)
    assert found == [
        f"{PATH}: the release has this at 2 places, its lines 3 and 8, "
        f"1 more than the patch was written for: {LONG.strip()}"
    ]
    indented = STOCK.replace("def g():\n", "def g():\n    if 1:\n    " + LONG)
    assert len(conflicts(git, outlines, STOCK, OURS, indented)) == 1
    assert conflicts(git, outlines, STOCK, OURS, STOCK) == []
    assert conflicts(git, outlines, STOCK, OURS, STOCK + "z = 1\n") == []
    assert conflicts(git, outlines, STOCK, "", more) == []  # the patch removes the file
    # The patch leaves one: it did not mean all of them.
    two = STOCK + "\n\ndef h():\n" + LONG
    assert conflicts(git, outlines, two, two.replace(LONG, OTHER, 1), two + LONG) == []


NAMED = "LIMIT = 3\n\n\ndef f(a):\n    b = a.size\n    return b\n"


@pytest.mark.parametrize(
    ("line", "current", "name"),
    [
        ("    c = LIMIT\n", NAMED.replace("LIMIT", "BOUND"), "LIMIT"),
        ("    c = a.size\n", NAMED.replace("size", "length"), "size"),
        ("    c = a.other\n", NAMED.replace("size", "length"), None),
        ("    LIMIT = 3\n", NAMED.replace("LIMIT", "BOUND"), None),  # a variable of its own
        ("    c = LIMIT\n", NAMED, None),
        (
            "    c = a.LIMIT\n",
            NAMED.replace("LIMIT", "BOUND"),
            None,
        ),  # an attribute is another thing
        ("    c = (\n", NAMED.replace("LIMIT", "BOUND"), None),
    ],
)
def test_names_that_the_release_lacks(
    git: Contents, outlines: Outlines, line: str, current: str, name: str | None
) -> None:
    ours = NAMED.replace("    return b\n", line + "    return b\n")
    found = conflicts(git, outlines, NAMED, ours, current)
    wanted = f"{PATH}: the patch uses {name}, which this file of the release has not"
    assert found == ([wanted] if name else [])


# -- where code went -------------------------------------------------------------------------------------


def detector(git: Contents, outlines: Outlines, old: str | None = "OLD") -> RenameDetector:
    return RenameDetector(cast(Git, git), outlines, old, "NEW")


def test_the_file_that_a_file_became(git: Contents, outlines: Outlines) -> None:
    names = [f"f{n}" for n in range(4)]
    before = git.add("".join(f"def {name}(): ...\n" for name in names))
    git.tree("NEW", {"python/a.py": "", "python/b.py": "x"})
    rows = [f"NEW:python/a.py\0def {n}():" for n in names[:3]] + ["NEW:python/b.py\0class f0:"]
    git.answers = {"diff-tree": "python/a.py\0python/b.py\0notes.txt\0", "grep": "\n".join(rows)}
    found = detector(git, outlines).file(PATH, before, NULL_OID)
    assert found == Rename("python/a.py", git.trees["NEW"]["python/a.py"], 0.75)
    assert str(found) == "python/a.py (75% alike)"
    assert git.asked[0][-2:] == ("python/a.py", "python/b.py")
    assert detector(git, outlines, None).file(PATH, before, NULL_OID) is None
    # What is still in the file did not go anywhere.
    kept = git.add("def f0(): ...\ndef f1(): ...\n")
    share = detector(git, outlines).file(PATH, before, kept)
    assert share is not None and share.share == 0.5
    git.answers["grep"] = "NEW:python/a.py\0def f0():"
    assert detector(git, outlines).file(PATH, before, NULL_OID) is None
    git.answers["diff-tree"] = ""
    assert detector(git, outlines).file(PATH, before, NULL_OID) is None


def test_a_file_without_definitions(git: Contents, outlines: Outlines) -> None:
    git.tree("NEW", {"python/b.py": "x"})
    data = git.add("X = 1\n")
    git.answers = {"diff-tree": f"R090\0python/other.py\0python/a.py\0R080\0{PATH}\0python/b.py\0"}
    found = detector(git, outlines).file(PATH, data, NULL_OID)
    assert found == Rename("python/b.py", git.trees["NEW"]["python/b.py"], 0.8)
    git.answers = {"diff-tree": "R090\0python/other.py\0python/a.py\0"}
    assert detector(git, outlines).file(PATH, data, NULL_OID) is None


def test_whether_most_left_a_file(git: Contents, outlines: Outlines) -> None:
    four = git.add("".join(f"def f{n}(): ...\n" for n in range(4)))
    one, two = (git.add("".join(f"def f{n}(): ...\n" for n in range(k))) for k in (1, 2))
    assert detector(git, outlines).left(four, one) and not detector(git, outlines).left(four, two)
    assert not detector(git, outlines).left(git.add("X = 1\n"), git.add(""))


def test_the_definition_that_a_definition_became(git: Contents, outlines: Outlines) -> None:
    body = "".join(f"    line_{n} = {n}\n" for n in range(5))

    def became(after: str, before: str = f"def f():\n{body}") -> str | None:
        sources = [Source(cast(Git, git), outlines, git.add(text)) for text in (before, after)]
        found = detector(git, outlines).symbol("f", *sources)
        return found.name if found else None

    assert became(f"def g():\n{body}") == "g"
    assert became(f"def g():\n{body}\ndef h():\n{body.replace('1', '9')}") == "g"
    assert became("def g():\n    pass\n") is None and became("") is None
    assert became(f"class A:\n    def f():\n{body.replace('    ', '        ')}") is None
    # What both releases have did not come from ``f``, unless it has its name.
    both = f"def f():\n{body}def g():\n{body}"
    assert became(f"def g():\n{body}", both) is None
    assert became(f"class A:\n  def f():\n{body}", both) == "A.f"


def test_likeness() -> None:
    lines = [b"def f():", *(b"line %d" % n for n in range(10))]
    assert _likeness(lines, [b"def g():", *lines[1:]]) == 1.0
    assert _likeness(lines, lines[:1]) == _likeness(lines[:1], lines) == 0.0
    assert _likeness(lines, [b"def f():", *lines[1:8], b"a", b"b", b"c"]) == 0.7
    assert _likeness(lines, [b"def f():", *lines[1:4], *(b"x%d" % n for n in range(7))]) == 0.0


# -- words of the whole package --------------------------------------------------------------------------


def test_words_that_no_file_has(git: Contents) -> None:
    git.tree(
        "NEW",
        {
            PATH: "from sglang.srt.near import y\nown = 1\n",
            "python/sglang/srt/near.py": "near = 1\n",
        },
    )
    words = Vocabulary(cast(Git, git), "OLD", "NEW")
    assert words.find_gone({"own", "near"}, [PATH, "python/sglang/gone.py"]) == set()
    assert git.asked == []  # the near files were enough
    git.answers = {"grep": "far\n.gone\n"}
    assert words.find_gone({"own", "far", "gone", "never"}, [PATH]) == set()
    assert [args[-3] for args in git.asked] == ["NEW", "OLD"]

    class Old(Contents):
        def run(self, *args: str, check: bool) -> Any:
            found = {"NEW": "far\n", "OLD": ".gone\n.far\n"}[args[-3]]
            return SimpleNamespace(stdout=found.encode())

    other = Old()
    other.tree("NEW", {PATH: ""})
    known = Vocabulary(cast(Git, other), "OLD", "NEW")
    # A word that the older release had nowhere as an attribute is not one that upstream took away.
    assert known.find_gone({"far", "gone", "never"}, [PATH]) == {"gone"}
    assert Vocabulary(cast(Git, other), None, "NEW").find_gone({"gone"}, [PATH]) == set()


def test_whole_words() -> None:
    assert has_word(b"x.size + 1", b"size") and not has_word(b"x.sizes", b"size")
    assert has_word(b"sizes, _size, size", b"size") and not has_word(b"_size, size_", b"size")
    assert not has_word(b"x", b"size")


# -- definitions twice, and clashes ----------------------------------------------------------------------


def test_a_definition_that_is_there_already(git: Contents, outlines: Outlines) -> None:
    found = Classifier.__new__(Classifier)
    found._outlines = outlines

    def twice(before: str, after: str, path: str = PATH) -> list[str]:
        ids = [git.add(text) if text else NULL_OID for text in (before, after)]
        change = SimpleNamespace(path=path, before=ids[0], after=ids[1])
        return list(found._twice(cast(Any, change)))

    one, two = "x = 1\ndef f(): ...\n", "x = 1\ndef f(): ...\ndef f(): ...\n"
    assert twice(one, two) == [
        f"{PATH}: f is defined already, line 2 of the release; the patch adds another"
    ]
    assert "the patch itself" in twice("x = 1\n", two)[0]
    assert twice(one, two, "python/sglang/x.txt") == [] and twice(two, one) == []
    assert twice("", two) == [] and twice(one, "") == [] and twice("def (:\n", two) == []


def test_clashes_are_named() -> None:
    hunk = ConflictHunk(PATH, "f", 3, block(3, 1), (block(3, 1),))
    assert _format_clashes([hunk]) == [
        f"{PATH}, f (line 3 when the patch was written): upstream changed the same lines"
    ]


def test_the_outline_of_nothing(outlines: Outlines) -> None:
    assert isinstance(outlines.nothing, Outline) and outlines.nothing.spans == ()
