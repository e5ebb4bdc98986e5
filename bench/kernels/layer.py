"""The case of a whole layer: one decode step's logits, top-k with transform and sparse MLA in one graph.

    python -m bench.kernels.run --group layer

The peer is the same chain of DeepGEMM, sgl-kernel and FlashMLA. It takes part where all three can be
imported and the GPU is a Hopper.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ada_dsa import (
    fast_topk_transform_fused,
    fp8_paged_mqa_logits,
)
from ada_dsa.kv_cache.layout import PACKED_BYTES, ROW_DIM, KvLayout
from bench.kernels import indexer, sparse_mla, topk
from bench.kernels.case import Case

Select = Callable[[int], torch.Tensor]
"""Selection by the logits of a rotation: its number to int32 [B, TOPK] slots."""
PAGE = indexer.PAGE
HEADS = 8
SHAPES = ((1, 131_072), (1, 8192), (8, 32_768), (32, 32_768))
PEER = "DeepGEMM + sgl-kernel + FlashMLA"
# The chains add up logits in different orders, so they may choose differently near the threshold.
_LEAST_COMMON = 0.99


@dataclass(frozen=True)
class Step:
    """The inputs of one step. Every rotation reads other pages of both pools.

    Attributes:
        paged: the indexer's inputs.
        q: bfloat16 [B, HEADS, 576].
        rows: packed rows [slots, 1, 656]; page p holds the slots 64 p to 64 p + 63.
        tables: int32 [B, context] for each rotation: the slot of each token.
        lengths: int32 [B].
        starts: int32 [B + 1], rows before each request.
    """

    paged: indexer.PagedWork
    q: torch.Tensor
    rows: torch.Tensor
    tables: list[torch.Tensor]
    lengths: torch.Tensor
    starts: torch.Tensor

    @property
    def bytes(self) -> int:
        batch, context = self.tables[0].shape
        chosen = min(topk.TOPK, context)
        selection = batch * (context * 4 + chosen * 8)
        attention = batch * (chosen * (PACKED_BYTES + 4) + HEADS * (ROW_DIM + 512) * 2)
        return self.paged.bytes + selection + attention


def make_step(batch: int, context: int, device: torch.device) -> Step:
    paged = indexer.paged_work([context] * batch, device)
    within = torch.arange(PAGE, device=device, dtype=torch.int32)
    tables = [
        (table[:, :, None] * PAGE + within).view(batch, -1)[:, :context].contiguous()
        for table in paged.tables
    ]
    g = torch.Generator(device).manual_seed(batch)
    q = torch.randn((batch, HEADS, ROW_DIM), generator=g, device=device).bfloat16()
    rows = sparse_mla.make_pool(paged.pool.shape[0] * PAGE, KvLayout.PACKED_FP8, device.type)
    starts = torch.arange(batch + 1, device=device, dtype=torch.int32)
    lengths = torch.full((batch,), context, device=device, dtype=torch.int32)
    return Step(paged, q, rows, tables, lengths, starts)


def _select_ours(step: Step, turn: int) -> torch.Tensor:
    work = step.paged
    logits = fp8_paged_mqa_logits(
        work.q, work.pool, work.weights, work.lens, work.tables[turn], None, work.width
    )
    return fast_topk_transform_fused(
        logits, step.lengths, step.tables[turn], step.starts, topk.TOPK
    )


def _attention(step: Step) -> sparse_mla.Work:
    return sparse_mla.Work(step.q, step.rows, KvLayout.PACKED_FP8, [])


def _attend_ours(step: Step, index: torch.Tensor) -> torch.Tensor:
    return sparse_mla.ours(_attention(step))(index)


def _peer(step: Step) -> tuple[Select, sparse_mla.Attend]:
    """Selection and attention by the peer's kernels."""
    import deep_gemm

    work = step.paged
    plan = deep_gemm.get_paged_mqa_logits_metadata(work.lens, PAGE, deep_gemm.get_num_sms())
    transform = torch.ops.sgl_kernel.fast_topk_transform_fused

    def select(turn: int) -> torch.Tensor:
        logits = deep_gemm.fp8_paged_mqa_logits(
            work.q, work.pool, work.weights, work.lens, work.tables[turn], plan, work.width,
            clean_logits=False,
        )  # fmt: skip
        index = step.lengths.new_empty((len(step.lengths), topk.TOPK))
        transform(logits, step.lengths, index, step.tables[turn], step.starts, None)
        return index

    return select, sparse_mla.flash_mla_decode(_attention(step))


def _check_agreement(step: Step, select: Select, attend: sparse_mla.Attend) -> None:
    """Compare the peer's two parts with ours.

    Raises:
        RuntimeError: they share too few of the rows that they choose, or attend differently.
    """
    ours, theirs = _select_ours(step, 0), select(0)
    common = min(float(torch.isin(a, b).float().mean()) for a, b in zip(ours, theirs, strict=True))
    if common < _LEAST_COMMON:
        raise RuntimeError(f"the chains share only {common:.1%} of the rows that they choose")
    sparse_mla.check_agreement(attend(ours), _attend_ours(step, ours), "layer step")


def missing() -> dict[str, str]:
    """Why the peer cannot take part in this environment, where it cannot."""
    lacks = indexer.missing() | topk.missing() | sparse_mla.missing()
    why = [lacks[name] for name in ("DeepGEMM", "sgl-kernel", "FlashMLA") if name in lacks]
    return {PEER: "; ".join(why)} if why else {}


def _rotating(step: Step, select: Select, attend: sparse_mla.Attend) -> Callable[[], torch.Tensor]:
    turns = itertools.cycle(range(len(step.tables)))
    return lambda: attend(select(next(turns)))


def cases(device: torch.device) -> Iterator[Case]:
    compared = not missing() and sparse_mla.flash_mla_runs()
    for batch, context in SHAPES:
        step = make_step(batch, context, device)
        others: dict[str, Callable[[], object]] = {}
        if compared:
            select, attend = _peer(step)
            _check_agreement(step, select, attend)
            others[PEER] = _rotating(step, select, attend)
        ours = _rotating(
            step, functools.partial(_select_ours, step), functools.partial(_attend_ours, step)
        )
        name = f"B={batch} ctx={context} H={HEADS}"
        yield Case("layer step", name, ours, others, step.bytes, step.paged.flops)
