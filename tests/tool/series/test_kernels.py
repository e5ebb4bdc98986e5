"""Which files of ``ada_dsa`` are bundled, and what may not be among them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tool.errors import UsageError
from tool.series.kernels import find_kernels, parse_requirements, read_kernels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("__init__.py", "py.typed", "requirements.txt", "topk/api.py"):
        path = tmp_path / "ada_dsa" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "ada_dsa"


def test_sources_and_requirements_and_nothing_else(folder: Path) -> None:
    wanted = {"__init__.py", "py.typed", "requirements.txt", "topk/api.py"}
    (folder / "notes.md").write_text("")
    (folder / "topk" / "requirements.txt").write_text("")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "api.py").write_text("")
    assert set(find_kernels(folder)) == wanted
    assert read_kernels(folder)["topk/api.py"] == b"topk/api.py"


def test_a_link_leads_out_of_the_bundle(folder: Path) -> None:
    (folder / "link.py").symlink_to(folder / "__init__.py")
    with pytest.raises(UsageError, match="link.py is a link"):
        find_kernels(folder)


def test_a_pipe_is_not_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe.py")
    with pytest.raises(UsageError, match="pipe.py is not a regular file"):
        find_kernels(folder)


def test_a_folder_without_kernels(folder: Path) -> None:
    (folder / "__init__.py").unlink()
    with pytest.raises(UsageError, match="no kernels in"):
        find_kernels(folder)


def test_comments_of_requirements() -> None:
    assert parse_requirements("# all\n\na>=1  # why\n b\n") == ["a>=1", "b"]
