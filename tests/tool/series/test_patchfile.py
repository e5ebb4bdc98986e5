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
