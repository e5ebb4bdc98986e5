"""Newer, unknown and yanked releases. pip is real, its index a few pages in a folder (PEP 503, 592)."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version

from tests.support.lab import EDITED, TREE, UTILS, Lab, write_wheel

STOCK = TREE["sglang/srt/utils.py"]


class Index:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._links: list[str] = []
        self._page = folder / "simple" / "sglang" / "index.html"
        self._page.parent.mkdir(parents=True)
        self._write()

    def add(self, version: str, files: dict[str, str], *, yanked: str | None = None) -> None:
        wheel = write_wheel(self.folder, version, files)
        attribute = f' data-yanked="{yanked}"' if yanked else ""
        self._links.append(f'<a href="{wheel.as_uri()}"{attribute}>{wheel.name}</a>')
        self._write()

    def _write(self) -> None:
        self._page.write_text(f"<!DOCTYPE html><html><body>{' '.join(self._links)}</body></html>")


@pytest.fixture
def index(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    lab.patch("demo/answer.patch", {UTILS: EDITED})
    lab.relock()
    monkeypatch.chdir(tmp_path)
    made = Index(tmp_path / "index")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", (made.folder / "simple").as_uri())
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    return made


def test_nothing_newer(lab: Lab, index: Index) -> None:
    index.add("0.5.23", TREE)
    index.add("0.5.24rc1", TREE)
    result = lab.json("watch", "-q")["result"]
    assert (result["newer"], result["new"], result["unusable"]) == (None, [], {})
    assert "the series carries the newest release, v0.5.23" in lab.tool("watch", "-q").stdout


def test_each_newer_one_is_looked_at(lab: Lab, index: Index) -> None:
    index.add("0.5.24", TREE)
    index.add("0.5.24.post1", TREE | {"sglang/srt/utils.py": "A = 1\n" + STOCK})
    result = lab.json("watch", "-q")["result"]
    assert result["newer"] == "0.5.24.post1" and result["carries"]
    assert result["patches"][0]["outcome"] == "moved"
    assert [(one["onto"], one["summary"]) for one in result["new"]] == [
        ("0.5.24", {"clean": 1}),
        ("0.5.24.post1", {"moved": 1}),
    ]
    # The nearest first: each step is smaller, and every release on the way is supported.
    assert "next: tool rebase --onto v0.5.24\n" in lab.tool("watch", "-q").stdout


def test_a_version_before_the_release(lab: Lab, index: Index) -> None:
    index.add("0.5.24rc1", TREE)
    assert lab.json("watch", "-q")["result"]["new"] == []
    (found,) = lab.json("watch", "-q", "--pre")["result"]["new"]
    assert found["onto"] == "0.5.24rc1"


def test_a_newer_one_that_was_yanked(lab: Lab, index: Index) -> None:
    index.add("0.5.24", TREE, yanked="broken on import")
    index.add("0.5.25", TREE)
    result = lab.json("watch", "-q")["result"]
    assert result["unusable"] == {"0.5.24": "yanked: broken on import"}
    assert [one["onto"] for one in result["new"]] == ["0.5.25"]


def test_a_newer_one_that_does_not(lab: Lab, index: Index) -> None:
    index.add("0.5.24", TREE | {"sglang/srt/utils.py": STOCK.replace("return 3\n", "return 4\n")})
    result = lab.json("watch", "-q", code=1)["result"]
    assert result["patches"][0]["outcome"] == "conflict"
    assert "| 0.5.24 | 1 conflict | stops at `demo/answer.patch` |" in result["markdown"]
    assert "Next: `tool rebase --onto v0.5.24`" in result["markdown"]


def test_an_index_that_cannot_be_asked(lab: Lab, index: Index, tmp_path: Path) -> None:
    (tmp_path / "index" / "simple" / "sglang" / "index.html").unlink()
    error = lab.json("watch", "-q", code=6)["error"]
    assert "package index" in error["message"] and "pip" in error["next"]


def test_rebase_takes_every_wheel_of_a_new_release(lab: Lab, index: Index) -> None:
    index.add("0.5.24", TREE)
    lab.tool("rebase", "--onto", "v0.5.24", "-q")
    (wheel,) = lab.lock.get(Version("0.5.24")).wheels
    assert wheel.filename == "sglang-0.5.24-py3-none-any.whl" and len(wheel.sha256) == 64
    assert lab.json("check", "--offline")["result"]["findings"] == 0


def test_an_unknown_release(lab: Lab, index: Index) -> None:
    error = lab.json("rebase", "--onto", "v0.5.99", "-q", code=2)["error"]
    assert "0.5.99" in error["message"] and "pip index versions" in error["next"]


def test_a_yanked_release(lab: Lab, index: Index) -> None:
    index.add("0.5.24", TREE, yanked="broken on import")
    lock = (lab.root / "series.lock").read_bytes()
    error = lab.json("rebase", "--onto", "v0.5.24", "-q", code=2)["error"]
    assert "yanked" in error["message"] and error["why"] == "broken on import"
    assert (lab.root / "series.lock").read_bytes() == lock
    assert not (lab.folder / "rebase.json").exists()


def test_a_broken_download(lab: Lab, index: Index, tmp_path: Path) -> None:
    index.add("0.5.24", TREE)
    wheel = tmp_path / "index" / "sglang-0.5.24-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:200])
    for command in ("drift", "rebase"):
        result = lab.tool(command, "--onto", "v0.5.24", "-q", code=None)
        assert result.exit_code in (5, 6), result.output
        assert "next:" in result.stderr
    assert not (lab.folder / "rebase.json").exists()
