"""The roofline's formulas against small counts and against what the benchmark declares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.kernels import report, roofline
from bench.kernels.roofline import CARDS, Card, Work, work_of


def test_paged_logits_by_counting() -> None:
    """Two requests of 3 and 65 keys, two queries each: 2 + 3 and 64 + 65 pairs; 1 and 2 pages."""
    work = roofline.paged_logits([3, 65], heads=4, next_n=2)
    pairs = 2 + 3 + 64 + 65
    assert work.flops == pairs * 4 * 128 * 2
    assert work.bytes == 68 * 132 + 3 * 4 + 4 * 4 * (128 + 4) + pairs * 4


def test_ragged_logits_by_counting() -> None:
    """Three queries at the end of five keys see 3, 4 and 5 of them."""
    work = roofline.ragged_logits(3, 5, heads=2)
    assert work == Work(3 * 2 * 132 + 5 * 132 + 12 * 4, 12 * 2 * 128 * 2, fp8=True)


def test_sparse_mla_reads_a_shared_pool_once() -> None:
    assert roofline.sparse_mla(64, 8).bytes - roofline.sparse_mla(64, 8, pool=1000).bytes == (
        (64 * 2048 - 1000) * 656
    )


@pytest.mark.parametrize("group", roofline.CASES)
def test_names_that_the_benchmark_gives_are_understood(group: str) -> None:
    works = [work_of(group, name) for name in roofline.CASES[group]]
    assert all(work is not None and work.bytes > 0 for work in works)
    assert len({(w.bytes, w.flops) for w in works if w}) == len(works)
    assert work_of("another group", "B=1") is None


def test_agrees_with_the_benchmark_cases() -> None:
    """Within 1%: the benchmark leaves out head weights and page tables."""
    from bench.kernels import indexer, sparse_mla

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    lens = torch.tensor([[32_767, 32_768]] * 8)
    paged = indexer.PagedWork(
        meta(8, 2, 32, 128, dtype=torch.float8_e4m3fn), meta(1), meta(16, 32), lens, [], 32_768
    )
    ours = work_of("paged logits", "B=8 ctx=32768 n=2")
    assert ours is not None
    assert ours.flops == paged.flops and ours.bytes == pytest.approx(paged.bytes, rel=1e-2)
    for group, tokens, slots in (("decode", 64, 1 << 20), ("prefill", 2048, 1 << 16)):
        for layout, width, q, keys, name in (
            (sparse_mla.KvLayout.PACKED_FP8, 656, 576, 2048, "packed fp8"),
            (sparse_mla.KvLayout.BF16, 576, 576, 2048, "bf16"),
            (sparse_mla.KvLayout.PACKED_FP8, 528, 512, 2051, "packed fp8 without rope"),
            (sparse_mla.KvLayout.BF16, 512, 512, 2051, "bf16 without rope"),
        ):
            dtype = torch.bfloat16 if "bf16" in name else torch.uint8
            work = sparse_mla.Work(
                meta(tokens, 16, q, dtype=torch.bfloat16), meta(slots, 1, width, dtype=dtype),
                layout, [meta(tokens, keys, dtype=torch.int32)],
            )  # fmt: skip
            letter = "B" if group == "decode" else "S"
            expected = work_of(f"sparse MLA {group}, {name}", f"{letter}={tokens} H=16")
            assert expected == Work(work.bytes, work.flops)


def test_the_slower_of_memory_and_arithmetic_binds() -> None:
    card = Card("", memory=10.0, bf16=100.0, fp8=200.0, cache=0, source="")
    assert card.seconds(Work(10, 50)) == (1.0, "memory")
    assert card.seconds(Work(10, 400)) == (4.0, "MMA")
    assert card.seconds(Work(10, 400, fp8=True)) == (2.0, "MMA")
    assert roofline.share(Work(10, 400), 8e6, card) == pytest.approx(0.5)
    assert all(card.fp8 == pytest.approx(2 * card.bf16, rel=1e-2) for card in CARDS)


def test_measured_times_come_from_the_column_asked_for() -> None:
    rows = ("case | native | sm_89", "---|---:|---:", "1x8192 | 16.1 | 15.9", "8x9 | – | 2")
    text = "## top-k\n\n" + "".join(f"| {row} |\n" for row in rows)
    assert roofline.measured_times(text) == {("top-k", "1x8192"): 16.1}
    assert roofline.measured_times(text, "sm_89")["top-k", "8x9"] == 2.0


def test_a_report_has_shares_of_the_fastest_rate_seen(tmp_path: Path) -> None:
    import json

    rows = [
        {"group": "paged logits", "name": "B=64 ctx=131072", "ours": 400.0, "peers": {"X": 300.0}},
        {"group": "unknown", "name": "?", "ours": 5.0, "peers": {}},
    ]
    about = {"date": "d", "device": "GPU", "versions": {}, "copy_GB_s": 100, "bf16_TFLOP_s": 1000}
    for name in ("a", "b"):
        (tmp_path / name).write_text(json.dumps(about | {"rows": rows}))
    native, lowered = (json.loads((tmp_path / name).read_text()) for name in ("a", "b"))
    text = report.page(native, lowered)
    assert "| B=64 ctx=131072 | 400.0 | 400.0 | 300.0 X | 1.33 | 1.33 | 75% | 75% |" in text
    assert "| ? | 5.0 | 5.0 | – | – | – | – | – |" in text


def test_the_document_marks_every_table_as_computed() -> None:
    text = "\n".join(roofline.document({("top-k", "1x8192"): 16.1}))
    assert text.startswith("# Rooflines\n\n**Computed, not measured**")
    assert "| 1x8192 | 49.2 KB | – | – | 0.05 in L2 | 0.03 in L2 | 0.01 in L2 | 16.1 | 0% |" in text
