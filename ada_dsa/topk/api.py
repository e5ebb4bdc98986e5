"""Public functions of top-k: validation, planning, launch.

Every call allocates its scratch and its output from torch's allocator. There is no workspace shared
between calls, so nothing has to be sized in advance, calls on several streams cannot collide, and a
CUDA graph owns the scratch of the calls that it captured (it comes from the graph's memory pool).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import _checks, arch, configs
from .._launch import next_power_of_2, num_sms, on_device
from . import reference

MAX_TOPK = 4096
MAX_SPLITS = 64

# Rows are taken in batches whose candidates fit this many bytes of scratch (a prefill chunk of
# thousands of rows would otherwise ask for as much memory as its logits).
SCRATCH_BYTES = 64 << 20

LOCAL, PAGED, RAGGED = 0, 1, 2  # as in emit.py, imported on first launch only


@dataclass(frozen=True)
class Transform:
    """What is stored for a selected index: itself, a page-table entry, or the index plus an offset."""

    mode: int = LOCAL
    table: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    offset: torch.Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """How rows are processed; a function of shapes only.

    Attributes:
        splits: programs a row is thinned by, 0 if rows are short enough to need no thinning.
        samples: scores a pivot is taken from.
        compact: whether the selection that holds few candidates, in fewer warps, is used.
    """

    splits: int
    samples: int
    compact: bool = False


def plan(rows: int, width: int, topk: int, sms: int, target: int, padded: bool) -> Plan:
    """Choose the path for ``rows`` rows of at most ``width`` scores.

    The sample is sized so that at least 64 of it are wanted (up to 8,192): the pivot then keeps
    about 1.6 times ``topk`` scores. With twice that sample it keeps 1.5 times and at most twice
    (4.5 sigma), and the compact selection does. Splits make about two programs per multiprocessor,
    of at least 2,048 scores each.
    """
    compact = padded and 1024 < topk <= 2048 and width <= 64 * topk
    wanted = 128 if compact else 64
    samples = min(8192, max(512, next_power_of_2(wanted * width // topk)))
    select = configs.pick(
        "topk_select", target, topk=topk, aligned=int(padded), compact=int(compact)
    )
    if width <= select.params["LARGE"]:
        return Plan(splits=0, samples=samples, compact=compact)
    splits = min(MAX_SPLITS, -(-2 * sms // rows), -(-width // 2048))
    return Plan(splits=max(1, splits), samples=samples, compact=compact)


def _padded(score: torch.Tensor) -> bool:
    """Whether columns up to the next multiple of 16 can be read in every row, vectors aligned."""
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
    how: Plan,
    select: configs.Config | None = None,
    thin: configs.Config | None = None,
) -> torch.Tensor:
    """Launch the kernels on validated arguments and return int32 [R, topk].

    ``select`` and ``thin`` replace the rows of the table, for tuning.
    """
    from . import kernel

    rows, width = score.shape
    device = score.device
    out = torch.empty((rows, topk), dtype=torch.int32, device=device)
    bits = score.view(torch.int32)
    tables = transform.cu_seqlens.shape[0] - 1 if transform.cu_seqlens is not None else 0
    padded = _padded(score)
    select = select or configs.pick(
        "topk_select", target, topk=topk, aligned=int(padded), compact=int(how.compact)
    )
    thin = thin or configs.pick("topk_thin", target, topk=topk)
    row_args = {"HAS_STARTS": row_starts is not None, "PADDED": padded}
    large = select.params["LARGE"]
    share = -(-width // (max(1, how.splits) * 16)) * 16 + 16
    segment = min(large, share)
    splits_pad = next_power_of_2(max(1, how.splits))
    batch = rows
    counts = keys = indices = out  # stand-ins: Triton has no absent pointers in nested calls
    starts = lengths if row_starts is None else row_starts
    table = out if transform.table is None else transform.table
    cu_seqlens = out if transform.cu_seqlens is None else transform.cu_seqlens
    offset = out if transform.offset is None else transform.offset
    if how.splits:
        batch = min(rows, max(1, SCRATCH_BYTES // (how.splits * segment * 8)))
        counts = torch.empty((batch, how.splits), dtype=torch.int32, device=device)
        keys = torch.empty((batch, how.splits, segment), dtype=torch.int32, device=device)
        indices = torch.empty_like(keys)
    with on_device(device):
        for base in range(0, rows, batch):
            count = min(batch, rows - base)
            if how.splits:
                kernel.thin_rows_kernel[(count, how.splits)](
                    bits, lengths, starts, counts, keys, indices,
                    base, width, topk, score.stride(0), **row_args,
                    SPLITS=how.splits, SEGMENT=segment, DIRECT=large, SAMPLES=how.samples,
                    TILE=min(thin.params["TILE"], next_power_of_2(share)),
                    num_warps=thin.num_warps, maxnreg=thin.params["maxnreg"],
                )  # fmt: skip
            kernel.select_rows_kernel[(count,)](
                bits, lengths, starts, counts, keys, indices,
                out, table, cu_seqlens, offset,
                base, width, topk, score.stride(0), out.stride(0),
                table.stride(0), table.shape[1], tables,
                MODE=transform.mode, ROW_IS_TABLE=tables == rows, **row_args,
                THINNED=how.splits > 0, SPLITS=how.splits, SPLITS_PAD=splits_pad,
                LOG2_SPLITS=splits_pad.bit_length() - 1, SEGMENT=segment,
                SMALL=select.params["SMALL"], LARGE=large, num_warps=select.num_warps,
                maxnreg=select.params["maxnreg"],
            )  # fmt: skip
    return out


def _check_rows(
    score: torch.Tensor, lengths: torch.Tensor, topk: int, row_starts: torch.Tensor | None
) -> int:
    """Validate what all three functions share; returns the number of rows."""
    _checks.require_tensor(score, "score", dtype=torch.float32, ndim=2)
    rows, width = score.shape
    _checks.require_tensor(lengths, "lengths", dtype=torch.int32, shape=(rows,))
    _checks.require_int(topk, "topk", low=1, high=MAX_TOPK)
    if row_starts is not None:
        _checks.require_tensor(row_starts, "row_starts", dtype=torch.int32, shape=(rows,))
    _checks.require_same_device(score=score, lengths=lengths, row_starts=row_starts)
    if _checks.debug_enabled():
        _checks.debug_range(lengths, "lengths", 0, 2**31 - 1)
        starts = torch.zeros_like(lengths) if row_starts is None else row_starts
        _checks.debug_range(starts, "row_starts", 0, width)
        # A row of at most topk scores is never read, so its length may exceed the width.
        read = torch.where(lengths > topk, lengths + starts, 0)
        _checks.debug_range(read, "row_starts + lengths", 0, width)
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
    how = plan(rows, width, topk, num_sms(score.device), target, _padded(score))
    return launch(score, lengths, row_starts, transform, topk, target=target, how=how)


def fast_topk_v2(
    score: torch.Tensor,
    lengths: torch.Tensor,
    topk: int,
    row_starts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Indices of the ``topk`` highest scores of each row, local to the row's start, ascending.

    Exact: scores compare as float32 with -0 equal to +0 and NaN below -inf; among equal scores the
    lowest index wins. The result depends on nothing but the arguments. Signature follows
    sgl-kernel's function of this name, which leaves the order open.

    Args:
        score: float32 [R, W], any row stride, last stride 1.
        lengths: int32 [R], scores of each row, from its start. A row of at most ``topk`` scores
            selects all of them without reading any; a longer one is cut at the row's end.
        topk: 1 to 4096.
        row_starts: int32 [R], first column of each row's scores; 0 when absent.

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
    """:func:`fast_topk_v2` with each index looked up in the row's page table.

    Args:
        score, lengths, topk, row_starts: as for :func:`fast_topk_v2`.
        page_table_size_1: int32 [P, width], any row stride, last stride 1: slot of each token.
        cu_seqlens_q: int32 [P + 1], rows of score before each request. With as many rows as
            requests (decode), row i uses table i and the sums are not read.

    Returns:
        int32 [R, topk]: table entries in ascending order of their indices, then -1. An index past
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
    """:func:`fast_topk_v2` with an offset added to each row's indices (not to the -1 tail).

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
