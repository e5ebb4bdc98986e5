"""Every tool test gets a private home and nothing of the user's git."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.lab import AGAIN, EDITED, UTILS, Lab
from tests.support.rebases import three_patches
from tests.support.upstreams import Upstream


@pytest.fixture(autouse=True)
def _private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = tmp_path / "home"
    private.mkdir()
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(private))
    monkeypatch.setenv("TOOL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TOOL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("TZ", "UTC")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A small sglang with one release, 0.5.23, and a series of its own."""
    return Lab(tmp_path / "project", tmp_path / "cache", tmp_path / "data")


@pytest.fixture
def make_lab(tmp_path: Path) -> Callable[[str], Lab]:
    """Further projects, each with its own cache and data: another user's machine."""

    def make(name: str) -> Lab:
        root = tmp_path / name
        return Lab(root / "project", root / "cache", root / "data")

    return make


@pytest.fixture
def three(lab: Lab) -> Lab:
    """A project of three patches."""
    return three_patches(lab)


@pytest.fixture
def upstream(three: Lab, tmp_path: Path) -> Upstream:
    """A git repository whose main conflicts with a patch; the project remembers it as a source."""
    made = Upstream(tmp_path / "upstream")
    made.rename_page()
    three.tool("source", "add", "upstream", str(made.folder))
    return made


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worktrees of a rebase are made in the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fork(lab: Lab, tmp_path: Path) -> Path:
    return lab.fork(
        tmp_path / "fork",
        {"demo/first.patch": {UTILS: EDITED}, "demo/second.patch": {UTILS: AGAIN}},
    )


@pytest.fixture
def ready(lab: Lab) -> Lab:
    """A series of one patch, which no worktree has yet."""
    lab.patch("demo/answer.patch", {UTILS: EDITED})
    lab.relock()
    return lab
