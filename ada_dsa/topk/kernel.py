"""Triton kernels that select the k highest scores of each row, exactly and reproducibly.

The result is defined, not left to the schedule: scores are ordered as float32 with -0 equal to +0
and every NaN below -inf; among equal scores the lowest index wins; indices come out ascending. So
no split count, tile size, sampling outcome or run can change it.

How: the k-th highest score is found by counting. Scores become ordered integers; a bracket that
contains the k-th highest shrinks by counting how many keys reach each of four choose_thresholds, two
interpolated from the counts (few steps on smooth data) and two at thirds of the bracket (so that
no data needs more than a few dozen steps). Counts are plain sums of comparisons: before
Triton 3.8 ``tl.histogram`` costs a vote per bin, and shared-memory atomics are out of reach.

A long row is first thinned. A pivot taken from a small sample of the row is low enough to keep at
least k scores except with a chance of about 4.5 sigma; what reaches the pivot is compacted in index
order, and the exact find_threshold runs on those few thousand. If a pivot was too high or too low, the exact
find_threshold runs on the whole row instead: slower, never different.
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

# Scores a step of the find_threshold over a whole long row holds in registers. Small, because this rare
# path shares its kernel's registers with the usual one.
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
    """Exact selection at any length, re-reading the row for every step of the find_threshold.

    Each lane counts in 16 bits, which is enough for rows of 65,535 tiles (268 million scores).
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
    """Exact selection among at most TILE scores: thinned candidates, or a short row itself."""
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
    # Looked up only now: held across the find_threshold, it would cost registers that are short.
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
    count_ptr,  # as written by prefilter_rows_kernel; not read unless PREFILTERED
    key_ptr,
    index_ptr,
    out_ptr,  # [R, topk] int32
    table_ptr,  # PAGED: [P, table_width] int32
    cu_ptr,  # PAGED: [P + 1] int32
    offset_ptr,  # RAGGED: [R] int32
    row_base,  # first row of this launch; scratch counts from it
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
    SMALL: tl.constexpr,  # two tile sizes, so that the usual number of candidates
    LARGE: tl.constexpr,  # does not pay for the largest that is handled in registers
):
    """One program per row: the exact selection, from candidates if the row is long."""
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
        extent = begin + length - begin // 16 * 16  # slots that the scores occupy in a tile
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
