"""Whether the kernels of an environment are tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tool.doctor.test_diagnose import facts
from tool.doctor import examine
from tool.doctor.environment import Driver, SelfTest, Torch
from tool.project.session import SILENT


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, None),
        ({"kernels": None}, "there is no ada_dsa in this environment"),
        ({"driver": Driver("580", 13000, None, ())}, "no NVIDIA GPU"),
        ({"torch": None}, "torch cannot be imported"),
        ({"torch": Torch(None, None, "broken")}, "torch cannot be imported"),
        ({"kernels": "/nonexistent"}, "these kernels are older than their self-test"),
    ],
)
def test_whether_the_kernels_are_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], why: str | None
) -> None:
    (tmp_path / "selftest.py").write_text("")
    machine = facts(**{"kernels": str(tmp_path), **changed})
    monkeypatch.setattr(examine, "probe_environment", lambda _: machine)
    done = SelfTest(sm=89)
    monkeypatch.setattr(examine, "run_selftest", lambda *_: done)
    found, tested = examine.examine_environment(None, SILENT)
    assert found == machine
    assert tested == done if why is None else (tested.skipped or "").startswith(why)
