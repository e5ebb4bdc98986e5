"""The benchmark of tuned configurations, without a GPU: the model's shapes, the files, the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.serving import tuned
from tool.plan import find_model
from tool.tune import list_gemms, list_moes

NAME = "N=128,K=6144,device_name=NVIDIA_GeForce_RTX_4090,dtype=fp8_w8a8.json"


def test_the_model_has_the_shapes_of_a_rank_of_glm(tmp_path: Path) -> None:
    rank = find_model(str(tuned.write_config(tmp_path / "model")), None, fetch=False)
    whole = find_model("GLM-5.2-FP8", None, fetch=False)
    for one, of_eight in (
        (list_gemms(rank, 1), list_gemms(whole, 8)),
        (list_moes(rank, 1, fused=False), list_moes(whole, 8, fused=False)),
    ):
        assert [shape.sizes for shape in one] == [shape.sizes for shape in of_eight]


def test_the_device_is_that_of_the_files(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="0 devices"):
        tuned.find_device(tmp_path)
    (tmp_path / NAME).write_text("{}")
    assert tuned.find_device(tmp_path) == "NVIDIA_GeForce_RTX_4090"
    (tmp_path / NAME.replace("4090", "5090")).write_text("{}")
    with pytest.raises(LookupError, match="2 devices"):
        tuned.find_device(tmp_path)


def test_tuned_files_do_not_reach_the_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "HOME", tmp_path)
    ours, shipped = tmp_path / "out" / "sglang" / NAME, tmp_path / "fork" / "sglang" / NAME
    other = shipped.with_name("other.py")
    for file, content in ((ours, "tuned"), (shipped, "shipped"), (other, "code")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    site = tuned.copy_site(tmp_path / "out", tmp_path / "site")
    assert (site / "sglang" / NAME).read_text() == "tuned"
    assert shipped.read_text() == "shipped"
    assert (site / "sglang" / "other.py").samefile(other)


def test_points_of_both_runs_are_compared() -> None:
    def run(**ms: float) -> dict[str, list[dict[str, object]]]:
        rows = [{"kind": kind, "streams": 1, "context": 2048, "ms": t} for kind, t in ms.items()]
        return {"rows": [*rows, {"kind": "decode", "streams": 64, "context": 2048, "reason": "x"}]}

    (row,) = tuned.compare(run(decode=3.0, prefill=50.0), run(decode=2.0))
    assert row == {
        "kind": "decode",
        "streams": 1,
        "tokens": 2048,
        "default ms": 3.0,
        "tuned ms": 2.0,
        "ratio": 1.5,
    }
