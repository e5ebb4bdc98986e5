"""``tool watch``: what it asks for, and what it says of upstream threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.index import serve, use
from tests.support.lab import EDITED, NEXT, TREE, UTILS, Lab, git, write_wheel
from tests.support.rebases import make_upstream, project
from tool.series import Patch, find_threads, load_series

THREADS = """\
Forwarded: no
 Upstream threads: #26928 (merged, 0.5.17; GLM on sm_120), #35429 and #35420
 (open, DSA below Hopper), #33937, or https://github.com/o/sglang/pull/28618.
Bug: https://github.com/o/sglang/issues/7
"""


@pytest.fixture
def named(lab: Lab) -> Lab:
    """A project whose patch names upstream threads."""
    path = lab.patch("demo/answer.patch", {UTILS: EDITED})
    path.write_text(path.read_text().replace("Forwarded: no\n", THREADS))
    lab.relock()
    return lab


def patches(lab: Lab) -> tuple[Patch, ...]:
    return load_series(lab.root).patches


def test_threads_of_a_header(named: Lab) -> None:
    found = {one.number: (one.open, one.note) for one in find_threads(patches(named))}
    assert found == {
        7: (True, ""),
        26928: (False, "merged, 0.5.17; GLM on sm_120"),
        28618: (True, ""),
        33937: (True, ""),
        35420: (True, "open, DSA below Hopper"),
        35429: (True, "open, DSA below Hopper"),
    }


def test_what_upstream_applied_is_not_open(lab: Lab) -> None:
    path = lab.patch("demo/answer.patch", {UTILS: EDITED})
    field = "Applied-Upstream: 0.5.10, https://github.com/o/sglang/pull/17747 (a note)\n"
    path.write_text(path.read_text().replace("Forwarded: no\n", field))
    (found,) = find_threads(patches(lab))
    assert (found.number, found.open, found.note) == (17747, False, "a note")


def test_one_look_at_the_index_and_one_wheel(
    named: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(tmp_path / "index", NEXT, TREE)
    with serve(tmp_path / "index") as index:
        use(index, monkeypatch)
        before = project(named)
        assert named.json("watch", "-q")["result"]["newer"] == NEXT
        # pip reads the page once more to download the file that it is told.
        assert (index.pages, index.downloads) == (2, [f"sglang-{NEXT}-py3-none-any.whl"])
        named.json("watch", "-q")
        assert (index.pages, len(index.downloads)) == (3, 1)
        assert project(named) == before


def upstream(tmp_path: Path) -> Path:
    """A repository of sglang with the tag of the next release."""
    folder = make_upstream(
        tmp_path / "upstream",
        "Serve DSA below Hopper (#35429)",
        "Mentions a number (#1)\n\nFollows #35420 and (#33937)",
        "Add DeepSeek-V4 (#28618)",
        'Revert "Add DeepSeek-V4 (#28618)" (#28700)',
        "Merge pull request #7 from somebody/fix",
    )
    git(folder, "commit", "-q", "--allow-empty", "-m", "Not in the release (#33937)")
    return folder


def test_threads_in_a_history(named: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(tmp_path / "index", NEXT, TREE)
    with serve(tmp_path / "index") as index:
        use(index, monkeypatch)
        unknown = named.json("watch", "-q")["result"]["threads"]
        source = str(upstream(tmp_path))
        result = named.json("watch", "-q", "--source", source)["result"]
        text = named.tool("watch", "-q", "--source", source).stdout
    assert {one["state"] for one in unknown} == {None}
    found: dict[int, Any] = {one["number"]: one for one in result["threads"]}
    assert {number: one["state"] for number, one in found.items()} == {
        7: "merged",
        28618: "reverted",
        33937: "not merged",
        35420: "not merged",
        35429: "merged",
    }
    assert found[35429]["title"] == "Serve DSA below Hopper (#35429)"
    assert {one["release"] for one in found.values()} == {NEXT}
    assert f"merged in v{NEXT}" in text and f"not in the history of v{NEXT}" in text
    assert "| #35429 | merged in v0.5.24 | Serve DSA below Hopper (#35429) |" in result["markdown"]
