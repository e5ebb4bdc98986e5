"""Triton kernels for sparse MLA attention over gathered latent rows.

One CTA handles BLOCK_H heads of one query token over one contiguous share ("split") of that
token's index list. Every selected row is read once per CTA, straight from the pool, and serves as
key (576 values) and as value (its first 512 values).

What shapes the main loop:

* Triton does not pipeline a tile that is converted before it feeds both dots, and it loses
  buffers to a load whose address was itself loaded in the same iteration. So indices are carried
  one tile ahead and rows are prefetched into registers: each iteration converts the tile it
  holds, issues the loads of the next one, and only then starts the dots.
* Rows are selected by index, so a negative index simply masks its loads: nothing is read, the
  row is zero, and its score is set to -inf. NaN bytes in unselected slots cannot reach a result.
* SWAP exchanges the roles of keys and heads in both dots. With heads as N, eight heads need no
  padding (the M side of an MMA is 16), and Q is re-read less often from shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..kv_cache.kernel import decode_e4m3_bytes

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

# Row formats of the pool, see kv_cache.layout.KvLayout.
PACKED_FP8 = tl.constexpr(0)  # 512 e4m3, 4 float32 scales, 64 bfloat16
RAW_FP8 = tl.constexpr(1)  # 576 e4m3
BF16 = tl.constexpr(2)  # 576 bfloat16


@triton.jit
def _widen(raw, scale, LAYOUT: tl.constexpr, BYTES: tl.constexpr):
    """One [BLOCK_N, width] chunk as stored -> bfloat16, dequantised as the pool's readers do."""
    if LAYOUT == BF16:
        result = raw
    else:
        values = decode_e4m3_bytes(raw) if BYTES else raw.to(tl.float32)
        if LAYOUT == PACKED_FP8:
            values = values * scale[:, None]
        result = values.to(tl.bfloat16)
    return result


@triton.jit
def _load_nope(kv, scales, rows, valid, chunk: tl.constexpr, LAYOUT: tl.constexpr):
    """Chunk ``chunk`` (128 values) of the selected rows as stored, and its scale."""
    cols = chunk * 128 + tl.arange(0, 128)
    if LAYOUT == PACKED_FP8:
        raw = tl.load(kv + rows[:, None] * 656 + cols[None, :], mask=valid[:, None], other=0.0)
        scale = tl.load(scales + rows * 164 + (128 + chunk), mask=valid, other=0.0)
    else:
        raw = tl.load(kv + rows[:, None] * 576 + cols[None, :], mask=valid[:, None], other=0.0)
        scale = tl.full(rows.shape, 1.0, tl.float32)  # unused
    return raw, scale


@triton.jit
def _load_rope(kv, rope, rows, valid, LAYOUT: tl.constexpr):
    cols = tl.arange(0, 64)
    if LAYOUT == PACKED_FP8:
        ptrs = rope + rows[:, None] * 328 + (264 + cols)[None, :]
    else:
        ptrs = kv + rows[:, None] * 576 + (512 + cols)[None, :]
    return tl.load(ptrs, mask=valid[:, None], other=0.0)


@triton.jit
def _load_rows(kv, scales, rope, index, LAYOUT: tl.constexpr):
    """The selected rows as stored; a negative index reads nothing and gives a row of zeros."""
    valid = index >= 0
    rows = index.to(tl.int64)
    r0, s0 = _load_nope(kv, scales, rows, valid, 0, LAYOUT)
    r1, s1 = _load_nope(kv, scales, rows, valid, 1, LAYOUT)
    r2, s2 = _load_nope(kv, scales, rows, valid, 2, LAYOUT)
    r3, s3 = _load_nope(kv, scales, rows, valid, 3, LAYOUT)
    rr = _load_rope(kv, rope, rows, valid, LAYOUT)
    return valid, r0, r1, r2, r3, rr, s0, s1, s2, s3


@triton.jit
def _scores(q, k, acc, SWAP: tl.constexpr):
    return tl.dot(k, tl.trans(q), acc) if SWAP else tl.dot(q, tl.trans(k), acc)


@triton.jit
def _weigh(p, k, acc, SWAP: tl.constexpr):
    return tl.dot(tl.trans(k), p, acc) if SWAP else tl.dot(p, k, acc)


@triton.jit
def finish(top, total):
    """What the sums are multiplied by, and the base-2 log-sum-exp; NaN goes through both.

    A total of 0 (nothing selected) gives 0 and -inf.
    """
    some = total > 0.0
    inverse = tl.where(some, 1.0 / total, tl.where(total == 0.0, 0.0, total))
    log2_sum = tl.where(some, top + tl.log2(total), tl.where(total == 0.0, float("-inf"), total))
    return inverse, log2_sum


@triton.jit(do_not_specialize=["num_heads", "topk", "split_len", "num_splits"])
def sparse_mla_kernel(
    q_nope,  # bfloat16 [T, H, 512]
    q_rope,  # bfloat16 [T, H, 64]
    kv,  # rows as e4m3 / uint8 / bfloat16
    scales,  # the same memory as float32 (packed rows only)
    rope,  # the same memory as bfloat16 (packed rows only)
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
    BYTES: tl.constexpr,
    SWAP: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PREFETCH: tl.constexpr,
    SPLIT: tl.constexpr,  # write a partial result per split
    WRITE_LSE: tl.constexpr,
    SPAN: tl.constexpr,  # power of two >= split_len
):
    # Head blocks of one token are neighbours in the grid: they read the same rows.
    head_blocks = tl.cdiv(num_heads, BLOCK_H)
    head_block = tl.program_id(0) % head_blocks
    token = (tl.program_id(0) // head_blocks).to(tl.int64)
    split = tl.program_id(1)

    start = split * split_len
    end = tl.minimum(start + split_len, topk)
    indices += token * indices_stride_t

    lane = tl.arange(0, BLOCK_N)
    index = tl.load(indices + start + lane, mask=start + lane < end, other=-1)
    # Tiles after the last selected row of this split are not visited.
    span = start + tl.arange(0, SPAN)
    listed = tl.load(indices + span, mask=span < end, other=-1)
    last = tl.max(tl.where(listed >= 0, span + 1, start), axis=0)

    heads = head_block * BLOCK_H + tl.arange(0, BLOCK_H)
    head_ok = heads < num_heads
    d = tl.arange(0, 128)
    q_row = q_nope + token * q_nope_stride_t + heads[:, None] * q_nope_stride_h + d[None, :]
    q0 = tl.load(q_row, mask=head_ok[:, None], other=0.0)
    q1 = tl.load(q_row + 128, mask=head_ok[:, None], other=0.0)
    q2 = tl.load(q_row + 256, mask=head_ok[:, None], other=0.0)
    q3 = tl.load(q_row + 384, mask=head_ok[:, None], other=0.0)
    dr = tl.arange(0, 64)
    qr = tl.load(
        q_rope + token * q_rope_stride_t + heads[:, None] * q_rope_stride_h + dr[None, :],
        mask=head_ok[:, None],
        other=0.0,
    )

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
    # While keys are spread over warps, a sum across them costs two barriers a tile: it is put off
    # until after the loop. From 64 heads on each warp holds whole rows and sums them at once,
    # which keeps a tile of registers free.
    DEFER_SUM: tl.constexpr = BLOCK_H < 64
    if DEFER_SUM:
        weights = tl.zeros([BLOCK_N, BLOCK_H] if SWAP else [BLOCK_H, BLOCK_N], tl.float32)
    else:
        total = tl.zeros([BLOCK_H], tl.float32)
    top = tl.full([BLOCK_H], float("-inf"), tl.float32)

    ahead = start + BLOCK_N + lane
    if PREFETCH:
        valid, r0, r1, r2, r3, rr, s0, s1, s2, s3 = _load_rows(kv, scales, rope, index, LAYOUT)
        index = tl.load(indices + ahead, mask=ahead < end, other=-1)

    for first in range(start, last, BLOCK_N):
        if not PREFETCH:
            valid, r0, r1, r2, r3, rr, s0, s1, s2, s3 = _load_rows(kv, scales, rope, index, LAYOUT)
        k0 = _widen(r0, s0, LAYOUT, BYTES)
        k1 = _widen(r1, s1, LAYOUT, BYTES)
        k2 = _widen(r2, s2, LAYOUT, BYTES)
        k3 = _widen(r3, s3, LAYOUT, BYTES)
        kr = _widen(rr, s0, LAYOUT, BYTES) if LAYOUT == RAW_FP8 else rr
        scored = valid
        ahead = first + BLOCK_N + lane
        if PREFETCH:
            valid, r0, r1, r2, r3, rr, s0, s1, s2, s3 = _load_rows(kv, scales, rope, index, LAYOUT)
            ahead += BLOCK_N
        index = tl.load(indices + ahead, mask=ahead < end, other=-1)

        # Independent accumulators: one would chain 36 dependent MMAs. The scale is applied before
        # they are added because Triton folds the sum of two dots back into such a chain.
        zero = tl.zeros([BLOCK_N, BLOCK_H] if SWAP else [BLOCK_H, BLOCK_N], tl.float32)
        low = _scores(q1, k1, _scores(q0, k0, zero, SWAP), SWAP) * scale_log2
        high = _scores(q3, k3, _scores(q2, k2, zero, SWAP), SWAP) * scale_log2
        s = low + high + _scores(qr, kr, zero, SWAP) * scale_log2
        if SWAP:
            s = tl.where(scored[:, None], s, float("-inf"))
            new_top = tl.maximum(top, tl.max(s, axis=0))
        else:
            s = tl.where(scored[None, :], s, float("-inf"))
            new_top = tl.maximum(top, tl.max(s, axis=1))
        # Nothing selected so far leaves the maximum at -inf; 0 avoids -inf minus -inf.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        decay = tl.exp2(top - base)
        if SWAP:
            p = tl.exp2(s - base[None, :])
            spread = decay[None, :]
        else:
            p = tl.exp2(s - base[:, None])
            spread = decay[:, None]
        if DEFER_SUM:
            weights = weights * spread + p
        else:
            total = total * decay + tl.sum(p, axis=KEYS)
        top = new_top
        p = p.to(tl.bfloat16)
        acc0 = _weigh(p, k0, acc0 * spread, SWAP)
        acc1 = _weigh(p, k1, acc1 * spread, SWAP)
        acc2 = _weigh(p, k2, acc2 * spread, SWAP)
        acc3 = _weigh(p, k3, acc3 * spread, SWAP)

    if DEFER_SUM:
        total = tl.sum(weights, axis=KEYS)
    inverse, log2_sum = finish(top, total)
    slot = token * num_heads + heads
    if SPLIT:
        slot = slot * num_splits + split
        tl.store(lse + slot, log2_sum, mask=head_ok)
    elif WRITE_LSE:
        tl.store(lse + slot, log2_sum * LN_2, mask=head_ok)
    if SWAP:
        ptrs = out + slot[None, :] * 512 + d[:, None]
        ok = head_ok[None, :]
        inv = inverse[None, :]
    else:
        ptrs = out + slot[:, None] * 512 + d[None, :]
        ok = head_ok[:, None]
        inv = inverse[:, None]
    tl.store(ptrs, (acc0 * inv).to(out.dtype.element_ty), mask=ok)
    tl.store(ptrs + 128, (acc1 * inv).to(out.dtype.element_ty), mask=ok)
    tl.store(ptrs + 256, (acc2 * inv).to(out.dtype.element_ty), mask=ok)
    tl.store(ptrs + 384, (acc3 * inv).to(out.dtype.element_ty), mask=ok)


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
    """Weighted mean of the splits' normalised results; grid (T * H, 512 / BLOCK_D)."""
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
    top = tl.max(log2_sum, axis=0)
    weight = tl.exp2(log2_sum - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(weight, axis=0)
    result = tl.sum(values * weight[:, None], axis=0)
    result = tl.where(total == 0.0, 0.0, result / total)
    tl.store(out + slot * 512 + d, result.to(out.dtype.element_ty))
    if WRITE_LSE:
        natural = (top + tl.log2(total)) * LN_2
        natural = tl.where(total == 0.0, float("-inf"), natural)
        tl.store(lse + slot + 0 * d, natural, mask=d == 0)
