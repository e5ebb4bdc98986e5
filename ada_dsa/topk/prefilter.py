"""Prefilter of long rows: choose a pivot from a sample, and compact the scores at or above it."""

from __future__ import annotations

import triton
import triton.language as tl

from .keys import ABSENT, NAN_KEY, encode_key, find_threshold, load_row_window


@triton.jit
def _choose_pivot(row_ptr, begin, length, topk, SAMPLES: tl.constexpr):
    """Choose a key that at least ``topk`` scores of the row reach, except in rare cases (4.5 sigma).

    The sample takes one score from each of SAMPLES equal strata. A multiplicative hash (Knuth, TAOCP
    vol. 3, 6.4) scatters the position in the stratum, so that a periodic row gives no biased sample.
    """
    stratum = tl.arange(0, SAMPLES)
    scatter = ((stratum.to(tl.uint32) * 2654435769) >> 16).to(tl.int64)
    within = scatter * (length // SAMPLES) >> 16
    column = begin + (stratum.to(tl.int64) * length // SAMPLES + within).to(tl.int32)
    keys = encode_key(tl.load(row_ptr + column))
    mean = topk.to(tl.float32) * SAMPLES / length.to(tl.float32)
    rank = (mean + 4.5 * tl.sqrt(mean) + 2.0).to(tl.int32)
    # A rank beyond the sample means that topk is most of the row. Then every score passes.
    threshold, _ = find_threshold(keys, rank * 0 + SAMPLES, tl.minimum(rank, SAMPLES), rank >> 4)
    return tl.where(rank >= SAMPLES, NAN_KEY, threshold)


@triton.jit
def _compact(
    row_ptr,
    begin,
    start,
    stop,
    pivot,
    key_ptr,
    index_ptr,
    CAPACITY: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write key and local index of the scores in columns [start, stop) at or above the pivot.

    They are written in index order, at most CAPACITY of them. Returns the number of such scores,
    including those that were not written.
    """
    found = tl.full((), 0, tl.int32)
    # A lane holds four columns, so that the scan of counts runs over lanes and not over columns.
    lanes = tl.arange(0, TILE // 4) * 4
    quad = tl.arange(0, 4)
    for base in range(start, stop, TILE):
        column = base + lanes[:, None] + quad[None, :]
        inside = (column >= begin) & (column < stop)
        if PADDED:
            bits = tl.load(row_ptr + column, mask=column < (stop + 15) // 16 * 16, other=0)
        else:
            bits = tl.load(row_ptr + column, mask=inside, other=0)
        keys = tl.where(inside, encode_key(bits), ABSENT)
        reach = (keys >= pivot).to(tl.int32)
        counts = tl.sum(reach, axis=1)
        before = found + tl.cumsum(counts, 0) - counts
        position = before[:, None] + tl.cumsum(reach, 1) - reach
        keep = (reach == 1) & (position < CAPACITY)
        tl.store(key_ptr + position, keys, mask=keep)
        tl.store(index_ptr + position, column - begin, mask=keep)
        found += tl.sum(counts, axis=0)
    return found


@triton.jit(do_not_specialize=["row_base", "width", "topk"])
def prefilter_rows_kernel(
    bits_ptr,  # [R, >= width] fp32 scores, as int32
    lengths_ptr,  # [R] int32
    starts_ptr,  # [R] int32, read only if HAS_STARTS
    count_ptr,  # [rows, SPLITS] int32, out
    key_ptr,  # [rows, SPLITS, SEGMENT] int32, out
    index_ptr,  # the same shape, out
    row_base,  # first row of this launch; scratch rows count from it
    width,
    topk,
    stride_score,
    HAS_STARTS: tl.constexpr,
    PADDED: tl.constexpr,
    SPLITS: tl.constexpr,
    SEGMENT: tl.constexpr,
    DIRECT: tl.constexpr,  # rows of at most this many scores need no prefilter
    SAMPLES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Compact a share of one long row: program (row, split) keeps the scores at or above the pivot."""
    row = tl.program_id(0).to(tl.int64) + row_base
    split = tl.program_id(1)
    begin, length = load_row_window(lengths_ptr, starts_ptr, row, width, topk, HAS_STARTS)
    end = begin + length
    first = begin // 16 * 16
    if (end - first <= DIRECT) | (length <= topk):
        return
    row_ptr = bits_ptr + row * stride_score
    # Shares begin at multiples of 16 columns, so that vector loads stay whole.
    share = (end - first + SPLITS * 16 - 1) // (SPLITS * 16) * 16
    start = first + split * share
    pivot = _choose_pivot(row_ptr, begin, length, topk, SAMPLES)
    segment = tl.program_id(0).to(tl.int64) * SPLITS + split
    found = _compact(
        row_ptr,
        begin,
        start,
        tl.minimum(start + share, end),
        pivot,
        key_ptr + segment * SEGMENT,
        index_ptr + segment * SEGMENT,
        SEGMENT,
        PADDED,
        TILE,
    )
    tl.store(count_ptr + segment, found)


@triton.jit
def load_candidates(
    key_ptr,
    index_ptr,
    ends,
    total,
    SPLITS_PAD: tl.constexpr,
    LOG2_SPLITS: tl.constexpr,
    SEGMENT: tl.constexpr,
    TILE: tl.constexpr,
):
    """Load the candidates of all segments as one tile in index order.

    ``ends`` are the inclusive sums of the segments' counts.
    """
    slot = tl.arange(0, TILE)
    present = slot < total
    # Binary search for the segment of each slot: the number of segments that end at or before it.
    segment = slot * 0
    begin = slot * 0
    for level in tl.static_range(LOG2_SPLITS):
        step = SPLITS_PAD >> (level + 1)
        probe = tl.gather(ends, segment + (step - 1), 0)
        past = probe <= slot
        begin = tl.where(past, probe, begin)
        segment = tl.where(past, segment + step, segment)
    source = segment * SEGMENT + (slot - begin)  # below SPLITS * SEGMENT, which fits into 32 bits
    keys = tl.load(key_ptr + source, mask=present, other=-2147483648)
    index = tl.load(index_ptr + source, mask=present, other=0)
    return keys, index
