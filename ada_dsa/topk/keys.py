"""Scores as ordered integers: a row's keys, and the find_threshold for its k-th highest."""

from __future__ import annotations

import triton
import triton.language as tl

# Codes below every score: an absent element, and NaN. Every other key is the float's bits, or for a
# negative float -magnitude - 1, so that -inf is -2139095041.
ABSENT = tl.constexpr(-2147483648)
NAN_KEY = tl.constexpr(-2147483647)


@triton.jit
def encode_key(bits):
    """Bits of a float32 (int32) -> int32 with the order of the scores; -0 as +0, NaN as NAN_KEY."""
    magnitude = bits & 0x7FFFFFFF
    key = tl.where(bits < 0, -magnitude - 1, bits)
    key = tl.where(magnitude == 0, 0, key)
    return tl.where(magnitude > 0x7F800000, NAN_KEY, key)


@triton.jit
def _decode_key(key):
    """The float32 whose ordered key is ``key`` (some NaN for the two codes below -inf)."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _encode_value(value):
    return encode_key(value.to(tl.int32, bitcast=True))


@triton.jit
def load_row_window(lengths_ptr, starts_ptr, row, width, topk, HAS_STARTS: tl.constexpr):
    """First column and number of scores of a row; no length or start can reach past the row.

    A row of at most ``topk`` scores keeps its length as given: its scores are never read.
    """
    length = tl.maximum(tl.load(lengths_ptr + row), 0)
    begin = length * 0
    if HAS_STARTS:
        begin = tl.minimum(tl.maximum(tl.load(starts_ptr + row), 0), width)
    length = tl.where(length > topk, tl.minimum(length, width - begin), length)
    return begin, length


@triton.jit
def load_keys(row_ptr, base, begin, end, PADDED: tl.constexpr, TILE: tl.constexpr):
    """Keys of columns [base, base + TILE) of a row, ABSENT outside [begin, end); local indices.

    ``base`` is a multiple of 16. PADDED: columns up to the next multiple of 16 are readable, so the
    load may be masked in whole vectors; an exact mask would split it into single elements.
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
    """How many keys reach each threshold, two to a number: t1 and t3 in the upper 16 bits.

    At most 16,384 keys. One reduction of both numbers, because its barriers are what it costs; of
    many keys two, which hold fewer registers (with one, Triton 3.6.0 spills on sm_120).
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
    """Four choose_thresholds in (lo, hi] for a bracket with ``count_lo`` keys >= lo, ``count_hi`` > hi."""
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
    """The bracket after learning that ``count`` keys reach ``threshold``.

    A count in [need, need + slack] ends the find_threshold: the bracket collapses onto the threshold.
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
    """A threshold that between need and need + slack of ``keys`` reach, or the need-th highest key.

    ``total`` of the keys are present, at least ``need``. Returns the threshold T and how many keys
    equal to T belong to the first ``need`` (all of them, if the count came out exact).
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
