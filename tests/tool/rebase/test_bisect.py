"""Which upstream commit breaks a patch first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.lab import TWIN, Lab, git
from tests.support.rebases import project
from tests.support.upstreams import Upstream


@pytest.fixture
def upstream(three: Lab, tmp_path: Path) -> Upstream:
    made = Upstream(tmp_path / "upstream")
    three.tool("source", "add", "upstream", str(made.folder))
    return made


def bisect(lab: Lab, *args: str, code: int = 1) -> dict[str, Any]:
    done = lab.json("bisect", "-q", *args, code=code)
    return done["result"] or done["error"]


def broken(done: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {one["patch"]: (one["first_broken_by"], one["title"]) for one in done["patches"]}


def test_each_patch_has_its_own_commit(three: Lab, upstream: Upstream) -> None:
    for number in range(4):
        upstream.commit(f"docs: {number}")
    page = upstream.rename_page()
    twins = upstream.commit("drop the twins", {"sglang/srt/twins.py": TWIN.split("class B")[0]})
    for number in range(9):
        upstream.commit(f"tests: {number}")
    three.tool("source", "fetch")
    before = project(three)
    done = bisect(three, "--onto", "upstream/main")
    assert broken(done) == {
        "demo/limits.patch": (page, "pool: name the size of a page (#42)"),
        "demo/twins.patch": (twins, "drop the twins"),
    }
    assert done["commits"] == 18 and done["tried"] < 12
    assert done["good"] == upstream.release and project(three) == before
    text = three.tool("bisect", "-q", "--onto", "upstream/main", code=1).stdout
    assert f"first broken by {twins[:12]}" in text and "drop the twins" in text


def test_one_patch_and_a_range(three: Lab, upstream: Upstream) -> None:
    page = upstream.rename_page()
    three.tool("source", "fetch")
    one = bisect(three, "demo/limits", "upstream/v0.5.23..upstream/main")
    assert broken(one) == {"demo/limits.patch": (page, "pool: name the size of a page (#42)")}
    fine = bisect(three, "demo/answer", "v0.5.23..main", code=0)
    assert broken(fine) == {"demo/answer.patch": (None, None)}
    late = bisect(three, f"{page[:10]}..main")
    assert broken(late) == {"demo/limits.patch": (None, None)}
    text = three.tool("bisect", "-q", f"{page[:10]}..main", code=1).stdout
    assert "broken on the first commit already" in text


def test_nothing_breaks(three: Lab, upstream: Upstream) -> None:
    upstream.commit("docs: one")
    three.tool("source", "fetch")
    assert bisect(three, "--onto", "main", code=0)["patches"] == []
    assert "every patch carries over" in three.tool("bisect", "--onto", "main").stdout


def test_a_merged_branch_is_one_commit(three: Lab, upstream: Upstream) -> None:
    git(upstream.folder, "switch", "-qc", "topic")
    upstream.rename_page()
    git(upstream.folder, "switch", "-q", "main")
    upstream.commit("docs: one")
    git(upstream.folder, "merge", "-q", "--no-ff", "-m", "Merge pull request #42", "topic")
    merge = git(upstream.folder, "rev-parse", "HEAD")
    three.tool("source", "fetch")
    found = broken(bisect(three, "--onto", "main"))
    assert found == {"demo/limits.patch": (merge, "Merge pull request #42")}


def test_a_release_by_its_tag(three: Lab, upstream: Upstream) -> None:
    page = upstream.rename_page()
    git(upstream.folder, "tag", "v0.5.24")
    three.tool("source", "fetch")
    done = bisect(three, "--onto", "v0.5.24")
    assert broken(done)["demo/limits.patch"][0] == page and done["from"] == "0.5.23"


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("v0.5.23..main", "--onto", "main"),
        ("demo/nope", "--onto", "main"),
        ("main..v0.5.23",),
        ("main..main",),
        ("nope..main",),
    ],
)
def test_what_cannot_be_bisected(three: Lab, upstream: Upstream, args: tuple[str, ...]) -> None:
    upstream.commit("docs: one")
    three.tool("source", "fetch")
    assert bisect(three, *args, code=2)["next"]


def test_without_a_tag_the_good_commit_is_asked_for(three: Lab, tmp_path: Path) -> None:
    made = Upstream(tmp_path / "untagged", tag=False)
    page = made.rename_page()
    three.tool("source", "add", "untagged", str(made.folder))
    assert "GOOD..BAD" in bisect(three, "--onto", "untagged/main", code=2)["next"]
    found = bisect(three, f"{made.release}..main")
    assert broken(found)["demo/limits.patch"][0] == page
