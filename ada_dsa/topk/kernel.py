"""Triton kernels that select the k highest scores of each row, exactly and reproducibly.

The result is defined completely. Scores are ordered as float32, -0 equals +0, and every NaN is lower than
-inf. Of equal scores the one with the lowest index is selected first. Indices are stored in ascending
order. Therefore the split count, the tile size, the sample and the run cannot change the result.

The kernels find the k-th highest score by counting. Scores become ordered integers, called keys. A bracket
contains the k-th highest key. Each step counts how many keys are at or above each of four thresholds and
narrows the bracket. Two thresholds are interpolated from the counts, which needs few steps on smooth data.
The other two are at thirds of the bracket, so that no data needs more than a few dozen steps. The counts are
sums of comparisons: before Triton 3.8 ``tl.histogram`` costs one vote per bin, and Triton gives no access to
atomics in shared memory.

A long row is prefiltered first. A small sample of the row gives a pivot. At least k scores are at or above
the pivot, except in rare cases (4.5 sigma). These scores are compacted in index order, and the exact search
runs on the few thousand of them. If the pivot was too high or too low, the exact search runs on the whole
row. This is slower, and the result is the same.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .epilogue import load_row_transform, write_identity, write_selected
from .keys import (
    ABSENT,
    choose_thresholds,
    find_threshold,
    load_keys,
    load_row_window,
    narrow_bracket,
)
from .prefilter import load_candidates, prefilter_rows_kernel

__all__ = ["select_rows_kernel", "prefilter_rows_kernel"]

# Scores that one step of the search over a whole long row holds in registers. The number is small because
# this rare path shares the kernel's registers with the usual path.
LONG_TILE = tl.constexpr(2048)


@triton.jit
def _select_long(
    row_ptr,
    begin,
    end,
    topk,
    out_row,
    row,
    table_ptr,
    stride_table,
    cu_ptr,
    num_tables,
    table_width,
    offset_ptr,
    MODE: tl.constexpr,
    ROW_IS_TABLE: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Select exactly at any length; every step of the search reads the row again.

    Each lane counts in 16 bits, which is enough for rows of 65,535 tiles (134 million scores).
    """
    first = begin // 16 * 16
    lows = tl.full((TILE,), 2147483647, tl.int32)
    highs = tl.full((TILE,), -2147483648, tl.int32)
    for base in range(first, end, TILE):
        keys, _ = load_keys(row_ptr, base, begin, end, PADDED, TILE)
        lows = tl.minimum(lows, tl.where(keys == ABSENT, 2147483647, keys))
        highs = tl.maximum(highs, keys)
    lo = tl.min(lows, axis=0)
    hi = tl.max(highs, axis=0)
    count_lo = end - begin
    count_hi = count_lo * 0
    while lo < hi:
        t0, t1, t2, t3 = choose_thresholds(lo, hi, count_lo, count_hi, topk)
        c01 = tl.zeros((TILE,), tl.int32)
        c23 = tl.zeros((TILE,), tl.int32)
        for base in range(first, end, TILE):
            keys, _ = load_keys(row_ptr, base, begin, end, PADDED, TILE)
            c01 += (keys >= t0).to(tl.int32) + ((keys >= t1).to(tl.int32) << 16)
            c23 += (keys >= t2).to(tl.int32) + ((keys >= t3).to(tl.int32) << 16)
        n0 = tl.sum(c01 & 0xFFFF, axis=0)
        n1 = tl.sum((c01 >> 16) & 0xFFFF, axis=0)
        n2 = tl.sum(c23 & 0xFFFF, axis=0)
        n3 = tl.sum((c23 >> 16) & 0xFFFF, axis=0)
        lo, hi, count_lo, count_hi = narrow_bracket(lo, hi, count_lo, count_hi, topk, 0, t2, n2)
        lo, hi, count_lo, count_hi = narrow_bracket(lo, hi, count_lo, count_hi, topk, 0, t3, n3)
        lo, hi, count_lo, count_hi = narrow_bracket(lo, hi, count_lo, count_hi, topk, 0, t0, n0)
        lo, hi, count_lo, count_hi = narrow_bracket(lo, hi, count_lo, count_hi, topk, 0, t1, n1)
    quota = tl.where(count_lo == topk, end - begin, topk - count_hi)
    table_row, offset = load_row_transform(
        row, table_ptr, stride_table, cu_ptr, num_tables, offset_ptr, MODE, ROW_IS_TABLE
    )
    taken = count_hi * 0
    equal_taken = count_hi * 0
    for base in range(first, end, TILE):
        keys, index = load_keys(row_ptr, base, begin, end, PADDED, TILE)
        taken, equal_taken = write_selected(
            keys,
            index,
            lo,
            quota,
            out_row,
            taken,
            equal_taken,
            table_row,
            table_width,
            offset,
            MODE,
        )


@triton.jit
def _select_tile(
    use_candidates,
    key_ptr,
    index_ptr,
    ends,
    row_ptr,
    begin,
    total,
    topk,
    out_row,
    row,
    table_ptr,
    stride_table,
    cu_ptr,
    num_tables,
    table_width,
    offset_ptr,
    MODE: tl.constexpr,
    ROW_IS_TABLE: tl.constexpr,
    PADDED: tl.constexpr,
    PREFILTERED: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    LOG2_SPLITS: tl.constexpr,
    SEGMENT: tl.constexpr,
    TILE: tl.constexpr,
):
    """Select exactly among at most TILE scores: the candidates of a long row, or a whole short row."""
    if PREFILTERED:
        if use_candidates:
            keys, index = load_candidates(
                key_ptr, index_ptr, ends, total, SPLITS_PAD, LOG2_SPLITS, SEGMENT, TILE
            )
        else:
            keys, index = load_keys(row_ptr, begin // 16 * 16, begin, begin + total, PADDED, TILE)
    else:
        keys, index = load_keys(row_ptr, begin // 16 * 16, begin, begin + total, PADDED, TILE)
    threshold, quota = find_threshold(keys, total, topk, 0)
    # The table row is loaded only now. Loaded before the search, it would occupy scarce registers.
    table_row, offset = load_row_transform(
        row, table_ptr, stride_table, cu_ptr, num_tables, offset_ptr, MODE, ROW_IS_TABLE
    )
    write_selected(
        keys,
        index,
        threshold,
        quota,
        out_row,
        topk * 0,
        topk * 0,
        table_row,
        table_width,
        offset,
        MODE,
    )


@triton.jit(
    do_not_specialize=["row_base", "width", "topk", "table_width", "num_tables", "stride_out"]
)
def select_rows_kernel(
    bits_ptr,
    lengths_ptr,
    starts_ptr,
    count_ptr,  # written by prefilter_rows_kernel, read only if PREFILTERED
    key_ptr,
    index_ptr,
    out_ptr,  # [R, topk] int32
    table_ptr,  # PAGED: [P, table_width] int32
    cu_ptr,  # PAGED: [P + 1] int32
    offset_ptr,  # RAGGED: [R] int32
    row_base,  # first row of this launch; scratch rows count from it
    width,
    topk,
    stride_score,
    stride_out,
    stride_table,
    table_width,
    num_tables,
    MODE: tl.constexpr,
    ROW_IS_TABLE: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    PADDED: tl.constexpr,
    PREFILTERED: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    LOG2_SPLITS: tl.constexpr,
    SEGMENT: tl.constexpr,
    SMALL: tl.constexpr,  # tile size for the usual number of candidates
    LARGE: tl.constexpr,  # tile size for the largest number that is processed in registers
):
    """Select the top-k of one row per program, from its candidates if the row is long."""
    slot = tl.program_id(0).to(tl.int64)
    row = slot + row_base
    begin, length = load_row_window(lengths_ptr, starts_ptr, row, width, topk, HAS_STARTS)
    out_row = out_ptr + row * stride_out
    row_ptr = bits_ptr + row * stride_score
    topk = tl.cast(topk, tl.int32)
    if length <= topk:
        table_row, offset = load_row_transform(
            row, table_ptr, stride_table, cu_ptr, num_tables, offset_ptr, MODE, ROW_IS_TABLE
        )
        write_identity(out_row, length, topk, table_row, table_width, offset, MODE, 1024)
    else:
        total = length
        extent = begin + length - begin // 16 * 16  # tile elements that the row's scores occupy
        use_candidates = extent > LARGE
        ends = tl.zeros((SPLITS_PAD,), tl.int32)
        keys_row = key_ptr
        index_row = index_ptr
        if PREFILTERED:
            keys_row = key_ptr + slot * (SPLITS * SEGMENT)
            index_row = index_ptr + slot * (SPLITS * SEGMENT)
            if use_candidates:
                lane = tl.arange(0, SPLITS_PAD)
                counts = tl.load(count_ptr + slot * SPLITS + lane, mask=lane < SPLITS, other=0)
                ends = tl.cumsum(counts, 0)
                total = tl.sum(counts, axis=0)
                extent = total
        scores = (use_candidates, keys_row, index_row, ends, row_ptr, begin, total, topk)
        output = (
            out_row,
            row,
            table_ptr,
            stride_table,
            cu_ptr,
            num_tables,
            table_width,
            offset_ptr,
            MODE,
            ROW_IS_TABLE,
        )
        if (total < topk) | (extent > LARGE):
            _select_long(row_ptr, begin, begin + length, topk, *output, PADDED, LONG_TILE)
        elif extent <= SMALL:
            _select_tile(
                *scores, *output, PADDED, PREFILTERED, SPLITS_PAD, LOG2_SPLITS, SEGMENT, SMALL
            )
        elif LARGE > SMALL:
            _select_tile(
                *scores, *output, PADDED, PREFILTERED, SPLITS_PAD, LOG2_SPLITS, SEGMENT, LARGE
            )
