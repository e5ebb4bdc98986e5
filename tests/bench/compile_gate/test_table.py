"""The table of the compile gate: comparison of two runs, and what it calls failed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from bench.compile_gate.table import Record, compare, markdown

THIN = Record("topk", "1x8K", "thin_kernel", 89, 100, 128, 8192, 0, 900, "ptx a", "cubin a")
SELECT = replace(THIN, kernel="select_kernel", registers=64, spills=2, ptx="ptx b")


def run(*records: Record, failures: dict[str, str] | None = None) -> dict[str, object]:
    rows = [asdict(record) for record in records]
    return {"triton": "3.7.1", "rows": rows, "failures": failures or {}}


def test_equal_code_compares_equal_whatever_it_uses() -> None:
    assert compare(run(THIN, SELECT), run(replace(THIN, registers=1), SELECT)) == []


def test_every_difference_is_named() -> None:
    again = replace(THIN, cubin="other")
    assert compare(run(THIN, THIN, SELECT), run(THIN, again)) == [
        "('topk', '1x8K', 'select_kernel', 89, 0): only before",
        "('topk', '1x8K', 'thin_kernel', 89, 1): other cubin",
    ]


def test_only_the_kernel_that_a_test_stopped_at_has_failed() -> None:
    where = json.dumps(["topk", "1x8K", 89])
    text = markdown([run(THIN, SELECT, failures={where: "2 LDL/STL | too many"})])
    assert "- Triton 3.7.1: 2 kernels compiled, 1 ok, 1 failed, 1 with spills" in text
    assert "| thin | 1x8K | sm_89 | 100 x 128, 8,192, 0 |" in text
    assert "| select | 1x8K | sm_89 | **FAILED** 64 x 128, 8,192, 2 |" in text
    assert "| 3.7.1 | topk | 1x8K | sm_89 | 2 LDL/STL / too many |" in text


def test_versions_stand_side_by_side() -> None:
    other = run(THIN) | {"triton": "3.8.0"}
    text = markdown([run(THIN, SELECT), other])
    assert "| kernel | case | arch | 3.7.1 | 3.8.0 |" in text
    assert "| select | 1x8K | sm_89 | 64 x 128, 8,192, 2 | – |" in text
    assert "What failed" not in text


def test_what_a_later_version_alone_compiles_stands_in_its_own_table() -> None:
    pack = replace(THIN, test="kv_cache", kernel="pack_kernel")
    later = run(THIN, replace(THIN, arch=121), pack) | {"triton": "3.8.0"}
    lines = markdown([run(THIN, pack), later]).splitlines()
    assert [line for line in lines if line.startswith("##")] == ["## topk", "## kv cache"]
    assert lines.index("| thin | 1x8K | sm_121 | – | 100 x 128, 8,192, 0 |") < lines.index(
        "## kv cache"
    )
