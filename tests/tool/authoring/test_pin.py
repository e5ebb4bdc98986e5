"""``tool lock --pin`` and ``--revision``, and what ``tool lock`` refuses to lock."""

from __future__ import annotations

import pytest

from tests.support.lab import EDITED, NEXT, TREE, UTILS, Lab
from tests.support.rebases import check, project
from tool.series import load_series


@pytest.fixture
def two(lab: Lab) -> Lab:
    """A series that carries two releases; the older one is the pin."""
    lab.release(NEXT, TREE)
    lab.patch("demo/answer.patch", {UTILS: EDITED}, releases=">=0.5.23,<=0.5.24")
    lab.relock("0.5.23", NEXT)
    path = lab.root / "series.txt"
    path.write_text(path.read_text().replace("pin 0.5.23", "pin   0.5.23   # the newest"))
    return lab


def test_the_pin_moves(two: Lab) -> None:
    text = (two.root / "series.txt").read_text()
    result = two.json("lock", "--pin", f"v{NEXT}")["result"]
    assert (result["pin"], result["old_pin"], result["revision"]) == (NEXT, "0.5.23", 1)
    # Nothing else of the file changes, and a published number is not used again.
    assert (two.root / "series.txt").read_text() == text.replace("0.5.23   #", "0.5.24   #")
    assert str(two.json("status")["result"]["release"]) == NEXT
    check(two)


def test_the_same_pin_writes_nothing(two: Lab) -> None:
    before = project(two)
    assert "is v0.5.23 already" in two.tool("lock", "--pin", "0.5.23").stdout
    assert project(two) == before


def test_a_release_that_is_not_carried(two: Lab) -> None:
    before = project(two)
    error = two.json("lock", "--pin", "v0.5.25", code=2)["error"]
    assert "does not carry sglang 0.5.25" in error["message"]
    assert error["next"].endswith("tool rebase --onto v0.5.25")
    assert project(two) == before


def test_the_revision_rises(two: Lab) -> None:
    assert two.json("lock", "--revision")["result"]["revision"] == 2
    said = two.tool("lock", "--revision", "5", "--pin", NEXT).stdout
    assert "the fork's revision is 5; it was 2" in said and "wheel 0.5.24+ada.5" in said
    assert load_series(two.root).revision == 5
    error = two.json("lock", "--revision", "5", code=2)["error"]
    assert "5 is not above it" in error["message"]
    assert error["next"].endswith("tool lock --revision 6")


@pytest.mark.parametrize("ref", ["main", "HEAD", "a1b2c3d", "origin/main", "main~3"])
def test_a_ref_that_is_no_release_is_not_locked_as_the_pin(two: Lab, ref: str) -> None:
    before = project(two)
    error = two.json("lock", "--sglang-ref", ref, "--offline", code=2)["error"]
    assert f"{ref!r} is not a release" in error["message"]
    assert f"tool drift --onto {ref}" in error["next"]
    assert project(two) == before


def test_the_word_pin_is_still_the_pin(two: Lab) -> None:
    assert two.json("lock", "--sglang-ref", "pin", "--offline")["result"]["changed"] == []


def test_options_that_do_not_go_together(two: Lab) -> None:
    for other in (["--sglang-ref", NEXT], ["--wheels"]):
        error = two.json("lock", "--pin", NEXT, *other, code=2)["error"]
        assert "go with neither" in error["message"]
