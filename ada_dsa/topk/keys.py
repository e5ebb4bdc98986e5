"""Keys of a row: its scores as ordered integers, and the search for the k-th highest key."""

from __future__ import annotations

import triton
import triton.language as tl

# Keys below that of every other score: an absent element, and NaN. The key of a float is its bits, and that
# of a negative float is -magnitude - 1. The key of -inf is therefore -2139095041.
ABSENT = tl.constexpr(-2147483648)
NAN_KEY = tl.constexpr(-2147483647)


@triton.jit
def encode_key(bits):
    """Convert the bits of float32 scores (int32) to int32 keys in the order of the scores.

    -0 has the key of +0, and NaN has NAN_KEY.
    """
    magnitude = bits & 0x7FFFFFFF
    key = tl.where(bits < 0, -magnitude - 1, bits)
    key = tl.where(magnitude == 0, 0, key)
    return tl.where(magnitude > 0x7F800000, NAN_KEY, key)


@triton.jit
def _decode_key(key):
    """Return the float32 whose key is ``key``; the two keys below that of -inf give NaN."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _encode_value(value):
    return encode_key(value.to(tl.int32, bitcast=True))


@triton.jit
def load_row_window(lengths_ptr, starts_ptr, row, width, topk, HAS_STARTS: tl.constexpr):
    """Return the first column and the number of scores of a row, limited to the row's columns.

    The length of a row of at most ``topk`` scores is not limited, because its scores are never read.
    """
    length = tl.maximum(tl.load(lengths_ptr + row), 0)
    begin = length * 0
    if HAS_STARTS:
        begin = tl.minimum(tl.maximum(tl.load(starts_ptr + row), 0), width)
    length = tl.where(length > topk, tl.minimum(length, width - begin), length)
    return begin, length


@triton.jit
def load_keys(row_ptr, base, begin, end, PADDED: tl.constexpr, TILE: tl.constexpr):
    """Load the keys of columns [base, base + TILE) of a row, and their indices from ``begin``.

    A key outside [begin, end) is ABSENT. ``base`` is a multiple of 16. PADDED says that columns up to
    the next multiple of 16 may be read. The load then needs a mask for whole vectors only; an exact
    mask would split the load into single elements.
    """
    column = base + tl.arange(0, TILE)
    inside = (column >= begin) & (column < end)
    if PADDED:
        bits = tl.load(row_ptr + column, mask=column < (end + 15) // 16 * 16, other=0)
    else:
        bits = tl.load(row_ptr + column, mask=inside, other=0)
    return tl.where(inside, encode_key(bits), ABSENT), column - begin


@triton.jit
def _add_pairs(a0, a1, b0, b1):
    return a0 + b0, a1 + b1


@triton.jit
def _count_four(keys, t0, t1, t2, t3):
    """Count the keys at or above each threshold, two counts per int32: t1 and t3 in the upper 16 bits.

    There are at most 16,384 keys. One reduction computes both numbers, because barriers dominate its
    cost. Many keys use two reductions, which need fewer registers: with one, Triton 3.6.0 spills on
    sm_120.
    """
    c01 = (keys >= t0).to(tl.int32) + ((keys >= t1).to(tl.int32) << 16)
    c23 = (keys >= t2).to(tl.int32) + ((keys >= t3).to(tl.int32) << 16)
    if keys.shape[0] > 4096:
        n01 = tl.sum(c01, axis=0)
        n23 = tl.sum(c23, axis=0)
    else:
        n01, n23 = tl.reduce((c01, c23), 0, _add_pairs)
    return n01, n23


@triton.jit
def choose_thresholds(lo, hi, count_lo, count_hi, need):
    """Choose four thresholds in (lo, hi] for a bracket with ``count_lo`` keys >= lo, ``count_hi`` > hi."""
    inside = (count_lo - count_hi).to(tl.float32)
    share = ((count_lo - need).to(tl.float32) + 0.5) / inside
    low = _decode_key(lo)
    width = _decode_key(hi) - low
    margin = width / tl.sqrt(inside)
    guess = low + width * share
    span = hi.to(tl.int64) - lo
    third = (span + 2) // 3
    t0 = tl.minimum(tl.maximum(_encode_value(guess - margin), lo + 1), hi)
    t1 = tl.minimum(tl.maximum(_encode_value(guess + margin), lo + 1), hi)
    t2 = (lo + third).to(tl.int32)
    t3 = tl.minimum(lo + 2 * third, hi).to(tl.int32)
    return t0, t1, t2, t3


@triton.jit
def narrow_bracket(lo, hi, count_lo, count_hi, need, slack, threshold, count):
    """Narrow the bracket by the knowledge that ``count`` keys are at or above ``threshold``.

    A count in [need, need + slack] ends the search: both ends of the bracket become the threshold.
    """
    enough = count >= need
    good = enough & (count <= need + slack)
    up = enough & (threshold > lo)
    down = (count < need) & (threshold <= hi)
    count_lo = tl.where(up | good, count, count_lo)
    count_hi = tl.where(down, count, count_hi)
    lo = tl.where(up | good, threshold, lo)
    hi = tl.where(down, threshold - 1, hi)
    hi = tl.where(good, threshold, hi)
    return lo, hi, count_lo, count_hi


@triton.jit
def _narrow_by_four(lo, hi, count_lo, count_hi, need, slack, t0, t1, t2, t3, c01, c23):
    lo, hi, count_lo, count_hi = narrow_bracket(
        lo, hi, count_lo, count_hi, need, slack, t2, c23 & 0xFFFF
    )
    lo, hi, count_lo, count_hi = narrow_bracket(
        lo, hi, count_lo, count_hi, need, slack, t3, c23 >> 16
    )
    lo, hi, count_lo, count_hi = narrow_bracket(
        lo, hi, count_lo, count_hi, need, slack, t0, c01 & 0xFFFF
    )
    return narrow_bracket(lo, hi, count_lo, count_hi, need, slack, t1, c01 >> 16)


@triton.jit
def find_threshold(keys, total, need, slack):
    """Find a threshold that need to need + slack ``keys`` are at or above, or the need-th highest key.

    ``total`` keys are present, and ``total >= need``. Returns the threshold T and how many keys equal
    to T belong to the first ``need``: all of them if exactly ``need`` keys are at or above T.
    """
    lo = tl.min(tl.where(keys == ABSENT, 2147483647, keys), axis=0)
    hi = tl.where(total <= need + slack, lo, tl.max(keys, axis=0))
    count_lo = total
    count_hi = total * 0
    while lo < hi:
        t0, t1, t2, t3 = choose_thresholds(lo, hi, count_lo, count_hi, need)
        c01, c23 = _count_four(keys, t0, t1, t2, t3)
        lo, hi, count_lo, count_hi = _narrow_by_four(
            lo, hi, count_lo, count_hi, need, slack, t0, t1, t2, t3, c01, c23
        )
    return lo, tl.where(count_lo == need, total, need - count_hi)
