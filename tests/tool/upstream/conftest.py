"""pip's only index, for tests of what it offers and of how it fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.index import Index, serve, use
from tests.support.lab import EDITED, RELEASE, UTILS, Lab


@pytest.fixture
def index(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """pip's only index. It holds the project's release; the cache holds nothing."""
    lab.patch("demo/answer.patch", {UTILS: EDITED}, releases=">=0.5.23")
    lab.relock()
    with serve(tmp_path / "index") as index:
        for path in lab.home.wheels.glob("*.whl"):
            path.rename(index.folder / path.name)
        lab.home.open_repository().run("update-ref", "-d", f"refs/ada/base/v{RELEASE}")
        use(index, monkeypatch)
        yield index
