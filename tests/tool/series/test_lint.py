"""``tool lint``: what it finds and what it lets pass."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.lab import TREE, UTILS, Lab, header
from tool.series import lint, patchfile
from tool.series import model as series


class TestLint:
    def test_a_good_series_has_no_findings(self, lab: Lab, fork: Path) -> None:
        assert lab.json("lint")["result"]["findings"] == []

    @pytest.mark.parametrize(
        ("old", "new", "rule", "words"),
        [
            (b"Origin: vendor\n", b"", "header", "no Origin"),
            (b"Forwarded: no\n", b"", "header", "neither Forwarded nor Applied-Upstream"),
            (b"Drop-When: never\n", b"", "header", "no Drop-When"),
            (b"Releases: ==0.5.23", b"Releases: ==0.5.22", "header", "series.txt"),
            (b" Because it is needed.\n", b"", "header", "not why"),
            (b"needed.\n", b"needed.\n .\n", "canonical", "canonical"),
            (b"return 33", b"return\x0033", "character", "U+0000"),
            (b"return 33", "return '​'".encode(), "character", "ZERO WIDTH SPACE"),
        ],
    )
    def test_findings(
        self, lab: Lab, fork: Path, old: bytes, new: bytes, rule: str, words: str
    ) -> None:
        path = lab.root / "patches" / "demo/first.patch"
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new, 1))
        findings = lab.json("lint", code=1)["result"]["findings"]
        assert any(f["rule"] == rule and words in f["message"] for f in findings), findings

    def test_folder_and_order_file_agree(self, lab: Lab, fork: Path) -> None:
        (lab.root / "patches" / "demo/stray.patch").write_bytes(header("==0.5.23"))
        (lab.root / "patches" / "demo/first.patch").unlink()
        found = lint.lint_series(series.load_series(lab.root))
        assert {(f.rule, f.where.split(":")[0]) for f in found} == {
            ("file", "series.txt"),
            ("file", "patches/demo/stray.patch"),
        }

    @pytest.mark.parametrize("line", ["import sglang", "from tool import git", "import requests.x"])
    def test_kernels_import_relatively(self, lab: Lab, fork: Path, line: str) -> None:
        (lab.root / "ada_dsa" / "k.py").write_text(f"from . import x\nimport torch\n{line}\n")
        (finding,) = lab.json("lint", code=1)["result"]["findings"]
        assert finding["rule"] == "kernels" and finding["where"] == "ada_dsa/k.py:3"


STOCK = TREE["sglang/srt/utils.py"]


@pytest.fixture
def project(lab: Lab) -> Lab:
    lab.patch("demo/answer.patch", {UTILS: STOCK.replace("return 3\n", "return 33\n")})
    lab.relock()
    return lab


def findings(lab: Lab, code: int = 1) -> list[dict[str, str]]:
    found: list[dict[str, str]] = lab.json("lint", code=code)["result"]["findings"]
    return found


@pytest.mark.parametrize(
    "name", ["series.txt", "series.lock", "patches/demo/answer.patch", "ada_dsa/__init__.py"]
)
def test_names_each_file_with_crlf(project: Lab, name: str) -> None:
    path = project.root / name
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    (found,) = findings(project)
    assert (found["rule"], found["where"]) == ("line endings", name)
    assert "CRLF" in found["message"]


def test_crlf_lines_of_upstream_are_none(lab: Lab) -> None:
    crlf = "a = 1\r\nb = 2\r\nc = 3\r\n"
    lab.release("0.5.23", TREE | {"sglang/srt/crlf.py": crlf})
    lab.patch("demo/crlf.patch", {"python/sglang/srt/crlf.py": crlf.replace("b = 2", "b = 22")})
    assert findings(lab, code=0) == []


@pytest.mark.parametrize("character", ["\u200b", "\x0c", "\u202e", "\ufeff", "\x1b"])
def test_only_what_a_patch_adds(lab: Lab, character: str) -> None:
    """Nobody can take a character out of the lines that upstream has."""
    stock = STOCK.replace("return 4\n", f"return 4  # {character}\n")
    lab.release("0.5.23", TREE | {"sglang/srt/utils.py": stock})
    lab.patch("demo/near.patch", {UTILS: stock.replace("return 3\n", "return 33\n")})
    assert findings(lab, code=0) == []
    lab.patch(
        "demo/adds.patch", {UTILS: stock.replace("return 20\n", f"return 20  # {character}\n")}
    )
    assert {(f["rule"], f["where"].split(":")[0]) for f in findings(lab)} == {
        ("character", "patches/demo/adds.patch")
    }


def test_a_byte_order_mark_begins_a_file(lab: Lab) -> None:
    marked = "\ufeff" + STOCK
    lab.release("0.5.23", TREE | {"sglang/srt/utils.py": marked})
    edits: dict[str, str | None] = {
        UTILS: marked.replace("return 0\n", "return 1000\n"),
        "python/sglang/srt/new.py": "\ufeffA = 1\n",
    }
    lab.patch("demo/mark.patch", edits)
    lab.tool("lock", "--offline")
    assert findings(lab, code=0) == []


@pytest.mark.parametrize("value", ["rm -rf", "1" * 5000, "==" + "1" * 5000, ","])
def test_a_header_with_another_range(project: Lab, value: str) -> None:
    path = project.root / "patches/demo/answer.patch"
    path.write_text(path.read_text().replace("Releases: ==0.5.23", f"Releases: {value}"))
    assert [f["rule"] for f in findings(project)] == ["header"]


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("python/sglang/srt/utils.py.orig", "x\n", "leftover"),
        ("python/sglang/srt/utils.py.rej", "x\n", "leftover"),
        ("python/sglang/srt/utils.py~", "x\n", "leftover"),
        ("python/sglang/srt/.utils.py.swp", "x\n", "leftover"),
        ("python/sglang/srt/#utils.py#", "x\n", "leftover"),
        ("python/sglang/srt/README.md", "a\n=======\nb\n", "conflict marker"),
        ("python/sglang/srt/x.json", "<<<<<<< ours\n", "conflict marker"),
        ("python/sglang/srt/x.yaml", "a: 1\n>>>>>>>\n", "conflict marker"),
        ("python/sglang/srt/x.txt", "||||||| base\r\n", "conflict marker"),
    ],
)
def test_leftovers(lab: Lab, path: str, text: str, words: str) -> None:
    lab.patch("demo/left.patch", {path: text})
    (found,) = findings(lab)
    assert found["rule"] == "content" and path in found["message"] and words in found["message"]


def test_what_looks_like_a_marker_and_is_none(lab: Lab) -> None:
    lab.patch(
        "demo/left.patch", {"python/sglang/srt/a.md": "Title\n========\n======\n<<<<<<<<< x\n"}
    )
    assert findings(lab, code=0) == []


@pytest.mark.parametrize("content", ["def f(:\n", "-" * 100_000 + "1\n", "(" * 5000 + "\n"])
def test_a_kernel_that_does_not_parse(project: Lab, content: str) -> None:
    (project.root / "ada_dsa" / "k.py").write_text(content)
    (found,) = findings(project)
    assert (found["rule"], found["where"]) == ("kernels", "ada_dsa/k.py")


def test_a_kernel_that_is_a_pipe(project: Lab) -> None:
    os.mkfifo(project.root / "ada_dsa" / "k.py")
    assert "not a regular file" in project.json("lint", code=2)["error"]["message"]


def test_a_patch_that_is_a_pipe(project: Lab, tmp_path: Path) -> None:
    path = project.root / "patches/demo/answer.patch"
    path.unlink()
    os.mkfifo(path)
    assert {f["rule"] for f in findings(project)} == {"file"}
    for command in (
        ["apply", "--into", str(tmp_path / "fork"), "--offline"],
        ["explain", "answer"],
    ):
        assert "not a regular file" in project.json(*command, code=2)["error"]["message"]


EMPTY = (
    "diff --git a/{0} b/{0}\nnew file mode 100644\n"
    "index {1}..e69de29bb2d1d6434b8b29ae775ad8c2e48c5391\n"
)
EDIT = (
    "diff --git a/{0} b/{0}\nindex {2}..{3} 100644\n--- a/{0}\n+++ b/{0}\n"
    "@@ -1,2 +1,3 @@\n one\n+two\n three\n"
)


@pytest.mark.parametrize(
    "diff",
    [
        EDIT.format("python/sglang/x.py", "0" * 40, "a" * 40, "b" * 40),
        EDIT.format("python/sglang/x y.py", "0" * 40, "a" * 40, "b" * 40),
        EMPTY.format("python/sglang/x.py", "0" * 40),
    ],
)
def test_three_readers_of_a_diff_agree(diff: str) -> None:
    assert lint._count(patchfile.parse("x", header("==0.5.23") + diff.encode())) is None


def test_readers_that_do_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    diff = EDIT.format("python/sglang/x.py", "0" * 40, "a" * 40, "b" * 40)
    parsed = patchfile.parse("x", header("==0.5.23") + diff.encode())
    counted = {"python/sglang/x.py": (2, 0)}
    with monkeypatch.context() as changed:
        changed.setattr(lint, "_numstat", lambda _: counted)
        assert "git apply counts" in (lint._count(parsed) or "")
    with monkeypatch.context() as changed:
        changed.setattr(lint, "PatchSet", lambda _: [])
        assert "unidiff counts {}" in (lint._count(parsed) or "")
