"""The page and the plot from made-up results.

No number here was measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.serving import report


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


def test_page_and_plot_are_written_together(tmp_path: Path) -> None:
    report.write(a_result(), tmp_path / "serving.md")
    assert "(serving.svg)" in (tmp_path / "serving.md").read_text()
    assert (tmp_path / "serving.svg").read_text().startswith("<?xml")
    report.write({"date": "never", "runs": []}, tmp_path / "empty.md")
    assert "not measured" in (tmp_path / "empty.md").read_text()
    assert not (tmp_path / "empty.svg").exists()
