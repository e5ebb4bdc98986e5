"""Git sources that a project remembers, and the refs, releases and commits that they give."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.support.lab import RELEASE, TREE, Lab, git
from tests.support.rebases import project
from tests.support.upstreams import FILES, Upstream
from tool.upstream import sources
from tool.upstream.sources import SOURCES_FILE

TOKEN = "t0ken"


def drift(lab: Lab, ref: str, *args: str, code: int = 0) -> dict[str, str]:
    done = lab.json("drift", "-q", "--onto", ref, *args, code=code)
    return done["result"] or done["error"]


class TestRemembering:
    def test_add_list_fetch_and_remove(self, three: Lab, upstream: Upstream) -> None:
        before = project(three)
        listed = [{"name": "upstream", "url": str(upstream.folder)}]
        assert three.json("source", "list")["result"]["sources"] == listed
        three.tool("drift", "--onto", "upstream/main", code=1)
        assert three.json("source", "fetch")["result"]["moved"] == {"upstream": []}
        upstream.commit("docs: four")
        git(upstream.folder, "tag", "v0.5.24rc0")
        moved = three.json("source", "fetch", "upstream")["result"]["moved"]
        assert moved == {"upstream": ["HEAD", "heads/main", "tags/v0.5.24rc0"]}
        three.tool("source", "remove", "upstream")
        assert three.json("source", "list")["result"]["sources"] == []
        refs = three.home.open_repository().out("for-each-ref", "refs/ada/git")
        assert refs == "" and project(three) == before, "the project itself is never touched"

    @pytest.mark.parametrize("at", ["forget_source", "_save"])
    def test_remove_again_after_it_was_interrupted(
        self, three: Lab, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, at: str
    ) -> None:
        three.tool("source", "fetch")

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(sources, at, stop)
            three.tool("source", "remove", "upstream", code=130)
        three.tool("source", "remove", "upstream")
        assert three.json("source", "list")["result"]["sources"] == []
        assert three.home.open_repository().out("for-each-ref", "refs/ada/git") == ""

    def test_a_branch_that_is_gone_goes_and_one_may_take_its_place(
        self, three: Lab, upstream: Upstream
    ) -> None:
        git(upstream.folder, "branch", "next")
        drift(three, "upstream/next", code=1)
        git(upstream.folder, "branch", "-m", "next", "next/one")
        three.tool("source", "fetch")
        assert (
            "has no tag, branch or commit next" in drift(three, "upstream/next", code=2)["message"]
        )
        drift(three, "upstream/next/one", code=1)

    @pytest.mark.parametrize("name", ["git", "pypi", "a/b", "-x", "", "heads", "x" * 60])
    def test_a_name_that_would_be_misread(self, three: Lab, tmp_path: Path, name: str) -> None:
        Upstream(tmp_path / "up")
        done = three.tool("source", "add", name, str(tmp_path / "up"), code=2)
        assert done.stderr

    def test_a_name_is_taken_once(self, three: Lab, upstream: Upstream, tmp_path: Path) -> None:
        other = Upstream(tmp_path / "other")
        three.tool("source", "add", "upstream", str(upstream.folder))
        error = three.json("source", "add", "upstream", str(other.folder), code=2)["error"]
        assert error["next"].endswith("tool source remove upstream")

    @pytest.mark.parametrize("where", ["file:///nowhere", "empty", "shallow"])
    def test_what_cannot_be_fetched_is_not_remembered(
        self, three: Lab, tmp_path: Path, where: str
    ) -> None:
        whole = Upstream(tmp_path / "whole")
        whole.commit("one more, so that depth 1 cuts")
        git(tmp_path, "init", "-q", "empty")
        git(tmp_path, "clone", "-q", "--depth=1", f"file://{whole.folder}", "shallow")
        given = where if "://" in where else str(tmp_path / where)
        code = 2 if where == "empty" else 6
        assert three.json("source", "add", "up", given, code=code)["error"]
        assert three.json("source", "list")["result"]["sources"] == []

    def test_a_login_is_kept_for_its_owner_and_never_shown(
        self, three: Lab, tmp_path: Path
    ) -> None:
        made = Upstream(tmp_path / "upstream")
        three.tool("source", "add", "up", str(made.folder))
        path = three.folder / SOURCES_FILE
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.write_text(
            path.read_text().replace(str(made.folder), f"https://me:{TOKEN}@127.0.0.1:9/x.git")
        )
        for args in (["source", "list"], ["source", "fetch"], ["drift", "--onto", "up/main"]):
            for extra in ((), ("--json",)):
                done = three.tool(*args, *extra, code=None)
                assert TOKEN not in done.stdout + done.stderr
                assert "127.0.0.1:9" in done.stdout + done.stderr
        done = three.tool("source", "add", "two", f"https://{TOKEN}@127.0.0.1:9/x", code=6)
        assert TOKEN not in done.stdout + done.stderr

    @pytest.mark.parametrize(
        "text", ["{", '{"format": 9}', '{"format": 1, "sources": {"a": "--upload-pack=x"}}', "[]"]
    )
    def test_a_damaged_file_is_named(self, three: Lab, text: str) -> None:
        three.folder.mkdir(parents=True, exist_ok=True)
        (three.folder / SOURCES_FILE).write_text(text)
        error = three.json("source", "list", code=5)["error"]
        assert SOURCES_FILE in error["where"]

    def test_two_projects_and_one_repository(
        self, three: Lab, upstream: Upstream, tmp_path: Path
    ) -> None:
        other = Lab(tmp_path / "two", three.home.cache, three.home.data)
        assert other.json("source", "list")["result"]["sources"] == []
        other.tool("source", "add", "theirs", str(upstream.folder))
        three.tool("source", "remove", "upstream")
        assert other.home.open_repository().out("for-each-ref", "refs/ada/git")


class TestRefs:
    def test_every_form_of_a_ref(self, three: Lab, upstream: Upstream) -> None:
        git(upstream.folder, "branch", "topic/one", "main~2")
        ids = {
            name: git(upstream.folder, "rev-parse", name)
            for name in ("main", "main~4", "main^", "topic/one", "HEAD", "HEAD~1", "v0.5.23")
        }
        for name, oid in ids.items():
            assert drift(three, f"upstream/{name}", code=None)["base"] == oid
        for text in (ids["main"], ids["main"][:9], f"{ids['main'][:9]}~1", "main~1", "topic/one"):
            oid = git(upstream.folder, "rev-parse", text)
            assert drift(three, text, code=None)["base"] == oid
            assert drift(three, text, "--offline", code=None)["base"] == oid

    def test_a_short_id_on_a_branch_nobody_asked_for(self, three: Lab, upstream: Upstream) -> None:
        git(upstream.folder, "switch", "-qc", "side")
        oid = upstream.commit("on the side")
        assert drift(three, f"upstream/{oid[:8]}", code=1)["base"] == oid

    @pytest.mark.parametrize(
        "ref", ["nope", "upstream/nope", "0123456789", "main~99", "-x", "a..b"]
    )
    def test_what_is_not_there(self, three: Lab, upstream: Upstream, ref: str) -> None:
        error = three.json("drift", f"--onto={ref}", code=2)["error"]
        assert error["next"]

    def test_a_branch_moves_when_it_is_asked_to(self, three: Lab, upstream: Upstream) -> None:
        old = drift(three, "upstream/main", code=1)["base"]
        new = upstream.commit("docs: four")
        assert drift(three, "upstream/main", code=1)["base"] == old
        three.tool("source", "fetch", "upstream")
        assert drift(three, "upstream/main", code=1)["base"] == new
        # One that is named with --source is asked every time.
        newer = upstream.commit("docs: five")
        given = ("--source", str(upstream.folder))
        assert drift(three, "main", *given, code=1)["base"] == newer
        git(upstream.folder, "branch", "-m", "main", "trunk")
        assert "no tag, branch or commit main" in drift(three, "main", *given, code=2)["message"]

    def test_the_files_of_a_commit_come_in_one_request(self, three: Lab, tmp_path: Path) -> None:
        made = Upstream(tmp_path / "upstream")
        made.commit("a file that was", {"sglang/srt/was.py": "WAS = 1\n"})
        made.commit("and is not", {"sglang/srt/was.py": None, "sglang/srt/new.py": "NEW = 1\n"})
        git(made.folder, "config", "uploadpack.allowFilter", "true")
        git(made.folder, "config", "uploadpack.allowAnySHA1InWant", "true")
        three.tool("source", "add", "remote", f"file://{made.folder}")
        repository = three.home.open_repository()

        def missing(name: str) -> list[str]:
            tree = f"{git(made.folder, 'rev-parse', name)}:python/sglang"
            rows = repository.out("rev-list", "--objects", "--missing=print", "--no-walk", tree)
            return [row for row in rows.splitlines() if row.startswith("?")]

        assert missing("main"), "the control: only the history was fetched"
        drift(three, "remote/main")
        assert missing("main") == [] and len(missing("main~1")) == 1
        git(made.folder, "config", "uploadpack.allowFilter", "false")
        made.folder.rename(tmp_path / "away")
        assert drift(three, "remote/main", "--offline")["based_on"]

    def test_two_sources_and_a_ref_of_neither(
        self, three: Lab, upstream: Upstream, tmp_path: Path
    ) -> None:
        other = Upstream(tmp_path / "other")
        three.tool("source", "add", "mine", str(other.folder))
        assert drift(three, "mine/main")["base"] == other.release
        assert drift(three, "main", "--source", "mine")["base"] == other.release
        error = drift(three, "main", code=2)
        assert error["next"] == "mine/main or upstream/main"

    def test_a_moved_release_tag_is_no_release(self, three: Lab, upstream: Upstream) -> None:
        git(upstream.folder, "tag", "-f", f"v{RELEASE}", "main")
        given = ("--source", str(upstream.folder), "--sglang-ref", f"v{RELEASE}")
        three.tool("apply", "-q", *given, code=3)

    @pytest.mark.parametrize(
        "args",
        [
            ("status", "--sglang-ref"), ("check", "--refs"), ("lock", "--sglang-ref"),
            ("lock", "--wheels"),
        ],
    )  # fmt: skip
    def test_what_rests_on_the_lock_takes_no_ref_for_the_pin(
        self, three: Lab, upstream: Upstream, args: tuple[str, ...]
    ) -> None:
        error = three.json(*args, "main", code=2)["error"]
        assert error["message"].startswith("'main' is not a release")


class TestBasis:
    def test_the_newest_release_tag_of_the_history(self, three: Lab, upstream: Upstream) -> None:
        git(upstream.folder, "tag", "v0.5.22", "v0.5.23")
        git(upstream.folder, "tag", "v0.5.23-cu130")
        git(
            upstream.folder,
            "tag",
            "v0.5.99",
            git(upstream.folder, "commit-tree", "-m", "x", "main^{tree}"),
        )
        found = drift(three, "main~1", "--source", str(upstream.folder), code=1)
        assert found["from"] == RELEASE and found["based_on"].endswith(
            "is based on v0.5.23: 3 commit(s) after its tag"
        )
        assert found["base"][:12] in found["based_on"]

    def test_a_release_that_is_not_carried_lends_no_patches(
        self, three: Lab, upstream: Upstream, tmp_path: Path
    ) -> None:
        git(upstream.folder, "tag", "v0.5.24rc0", "main~4")
        three.tool("source", "fetch")
        done = three.tool("apply", "-q", "--sglang-ref", "main~3", "--into", str(tmp_path / "w"))
        assert "is based on v0.5.24rc0: 1 commit(s) after its tag" in done.stdout
        assert "the patches are those of v0.5.23" in done.stdout

    def test_the_version_in_the_tree(self, three: Lab, tmp_path: Path) -> None:
        made = Upstream(tmp_path / "upstream", tag=False)
        found = drift(three, "main", "--source", str(made.folder))
        assert "based on v0.5.23: python/sglang/version.py says so" in found["based_on"]
        made.commit("the version is elsewhere", {
            "sglang/version.py": "", "pyproject.toml": '[project]\nversion = "0.5.24"\n',
        })  # fmt: skip
        found = drift(three, "main", "--source", str(made.folder))
        assert "based on v0.5.24: python/pyproject.toml says so" in found["based_on"]

    def test_content_alone(self, three: Lab, tmp_path: Path) -> None:
        three.release("0.5.22", FILES)  # without patches: it does not count
        made = Upstream(tmp_path / "upstream", tag=False)
        made.commit("no version anywhere", {"sglang/version.py": ""})
        found = drift(three, "main", "--source", str(made.folder))
        assert "based on v0.5.23: 3 of 3 patched files are that release's" in found["based_on"]
        made.commit("another program", dict.fromkeys(TREE) | {"x": "x"})
        made.commit("and its limits", {"sglang/srt/limits.py": "other\n"})
        error = drift(three, "main", "--source", str(made.folder), code=2)
        assert "nothing tells which release" in error["message"] and "--release" in error["next"]

    def test_a_tag_of_another_source(self, three: Lab, upstream: Upstream, tmp_path: Path) -> None:
        git(tmp_path, "clone", "-q", "--no-tags", str(upstream.folder), "fork")
        three.tool("source", "add", "fork", str(tmp_path / "fork"))
        assert "4 commit(s) after its tag" in drift(three, "fork/main", code=1)["based_on"]

    def test_one_option_says_otherwise(
        self, three: Lab, upstream: Upstream, tmp_path: Path
    ) -> None:
        found = drift(three, "main", "--release", "v0.5.24", code=1)
        assert found["based_on"].endswith("based on v0.5.24: as --release says")
        assert found["onto"] == "upstream/main --release v0.5.24" and found["from"] == RELEASE
        given = ("--sglang-ref", "main~2", "--release", "v0.5.24", "--into", str(tmp_path / "w"))
        assert three.json("apply", "-q", *given)["result"]["release"] == RELEASE
        for args in (("drift", "--onto"), ("apply", "--sglang-ref")):
            error = three.json(*args, "v0.5.23", "--release", "v0.5.23", code=2)["error"]
            assert "is a release" in error["message"]
