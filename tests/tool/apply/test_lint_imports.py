"""Imports that a patch adds: which there are, and which lead nowhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tool.apply.lint_imports import _find_missing_kernel, list_imports
from tool.series import Patch, parse_series

TEXT = "pin 0.5.23\nrevision 1\nchange demo >=0.5.9\n    demo/a.patch ==0.5.23\n"
HEAD = (
    "Description: s\n w\nOrigin: vendor\n---\n"
    "diff --git a/python/sglang/srt/x.py b/python/sglang/srt/x.py\n"
    f"index {'a' * 40}..{'b' * 40} 100644\n"
    "--- a/python/sglang/srt/x.py\n+++ b/python/sglang/srt/x.py\n"
)


def patch(*lines: str) -> Patch:
    old, new = (sum(line[0] in signs for line in lines) for signs in (" -", " +"))
    body = "".join(f"{line}\n" for line in lines)
    content = f"{HEAD}@@ -1,{old} +1,{new} @@\n{body}".encode()
    (found,) = parse_series(Path("/p"), TEXT).patches
    return replace(found, content_override=content)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (("+import a.b, c",), [("a.b", None), ("c", None)]),
        (("+from a import b, c as d",), [("a", "b"), ("a", "c")]),
        (("+from . import b",), [("sglang.srt", "b")]),
        (("+    from .a import b  # why",), [("sglang.srt.a", "b")]),
        (("+from a import (", "+    b,", "+    c,", "+)"), [("a", "b"), ("a", "c")]),
        (("+from a import \\", "+    b"), [("a", "b")]),
        (("+from a import (", "     b,", "+)"), []),  # a line of upstream is in it
        (("+from a import (b",), []),
        (("-import a",), []),
        ((" import a",), []),
        (("+imported = 1", "+x = 'import a'"), []),
        (("+try:", "+    import a"), []),
        ((" try:", "+    import a"), []),
        (("+try:", "+", "+    import a"), []),
        (("+try:", "+    x = 1", "+    import a"), [("a", None)]),
    ],
)
def test_imports_of_added_lines(
    lines: tuple[str, ...], found: list[tuple[str, str | None]]
) -> None:
    imports = list(list_imports(patch(" x = 1", *lines)))
    assert [(module, name) for _, module, name in imports] == found
    for line, _, _ in imports:
        text = patch(" x = 1", *lines).content.decode().split("\n")[line - 1]
        assert text.startswith("+") and "import" in text


@pytest.mark.parametrize(
    ("place", "name", "why"),
    [
        ("", None, None),
        ("", "bound", None),
        ("", "gone", "which has no such name"),
        ("", "folder", None),
        ("", "module", None),
        ("", "*", None),
        ("module", "x", None),
        ("module", "y", "which has no such name"),
        ("module", None, None),
        ("gone", "x", "and gone.py is not in the kernels' folder"),
        ("empty", "x", "and __init__.py is not in the kernels' folder"),
        ("folder", "anything", None),  # it has a __getattr__
    ],
)
def test_what_the_kernels_have(
    tmp_path: Path, place: str, name: str | None, why: str | None
) -> None:
    for path, text in (
        ("__init__.py", "bound = 1\n"),
        ("module.py", "x = 1\n"),
        ("folder/__init__.py", "def __getattr__(name): ...\n"),
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "empty").mkdir()
    assert _find_missing_kernel(tmp_path / place, name) == why
