"""One decode step of a layer with an indexer: logits, top-k with transform, sparse MLA, in one graph.

    python -m bench.kernels.run --group layer

The peer is the same chain of native kernels: DeepGEMM, sgl-kernel and FlashMLA, each fed by the one
before it. It takes part where all three import and the GPU is a Hopper.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ada_dsa import (
    fast_topk_transform_fused,
    fp8_paged_mqa_logits,
    sparse_mla_fwd,
)
from ada_dsa.kv_cache.layout import ROW_DIM, KvLayout
from bench.kernels import indexer, sparse_mla, topk
from bench.kernels.case import Case

PAGE = indexer.PAGE
HEADS = 8
SHAPES = ((1, 131_072), (1, 8192), (8, 32_768), (32, 32_768))
PEER = "DeepGEMM + sgl-kernel + FlashMLA"
# Rows near the threshold may be chosen otherwise, because logits are added in another order.
_LEAST_COMMON = 0.99


@dataclass(frozen=True)
class Step:
    """Inputs of one step; every rotation reads other pages of both pools.

    Attributes:
        paged: queries, keys and page tables of the indexer.
        q: bfloat16 [B, HEADS, 576].
        rows: packed rows [slots, 1, 656]; page p holds slots 64 p to 64 p + 63.
        tables: int32 [B, context] for each rotation: slot of each token.
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
        attention = batch * (chosen * (sparse_mla.PACKED_BYTES + 4) + HEADS * (ROW_DIM + 512) * 2)
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


def _attend_ours(step: Step, index: torch.Tensor) -> torch.Tensor:
    return sparse_mla_fwd(step.q, step.rows, index, sparse_mla.SM_SCALE)  # type: ignore[return-value]


def _native(step: Step) -> tuple[Callable[[int], torch.Tensor], Callable[..., torch.Tensor]]:
    """Selection of a rotation, and attention over a selection, by native kernels."""
    import deep_gemm

    work = step.paged
    plan = deep_gemm.get_paged_mqa_logits_metadata(work.lens, PAGE, deep_gemm.get_num_sms())
    transform = torch.ops.sgl_kernel.fast_topk_transform_fused
    attend = sparse_mla.flash_mla_decode(
        sparse_mla.Work(step.q, step.rows, KvLayout.PACKED_FP8, [])
    )

    def select(turn: int) -> torch.Tensor:
        logits = deep_gemm.fp8_paged_mqa_logits(
            work.q, work.pool, work.weights, work.lens, work.tables[turn], plan, work.width,
            clean_logits=False,
        )  # fmt: skip
        index = step.lengths.new_empty((len(step.lengths), topk.TOPK))
        transform(logits, step.lengths, index, step.tables[turn], step.starts, None)
        return index

    return select, attend


def _agree(
    step: Step, native: tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]
) -> None:
    """Both chains choose the same rows but for a few, and attend alike to the same choice."""
    select, attend = native
    mine, other = _select_ours(step, 0), select(0)
    common = min(float(torch.isin(a, b).float().mean()) for a, b in zip(mine, other, strict=True))
    if common < _LEAST_COMMON:
        raise RuntimeError(f"the chains share only {common:.1%} of the rows they choose")
    got, want = _attend_ours(step, mine).float(), attend(mine).float()
    error = float((got - want).norm() / want.norm())
    if not error < 2e-2:
        raise RuntimeError(f"attention of the chains differs by {error:.2e}")


def _has_peers(device: torch.device) -> bool:
    return not missing() and torch.cuda.get_device_capability(device)[0] == 9


def missing() -> dict[str, str]:
    """Why the peer is absent from this environment, if it is."""
    topk.load_sgl_kernel()
    lacks = [
        name
        for name, there in (
            ("deep_gemm", indexer.has_deep_gemm()),
            ("sgl_kernel", hasattr(torch.ops.sgl_kernel, "fast_topk_transform_fused")),
            ("flash_mla", sparse_mla.has_flash_mla()),
        )
        if not there
    ]
    return {PEER: f"{', '.join(lacks)} cannot be imported"} if lacks else {}


def cases(device: torch.device) -> Iterator[Case]:
    peers = _has_peers(device)
    for batch, context in SHAPES:
        step = make_step(batch, context, device)
        turns = itertools.cycle(range(len(step.tables)))
        others: dict[str, Callable[[], object]] = {}
        if peers:
            native = _native(step)
            _agree(step, native)
            theirs = itertools.cycle(range(len(step.tables)))
            select, attend = native
            others[PEER] = lambda select=select, attend=attend, theirs=theirs: attend(
                select(next(theirs))
            )
        yield Case(
            "layer step", f"B={batch} ctx={context} H={HEADS}",
            lambda step=step, turns=turns: _attend_ours(step, _select_ours(step, next(turns))),
            others, step.bytes, step.paged.flops,
        )  # fmt: skip
