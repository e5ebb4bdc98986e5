"""series.txt: what parses. Anything else gives one error with the line number."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version

from tool.errors import UsageError
from tool.series import layout as project
from tool.series import model as series

GOOD = """\
# the series
pin 0.5.23
revision 2
change swap >=0.5.9
    swap/old.patch ==0.5.9
    swap/new.patch >=0.5.22,<0.6   # proven on two
change guard ==0.5.9 upstream 0.5.10: entrypoint.py checks it
    guard/v0.5.9.patch ==0.5.9
"""


def load(folder: Path, text: str) -> series.Series:
    (folder / "series.txt").write_text(text)
    return series.load_series(folder)


def test_reads_order_ranges_and_life_spans(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD)
    assert found.pin == Version("0.5.23") and found.revision == 2
    assert [p.name for p in found.for_release(Version("0.5.9"))] == [
        "swap/old.patch",
        "guard/v0.5.9.patch",
    ]
    assert [p.name for p in found.for_release(Version("0.5.23"))] == ["swap/new.patch"]
    assert found.for_release(Version("0.5.10.post1")) == ()
    guard = found.change_of(found.patches[-1])
    assert guard.upstream == "0.5.10: entrypoint.py checks it"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("pin 0.5.23\n", "", 7, "no default release"),
        ("pin 0.5.23\n", "pin zero\n", 2, "'zero' is not a release"),
        ("revision 2", "revision x", 3, "cannot read"),
        ("revision 2\n", "", 7, "no revision"),
        ("pin 0.5.23\n", "pin 0.5.23\npin 0.5.9\n", 3, "second pin"),
        ("==0.5.9\n    swap/new", "=0.5.9\n    swap/new", 5, "not a PEP 440 specifier"),
        ("    guard/v0.5.9.patch ==0.5.9", "    guard/v0.5.9.patch", 8, "no release specifier"),
        ("guard/v0.5.9.patch ==", "../guard.patch ==", 8, "not a patch file name"),
        ("guard/v0.5.9.patch ==", "guard.patch ==", 8, "not a patch file name"),
        ("guard/v0.5.9.patch ==", "swap/v0.5.9.patch ==", 8, "not in the folder of its change"),
        ("guard/v0.5.9.patch ==", "swap/new.patch ==", 8, "appears twice"),
        ("change guard", "change swap", 7, "appears twice"),
        ("upstream 0.5.10: entrypoint.py checks it", "since 0.5.10", 7, "unexpected text"),
        ("change swap >=0.5.9\n", "", 4, "before any change line"),
        (">=0.5.22,<0.6 ", "<0.5.1 ", 8, "no patch applies to the pin"),
        ("pin 0.5.23", "pin " + "1" * 5000, 2, "is not a release"),
        ("revision 2", "revision " + "1" * 5000, 3, "cannot read"),
        ("revision 2", "revision \u0663", 3, "cannot read"),
        ("==0.5.9\n    swap/new", "==" + "1" * 5000 + "\n    swap/new", 5, "not a PEP 440"),
        ("==0.5.9\n    swap/new", ",\n    swap/new", 5, "not a PEP 440"),
        ("swap/old.patch", "swap/" + "o" * 300 + ".patch", 5, "not a patch file name"),
        ("swap/old.patch", "swap/\x00.patch", 5, "not a patch file name"),
        ("change swap", "change " + "s" * 5000, 4, "not a change name"),
    ],
)
def test_names_the_line_of_a_mistake(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    assert old in GOOD
    with pytest.raises(UsageError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert caught.value.where == f"series.txt:{line}"
    assert words in caught.value.message and caught.value.next_step


@pytest.mark.parametrize(
    ("name", "release", "found"),
    [
        ("swap/old.patch", None, "swap/old.patch"),
        ("swap/old", "0.5.23", "swap/old.patch"),
        ("swap", "0.5.9", "swap/old.patch"),
        ("swap", "0.5.23", "swap/new.patch"),
        ("guard", None, "guard/v0.5.9.patch"),
        ("v0.5.9", None, "guard/v0.5.9.patch"),
    ],
)
def test_a_patch_by_its_name_or_its_change(
    tmp_path: Path, name: str, release: str | None, found: str
) -> None:
    loaded = load(tmp_path, GOOD)
    assert loaded.find_patch(name, Version(release) if release else None).name == found


@pytest.mark.parametrize(
    ("name", "release", "words", "known"),
    [
        ("swap", None, "names several patches", "swap/old.patch"),
        ("swap", "0.5.10", r"swap has no patch for v0\.5\.10", "swap/old.patch"),
        ("nothing", None, "names no patch of the series", "swap/old.patch"),
    ],
)
def test_a_name_that_means_no_patch_or_several(
    tmp_path: Path, name: str, release: str | None, words: str, known: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        load(tmp_path, GOOD).find_patch(name, Version(release) if release else None)
    assert known in (caught.value.why or "")


def test_is_found_from_below_and_missed_with_the_way_out(tmp_path: Path) -> None:
    load(tmp_path, GOOD)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert project.find_root(below) == tmp_path
    with pytest.raises(UsageError, match=r"no series\.txt"):
        project.find_root(Path("/"))


def test_a_line_ends_where_an_editor_ends_it(tmp_path: Path) -> None:
    """A form feed in a comment hides no second line from whoever reads the file."""
    assert load(tmp_path, GOOD.replace("# the series", "# the series\x0cpin 0.5.9")).pin == Version(
        "0.5.23"
    )


def test_not_utf8_and_too_large(tmp_path: Path) -> None:
    (tmp_path / "series.txt").write_bytes(b"pin 0.5.23 # \xff\n")
    with pytest.raises(UsageError, match="cannot read"):
        series.load_series(tmp_path)
    (tmp_path / "series.txt").write_bytes(b"#" * (5 << 20))
    with pytest.raises(UsageError, match="larger than"):
        series.load_series(tmp_path)


def test_the_file_of_a_patch_that_is_gone(tmp_path: Path) -> None:
    patch = load(tmp_path, GOOD).find_patch("swap/old.patch")
    with pytest.raises(
        UsageError, match="cannot read patch swap/old.patch: No such file"
    ) as caught:
        _ = patch.content
    assert caught.value.where == "series.txt:5"
    patch.path.parent.mkdir(parents=True)
    patch.path.write_bytes(b"x")
    assert load(tmp_path, GOOD).find_patch("swap/old.patch").content == b"x"
