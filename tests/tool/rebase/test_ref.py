"""Following upstream's main between releases: resolved once, remembered, and landed with the release."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.lab import NEXT, UTILS, Lab, git
from tests.support.rebases import (
    ANSWER,
    LIMITS,
    MERGED,
    THEIRS,
    check,
    onto,
    project,
    rebase,
    upgrade,
)
from tests.support.upstreams import Upstream

pytestmark = pytest.mark.usefixtures("elsewhere")
MAIN = "upstream/main"


def stop(lab: Lab) -> Path:
    """Stop at demo/limits.patch on main; returns the file with the markers."""
    stopped = rebase(lab, "-q", "--onto", MAIN, code=3)
    assert (stopped["state"], stopped["stop"]["patch"]) == ("stopped", "demo/limits.patch")
    assert stopped["provisional"] and stopped["onto"] == MAIN
    return Path(stopped["worktree"]) / LIMITS


def resolve(lab: Lab) -> dict[str, object]:
    stop(lab).write_text(MERGED)
    return rebase(lab, "--continue")


def test_a_resolution_made_early_lands_with_the_release(three: Lab, upstream: Upstream) -> None:
    before = project(three)
    done = resolve(three)
    assert (done["state"], done["recorded"], done["files"]) == ("carried", 1, [])
    assert project(three) == before, "series.lock, series.txt and the patches are as they were"
    assert str(three.json("status")["result"]["rebase"]) == "None"
    made = Path(str(done["worktree"]))
    assert made.name == "sglang-upstream-main" and (made / LIMITS).read_text() == MERGED
    assert (made / UTILS).read_text() == ANSWER
    titles = git(made, "log", "--format=%s").splitlines()
    assert titles[0] == "bundle the ada_dsa kernels" and titles[-1] == "release 0.5.23"

    upgrade(three, {"sglang/srt/limits.py": THEIRS})
    seen = three.json("drift", "-q", "--offline", "--onto", f"v{NEXT}", code=1)["result"]
    assert list(seen["remembered"]) == ["demo/limits.patch"]
    text = three.tool("drift", "-q", "--offline", "--onto", f"v{NEXT}", code=1).stdout
    assert "there is a remembered resolution of demo/limits.patch" in text
    assert text.endswith("--from v0.5.23, which takes what is remembered\n")
    landed = onto(three)
    assert landed["state"] == "carried" and not landed["provisional"]
    assert len(landed["remembered"]) == 1 and MAIN in landed["remembered"][0]
    written = [name for name in landed["files"] if name.startswith("patches/")]
    assert [name for name in written if "limits" in name and (three.root / name).is_file()]
    check(three)
    three.tool("apply", "-q", "--offline", "--sglang-ref", f"v{NEXT}", "--into", "next")
    assert Path("next", LIMITS).read_text() == MERGED


def test_apply_names_the_rebase_that_holds_the_resolutions(three: Lab, upstream: Upstream) -> None:
    made = resolve(three)["worktree"]
    before = project(three)
    error = three.json("apply", "-q", "--sglang-ref", MAIN, code=3)["error"]
    assert error["where"] == "patches/demo/limits.patch"
    named = f"take what was resolved before: tool rebase --onto {MAIN};"
    assert named in error["next"]
    again = rebase(three, "-q", "--onto", MAIN)
    assert (again["worktree"], len(again["remembered"])) == (made, 1)
    assert project(three) == before


def test_main_moves_on_and_nothing_is_asked_again(three: Lab, upstream: Upstream) -> None:
    resolve(three)
    upstream.commit("docs: four")
    upstream.commit("more lines at the end", {"sglang/srt/limits.py": THEIRS + "\n\nLAST = 1\n"})
    three.tool("source", "fetch")
    again = rebase(three, "-q", "--onto", MAIN)
    assert again["state"] == "carried" and len(again["remembered"]) == 1
    assert again["recorded"] == 0
    assert Path(again["worktree"], LIMITS).read_text() == MERGED + "\n\nLAST = 1\n"


def test_what_upstream_took_is_left_out_with_the_release(three: Lab, upstream: Upstream) -> None:
    answer = {"sglang/srt/utils.py": ANSWER, "sglang/srt/limits.py": None}
    upstream.commit("take the answer (#7)", answer)
    git(upstream.folder, "checkout", "-q", "v0.5.23", "--", LIMITS)
    upstream.commit("the pool as it was")
    stopped = rebase(three, "-q", "--onto", MAIN, code=4)
    assert stopped["stop"]["outcome"] == "exact"
    done = rebase(three, "--skip", "--why", "upstream #7")
    assert (done["state"], done["recorded"]) == ("carried", 1)
    upgrade(three, {"sglang/srt/utils.py": ANSWER})
    landed = onto(three)
    assert landed["state"] == "carried" and MAIN in landed["remembered"][0]
    became = {row["patch"]: row["became"] for row in landed["patches"]}
    assert became["demo/answer.patch"] == "left out: upstream #7"
    header = (three.root / "patches/demo/answer.patch").read_text()
    assert "Applied-Upstream: 0.5.24, upstream #7" in header
    check(three)


def test_a_resolution_that_no_longer_holds_is_not_taken(three: Lab, upstream: Upstream) -> None:
    resolve(three)
    changed = THEIRS.replace("self.page_size", "self.page_bytes")
    upgrade(three, {"sglang/srt/limits.py": changed})
    stopped = onto(three, code=3)
    assert stopped["stop"]["patch"] == "demo/limits.patch" and stopped["remembered"] == []


def test_abort_and_restart(three: Lab, upstream: Upstream) -> None:
    before = project(three)
    file = stop(three)
    status = three.json("status")["result"]["rebase"]
    assert status["ref"].startswith(f"{MAIN} (") and status["patch"] == "demo/limits.patch"
    assert MAIN in three.tool("status").stdout
    upstream.commit("a commit that the restart does not take")
    three.tool("source", "fetch")
    file.write_text(MERGED)
    again = rebase(three, "--restart", code=3)
    assert again["state"] == "stopped" and "<<<<<<<" in file.read_text()
    assert MAIN in three.tool("rebase", "--abort").stdout
    assert project(three) == before and not file.exists()
    assert not (three.home.data / "resolutions").exists()


def test_the_project_may_not_change_meanwhile(three: Lab, upstream: Upstream) -> None:
    stop(three).write_text(MERGED)
    (three.root / "series.txt").write_text((three.root / "series.txt").read_text() + "# more\n")
    error = rebase(three, "--continue", code=5)
    assert error["where"] == "series.txt"
    assert rebase(three, "--restart", code=3)["state"] == "stopped"


def test_a_worktree_with_work_in_it_stays(three: Lab, upstream: Upstream) -> None:
    resolve(three)
    Path("sglang-upstream-main", UTILS).write_text("my work\n")
    upstream.commit("main moves", {"sglang/srt/other.py": "1\n"})
    three.tool("source", "fetch")
    done = three.json("rebase", "-q", "--onto", MAIN)
    assert done["result"]["worktree"] is None and "uncommitted" in done["warnings"][0]
    assert Path("sglang-upstream-main", UTILS).read_text() == "my work\n"
    assert three.json("status")["result"]["rebase"] is None


def test_what_does_not_go_with_a_ref(three: Lab, upstream: Upstream) -> None:
    before = project(three)
    error = rebase(three, "--onto", MAIN, "--edit", "demo/answer.patch", code=2)
    assert "is not a release" in error["message"]
    error = rebase(three, "--onto", "v0.5.24", "--source", "upstream", code=2)
    assert "without --source" in error["next"]
    Path("sglang-upstream-main-rebase").mkdir()
    assert "exists already" in rebase(three, "--onto", MAIN, code=2)["message"]
    assert project(three) == before


def test_an_older_tool_does_not_land_it(three: Lab, upstream: Upstream) -> None:
    stop(three)
    state = json.loads((three.folder / "rebase.json").read_text())
    assert state["format"] == 4 and state["ref"]["typed"] == MAIN
