"""The page and the plot of ``bench/serving/steps.py`` from made-up results, and what that benchmark starts.

No number here was measured.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.kernels import indexer
from bench.serving import fallback, report, steps


def a_run(name: str, factor: float) -> dict[str, Any]:
    rows: list[dict[str, Any]] = [
        {"kind": "prefill", "streams": 1, "context": n, "ms": factor * n / 100}
        for n in (2048, 8192)
    ]
    for streams in (1, 64):
        for context in (2048, 131_072):
            ms = factor * streams**0.5
            point = {"kind": "decode", "streams": streams, "context": context}
            rows.append({**point, "ms": ms, "gpu_ms": ms * factor / 2})
    return {"flavour": name, "about": {"device": "none", "heads": 64}, "rows": rows}


def a_result() -> dict[str, Any]:
    runs = [a_run("stock", 1.0), a_run("fork", 1.05), a_run("fork-sm89", 2.0)]
    us = {
        "our logits": 10.0,
        "their logits": 900.0,
        report.NARROW: 100.0,
        "our attention": 20.0,
        "their attention": 30.0,
    }
    errors = {"their logits": "OutOfMemoryError: 64 GiB"}
    functions = {
        "flavour": "fallback",
        "about": {"device": "none", "context_length": 132_096},
        "rows": [
            {"kind": "functions", "streams": 1, "context": 2048, "us": us, "errors": {}},
            {"kind": "functions", "streams": 1, "context": 131_072, "us": us, "errors": {}},
            {
                "kind": "functions",
                "streams": 64,
                "context": 131_072,
                "us": {**us, "their logits": None},
                "errors": errors,
            },
        ],
    }
    return {"date": "never", "runs": [*runs, functions]}


def test_the_bars_are_ratios_of_what_is_there() -> None:
    found = report.bars(a_result())
    near = [bar for bar in found if bar.what == "fork over stock"]
    assert len(near) == 4 and all(bar.met and bar.value == pytest.approx(1.05) for bar in near)
    # 21 * 900 + 78 * 30 over 21 * 10 + 78 * 20, at 128K alone: 2K is no promise, 64 streams failed.
    (ahead,) = [bar for bar in found if bar.what != "fork over stock"]
    assert (ahead.streams, ahead.context, ahead.met) == (1, 131_072, True)
    assert ahead.value == pytest.approx((21 * 900 + 78 * 30) / (21 * 10 + 78 * 20))


def test_a_missed_bar_is_named() -> None:
    result = a_result()
    result["runs"][1] = a_run("fork", 1.2)
    text = report.markdown(result, None)
    assert "at most 1.1 of stock's decode step: 0 of 4 points (1.20 … 1.20)" in text
    assert "  - missed: 64 streams at 128K, 1.20" in text


def test_the_page_has_every_number() -> None:
    text = report.markdown(a_result(), "serving.svg")
    assert text.startswith("# Speed of serving, 64 heads on a GPU\n")
    assert "![decode step over context](serving.svg)" in text
    assert (
        "| 64 | 128K | 8.000 | 8.400 | 16.000 | 8,000 | 7,619 | 4,000 | 1.05 | 1.10 | 4.00 |"
        in text
    )
    assert "| 8K | 81.9 | 86.0 | 163.8 | 100,000 | 95,238 | 50,000 |" in text
    assert "| 1 | 128K | 10.0 | 900.0 | 100.0 | 20.0 | 30.0 | 90.0 | 1.5 | 12.0 | 2.5 |" in text
    assert "| 64 | 128K | 10.0 | n/a | 100.0 | 20.0 | 30.0 | n/a | 1.5 | n/a | 2.5 |" in text
    assert "`--context-length`, here 132096 tokens" in text
    assert "- 64 streams at 128K, their logits: OutOfMemoryError: 64 GiB" in text
    assert "Not measured" not in text


def test_what_was_not_measured_is_said() -> None:
    result = a_result()
    stock, fork = result["runs"][:2]
    stock["rows"][-1] = {
        "kind": "decode",
        "streams": 64,
        "context": 131_072,
        "reason": "the pool holds 10 tokens",
    }
    fork["error"] = "exit code 1\nTraceback"
    result["runs"] = [stock, fork]
    text = report.markdown(result, None)
    assert "| 64 | 128K | n/a | 8.400 | n/a | 7,619 | n/a | n/a | n/a |" in text
    assert "- stock, 64 streams at 128K: the pool holds 10 tokens" in text
    assert "- fork: exit code 1" in text
    assert "stock's fallback at least 5 times as long from 32K on: not measured" in text


def test_the_plot_is_well_formed_and_has_every_point() -> None:
    drawn = ET.fromstring(report.svg(a_result()))
    name = "{http://www.w3.org/2000/svg}"
    circles = drawn.findall(f"{name}circle")
    assert len(circles) == 3 * 4
    for circle in circles:
        assert report.LEFT <= float(circle.attrib["cx"]) <= report.WIDTH
        assert report.TOP <= float(circle.attrib["cy"]) <= report.HEIGHT - 48
    texts = [text.text for text in drawn.findall(f"{name}text")]
    assert {"1 stream", "64 streams", "2K", "128K", "fork, sm_89 lowering"} <= set(texts)
    slow = [float(c.attrib["cy"]) for c in circles if c.attrib["fill"] == "#d1242f"]
    fast = [float(c.attrib["cy"]) for c in circles if c.attrib["fill"] == "#888888"]
    assert all(a < b for a, b in zip(slow, fast, strict=True))


def test_page_and_plot_are_written_together(tmp_path: Path) -> None:
    report.write(a_result(), tmp_path / "serving.md")
    assert "(serving.svg)" in (tmp_path / "serving.md").read_text()
    assert (tmp_path / "serving.svg").read_text().startswith("<svg")
    report.write({"date": "never", "runs": []}, tmp_path / "empty.md")
    assert "not measured" in (tmp_path / "empty.md").read_text()
    assert not (tmp_path / "empty.svg").exists()


# -- the benchmark's own parts --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "rows", "error"),
    [
        ("import json, sys; json.dump({'rows': [1]}, open(sys.argv[1], 'w'))", [1], None),
        ("raise SystemExit('broken')", [], "exit code 1\nbroken"),
        (
            "import json, sys, time; json.dump({'rows': [1]}, open(sys.argv[1], 'w'));"
            "print('late', flush=True); time.sleep(60)",
            [1],
            "over 2 s\nlate",
        ),
    ],
)
def test_a_child_that_ends_in_any_way_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, rows: list[int], error: str | None
) -> None:
    monkeypatch.setattr(steps, "LIMIT", 2.0)
    found = steps.run("one", [sys.executable, "-c", script], {}, tmp_path)
    assert found["rows"] == rows
    assert found.get("error") == error
    assert found["flavour"] == "one"


def test_every_point_fits_the_pool_that_is_asked_for() -> None:
    pool = steps.changes()["max_total_tokens"]
    assert pool >= max(steps.STREAMS) * (max(steps.CONTEXTS) + 64)
    assert steps.changes()["context_length"] > max(steps.CONTEXTS)


def test_a_page_table_may_be_wider_than_what_it_holds() -> None:
    table = indexer.page_table([100, 1], torch.tensor([5, 4, 3], dtype=torch.int32), 4)
    assert table.dtype == torch.int32
    assert table.tolist() == [[5, 4, 0, 0], [3, 0, 0, 0]]


class SmallRig:
    """Steps of 3 ms, of which the graph takes 2; it counts what it has run."""

    capacity = 10_000

    def __init__(self, graphs: int) -> None:
        self.graphs, self.ran = graphs, 0

    def clear(self) -> None:
        pass

    def streams(self, count: int, tokens: int, rows: list[torch.Tensor]) -> tuple[int, int]:
        return count, tokens

    def decode(self, batch: tuple[int, int], steps: int) -> tuple[list[float], list[float]]:
        self.ran += 1
        assert batch == (2, 2048 - steps)
        return [0.003] * steps, [0.002] * min(steps, self.graphs)


def test_a_step_has_its_times_or_the_reason_why_not() -> None:
    rig = SmallRig(graphs=1000)
    timed = steps.decode(rig, 2, 2048, [])
    assert timed == {"ms": 3.0, "least_ms": 3.0, "most_ms": 3.0, "gpu_ms": 2.0}
    assert steps.decode(rig, 8, 2048, []) == {"reason": "the pool holds 10000 tokens"}
    assert rig.ran == 1
    without = steps.decode(SmallRig(graphs=33), 2, 2048, [])
    assert without == {"reason": "2 steps ran without a CUDA graph"}


def test_the_spread_is_in_milliseconds() -> None:
    assert steps.spread([0.003, 0.001, 0.002]) == {"ms": 2.0, "least_ms": 1.0, "most_ms": 3.0}


@pytest.mark.index
def test_the_released_logits_are_those_of_the_oracle(
    released_wheel: Callable[[str], Path], tmp_path: Path
) -> None:
    """The function that the benchmark times is the release's, and computes what ours does."""
    from ada_dsa.indexer import reference

    small = tmp_path / "small.zip"
    wheel = released_wheel("0.5.23")
    fallback.cut(wheel, small)
    assert small.stat().st_size < 200_000
    assert fallback.origin(small) == fallback.origin(wheel) == wheel.name
    g = torch.Generator().manual_seed(0)
    keys = torch.randn((6, 64 * 128), generator=g).to(torch.float8_e4m3fn).view(torch.uint8)
    scales = (torch.rand((6, 64), generator=g) + 0.5).view(torch.uint8)
    pool = torch.cat([keys, scales], dim=1).view(6, 64, 1, 132)
    q = torch.randn((2, 1, 32, 128), generator=g).to(torch.float8_e4m3fn)
    weights = torch.randn((2, 32), generator=g)
    lens, table = torch.tensor([100, 190]), torch.tensor([[5, 2, 1], [3, 0, 4]], dtype=torch.int32)
    released = fallback.load_logits(small)
    theirs = released(q, pool, weights, lens, table, None, 192, clean_logits=False)
    ours = reference.fp8_paged_mqa_logits(q, pool, weights, lens[:, None], table, 192)
    assert float((theirs - ours).abs().mean() / ours.abs().mean()) < 0.02
    assert torch.equal(theirs == 0, ours == 0)


@pytest.mark.index
def test_the_released_attention_loads_without_its_server(
    released_wheel: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("tilelang")
    before = {name for name in sys.modules if name.startswith("sglang")}
    function = fallback.load_sparse(released_wheel("0.5.23"), tmp_path)
    assert function.__name__ == "tilelang_sparse_fwd"
    assert {name for name in sys.modules if name.startswith("sglang")} == before


def test_a_wheel_without_the_function_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "old.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        out.writestr(fallback.LOGITS, "x = 1\n")
    with pytest.raises(LookupError, match="no fp8_paged_mqa_logits_torch.*0.5.22 or later"):
        fallback.load_logits(wheel)
