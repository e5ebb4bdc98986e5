"""Downloads are checked and complete, and errors say why. pip is real; its index is a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.lab import EDITED, RELEASE, TREE, UTILS, Lab, write_wheel


@pytest.fixture
def index(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip uses as its only index. It holds the release, and the cache is empty."""
    lab.patch("demo/answer.patch", {UTILS: EDITED})
    lab.relock()
    folder = tmp_path / "index"
    folder.mkdir()
    (cached,) = lab.home.wheels.glob("*.whl")
    cached.rename(folder / cached.name)
    lab.home.open_repository().run("update-ref", "-d", f"refs/ada/base/v{RELEASE}")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def online(lab: Lab, tree: Path, code: int = 0) -> dict[str, object]:
    return lab.json("apply", "--quiet", "--into", str(tree), code=code)


def test_fetches_once_then_works_offline(lab: Lab, index: Path, tmp_path: Path) -> None:
    assert online(lab, tmp_path / "fork")["ok"]
    (wheel,) = index.iterdir()
    wheel.unlink()
    lab.home.open_repository().run("update-ref", "-d", f"refs/ada/base/v{RELEASE}")
    assert lab.apply(tmp_path / "again", "--branch", "again")["ok"]


def test_offline_with_an_empty_cache_says_so(lab: Lab, index: Path, tmp_path: Path) -> None:
    error = lab.apply(tmp_path / "fork", code=6)["error"]
    assert "not in the cache" in error["message"] and "without --offline" in error["next"]


def test_another_file_under_the_same_name_is_refused(lab: Lab, index: Path, tmp_path: Path) -> None:
    write_wheel(index, RELEASE, TREE | {"sglang/evil.py": "import os\n"})
    error = online(lab, tmp_path / "fork", code=5)["error"]
    assert "not the file the series was written for" in error["message"]
    assert list(lab.home.wheels.glob("*")) == []


def test_a_damaged_cache_entry_is_fetched_anew(lab: Lab, index: Path, tmp_path: Path) -> None:
    online(lab, tmp_path / "fork")
    (cached,) = lab.home.wheels.glob("*.whl")
    cached.write_bytes(cached.read_bytes()[:100])
    lab.home.open_repository().run("update-ref", "-d", f"refs/ada/base/v{RELEASE}")
    assert online(lab, tmp_path / "fork")["ok"]
    assert cached.stat().st_size > 100


def test_an_interrupted_download_is_swept_up(lab: Lab, index: Path, tmp_path: Path) -> None:
    partial = lab.home.wheels / ".download.killed"
    partial.mkdir(parents=True)
    (partial / "half.whl").write_bytes(b"PK")
    online(lab, tmp_path / "fork")
    assert not partial.exists()


def test_an_unknown_release_is_not_a_network_problem(lab: Lab, index: Path, tmp_path: Path) -> None:
    (lab.root / "series.txt").write_text(
        (lab.root / "series.txt").read_text().replace("==0.5.23", ">=0.5.23")
    )
    error = lab.json("lock", "--sglang-ref", "v0.5.99", "--quiet", code=2)["error"]
    assert "0.5.99" in error["message"] and "pip index versions" in error["next"]


def test_a_new_release_is_discovered_and_locked(lab: Lab, index: Path, tmp_path: Path) -> None:
    write_wheel(index, "0.5.24", TREE)
    patch = lab.root / "patches" / "demo/answer.patch"
    patch.write_bytes(patch.read_bytes().replace(b"==0.5.23", b">=0.5.23"))
    (lab.root / "series.txt").write_text(
        (lab.root / "series.txt").read_text().replace("==0.5.23", ">=0.5.23")
    )
    assert lab.json("lock", "--sglang-ref", "v0.5.24", "-q")["result"]["changed"] == ["0.5.24"]
    assert lab.apply(tmp_path / "fork", "--sglang-ref", "0.5.24")["result"]["release"] == "0.5.24"
