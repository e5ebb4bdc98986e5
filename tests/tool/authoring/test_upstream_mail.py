"""A patch as a mail to upstream: git takes it there, and nothing in it is of this project."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.lab import AGAIN, EDITED, TREE, TWIN, TWINS, UTILS, Lab, git

AUTHOR = "Zoë Ada <zoe@example.org>"


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """sglang's repository at the lab's release."""
    folder = tmp_path / "upstream"
    for name, text in TREE.items():
        path = folder / "python" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "Release 0.5.23")
    return folder


def export(lab: Lab, patch: str, out: Path, *args: str, code: int = 0) -> dict[str, object]:
    given = ("--for-upstream", patch, "--out", str(out), "--offline")
    return lab.json("export", *given, *args, code=code)


def test_git_am_takes_it_on_the_release(lab: Lab, upstream: Path, tmp_path: Path) -> None:
    lab.fork(tmp_path / "fork", {"demo/a.patch": {UTILS: EDITED}, "demo/b.patch": {UTILS: AGAIN}})
    mail = tmp_path / "b.patch"
    # Alone, without the patch before it.
    result = export(lab, "demo/b.patch", mail, "--author", AUTHOR)["result"]
    assert result["release"] == "0.5.23" and result["files"] == [UTILS]
    git(upstream, "am", "-q", str(mail))
    alone = TREE["sglang/srt/utils.py"].replace("return 20\n", "return 2020\n")
    assert (upstream / UTILS).read_text() == alone
    assert git(upstream, "rev-list", "--count", "HEAD") == "2"
    assert git(upstream, "log", "-1", "--format=%an <%ae>") == AUTHOR
    message = git(upstream, "log", "-1", "--format=%B")
    assert message == "change demo/b.patch\n\nBecause it is needed."
    text = mail.read_text().lower()
    for word in ("ada-dsa", "ada_dsa", "origin", "forwarded", "releases", "drop-when", "patch-"):
        assert word not in text


def test_the_same_mail_every_time_and_no_other_file_is_overwritten(
    fork: Path, lab: Lab, tmp_path: Path
) -> None:
    mail = tmp_path / "a.patch"
    for _ in range(2):
        export(lab, "demo/first.patch", mail, "--author", AUTHOR)
    mail.write_text("mine")
    error = export(lab, "demo/first.patch", mail, "--author", AUTHOR, code=2)["error"]
    assert "another content" in error["message"] and mail.read_text() == "mine"


def test_the_header_names_the_author_and_a_change_names_its_newest_patch(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = lab.patch("demo/a.patch", {UTILS: EDITED})
    lab.relock()
    error = lab.json("export", "--for-upstream", "demo", "--offline", code=2)["error"]
    assert "--author" in error["next"] and not list(tmp_path.glob("0001-*"))
    path.write_bytes(path.read_bytes().replace(b"Origin:", f"Author: {AUTHOR}\nOrigin:".encode()))
    lab.relock()
    lab.json("export", "--for-upstream", "demo", "--offline")
    mail = tmp_path / "0001-change-demo-a.patch.patch"
    read = ["git", "mailinfo", "/dev/null", "/dev/null"]
    told = subprocess.run(read, input=mail.read_bytes(), capture_output=True, check=True).stdout
    assert told.decode().splitlines()[:2] == ["Author: Zoë Ada", "Email: zoe@example.org"]


@pytest.mark.parametrize(
    "line", ["from sglang.srt.layers.attention.ada_dsa import x", "y = 'SGLANG_ADA_DSA_ARCH'"]
)
def test_a_patch_of_the_kernels_is_refused(lab: Lab, tmp_path: Path, line: str) -> None:
    text = EDITED.replace("    return 33\n", f"    {line}\n    return 33\n")
    lab.patch("demo/a.patch", {UTILS: text})
    lab.relock()
    error = export(lab, "demo/a.patch", tmp_path / "a", "--author", AUTHOR, code=2)["error"]
    assert "cannot stand alone" in error["message"] and line in error["why"]
    assert f"{UTILS}:14" in error["where"] and not (tmp_path / "a").exists()


@pytest.mark.parametrize("how", ["the same lines", "a name"])
def test_a_patch_that_needs_another_is_refused(lab: Lab, tmp_path: Path, how: str) -> None:
    if how == "the same lines":
        first, second = {UTILS: EDITED}, {UTILS: EDITED.replace("return 33", "return 34")}
    else:
        name = "python/sglang/srt/helper.py"
        first = {name: "def help_twins():\n    return 1\n"}
        second = {TWINS: f"from sglang.srt.helper import help_twins\n\n\n{TWIN}"}
    lab.patch("demo/a.patch", first)
    lab.patch("demo/b.patch", second)
    lab.relock()
    error = export(lab, "demo/b.patch", tmp_path / "b", "--author", AUTHOR, code=3)["error"]
    assert "does not stand alone on sglang 0.5.23" in error["message"]
    assert "tool explain demo/b.patch" in error["next"] and not (tmp_path / "b").exists()


@pytest.mark.parametrize("author", ["Ada", "<a@b>", "Ada <a b>", "Ada <a@b>\nX: y"])
def test_an_author_has_a_name_and_an_address(
    fork: Path, lab: Lab, tmp_path: Path, author: str
) -> None:
    error = export(lab, "demo/first.patch", tmp_path / "a", "--author", author, code=2)["error"]
    assert "is not an author" in error["message"]


def test_the_options_of_the_mail_need_it(fork: Path, lab: Lab) -> None:
    error = lab.json("export", str(fork), "--author", AUTHOR, code=2)["error"]
    assert "--for-upstream" in error["message"]
