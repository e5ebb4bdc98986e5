"""Patch files and commit messages are two forms of one header: nothing is lost either way."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tool.errors import UsageError
from tool.series import patchfile
from tool.series.patchfile import Header

DIFF = (
    b"diff --git a/python/sglang/x.py b/python/sglang/x.py\n"
    b"index " + b"a" * 40 + b".." + b"b" * 40 + b" 100644\n"
    b"--- a/python/sglang/x.py\n+++ b/python/sglang/x.py\n"
    b"@@ -1,2 +1,3 @@ def f():\n one\n+two\n three\n"
)

_WORDS = st.text(string.ascii_letters + string.digits + " .,()#'", min_size=1, max_size=30)
_LINE = _WORDS.map(str.strip).filter(lambda s: s and s != ".")
_BODY = st.lists(st.lists(_LINE, min_size=1, max_size=3).map("\n".join), max_size=3).map(
    "\n\n".join
)
_VALUE = st.lists(_LINE, min_size=1, max_size=3).map("\n".join)
_HEADERS = st.builds(
    Header,
    subject=_LINE,
    body=_BODY,
    fields=st.lists(
        st.tuples(st.sampled_from(["Origin", "Forwarded", "Releases", "Drop-When"]), _VALUE),
        min_size=1,
        max_size=4,
        unique_by=lambda f: f[0],
    ).map(tuple),
)


@given(_HEADERS)
def test_render_and_parse_are_inverse(header: Header) -> None:
    parsed = patchfile.parse("x.patch", patchfile.render(header, DIFF))
    assert (parsed.header, parsed.diff) == (header, DIFF)


@given(_HEADERS)
def test_a_commit_message_brings_the_header_back(header: Header) -> None:
    text = patchfile.message(header, "x.patch", "f" * 64)
    assert patchfile.from_message(text) == (header, "x.patch")


@pytest.mark.parametrize(
    "header",
    [
        Header("s", "one\n.\ntwo", (("Origin", "vendor"),)),
        Header("s", "b", (("Origin", "vendor\n."),)),
    ],
)
def test_a_line_dep3_cannot_hold_is_refused_and_not_lost(header: Header) -> None:
    """In DEP-3 ' .' is an empty line, so a line that holds one full stop cannot be written."""
    with pytest.raises(UsageError) as caught:
        patchfile.render(header, DIFF)
    assert "only '.'" in caught.value.message and caught.value.where == "the header of 's'"


def test_only_a_newline_ends_a_line() -> None:
    header = Header("s\x0c", "one\x0ctwo\u2028three\x85", (("Origin", "a\x1cb"),))
    assert patchfile.parse("x.patch", patchfile.render(header, DIFF)).header == header
    text = patchfile.message(header, "x.patch", "f" * 64)
    assert patchfile.from_message(text) == (header, "x.patch")


def test_reads_files_and_hunks() -> None:
    content = patchfile.render(Header("s", "b", (("Origin", "vendor"),)), DIFF)
    (file,) = patchfile.parse("x.patch", content).files
    assert (file.path, file.before, file.after) == ("python/sglang/x.py", "a" * 40, "b" * 40)
    (hunk,) = file.hunks
    assert (hunk.old_start, hunk.old_len, hunk.new_start, hunk.new_len) == (1, 2, 1, 3)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"\n---\ndiff", b"\ndiff", "no line '---'"),
        (b" three\n", b"", "do not add up"),
        (b"+two\n", b"two\n", "must begin with"),
        (b"@@ -1,2 +1,3 @@", b"@@ -1,2 +1,9 @@", "do not add up"),
        (DIFF, b"", "empty"),
        (b"Description: s", b"Subject: s", "Description"),
        (b"Origin: vendor", b"just words", "not a header line"),
        (b" b/python/sglang/x.py\nindex", b" b/python/sglang/y.py\nindex", "expected 'diff --git"),
    ],
)
def test_names_what_is_wrong(old: bytes, new: bytes, words: str) -> None:
    content = patchfile.render(Header("s", "b", (("Origin", "vendor"),)), DIFF)
    assert old in content
    with pytest.raises(UsageError) as caught:
        patchfile.parse("x.patch", content.replace(old, new, 1))
    assert words in caught.value.message
    assert caught.value.where and caught.value.where.startswith("patches/x.patch:")


def test_a_file_patched_twice_is_refused() -> None:
    content = patchfile.render(Header("s", "b", (("Origin", "vendor"),)), DIFF + DIFF)
    with pytest.raises(UsageError, match="twice"):
        patchfile.parse("x.patch", content)


NAME = b"python/sglang/x.py"


def content(diff: bytes = DIFF) -> bytes:
    return patchfile.render(Header("s", "b", (("Origin", "vendor"),)), diff)


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("{}python/sglang/N=1,name=x y.json", "python/sglang/N=1,name=x y.json"),
        ("{}python/sglang/it's.py", "python/sglang/it's.py"),
        ('"{}python/sglang/\\303\\274.py"', "python/sglang/\u00fc.py"),
        ('"{}python/sglang/a\\"b\\\\c.py"', 'python/sglang/a"b\\c.py'),
    ],
)
def test_names_as_git_writes_them(written: str, path: str) -> None:
    old, new = written.format("a/").encode(), written.format("b/").encode()
    diff = DIFF.replace(b"a/" + NAME, old).replace(b"b/" + NAME, new)
    assert patchfile.parse("x.patch", content(diff)).files[0].path == path
    tabbed = diff.replace(b"--- " + old, b"--- " + old + b"\t")
    assert patchfile.parse("x.patch", content(tabbed)).files[0].path == path


@pytest.mark.parametrize("place", range(4))
def test_the_four_names_agree(place: int) -> None:
    parts = DIFF.split(NAME)
    assert len(parts) == 5
    names = [NAME] * 4
    names[place] = b"python/sglang/y.py"
    diff = parts[0] + b"".join(n + part for n, part in zip(names, parts[1:], strict=True))
    with pytest.raises(UsageError, match="expected"):
        patchfile.parse("x.patch", content(diff))


EMPTY = patchfile.EMPTY_BLOB.encode()
NONE = b"0" * 40


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (b"new file mode 100644\nindex " + NONE + b".." + EMPTY, None),
        (b"deleted file mode 100644\nindex " + EMPTY + b".." + NONE, None),
        (b"new file mode 100644\nindex " + NONE + b".." + b"1" * 40, "ends too early"),
        (b"new file mode 100644\nindex " + b"1" * 40 + b".." + EMPTY, "do not say the same"),
        (b"index " + NONE + b".." + EMPTY, "do not say the same"),
        (b"new file mode 120000\nindex " + NONE + b".." + EMPTY, "is a symlink"),
        (b"new file mode 160000\nindex " + NONE + b".." + EMPTY, "is a submodule"),
        (b"old mode 100644\nnew mode 100755", "changes the mode"),
        (b"similarity index 100%\nrename from a\nrename to b", "is a rename"),
        (b"index " + b"1" * 40 + b".." + b"2" * 40 + b"\nGIT binary patch", "is binary"),
        (b"index " + b"1" * 40 + b".." + b"2" * 40 + b"\nBinary files a and b differ", "is binary"),
    ],
)
def test_sections_without_hunks(lines: bytes, words: str | None) -> None:
    diff = b"diff --git a/" + NAME + b" b/" + NAME + b"\n" + lines + b"\n"
    if words is None:
        assert patchfile.parse("x.patch", content(diff)).files[0].hunks == ()
        return
    with pytest.raises(UsageError, match=words):
        patchfile.parse("x.patch", content(diff))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"+two", b"+t\0wo", "is binary"),
        (b"-1,2", b"-" + b"1" * 5000 + b",2", "no hunks"),
        (b"Description: s", b"Description: \xff", "not UTF-8"),
        (b"Origin: vendor", b"Origin: vendor\nKernels-Tree: " + b"1" * 40, "only tool apply"),
        (b"Origin: vendor", b"Origin: vendor\nPatch-Name: demo/other.patch", "only tool apply"),
        (b" b\n", b" b\n .\n Patch-Name: demo/other.patch\n", "only tool apply"),
        (b"\n", b"\r\n", "CRLF"),
        (NAME, b"python/sglang/\x1b.py", "control character"),
        (NAME, "python/sglang/\u202e.py".encode(), "control character"),
        (NAME, b"python/sglang/\xff.py", "not UTF-8"),
        (NAME, b"python/sglang/.GIT/config", "git's own files"),
    ],
)
def test_refused_with_the_reason(old: bytes, new: bytes, words: str) -> None:
    assert old in content()
    with pytest.raises(UsageError, match=words):
        patchfile.parse("x.patch", content().replace(old, new))


def test_a_message_of_two_patches_is_that_of_the_first() -> None:
    first = patchfile.message(
        Header("one", "Why.", (("Origin", "vendor"),)), "d/one.patch", "f" * 64
    )
    second = patchfile.message(
        Header("two", "So.", (("Origin", "other"),)), "d/two.patch", "e" * 64
    )
    header, name = patchfile.from_message(first + "\n" + second)
    assert (header.subject, name, header.fields) == ("one", "d/one.patch", (("Origin", "vendor"),))
    assert header.body == "Why.\n\ntwo\n\nSo."
    assert patchfile.squashed_names(first + "\n" + second) == ["d/two.patch"]
    assert patchfile.squashed_names(first) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [("a b", "a b"), ('"a\\tb"', "a\tb"), ('"a\\"b"', 'a"b'), ('"\\303\\251"', "é"), ('"a"', "a")],
)
def test_names_as_git_quotes_them(text: str, name: str) -> None:
    assert patchfile.unquote_name(text) == name


@pytest.mark.parametrize("text", ['"', '"a', '"a"b"'])
def test_a_quote_that_is_not_closed(text: str) -> None:
    with pytest.raises(ValueError, match="a quote is not closed"):
        patchfile.unquote_name(text)


def test_a_header_that_is_not_utf8_is_not_written() -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        patchfile.render(Header("s\udc80", "b", (("Origin", "vendor"),)), DIFF)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            b"index " + b"a" * 40,
            b"new file mode 100644\nindex " + b"0" * 40,
            "added or removed whole",
        ),
        (b"+two\n", b"", "hunk"),
        (b"@@ -1,2 +1,3 @@ def f():\n one\n+two\n three\n", b"", "no hunks"),
        (b"diff --git a/", b"diff --git b/", "expected 'diff --git a/PATH b/PATH'"),
        (b" b/python", b" a/python", "expected 'diff --git a/PATH b/PATH'"),
        (b"x.py b/", b"y.py b/", "expected 'diff --git a/PATH b/PATH'"),
        (b"--- a/python/sglang/x", b"--- a/python/sglang/y", "y.py"),
        (b"+++ b/python/sglang/x", b"+++ b/python/sglang/y", "y.py"),
    ],
)
def test_a_diff_that_does_not_agree_with_itself(old: bytes, new: bytes, words: str) -> None:
    diff = DIFF.replace(old, new)
    if b"new file" in new:
        diff = diff.replace(b" 100644\n---", b"\n---").replace(
            b"--- a/python/sglang/x.py", b"--- /dev/null"
        )
    content = patchfile.render(Header("s", "b", (("Origin", "vendor"),)), diff)
    with pytest.raises(UsageError) as caught:
        patchfile.parse("x.patch", content)
    assert words in str(caught.value)


def test_one_file_in_two_sections() -> None:
    content = patchfile.render(Header("s", "b", (("Origin", "vendor"),)), DIFF + DIFF)
    with pytest.raises(UsageError, match="is patched twice"):
        patchfile.parse("x.patch", content)


HUNKS = b"""\
@@ -0,0 +1 @@
+zero
@@ -2,3 +3,2 @@ two
 two
-three
 four
@@ -6 +6 @@
-six
\\ No newline at end of file
+SIX
"""


@pytest.mark.parametrize(
    ("content", "result"),
    [
        (b"one\ntwo\nthree\nfour\nfive\nsix", b"zero\none\ntwo\nfour\nfive\nSIX\n"),
        (b"one\r\ntwo\nthree\nfour\n\x0c\nsix", b"zero\none\r\ntwo\nfour\n\x0c\nSIX\n"),
        (b"one\ntwo\nthree\nfour\nfive\nsix\n", None),
        (b"one\ntwo\nThree\nfour\nfive\nsix", None),
        (b"two\nthree\nfour\nfive\nsix", None),
        (b"", None),
    ],
)
def test_hunks_are_applied_on_their_own_lines(content: bytes, result: bytes | None) -> None:
    name = "python/sglang/a.py"
    diff = b"diff --git a/%b b/%b\nindex %b..%b 100644\n--- a/%b\n+++ b/%b\n" % (
        *[name.encode()] * 2, b"1" * 40, b"2" * 40, *[name.encode()] * 2,
    )  # fmt: skip
    (file,) = patchfile.parse("a", b"Description: s\nOrigin: o\n---\n" + diff + HUNKS).files
    assert file.apply(content) == result
