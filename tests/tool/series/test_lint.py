"""``tool lint``: what it finds and what it lets pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.lab import Lab, header
from tool.series import lint
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
