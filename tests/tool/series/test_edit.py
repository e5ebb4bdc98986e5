"""Edits of series.txt: one line changes, comments and columns stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tool.errors import UsageError
from tool.series import parse_series
from tool.series.edit import SeriesText, make_specifier, name_next_file, widen_specifier

V9, V22, V23, V24 = (Version(f"0.5.{n}") for n in (9, 22, 23, 24))
TEXT = """\
# the series
pin 0.5.23
revision 1

change swap >=0.5.9  # needed
    # kept
    swap/a.patch    ==0.5.23  # why
    swap/b.patch    ==0.5.23

change guard >=0.5.9
    guard/c.patch ==0.5.23
"""


def changed(text: SeriesText) -> list[tuple[str, str]]:
    """The lines that differ from TEXT, old and new."""
    return [
        pair
        for pair in zip(TEXT.split("\n"), str(text).split("\n"), strict=True)
        if pair[0] != pair[1]
    ]


def added(text: SeriesText, line: str) -> str:
    """The line before ``line``; the rest is TEXT."""
    lines = str(text).split("\n")
    at = lines.index(line)
    assert "\n".join([*lines[:at], *lines[at + 1 :]]) == TEXT
    return lines[at - 1]


def test_another_range() -> None:
    text = SeriesText(TEXT)
    text.respecify("swap/a.patch", "==0.5.9")
    assert changed(text) == [
        ("    swap/a.patch    ==0.5.23  # why", "    swap/a.patch    ==0.5.9  # why")
    ]


@pytest.mark.parametrize("edit", ["respecify", "drop"])
def test_a_patch_that_is_not_listed(edit: str) -> None:
    with pytest.raises(UsageError, match="swap/x.patch is not listed"):
        getattr(SeriesText(TEXT), edit)("swap/x.patch", "x")


def test_a_line_below_another() -> None:
    text = SeriesText(TEXT)
    text.insert_after("swap/a.patch", "swap/new.patch", "==0.5.24")
    assert added(text, "    swap/new.patch  ==0.5.24") == "    swap/a.patch    ==0.5.23  # why"


@pytest.mark.parametrize(
    ("change", "line", "before"),
    [
        ("swap", "    swap/new.patch  ==0.5.24", "    swap/b.patch    ==0.5.23"),
        ("guard", "    guard/new.patch ==0.5.24", "    guard/c.patch ==0.5.23"),
    ],
)
def test_a_line_at_the_end_of_a_change(change: str, line: str, before: str) -> None:
    text = SeriesText(TEXT)
    text.append(change, f"{change}/new.patch", "==0.5.24", needed=">=0.5.24")
    assert added(text, line) == before


def test_a_change_of_its_own() -> None:
    text = SeriesText(TEXT + "\n\n")
    text.append("mine", "mine/x.patch", "==0.5.24", needed=">=0.5.24")
    assert str(text) == TEXT + "\nchange mine >=0.5.24\n    mine/x.patch ==0.5.24\n"


ALIGNED = """\
change swap >=0.5.9
    swap/v0.5.9.patch       ==0.5.9
    swap/v0.5.10.patch      ==0.5.10
    swap/a-long-file-name.patch ==0.5.11

change empty >=0.5.9

change guard >=0.5.9
    guard/c.patch           ==0.5.23
"""
"""All specifiers in one column, but for a name that is too long for it."""


@pytest.mark.parametrize(
    ("change", "name", "line"),
    [
        ("mine", "mine/x.patch", "    mine/x.patch            ==0.5.24"),
        ("empty", "empty/x.patch", "    empty/x.patch           ==0.5.24"),
        ("guard", "guard/d.patch", "    guard/d.patch           ==0.5.24"),
        ("mine", "mine/exactly-fits.patch", "    mine/exactly-fits.patch ==0.5.24"),
        ("mine", "mine/does-not-fit-it.patch", "    mine/does-not-fit-it.patch ==0.5.24"),
    ],
)
def test_a_new_line_is_in_the_column_of_the_file(change: str, name: str, line: str) -> None:
    text = SeriesText(ALIGNED)
    text.append(change, name, "==0.5.24", needed=">=0.5.24")
    assert line in str(text).split("\n")


def test_a_line_beside_a_name_that_is_too_long_is_in_the_column_of_the_file() -> None:
    text = SeriesText(ALIGNED)
    text.insert_after("swap/a-long-file-name.patch", "swap/v0.5.12.patch", "==0.5.12")
    text.insert_before("swap/a-long-file-name.patch", "swap/z.patch", "==0.5.10")
    assert str(text).split("\n")[3:6] == [
        "    swap/z.patch            ==0.5.10",
        "    swap/a-long-file-name.patch ==0.5.11",
        "    swap/v0.5.12.patch      ==0.5.12",
    ]


def test_the_first_patch_of_a_change() -> None:
    text = SeriesText("change swap >=0.5.9\nchange guard >=0.5.9\n")
    text.append("swap", "swap/x.patch", "==0.5.24", needed="x")
    assert str(text) == "change swap >=0.5.9\n    swap/x.patch ==0.5.24\nchange guard >=0.5.9\n"


def test_a_dropped_patch_leaves_a_comment() -> None:
    text = SeriesText(TEXT)
    text.drop("swap/a.patch", "it went")
    assert changed(text) == [("    swap/a.patch    ==0.5.23  # why", "    # it went")]
    text.drop("guard/c.patch", "it too")
    lines = str(text).split("\n")
    assert "# change guard >=0.5.9" in lines and "change swap >=0.5.9  # needed" in lines
    text.drop("swap/b.patch", "and this")
    assert "# change swap >=0.5.9  # needed" in str(text).split("\n")


def names(text: SeriesText) -> list[str]:
    return [p.name for p in parse_series(Path("/p"), str(text)).patches]


@pytest.mark.parametrize(
    "order",
    [
        ["swap/b.patch", "swap/a.patch", "guard/c.patch"],
        ["guard/c.patch", "swap/a.patch", "swap/b.patch"],
        ["guard/c.patch", "swap/b.patch", "swap/a.patch"],
        ["swap/a.patch", "swap/b.patch", "guard/c.patch"],
    ],
)
def test_another_order(order: list[str]) -> None:
    text = SeriesText(TEXT)
    text.reorder(order)
    assert names(text) == order
    assert sorted(str(text).split("\n")) == sorted(TEXT.split("\n"))


def test_patches_of_a_change_stand_together() -> None:
    with pytest.raises(UsageError, match="do not stand together"):
        SeriesText(TEXT).reorder(["swap/a.patch", "guard/c.patch", "swap/b.patch"])


def test_a_change_that_is_over() -> None:
    text = SeriesText(TEXT)
    text.retire("swap", SpecifierSet(">=0.5.9"), V24, "PR  #7\nmerged")
    assert changed(text) == [
        (
            "change swap >=0.5.9  # needed",
            "change swap >=0.5.9,<0.5.24 upstream 0.5.24: PR PR 7 merged  # needed",
        )
    ]
    again = str(text)
    text.retire("swap", SpecifierSet(">=0.5.9"), V24, "again")
    text.retire("none", SpecifierSet(">=0.5.9"), V24, "again")
    assert str(text) == again
    text.retire("guard", SpecifierSet(">=0.5.9,<0.6"), V23, "it")
    assert "change guard >=0.5.9,<0.5.23 upstream 0.5.23: it" in str(text).split("\n")


def test_ranges() -> None:
    assert make_specifier([V23]) == "==0.5.23"
    assert make_specifier([V23, V9, V22]) == ">=0.5.9,<=0.5.23"
    patch = parse_series(Path("/p"), TEXT).patches[0]
    assert widen_specifier(patch, V23, [V23], [V23]) == "==0.5.23"
    assert widen_specifier(patch, V24, [V23], [V23]) == ">=0.5.23,<=0.5.24"
    # 0.5.22 is carried with another patch: the range may not reach over it.
    assert widen_specifier(patch, V9, [V23], [V22, V23]) is None
    assert widen_specifier(patch, V9, [V22, V23], [V22, V23]) == ">=0.5.9,<=0.5.23"


@pytest.mark.parametrize(
    ("name", "taken", "following"),
    [
        ("swap/v0.5.22.patch", (), "swap/v0.5.24.patch"),
        ("swap/rope.patch", (), "swap/rope-v0.5.24.patch"),
        ("swap/rope-v0.5.9.post1.patch", (), "swap/rope-v0.5.24.patch"),
        ("swap/v0.5.22-2.patch", (), "swap/v0.5.24.patch"),
        ("swap/vast.patch", (), "swap/vast-v0.5.24.patch"),
        ("swap/v0.5.22.patch", ("swap/v0.5.24.patch",), "swap/v0.5.24-2.patch"),
        (
            "swap/v0.5.22.patch",
            ("swap/v0.5.24.patch", "swap/v0.5.24-2.patch"),
            "swap/v0.5.24-3.patch",
        ),
    ],
)
def test_the_next_file(name: str, taken: tuple[str, ...], following: str) -> None:
    assert name_next_file(name, V24, taken) == following
