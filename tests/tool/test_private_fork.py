"""A person's own fork of sglang, private commits on a release: every command of the fork manager on it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests.support.lab import B_ONLY, TWINS, UTILS, Lab, git
from tests.support.rebases import ANSWER, LIMITS, OURS, SOURCE, THEIRS, check, project
from tests.support.shipping import release_wheels
from tests.support.upstreams import FILES, Upstream
from tool.authoring.edit import Author
from tool.series import lockfile

PRIVATE = {
    "sglang/srt/private.py": "SECRET = 1\n",
    "sglang/srt/limits.py": SOURCE.replace("THIRD = 3", "THIRD = 33"),
}
"""What the fork's own commits change: a new file, and a line in a file that a patch changes elsewhere."""


@pytest.fixture
def mine(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Upstream:
    """The fork's repository, remembered as ``mine``; the wheels hold a file that git does not."""
    monkeypatch.chdir(tmp_path)
    for path in lab.home.wheels.glob("*.whl"):
        path.unlink()
    release_wheels(lab, "0.5.23", files=FILES)
    lab.patch("demo/answer.patch", {UTILS: ANSWER})
    lab.patch("demo/limits.patch", {LIMITS: OURS})
    lab.patch("demo/twins.patch", {TWINS: B_ONLY})
    lab.relock()
    made = Upstream(tmp_path / "mine")
    made.commit("private: a secret", PRIVATE)
    made.commit("private: a file that no wheel holds", {"../rust/lib.rs": "fn f() {}\n"})
    lab.tool("source", "add", "mine", str(made.folder))
    return made


def apply(lab: Lab, *args: str, code: int = 0) -> dict[str, Any]:
    done = lab.json("apply", "-q", "--sglang-ref", "mine/main", *args, code=code)
    return done["result"] or done["error"]


def build(lab: Lab, *args: str, code: int = 0) -> dict[str, Any]:
    done = lab.json("build", "-q", "--sglang-ref", "mine/main", *args, code=code)
    return done["result"] or done["error"]


def verify(lab: Lab, artifact: Path, code: int) -> dict[str, Any]:
    return lab.json("verify", "--offline", str(artifact), code=code)["result"]


def test_apply_and_verify(lab: Lab, mine: Upstream, tmp_path: Path) -> None:
    done = apply(lab)
    fork = tmp_path / "sglang-mine-main"
    assert done["folder"] == str(fork) and done["branch"] == "ada/mine-main"
    assert done["release"] == "0.5.23" and "2 commit(s) after its tag" in done["based_on"]
    assert not done["as_locked"], "a patched file is not that of the lock"
    assert (fork / LIMITS).read_text() == OURS.replace("THIRD = 3", "THIRD = 33")
    assert (fork / "rust/lib.rs").is_file() and (fork / UTILS).read_text() == ANSWER
    assert "private: a secret" in git(fork, "log", "--format=%s").splitlines()
    assert verify(lab, fork, 0)["outcome"] == "proven"
    (fork / "python/sglang/srt/private.py").write_text("SECRET = 2\n")
    found = verify(lab, fork, 5)
    assert found["differences"][0]["path"] == "sglang/srt/private.py"
    git(fork, "checkout", "-q", "--", ".")
    (fork / LIMITS).write_text(OURS)
    assert verify(lab, fork, 5)["differences"][0]["path"] == "sglang/srt/limits.py"


def test_a_private_commit_more_and_the_worktree_follows(lab: Lab, mine: Upstream) -> None:
    apply(lab)
    mine.commit("private: more", {"sglang/srt/more.py": "MORE = 1\n"})
    assert apply(lab)["state"] == "unchanged"
    lab.tool("source", "fetch", "mine")
    assert apply(lab)["state"] == "updated"
    assert Path("sglang-mine-main/python/sglang/srt/more.py").is_file()


def test_the_wheel_names_its_base_and_is_no_release(
    lab: Lab, mine: Upstream, tmp_path: Path
) -> None:
    commit = git(mine.folder, "rev-parse", "main")
    envelope = lab.json("build", "-q", "--sglang-ref", "mine/main")
    built = envelope["result"]
    assert built["version"] == f"0.5.23+ada.1.g{commit[:12]}"
    assert Version(built["version"]) in SpecifierSet("==0.5.23")
    assert "rust/lib.rs" in envelope["warnings"][0] and "in no wheel" in envelope["warnings"][0]
    text = lab.tool("build", "-q", "--sglang-ref", "mine/main").stdout
    assert "this is not a release" in text and "is based on v0.5.23" in text
    path = Path(built["path"])
    with zipfile.ZipFile(path) as wheel:
        assert wheel.read("sglang/srt/private.py") == b"SECRET = 1\n"
        assert wheel.read("sglang/srt/limits.py").decode() == OURS.replace("= 3\n", "= 33\n")
        assert built["version"] in wheel.read("sglang/_version.py").decode()
        (sbom,) = (n for n in wheel.namelist() if n.endswith("fork.cdx.json"))
        fork = json.loads(wheel.read(sbom))["metadata"]["component"]
    assert fork["pedigree"]["commits"] == [{"uid": commit}]
    stated = {p["name"]: p["value"] for p in fork["properties"]}
    assert stated["ada:base"] == f"not a release: 0.5.23 with commit {commit}"
    again = lab.json("build", "-q", "--sglang-ref", "mine/main", "--out", "again")["result"]
    assert again["sha256"] == built["sha256"], "the same on every machine"
    assert verify(lab, path, 0)["outcome"] == "proven"
    site = tmp_path / "site"
    with zipfile.ZipFile(path) as wheel:
        wheel.extractall(site)
    assert verify(lab, site, 0)["outcome"] == "proven"
    (site / "sglang/srt/private.py").write_text("SECRET = 2\n")
    assert verify(lab, site, 5)["outcome"] == "refuted"


def test_another_machine_verifies_it_with_the_commit(
    lab: Lab, mine: Upstream, tmp_path: Path
) -> None:
    path = Path(build(lab)["path"])
    lab.forget_repository()
    error = lab.json("verify", "--offline", str(path), code=6)["error"]
    assert "is not in the tool's repository" in error["message"] and "source add" in error["next"]
    lab.tool("source", "add", "mine", str(mine.folder))
    assert verify(lab, path, 0)["outcome"] == "proven"


def test_a_wheel_that_claims_another_commit(lab: Lab, mine: Upstream) -> None:
    path = Path(build(lab)["path"])
    old = git(mine.folder, "rev-parse", "main")[:12]
    new = git(mine.folder, "rev-parse", "v0.5.23")[:12]
    forged = path.with_name(path.name.replace(old, new))
    path.rename(forged)
    assert verify(lab, forged, 5)["outcome"] == "refuted"


@pytest.mark.parametrize("tag", [True, False])
def test_deleted_files(lab: Lab, mine: Upstream, tag: bool) -> None:
    """What a tag proves to be the release's goes; without one it may be made when a wheel is."""
    if not tag:
        git(mine.folder, "tag", "-d", "v0.5.23")
        lab.tool("source", "remove", "mine")
        lab.tool("source", "add", "mine", str(mine.folder))
    mine.commit("drop a file", {"sglang/srt/config/N=1,K=2,name=x y.json": None})
    lab.tool("source", "fetch")
    built = build(lab)
    assert [n for n in built["removed"] if "N=1" in n] == (
        ["sglang/srt/config/N=1,K=2,name=x y.json"] if tag else []
    )
    assert verify(lab, Path(built["path"]), 0)["outcome"] == "proven"


def test_new_and_refresh_on_the_fork(lab: Lab, mine: Upstream, tmp_path: Path) -> None:
    apply(lab)
    fork = tmp_path / "sglang-mine-main"
    path = fork / UTILS
    path.write_text(path.read_text().replace("return 20\n", "return 2020\n"))
    given = ("--change", "more", "--subject", "s", "--reason", "r", "--drop-when", "never")
    made = lab.json("new", "more", str(fork), *given)["result"]
    assert made["worktree_moved"] and made["releases"] == ["0.5.23"]
    assert git(fork, "status", "--porcelain") == "" and "2020" in path.read_text()
    assert "SECRET" in (fork / "python/sglang/srt/private.py").read_text()
    assert verify(lab, fork, 0)["outcome"] == "proven"
    check(lab)
    limits = fork / LIMITS
    limits.write_text(limits.read_text().replace("minimum_size", "least_size"))
    done = lab.json("refresh", "demo/limits.patch", str(fork))["result"]
    assert done["worktree_moved"] and git(fork, "status", "--porcelain") == ""
    assert "least_size" in limits.read_text() and "THIRD = 33" in limits.read_text()
    patch = (lab.root / "patches/demo/limits.patch").read_text()
    assert "THIRD = 33" not in patch, "the patch is one for the release"
    check(lab)
    assert apply(lab)["state"] == "unchanged"
    lab.apply(tmp_path / "stock")
    assert "least_size" in (tmp_path / "stock" / LIMITS).read_text()


def test_new_again_after_it_was_interrupted(
    lab: Lab, mine: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The patch is written and the worktree on the git ref still has the change: it is brought up to date."""
    apply(lab)
    fork = tmp_path / "sglang-mine-main"
    path = fork / UTILS
    path.write_text(path.read_text().replace("return 20\n", "return 2020\n"))
    given = ("--change", "more", "--subject", "s", "--reason", "r", "--drop-when", "never")

    def stop(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Author, "move_worktree", stop)
        lab.tool("new", "more", str(fork), *given, code=130)
    written = project(lab)
    done = lab.json("new", "more", str(fork), *given)["result"]
    assert done["worktree_moved"] and done["written"] == ["more/more.patch"]
    assert git(fork, "status", "--porcelain") == "" and "2020" in path.read_text()
    assert project(lab) == written
    assert verify(lab, fork, 0)["outcome"] == "proven"
    check(lab)


def test_a_change_to_private_lines_is_no_patch(lab: Lab, mine: Upstream, tmp_path: Path) -> None:
    apply(lab)
    fork = tmp_path / "sglang-mine-main"
    before = project(lab)
    (fork / "python/sglang/srt/private.py").write_text("SECRET = 2\n")
    given = ("--change", "more", "--subject", "s", "--reason", "r", "--drop-when", "never")
    error = lab.json("new", "more", str(fork), *given, code=3)["error"]
    assert "your own repository" in error["next"] and project(lab) == before
    assert (fork / "python/sglang/srt/private.py").read_text() == "SECRET = 2\n"


def test_export_writes_no_patch_for_private_files(lab: Lab, mine: Upstream, tmp_path: Path) -> None:
    apply(lab)
    before = project(lab)
    error = lab.json("export", str(tmp_path / "sglang-mine-main"), code=2)["error"]
    assert "is on a git ref" in error["message"] and project(lab) == before


def test_a_fork_that_conflicts_is_named_and_nothing_changes(lab: Lab, mine: Upstream) -> None:
    mine.commit("private: the pool", {"sglang/srt/limits.py": THEIRS})
    lab.tool("source", "fetch")
    before = project(lab)
    for command in (apply, build):
        error = command(lab, code=3)
        assert error["where"] == "patches/demo/limits.patch"
        assert error["next"].startswith("see every patch: tool drift --onto mine/main")
    assert project(lab) == before and not Path("sglang-mine-main").exists()
    assert not Path("dist").exists()


def test_a_provisional_worktree_is_not_proven(lab: Lab, mine: Upstream) -> None:
    mine.commit("private: the pool", {"sglang/srt/limits.py": THEIRS})
    lab.tool("source", "fetch")
    stopped = lab.json("rebase", "-q", "--onto", "mine/main", code=3)["result"]
    Path(stopped["worktree"], LIMITS).write_text(OURS.replace("self.page,", "self.page_size,"))
    made = Path(lab.json("rebase", "--continue")["result"]["worktree"])
    found = verify(lab, made, 1)
    assert "carried to this git ref by tool rebase" in found["unproven"][0]["reason"]
    (made / UTILS).write_text("changed\n")
    assert verify(lab, made, 5)["differences"][0]["path"] == "sglang/srt/utils.py"


def test_no_lock_has_an_entry_for_a_ref() -> None:
    entry = lockfile.LockedRelease(Version("0.5.23"), (), "b" * 40, "t" * 40, (), commit="c" * 40)
    with pytest.raises(AssertionError, match="released wheels"):
        lockfile.dump(lockfile.Lock({entry.version: entry}))


def test_the_wheel_installs_and_imports(lab: Lab, mine: Upstream, tmp_path: Path) -> None:
    path = build(lab)["path"]
    target = tmp_path / "installed"
    with zipfile.ZipFile(path) as wheel:
        wheel.extractall(target)
    code = "import sglang.srt.private as p, sglang._version as v; print(p.SECRET, v.version)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=target, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", build(lab)["version"]]


def test_diff_and_explain(lab: Lab, mine: Upstream) -> None:
    done = lab.json("diff", "-q", "v0.5.23", "mine/main")["result"]
    assert (done["from"], done["to"]) == ("0.5.23", "mine/main")
    assert "change demo/limits.patch" in done["range_diff"]
    assert done["based_on"][0] is None and "is based on v0.5.23" in done["based_on"][1]
    assert "is based on v0.5.23" in lab.tool("diff", "-q", "v0.5.23", "mine/main").stdout
    found = lab.json("explain", "-q", "demo/limits", "--sglang-ref", "mine/main")["result"]
    assert found["onto"] == "mine/main" and found["release"] == "0.5.23"
    assert found["symbols"] == {LIMITS: ["Pool.size"]}
    text = lab.tool("explain", "-q", "demo/limits", "--sglang-ref", "mine/main").stdout
    assert "on mine/main (" in text and "is based on v0.5.23" in text
    assert lab.json("explain", "demo/limits", "--release", "v0.5.23", code=2)["error"]["next"]


def test_commands_that_only_read_leave_the_project_alone(lab: Lab, mine: Upstream) -> None:
    before = project(lab)
    for args in (
        ("drift", "--onto", "mine/main"),
        ("diff", "v0.5.23", "mine/main"),
        ("explain", "demo/limits", "--sglang-ref", "mine/main"),
        ("bisect", "--onto", "mine/main"),
        ("build", "--sglang-ref", "mine/main"),
        ("verify", str(Path("dist").absolute() / "nothing.whl")),
        ("source", "list"),
    ):
        lab.tool(*args, code=None)
    assert project(lab) == before
