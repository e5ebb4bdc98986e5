"""Top-k cases: selection of 2048 with the page-table transform fused.

    python -m bench.kernels.run --group top-k

Peers: sglang-kernel's fused kernel and flashinfer's where installed (flashinfer compiles its own with
nvcc when first called, about a minute), and ``torch.topk`` alone (unsorted, no transform) for scale.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ada_dsa import fast_topk_transform_fused
from bench.kernels.case import Case, nvcc

TOPK = 2048
SHAPES = (
    (1, 8192), (1, 32_768), (1, 131_072), (1, 1 << 20), (8, 32_768), (32, 32_768), (64, 32_768),
    (64, 131_072), (2048, 8192), (2048, 32_768),
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Rows of full length; logits as the indexer leaves them (just written, so in L2 if they fit)."""

    score: torch.Tensor
    lengths: torch.Tensor
    table: torch.Tensor
    cu_seqlens: torch.Tensor


def make_work(rows: int, width: int, device: torch.device) -> Work:
    """Decode if few rows; else the rows of one request's prefill."""
    g = torch.Generator(device).manual_seed(rows + width)
    score = torch.randn((rows, width), generator=g, device=device) * 10
    lengths = torch.full((rows,), width, dtype=torch.int32, device=device)
    tables = rows if rows <= 64 else 1
    table = torch.randperm(width, generator=g, device=device).int().expand(tables, width)
    cu = torch.linspace(0, rows, tables + 1, device=device).int()
    return Work(score, lengths, table.contiguous(), cu)


def ours(work: Work) -> Callable[[], object]:
    return lambda: fast_topk_transform_fused(
        work.score, work.lengths, work.table, work.cu_seqlens, TOPK
    )


def sgl_kernel(work: Work) -> Callable[[], object]:
    op = torch.ops.sgl_kernel.fast_topk_transform_fused
    out = work.lengths.new_empty((work.score.shape[0], TOPK))
    return lambda: op(work.score, work.lengths, out, work.table, work.cu_seqlens, None)


def flashinfer(work: Work) -> Callable[[], object]:
    import flashinfer

    rows, tables = work.score.shape[0], work.table.shape[0]
    to_table = None
    if rows != tables:
        to_table = torch.zeros(rows, dtype=torch.int32, device=work.score.device)
    return lambda: flashinfer.top_k_page_table_transform(
        work.score, work.table, work.lengths, TOPK, row_to_batch=to_table
    )


def load_sgl_kernel() -> None:
    """Import sgl_kernel, which registers its operators, where that is possible."""
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        importlib.import_module("sgl_kernel")


def missing() -> dict[str, str]:
    """Peers that this environment lacks, and why."""
    load_sgl_kernel()
    lacks: dict[str, str] = {}
    if not hasattr(torch.ops.sgl_kernel, "fast_topk_transform_fused"):
        lacks["sgl-kernel"] = "sgl_kernel has no fast_topk_transform_fused or cannot be imported"
    try:
        found = hasattr(importlib.import_module("flashinfer"), "top_k_page_table_transform")
    except (ImportError, OSError, RuntimeError) as err:
        lacks["flashinfer"] = f"flashinfer cannot be imported: {err}".splitlines()[0][:200]
    else:
        if not found:
            lacks["flashinfer"] = "this flashinfer has no top_k_page_table_transform"
        elif not nvcc():
            lacks["flashinfer"] = "flashinfer compiles its top-k when first called: needs nvcc"
    return lacks


def peers(work: Work) -> dict[str, Callable[[], object]]:
    lacks = missing()
    found: dict[str, Callable[[], object]] = {}
    if "sgl-kernel" not in lacks:
        found["sgl-kernel"] = sgl_kernel(work)
    if "flashinfer" not in lacks:
        found["flashinfer"] = flashinfer(work)
    found["torch.topk"] = lambda: torch.topk(work.score, TOPK, dim=1, sorted=False)
    return found


def cases(device: torch.device) -> Iterator[Case]:
    """Every shape, with whichever peers are installed."""
    for rows, width in SHAPES:
        work = make_work(rows, width, device)
        # One read of the scores, k table entries read (a 32-byte sector each at worst), k written.
        moved = rows * (width * 4 + TOPK * 8)
        yield Case("top-k", f"{rows}x{width}", ours(work), peers(work), moved, 0)
