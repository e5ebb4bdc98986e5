"""git sources: logins are used and not kept, contents are fetched when they are needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.lab import EDITED, TREE, UTILS, Lab, git
from tool.errors import EnvironmentFault
from tool.git.repository import OFFLINE, Git
from tool.upstream.git_source import split_login

TOKEN = "t0ken"


@pytest.fixture
def project(lab: Lab) -> Lab:
    lab.patch("demo/answer.patch", {UTILS: EDITED})
    lab.relock()
    return lab


@pytest.mark.parametrize(
    ("url", "clean", "login"),
    [
        ("https://host/x.git", "https://host/x.git", None),
        ("https://me:t0ken@host:8443/x.git", "https://host:8443/x.git", ("me", "t0ken")),
        ("https://t0ken@host/x.git", "https://host/x.git", ("t0ken", "")),
        ("https://me:t%40ken@host/x.git", "https://host/x.git", ("me", "t@ken")),
        ("ssh://git@host/x.git", "ssh://git@host/x.git", None),
        ("ssh://git:t0ken@host/x.git", "ssh://git@host/x.git", None),
        ("git@host:x.git", "git@host:x.git", None),
        ("/a/path", "/a/path", None),
    ],
)
def test_a_login_is_taken_out_of_a_url(url: str, clean: str, login: tuple[str, str] | None) -> None:
    found, variables = split_login(url)
    assert found == clean
    assert (
        (variables["TOOL_LOGIN"], variables["TOOL_PASSWORD"]) == login if login else not variables
    )


def test_git_gets_the_login_for_its_host_alone(lab: Lab) -> None:
    _, variables = split_login("https://me:t0ken@host:8443/x.git")
    asked = Git(lab.home.repository, env=variables)
    asked.run("rev-parse", "--git-dir")
    found = asked.out("credential", "fill", stdin=b"protocol=https\nhost=host:8443\n\n")
    assert "username=me\npassword=t0ken" in found
    other = asked.run("credential", "fill", stdin=b"protocol=https\nhost=other\n\n", check=False)
    assert other.returncode != 0 and TOKEN.encode() not in other.stdout


@pytest.mark.parametrize(
    "url",
    [
        f"https://me:{TOKEN}@127.0.0.1:9/x.git",
        f"http://me:{TOKEN}@h/x",
        f"ssh://a:{TOKEN}@[::1]:9/x",
    ],
)
def test_a_login_is_neither_shown_nor_kept(project: Lab, tmp_path: Path, url: str) -> None:
    for extra in ((), ("--json",)):
        done = project.tool(
            "apply", "--into", str(tmp_path / "fork"), "--source", url, *extra, code=None
        )
        assert done.exit_code in (2, 6)
        assert TOKEN not in done.stdout + done.stderr
    held = [path for path in project.home.data.rglob("*") if path.is_file()]
    assert held and not any(TOKEN.encode() in path.read_bytes() for path in held)


def test_contents_are_fetched_when_they_are_needed(project: Lab, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path, content in TREE.items():
        (source / "python" / path).parent.mkdir(parents=True, exist_ok=True)
        (source / "python" / path).write_text("earlier\n" if path.endswith("utils.py") else content)
    git(source, "init", "--quiet", "--initial-branch=main")
    git(source, "config", "uploadpack.allowFilter", "true")
    git(source, "config", "uploadpack.allowAnySHA1InWant", "true")
    for text in ("earlier\n", TREE["sglang/srt/utils.py"]):
        (source / UTILS).write_text(text)
        git(source, "add", ".")
        git(source, "commit", "--quiet", "-m", "state")
    earlier = git(source, "rev-parse", f"HEAD^:{UTILS}")
    fork, url = tmp_path / "fork", f"file://{source}"
    made = project.json("apply", "-q", "--into", str(fork), "--sglang-ref", "main", "--source", url)
    assert made["ok"] and (fork / UTILS).read_text() == EDITED
    present = git(project.home.repository, "cat-file", "--batch-all-objects", "--batch-check")
    assert earlier not in present, "the control: not all contents were fetched"
    with pytest.raises(EnvironmentFault, match="cannot be fetched"):
        Git(project.home.repository, env=OFFLINE).blobs([earlier])
    assert git(fork, "cat-file", "-p", earlier) == "earlier", "a person's git fetches it"
    assert Git(project.home.repository).blobs([earlier]) == {earlier: b"earlier\n"}
