"""The top-k cases: selection of 2048 keys, fused with the page-table transform.

    python -m bench.kernels.run --group top-k

The peers are the fused kernels of sglang-kernel and flashinfer; flashinfer compiles its own with nvcc at
the first call, which takes about a minute. ``torch.topk``, unsorted and without the transform, is timed
for scale.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ada_dsa import fast_topk_transform_fused
from bench.kernels import peers
from bench.kernels.case import Case

TOPK = 2048
SHAPES = (
    (1, 8192), (1, 32_768), (1, 131_072), (1, 1 << 20), (8, 32_768), (32, 32_768), (64, 32_768),
    (64, 131_072), (2048, 8192), (2048, 32_768),
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Rows of full length. Scores may be in L2, as they are just after the indexer has written them.

    Attributes:
        score: float32 [R, W].
        lengths: int32 [R].
        table: int32 [requests, W], the slot of each token.
        cu_seqlens: int32 [requests + 1], rows before each request.
    """

    score: torch.Tensor
    lengths: torch.Tensor
    table: torch.Tensor
    cu_seqlens: torch.Tensor


def make_work(rows: int, width: int, device: torch.device) -> Work:
    """Up to 64 rows are a decode batch; more are the prefill of one request."""
    g = torch.Generator(device).manual_seed(rows + width)
    score = torch.randn((rows, width), generator=g, device=device) * 10
    lengths = torch.full((rows,), width, dtype=torch.int32, device=device)
    tables = rows if rows <= 64 else 1
    table = torch.randperm(width, generator=g, device=device).int().expand(tables, width)
    cu = torch.linspace(0, rows, tables + 1, device=device).int()
    return Work(score, lengths, table.contiguous(), cu)


def ours(work: Work) -> Callable[[], torch.Tensor]:
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


def missing() -> dict[str, str]:
    """The peers that cannot take part in this environment, and why."""
    failures = {"sgl-kernel": _sgl_kernel_failure(), "flashinfer": _flashinfer_failure()}
    return {name: why for name, why in failures.items() if why}


def _sgl_kernel_failure() -> str:
    if failure := peers.import_failure("sgl_kernel"):  # the import registers the operators
        return failure
    there = hasattr(torch.ops.sgl_kernel, "fast_topk_transform_fused")
    return "" if there else "this sgl_kernel has no fast_topk_transform_fused"


def _flashinfer_failure() -> str:
    if failure := peers.import_failure("flashinfer"):
        return failure
    import flashinfer

    if not hasattr(flashinfer, "top_k_page_table_transform"):
        return "this flashinfer has no top_k_page_table_transform"
    return (
        "" if peers.nvcc() else "flashinfer compiles its top-k at the first call, which needs nvcc"
    )


def peer_calls(work: Work) -> dict[str, Callable[[], object]]:
    """The same selection by the peers that can take part."""
    lacks = missing()
    found: dict[str, Callable[[], object]] = {}
    if "sgl-kernel" not in lacks:
        found["sgl-kernel"] = sgl_kernel(work)
    if "flashinfer" not in lacks:
        found["flashinfer"] = flashinfer(work)
    return found


def cases(device: torch.device) -> Iterator[Case]:
    for rows, width in SHAPES:
        work = make_work(rows, width, device)
        alone = functools.partial(torch.topk, work.score, TOPK, dim=1, sorted=False)
        others = peer_calls(work) | {"torch.topk": alone}
        # The scores are read once; TOPK table entries (4 B) are read and as many results written.
        moved = rows * (width * 4 + TOPK * 8)
        yield Case("top-k", f"{rows}x{width}", ours(work), others, moved)
