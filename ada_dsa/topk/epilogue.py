"""Epilogue of top-k: transform the selected indices and store them."""

from __future__ import annotations

import triton
import triton.language as tl

# What is stored for a selected index.
LOCAL = tl.constexpr(0)  # the index itself
PAGED = tl.constexpr(1)  # page_table[row, index]
RAGGED = tl.constexpr(2)  # index + offset[row]


@triton.jit
def load_row_transform(
    row,
    table_ptr,
    stride_table,
    cu_ptr,
    num_tables,
    offset_ptr,
    MODE: tl.constexpr,
    ROW_IS_TABLE: tl.constexpr,
):
    """Return a pointer to the row's page table (PAGED) and the row's offset (RAGGED)."""
    table = table_ptr
    offset = tl.full((), 0, tl.int32)
    if MODE == RAGGED:
        offset = tl.load(offset_ptr + row)
    if MODE == PAGED:
        which = tl.cast(row, tl.int32)
        if not ROW_IS_TABLE:
            # Binary search for the number of requests that end at or before this row. The values
            # cu[1 .. num_tables] ascend.
            low = which * 0
            high = low + num_tables - 1
            while low < high:
                middle = (low + high) // 2
                ended = tl.load(cu_ptr + middle + 1) <= row
                low = tl.where(ended, middle + 1, low)
                high = tl.where(ended, high, middle)
            which = low
        table = table_ptr + which.to(tl.int64) * stride_table
    return table, offset


@triton.jit
def _write(out_row, position, index, take, table_row, table_width, offset, MODE: tl.constexpr):
    """Transform the selected local indices and store them. An index beyond the page table becomes -1."""
    if MODE == PAGED:
        inside = take & (index < table_width)
        value = tl.load(table_row + index, mask=inside, other=-1)
    elif MODE == RAGGED:
        value = index + offset
    else:
        value = index
    tl.store(out_row + position, value, mask=take)


@triton.jit
def write_identity(
    out_row, length, topk, table_row, table_width, offset, MODE: tl.constexpr, BLOCK: tl.constexpr
):
    """Write indices 0 .. length - 1, then -1: the result of a row with at most ``topk`` scores."""
    for base in range(0, topk, BLOCK):
        index = base + tl.arange(0, BLOCK)
        _write(out_row, index, index, index < length, table_row, table_width, offset, MODE)
        tl.store(
            out_row + index,
            tl.full((BLOCK,), -1, tl.int32),
            mask=(index >= length) & (index < topk),
        )


@triton.jit
def write_selected(
    keys,
    index,
    threshold,
    quota,
    out_row,
    taken,
    equal_taken,
    table_row,
    table_width,
    offset,
    MODE: tl.constexpr,
):
    """Write the selected indices of one tile behind those of the earlier tiles.

    ``index`` ascends within the tile. Every key above the threshold is selected, and so are the first
    ``quota`` keys equal to it. ``taken`` and ``equal_taken`` count the keys of earlier tiles above the
    threshold and equal to it. The updated counts are returned.
    """
    above = (keys > threshold).to(tl.int32)
    equal = (keys == threshold).to(tl.int32)
    packed = above + (equal << 16)
    running = tl.cumsum(packed, 0)
    above_before = taken + (running & 0xFFFF) - above
    equal_before = equal_taken + (running >> 16) - equal
    take = (above == 1) | ((equal == 1) & (equal_before < quota))
    position = above_before + tl.minimum(equal_before, quota)
    _write(out_row, position, index, take, table_row, table_width, offset, MODE)
    both = tl.sum(packed, axis=0)
    return taken + (both & 0xFFFF), equal_taken + (both >> 16)
