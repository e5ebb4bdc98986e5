"""Triton kernels of sparse MLA attention over selected latent rows.

A block processes BLOCK_H heads of one query token over one contiguous part ("split") of the token's index
list. It reads every selected row once, directly from the pool. The row serves as key (576 values, or 512
without a rotary part) and as value (its first 512 values).

These facts determine the main loop:

* Triton does not pipeline a tile that is converted before it enters both dots. It also uses fewer buffers
  for a load whose address was loaded in the same iteration. Therefore indices are carried one tile ahead,
  and fp8 rows are prefetched into registers. Each iteration converts the tile that it holds, issues the
  loads of the next tile, and then starts the dots.
* A negative index masks the loads of its row. Nothing is read, the row is zero, and its score is -inf.
  Therefore NaN bytes in rows that are not selected cannot reach a result.
* A packed row has one scale per 128 e4m3 codes. Applying it to each code in float32 would cost two
  operations and two conversions per code. Instead the kernel applies the row's largest scale to the row's
  score and to its softmax weight. It converts the codes to float16, which is exact, and multiplies two of
  them at a time by the ratio of their scale to the largest. An exact power of two per head brings Q into
  the range of float16. float16 rounds eight times finer than bfloat16.
* SWAP exchanges the roles of keys and heads in both dots. If heads are N, eight heads need no padding (the
  M side of an MMA is 16), and Q is read less often from shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .row_loads import (
    BF16,
    PACKED_FP8,
    RAW_FP8,
    convert_chunk,
    convert_rope,
    deinterleave_chunk,
    interleave_chunk,
    load_rows,
    normalize_scales,
)

LN_2 = tl.constexpr(0.6931471805599453)

# A row's scale is limited to this range where it enters the running maximum. Softmax weights without the
# scale then stay finite and above zero for every content of the pool.
MIN_SCALE = tl.constexpr(2.0**-64)
MAX_SCALE = tl.constexpr(2.0**100)


@triton.jit
def _convert_query(q0, q1, q2, q3, qr, LAYOUT: tl.constexpr):
    """Convert Q for fp8 rows to float16 in the order of :func:`deinterleave_chunk`.

    Q is multiplied by one power of two per head, which keeps it in range. The inverse of the factor is
    returned too. The rotary part is converted as well if the pool stores it as fp8 codes.
    """
    peak = tl.maximum(tl.maximum(tl.abs(q0), tl.abs(q1)), tl.maximum(tl.abs(q2), tl.abs(q3)))
    peak = tl.max(peak.to(tl.float32), axis=1)
    if LAYOUT == RAW_FP8:
        peak = tl.maximum(peak, tl.max(tl.abs(qr).to(tl.float32), axis=1))
    # The largest power of two that is at most the peak, limited to 2^-100 to 2^126, where its inverse exists.
    bits = peak.to(tl.int32, bitcast=True) & 0x7F800000
    bits = tl.minimum(tl.maximum(bits, 27 << 23), 253 << 23)
    factor = ((254 << 23) - bits).to(tl.float32, bitcast=True)[:, None]
    q0 = deinterleave_chunk((q0.to(tl.float32) * factor).to(tl.float16))
    q1 = deinterleave_chunk((q1.to(tl.float32) * factor).to(tl.float16))
    q2 = deinterleave_chunk((q2.to(tl.float32) * factor).to(tl.float16))
    q3 = deinterleave_chunk((q3.to(tl.float32) * factor).to(tl.float16))
    if LAYOUT == RAW_FP8:
        qr = (qr.to(tl.float32) * factor).to(tl.float16)
    return q0, q1, q2, q3, qr, bits.to(tl.float32, bitcast=True)


@triton.jit
def _compute_scores(q, k, acc, SWAP: tl.constexpr):
    """Add q . k to ``acc``, [BLOCK_H, BLOCK_N], or [BLOCK_N, BLOCK_H] if SWAP."""
    return tl.dot(k, tl.trans(q), acc) if SWAP else tl.dot(q, tl.trans(k), acc)


@triton.jit
def _accumulate_values(p, k, acc, SWAP: tl.constexpr):
    """Add the values ``k`` weighted by ``p`` to ``acc``, [BLOCK_H, 128], or [128, BLOCK_H] if SWAP."""
    return tl.dot(tl.trans(k), p, acc) if SWAP else tl.dot(p, k, acc)


@triton.jit
def _store_chunk(ptrs, values, mask, LAYOUT: tl.constexpr, SWAP: tl.constexpr):
    values = values.to(ptrs.dtype.element_ty)
    tl.store(ptrs, values if LAYOUT == BF16 else interleave_chunk(values, SWAP), mask=mask)


@triton.jit
def finish_softmax(running_max, total):
    """Compute the factor that normalises the sums, and the log-sum-exp in base 2.

    A sum of weights of 0 means that nothing was selected, and gives 0 and -inf. NaN stays NaN in both.
    """
    some = total > 0.0
    inverse = tl.where(some, 1.0 / total, tl.where(total == 0.0, 0.0, total))
    log2_sum = tl.where(
        some, running_max + tl.log2(total), tl.where(total == 0.0, float("-inf"), total)
    )
    return inverse, log2_sum


@triton.jit(do_not_specialize=["num_heads", "topk", "split_len", "num_splits"])
def sparse_mla_kernel(
    q_nope,  # bfloat16 [T, H, 512]
    q_rope,  # bfloat16 [T, H, 64], read only if ROPE
    kv,  # fp8 rows as int32, or bfloat16 rows
    indices,  # int32 [T, topk]
    out,  # bfloat16 [T, H, 512], or float32 [T, H, splits, 512]
    lse,  # float32 [T, H], or base-2 [T, H, splits]
    q_nope_stride_t,
    q_nope_stride_h,
    q_rope_stride_t,
    q_rope_stride_h,
    indices_stride_t,
    num_heads,
    topk,
    split_len,  # indices per split, a multiple of BLOCK_N
    num_splits,
    scale_log2,  # softmax scale times log2(e)
    LAYOUT: tl.constexpr,
    ROPE: tl.constexpr,  # rotary values of a row, 64 or 0
    BYTES: tl.constexpr,
    SWAP: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,  # write a partial result per split
    WRITE_LSE: tl.constexpr,
    SPAN: tl.constexpr,  # power of two >= split_len
):
    """Compute attention for BLOCK_H heads of one token over one split of its index list.

    The grid is (tokens * head blocks, splits).
    """
    # Triton pipelines bfloat16 rows, and not the converted fp8 rows (see the module's docstring).
    PREFETCH: tl.constexpr = LAYOUT != BF16
    # Head blocks of one token are neighbours in the grid because they read the same rows.
    head_blocks = tl.cdiv(num_heads, BLOCK_H)
    head_block = tl.program_id(0) % head_blocks
    token = (tl.program_id(0) // head_blocks).to(tl.int64)
    split = tl.program_id(1)

    start = split * split_len
    end = tl.minimum(start + split_len, topk)
    indices += token * indices_stride_t

    lane = tl.arange(0, BLOCK_N)
    index = tl.load(indices + start + lane, mask=start + lane < end, other=-1)
    # Tiles behind the last selected row of this split are not visited.
    span = start + tl.arange(0, SPAN)
    selected = tl.load(indices + span, mask=span < end, other=-1)
    last = tl.max(tl.where(selected >= 0, span + 1, start), axis=0)

    heads = head_block * BLOCK_H + tl.arange(0, BLOCK_H)
    head_ok = heads < num_heads
    d = tl.arange(0, 128)
    q_row = q_nope + token * q_nope_stride_t + heads[:, None] * q_nope_stride_h + d[None, :]
    q0 = tl.load(q_row, mask=head_ok[:, None], other=0.0)
    q1 = tl.load(q_row + 128, mask=head_ok[:, None], other=0.0)
    q2 = tl.load(q_row + 256, mask=head_ok[:, None], other=0.0)
    q3 = tl.load(q_row + 384, mask=head_ok[:, None], other=0.0)
    if ROPE:
        dr = tl.arange(0, 64)
        qr = tl.load(
            q_rope + token * q_rope_stride_t + heads[:, None] * q_rope_stride_h + dr[None, :],
            mask=head_ok[:, None],
            other=0.0,
        )
    else:
        qr = q0  # a placeholder

    # Codes decoded from bytes are 2^-8 of their value. A head's scores need the factor that Q was divided by.
    CODE_UNIT: tl.constexpr = 256.0 if BYTES else 1.0
    head_scale = tl.full([BLOCK_H], scale_log2, tl.float32)
    if LAYOUT != BF16:
        q0, q1, q2, q3, qr, query_unit = _convert_query(q0, q1, q2, q3, qr, LAYOUT)
        head_scale = head_scale * query_unit * CODE_UNIT
    head_scale = head_scale[None, :] if SWAP else head_scale[:, None]

    if SWAP:
        acc0 = tl.zeros([128, BLOCK_H], tl.float32)
        acc1 = tl.zeros([128, BLOCK_H], tl.float32)
        acc2 = tl.zeros([128, BLOCK_H], tl.float32)
        acc3 = tl.zeros([128, BLOCK_H], tl.float32)
    else:
        acc0 = tl.zeros([BLOCK_H, 128], tl.float32)
        acc1 = tl.zeros([BLOCK_H, 128], tl.float32)
        acc2 = tl.zeros([BLOCK_H, 128], tl.float32)
        acc3 = tl.zeros([BLOCK_H, 128], tl.float32)
    KEYS: tl.constexpr = 0 if SWAP else 1
    # Keys are distributed over warps, so a sum over keys costs two barriers per tile. It is deferred until
    # after the loop, except for 32 heads of fp8 rows, where registers are scarce.
    DEFER_SUM: tl.constexpr = BLOCK_H < 32 or LAYOUT == BF16
    if DEFER_SUM:
        weights = tl.zeros([BLOCK_N, BLOCK_H] if SWAP else [BLOCK_H, BLOCK_N], tl.float32)
    else:
        total = tl.zeros([BLOCK_H], tl.float32)
    running_max = tl.full([BLOCK_H], float("-inf"), tl.float32)

    next_position = start + BLOCK_N + lane
    if PREFETCH:
        valid, r0, r1, r2, r3, rr, s0, s1, s2, s3 = load_rows(kv, index, LAYOUT, ROPE)
        index = tl.load(indices + next_position, mask=next_position < end, other=-1)

    for first in range(start, last, BLOCK_N):
        if not PREFETCH:
            valid, r0, r1, r2, r3, rr, s0, s1, s2, s3 = load_rows(kv, index, LAYOUT, ROPE)
        row_scale, s0, s1, s2, s3 = normalize_scales(valid, s0, s1, s2, s3, LAYOUT)
        k0 = convert_chunk(r0, s0, LAYOUT, BYTES)
        k1 = convert_chunk(r1, s1, LAYOUT, BYTES)
        k2 = convert_chunk(r2, s2, LAYOUT, BYTES)
        k3 = convert_chunk(r3, s3, LAYOUT, BYTES)
        if ROPE:
            kr = convert_rope(rr, LAYOUT, BYTES)
        row_scale = row_scale[:, None] if SWAP else row_scale[None, :]
        next_position = first + BLOCK_N + lane
        if PREFETCH:
            valid, r0, r1, r2, r3, rr, s0, s1, s2, s3 = load_rows(kv, index, LAYOUT, ROPE)
            next_position += BLOCK_N
        index = tl.load(indices + next_position, mask=next_position < end, other=-1)

        # Two accumulators are independent of each other; one alone would be a chain of 36 dependent MMAs. The
        # scale is applied before they are added, because Triton turns the sum of two dots into such a chain.
        zero = tl.zeros([BLOCK_N, BLOCK_H] if SWAP else [BLOCK_H, BLOCK_N], tl.float32)
        low = _compute_scores(q1, k1, _compute_scores(q0, k0, zero, SWAP), SWAP) * head_scale
        high = _compute_scores(q3, k3, _compute_scores(q2, k2, zero, SWAP), SWAP) * head_scale
        s = low + high
        if LAYOUT == PACKED_FP8:
            s = s * row_scale
        if ROPE:
            rope_scale = scale_log2 if LAYOUT == PACKED_FP8 else head_scale
            s = s + _compute_scores(qr, kr, zero, SWAP) * rope_scale
        s = tl.where(row_scale == float("-inf"), float("-inf"), s)
        # The second dot uses the weight times the row's scale, and this product must not exceed 1.
        weighted = s
        if LAYOUT == PACKED_FP8:
            weighted = s + tl.log2(tl.minimum(tl.maximum(row_scale, MIN_SCALE), MAX_SCALE))
        new_max = tl.maximum(running_max, tl.max(weighted, axis=KEYS))
        # The maximum is -inf while no row was selected. Then 0 avoids -inf minus -inf.
        base = tl.where(new_max == float("-inf"), 0.0, new_max)
        rescale = tl.exp2(running_max - base)
        if SWAP:
            p = tl.exp2(s - base[None, :])
            rescale_acc = rescale[None, :]
        else:
            p = tl.exp2(s - base[:, None])
            rescale_acc = rescale[:, None]
        if DEFER_SUM:
            weights = weights * rescale_acc + p
        else:
            total = total * rescale + tl.sum(p, axis=KEYS)
        running_max = new_max
        if LAYOUT == PACKED_FP8:
            p = p * tl.maximum(row_scale, 0.0)  # the scale of an absent row is -inf, its weight 0
        p = p.to(k0.dtype)
        acc0 = _accumulate_values(p, k0, acc0 * rescale_acc, SWAP)
        acc1 = _accumulate_values(p, k1, acc1 * rescale_acc, SWAP)
        acc2 = _accumulate_values(p, k2, acc2 * rescale_acc, SWAP)
        acc3 = _accumulate_values(p, k3, acc3 * rescale_acc, SWAP)

    if DEFER_SUM:
        total = tl.sum(weights, axis=KEYS)
    inverse, log2_sum = finish_softmax(running_max, total)
    inverse *= CODE_UNIT
    slot = token * num_heads + heads
    if SPLIT:
        slot = slot * num_splits + split
        tl.store(lse + slot, log2_sum, mask=head_ok)
    elif WRITE_LSE:
        tl.store(lse + slot, log2_sum * LN_2, mask=head_ok)
    if SWAP:
        ptrs = out + slot[None, :] * 512 + d[:, None]
        store_mask = head_ok[None, :]
        factor = inverse[None, :]
    else:
        ptrs = out + slot[:, None] * 512 + d[None, :]
        store_mask = head_ok[:, None]
        factor = inverse[:, None]
    _store_chunk(ptrs, acc0 * factor, store_mask, LAYOUT, SWAP)
    _store_chunk(ptrs + 128, acc1 * factor, store_mask, LAYOUT, SWAP)
    _store_chunk(ptrs + 256, acc2 * factor, store_mask, LAYOUT, SWAP)
    _store_chunk(ptrs + 384, acc3 * factor, store_mask, LAYOUT, SWAP)


@triton.jit(do_not_specialize=["num_splits"])
def combine_splits_kernel(
    partial,  # float32 [T, H, splits, 512], zeros for an empty split
    partial_lse,  # float32 [T, H, splits], base 2, -inf for an empty split
    out,  # bfloat16 [T, H, 512]
    lse,  # float32 [T, H], natural logarithm
    num_splits,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WRITE_LSE: tl.constexpr,
):
    """Combine the splits' normalised results to their weighted mean; the grid is (T * H, 512 / BLOCK_D)."""
    slot = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    s = tl.arange(0, BLOCK_S)
    log2_sum = tl.load(
        partial_lse + slot * num_splits + s, mask=s < num_splits, other=float("-inf")
    )
    filled = log2_sum != float("-inf")
    values = tl.load(
        partial + (slot * num_splits + s)[:, None] * 512 + d[None, :],
        mask=filled[:, None],
        other=0.0,
    )
    largest = tl.max(log2_sum, axis=0)
    weight = tl.exp2(log2_sum - tl.where(largest == float("-inf"), 0.0, largest))
    total = tl.sum(weight, axis=0)
    result = tl.sum(values * weight[:, None], axis=0)
    result = tl.where(total == 0.0, 0.0, result / total)
    tl.store(out + slot * 512 + d, result.to(out.dtype.element_ty))
    if WRITE_LSE:
        natural = (largest + tl.log2(total)) * LN_2
        natural = tl.where(total == 0.0, float("-inf"), natural)
        tl.store(lse + slot + 0 * d, natural, mask=d == 0)
