"""Public functions of top-k: validation and launch.

Every call allocates its scratch and its output from torch's allocator. Calls share no workspace.
Therefore nothing has to be sized in advance, calls on several streams cannot collide, and a CUDA graph
owns the scratch of the calls that it captured, because that scratch comes from the graph's memory pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import _checks, arch, configs
from .._launch import get_num_sms, next_power_of_2, on_device
from . import reference
from .plan import LaunchPlan, plan_launch

MAX_TOPK = 4096

# Rows are processed in batches whose candidates fit into this many bytes of scratch. Without the limit
# a prefill chunk of thousands of rows would need as much scratch as its logits take.
SCRATCH_BYTES = 64 << 20

# The values of epilogue.py, repeated because that module imports triton.
LOCAL, PAGED, RAGGED = 0, 1, 2


@dataclass(frozen=True)
class Transform:
    """What is stored for a selected index.

    Attributes:
        mode: LOCAL stores the index itself, PAGED its entry in a page table, RAGGED the index plus an
            offset.
        table: PAGED, int32 [P, width], one row per request.
        cu_seqlens: PAGED, int32 [P + 1], rows of score before each request.
        offset: RAGGED, int32 [R].
    """

    mode: int = LOCAL
    table: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    offset: torch.Tensor | None = None


def has_padded_rows(score: torch.Tensor) -> bool:
    """Whether every row may be read in aligned vectors, up to the next multiple of 16 columns.

    Rows must start at multiples of 64 bytes, and the columns beyond the last row's end must lie inside
    the tensor's storage.
    """
    rows, width = score.shape
    if score.stride(0) % 16 or score.data_ptr() % 64:
        return False
    available = score.untyped_storage().nbytes() // 4 - score.storage_offset()
    return (rows - 1) * score.stride(0) + -(-width // 16) * 16 <= available


def launch(
    score: torch.Tensor,
    lengths: torch.Tensor,
    row_starts: torch.Tensor | None,
    transform: Transform,
    topk: int,
    *,
    target: int,
    plan: LaunchPlan,
    select: configs.Config | None = None,
    prefilter: configs.Config | None = None,
) -> torch.Tensor:
    """Launch the kernels on validated arguments and return int32 [R, topk].

    ``select`` and ``prefilter`` replace the rows of the configuration table, for tuning.
    """
    from . import kernel

    rows, width = score.shape
    device = score.device
    out = torch.empty((rows, topk), dtype=torch.int32, device=device)
    bits = score.view(torch.int32)
    tables = transform.cu_seqlens.shape[0] - 1 if transform.cu_seqlens is not None else 0
    padded = has_padded_rows(score)
    select = select or configs.pick(
        "topk_select", target, topk=topk, aligned=int(padded), compact=int(plan.compact)
    )
    prefilter = prefilter or configs.pick("topk_prefilter", target, topk=topk)
    row_args = {"HAS_STARTS": row_starts is not None, "PADDED": padded}
    large = select.params["LARGE"]
    share = -(-width // (max(1, plan.splits) * 16)) * 16 + 16
    segment = min(large, share)
    splits_pad = next_power_of_2(max(1, plan.splits))
    batch = rows
    # A tensor stands in for each absent one: Triton cannot pass an absent pointer to a nested call.
    counts = keys = indices = out
    starts = lengths if row_starts is None else row_starts
    table = out if transform.table is None else transform.table
    cu_seqlens = out if transform.cu_seqlens is None else transform.cu_seqlens
    offset = out if transform.offset is None else transform.offset
    if plan.splits:
        batch = min(rows, max(1, SCRATCH_BYTES // (plan.splits * segment * 8)))
        counts = torch.empty((batch, plan.splits), dtype=torch.int32, device=device)
        keys = torch.empty((batch, plan.splits, segment), dtype=torch.int32, device=device)
        indices = torch.empty_like(keys)
    with on_device(device):
        for base in range(0, rows, batch):
            count = min(batch, rows - base)
            if plan.splits:
                kernel.prefilter_rows_kernel[(count, plan.splits)](
                    bits, lengths, starts, counts, keys, indices,
                    base, width, topk, score.stride(0), **row_args,
                    SPLITS=plan.splits, SEGMENT=segment, DIRECT=large, SAMPLES=plan.samples,
                    TILE=min(prefilter.params["TILE"], next_power_of_2(share)),
                    num_warps=prefilter.num_warps, maxnreg=prefilter.params["maxnreg"],
                )  # fmt: skip
            kernel.select_rows_kernel[(count,)](
                bits, lengths, starts, counts, keys, indices,
                out, table, cu_seqlens, offset,
                base, width, topk, score.stride(0), out.stride(0),
                table.stride(0), table.shape[1], tables,
                MODE=transform.mode, ROW_IS_TABLE=tables == rows, **row_args,
                PREFILTERED=plan.splits > 0, SPLITS=plan.splits, SPLITS_PAD=splits_pad,
                LOG2_SPLITS=splits_pad.bit_length() - 1, SEGMENT=segment,
                SMALL=select.params["SMALL"], LARGE=large, num_warps=select.num_warps,
                maxnreg=select.params["maxnreg"],
            )  # fmt: skip
    return out


def _check_rows(
    score: torch.Tensor, lengths: torch.Tensor, topk: int, row_starts: torch.Tensor | None
) -> int:
    """Check the arguments that all three functions share and return the number of rows."""
    _checks.require_tensor(score, "score", dtype=torch.float32, ndim=2)
    rows, width = score.shape
    _checks.require_tensor(lengths, "lengths", dtype=torch.int32, shape=(rows,))
    _checks.require_int(topk, "topk", low=1, high=MAX_TOPK)
    if row_starts is not None:
        _checks.require_tensor(row_starts, "row_starts", dtype=torch.int32, shape=(rows,))
    _checks.require_same_device(score=score, lengths=lengths, row_starts=row_starts)
    if _checks.is_debug_enabled():
        _checks.debug_check_range(lengths, "lengths", 0, 2**31 - 1)
        starts = torch.zeros_like(lengths) if row_starts is None else row_starts
        _checks.debug_check_range(starts, "row_starts", 0, width)
        # The kernels read no score of a row of at most topk scores, so its length may exceed the width.
        read = torch.where(lengths > topk, lengths + starts, 0)
        _checks.debug_check_range(read, "row_starts + lengths", 0, width)
    return rows


def _run(
    score: torch.Tensor,
    lengths: torch.Tensor,
    topk: int,
    row_starts: torch.Tensor | None,
    transform: Transform,
) -> torch.Tensor:
    rows, width = score.shape
    if rows == 0:
        return torch.empty((0, topk), dtype=torch.int32, device=score.device)
    target = arch.target_arch(score.device)
    plan = plan_launch(
        arch=target,
        num_sms=get_num_sms(score.device),
        num_rows=rows,
        width=width,
        topk=topk,
        padded=has_padded_rows(score),
    )
    return launch(score, lengths, row_starts, transform, topk, target=target, plan=plan)


def fast_topk_v2(
    score: torch.Tensor,
    lengths: torch.Tensor,
    topk: int,
    row_starts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Select the ``topk`` highest scores of each row; indices count from the row's start and ascend.

    The selection is exact. Scores compare as float32, -0 equals +0, and NaN is lower than -inf. Of
    equal scores the one with the lowest index is selected first. The result depends on the arguments
    alone. The signature is that of sgl-kernel's function of this name, which does not define the order
    of the indices.

    Args:
        score: float32 [R, W], any row stride, last stride 1.
        lengths: int32 [R], number of scores of each row, counted from the row's start. A row of at
            most ``topk`` scores selects all of them, and none is read. A longer row ends at column W.
        topk: 1 to 4096.
        row_starts: int32 [R], first column of each row's scores; 0 when None.

    Returns:
        int32 [R, topk]: ascending indices in [0, length), then -1.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before any launch.
    """
    _check_rows(score, lengths, topk, row_starts)
    if not score.is_cuda:
        return reference.fast_topk_v2(score, lengths, topk, row_starts)
    return _run(score, lengths, topk, row_starts, Transform())


def fast_topk_transform_fused(
    score: torch.Tensor,
    lengths: torch.Tensor,
    page_table_size_1: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    topk: int,
    row_starts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run :func:`fast_topk_v2` and replace each index by its entry in the row's page table.

    Args:
        score, lengths, topk, row_starts: as for :func:`fast_topk_v2`.
        page_table_size_1: int32 [P, width], any row stride, last stride 1: pool slot of each token.
        cu_seqlens_q: int32 [P + 1], number of rows of score before each request. If there are as many
            rows as requests (decode), row i uses table row i and these numbers are not read.

    Returns:
        int32 [R, topk]: table entries in ascending order of their indices, then -1. An index beyond
        the table's width gives -1.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before any launch.
    """
    _check_rows(score, lengths, topk, row_starts)
    _checks.require_tensor(cu_seqlens_q, "cu_seqlens_q", dtype=torch.int32, ndim=1)
    tables = cu_seqlens_q.shape[0] - 1
    if tables < min(1, score.shape[0]):
        raise ValueError(
            f"cu_seqlens_q: expected at least 2 entries, got {tables + 1} for "
            f"{score.shape[0]} rows of score"
        )
    _checks.require_tensor(page_table_size_1, "page_table_size_1", dtype=torch.int32, ndim=2)
    if page_table_size_1.shape[0] < tables:
        raise ValueError(
            f"page_table_size_1: expected at least {tables} rows (cu_seqlens_q has {tables + 1} "
            f"entries), got shape {tuple(page_table_size_1.shape)}"
        )
    _checks.require_same_device(
        score=score, page_table_size_1=page_table_size_1, cu_seqlens_q=cu_seqlens_q
    )
    if not score.is_cuda:
        return reference.fast_topk_transform_fused(
            score, lengths, page_table_size_1, cu_seqlens_q, topk, row_starts
        )
    transform = Transform(PAGED, table=page_table_size_1, cu_seqlens=cu_seqlens_q)
    return _run(score, lengths, topk, row_starts, transform)


def fast_topk_transform_ragged_fused(
    score: torch.Tensor,
    lengths: torch.Tensor,
    topk_indices_offset: torch.Tensor,
    topk: int,
    row_starts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run :func:`fast_topk_v2` and add an offset to each row's indices, but not to the trailing -1.

    Args:
        score, lengths, topk, row_starts: as for :func:`fast_topk_v2`.
        topk_indices_offset: int32 [R].

    Returns:
        int32 [R, topk]: ascending, then -1.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before any launch.
    """
    rows = _check_rows(score, lengths, topk, row_starts)
    _checks.require_tensor(
        topk_indices_offset, "topk_indices_offset", dtype=torch.int32, shape=(rows,)
    )
    _checks.require_same_device(score=score, topk_indices_offset=topk_indices_offset)
    if not score.is_cuda:
        return reference.fast_topk_transform_ragged_fused(
            score, lengths, topk_indices_offset, topk, row_starts
        )
    transform = Transform(RAGGED, offset=topk_indices_offset)
    return _run(score, lengths, topk, row_starts, transform)
