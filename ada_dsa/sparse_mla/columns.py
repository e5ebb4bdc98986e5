"""Sparse MLA over fp8 rows with the 512 latent values divided among warps: an alternative main kernel.

In ``kernel.py`` the warps of a block divide keys or heads, so that each of them reads all of Q from
shared memory for every tile. Here the latent values are a batch dimension of both products, and Triton
gives each warp its own groups of it. A warp then reads nothing but its own columns of Q and K, computes a
part of the scores, and, once the parts of all groups are added, its own columns of the result:

    part[g] = K[:, g] Q[:, g]^T        scores = sum over g of part[g] + rotary part
    result[g] = K[:, g]^T P^T

Keys are M of the first product and latent values of the second; heads are N of both, so that eight
need no padding. Rows are prefetched into registers and indices carried one tile ahead, as there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..kv_cache.kernel import decode_e4m3_bytes
from .kernel import LN_2, PACKED_FP8, finish


@triton.jit
def _load(kv, scales, rope, index, LAYOUT: tl.constexpr, GROUPS: tl.constexpr):
    """Rows as stored: [GROUPS, BLOCK_N, 512 / GROUPS], [BLOCK_N, 64]; scales [GROUPS, BLOCK_N]."""
    WIDTH: tl.constexpr = 512 // GROUPS
    valid = index >= 0
    rows = index.to(tl.int64)
    group = tl.arange(0, GROUPS)
    cols = group[:, None, None] * WIDTH + tl.arange(0, WIDTH)[None, None, :]
    rotary = tl.arange(0, 64)
    if LAYOUT == PACKED_FP8:
        raw = tl.load(kv + rows[None, :, None] * 656 + cols, mask=valid[None, :, None], other=0.0)
        tile = 128 + group * 4 // GROUPS
        scale = tl.load(
            scales + rows[None, :] * 164 + tile[:, None], mask=valid[None, :], other=0.0
        )
        ptrs = rope + rows[:, None] * 328 + (264 + rotary)[None, :]
    else:
        raw = tl.load(kv + rows[None, :, None] * 576 + cols, mask=valid[None, :, None], other=0.0)
        scale = tl.full((GROUPS, rows.shape[0]), 1.0, tl.float32)  # unused
        ptrs = kv + rows[:, None] * 576 + (512 + rotary)[None, :]
    return valid, raw, scale, tl.load(ptrs, mask=valid[:, None], other=0.0)


@triton.jit
def _widen(raw, BYTES: tl.constexpr):
    return decode_e4m3_bytes(raw) if BYTES else raw.to(tl.float32)


@triton.jit
def _add_groups(part, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, GROUPS: tl.constexpr):
    """[GROUPS, BLOCK_N, BLOCK_H] -> the sum over groups, by halves.

    ``tl.sum`` over a dimension that warps divide shuffles every value; split demands the two halves in one
    thread, so that one conversion brings all groups together and the additions stay in registers.
    """
    folded = tl.permute(part, 1, 2, 0)
    first, second = tl.split(tl.reshape(folded, [BLOCK_N, BLOCK_H, GROUPS // 2, 2]))
    folded = first + second
    first, second = tl.split(tl.reshape(folded, [BLOCK_N, BLOCK_H, GROUPS // 4, 2]))
    folded = first + second
    if GROUPS > 4:
        first, second = tl.split(tl.reshape(folded, [BLOCK_N, BLOCK_H, GROUPS // 8, 2]))
        folded = first + second
    if GROUPS > 8:
        first, second = tl.split(tl.reshape(folded, [BLOCK_N, BLOCK_H, GROUPS // 16, 2]))
        folded = first + second
    return tl.reshape(folded, [BLOCK_N, BLOCK_H])


@triton.jit(do_not_specialize=["num_heads", "topk", "split_len", "num_splits"])
def sparse_mla_columns_kernel(
    q_nope,  # bfloat16 [T, H, 512]
    q_rope,  # bfloat16 [T, H, 64]
    kv,  # rows as e4m3 / uint8
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
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUPS: tl.constexpr,  # 4, 8 or 16; a multiple of the warps, or warps repeat each other's work
    SPLIT: tl.constexpr,  # write a partial result per split
    WRITE_LSE: tl.constexpr,
    SPAN: tl.constexpr,  # power of two >= split_len
):
    WIDTH: tl.constexpr = 512 // GROUPS
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
    group = tl.arange(0, GROUPS)
    width = tl.arange(0, WIDTH)
    q = tl.load(
        q_nope
        + token * q_nope_stride_t
        + heads[None, :, None] * q_nope_stride_h
        + (group[:, None, None] * WIDTH + width[None, None, :]),
        mask=head_ok[None, :, None],
        other=0.0,
    )
    q = tl.permute(q, 0, 2, 1)
    qr = tl.load(
        q_rope
        + token * q_rope_stride_t
        + heads[:, None] * q_rope_stride_h
        + tl.arange(0, 64)[None, :],
        mask=head_ok[:, None],
        other=0.0,
    )
    qr = tl.trans(qr)

    acc = tl.zeros([GROUPS, WIDTH, BLOCK_H], tl.float32)
    weights = tl.zeros([BLOCK_N, BLOCK_H], tl.float32)  # summed over keys after the loop
    top = tl.full([BLOCK_H], float("-inf"), tl.float32)
    valid, raw, scale, rr = _load(kv, scales, rope, index, LAYOUT, GROUPS)
    ahead = start + BLOCK_N + lane
    index = tl.load(indices + ahead, mask=ahead < end, other=-1)
    for first in range(start, last, BLOCK_N):
        values = _widen(raw, BYTES)
        if LAYOUT == PACKED_FP8:
            values = values * scale[:, :, None]
            kr = rr
        else:
            kr = _widen(rr, BYTES).to(tl.bfloat16)
        k = values.to(tl.bfloat16)
        scored = valid
        valid, raw, scale, rr = _load(kv, scales, rope, index, LAYOUT, GROUPS)
        ahead = first + 2 * BLOCK_N + lane
        index = tl.load(indices + ahead, mask=ahead < end, other=-1)

        s = _add_groups(tl.dot(k, q), BLOCK_N, BLOCK_H, GROUPS)
        s = (s + tl.dot(kr, qr)) * scale_log2
        s = tl.where(scored[:, None], s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, axis=0))
        # Nothing selected so far leaves the maximum at -inf; 0 avoids -inf minus -inf.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        decay = tl.exp2(top - base)
        p = tl.exp2(s - base[None, :])
        weights = weights * decay[None, :] + p
        top = new_top
        spread = tl.broadcast_to(p.to(tl.bfloat16)[None, :, :], (GROUPS, BLOCK_N, BLOCK_H))
        acc = tl.dot(tl.permute(k, 0, 2, 1), spread, acc * decay[None, None, :])

    inverse, log2_sum = finish(top, tl.sum(weights, axis=0))
    slot = token * num_heads + heads
    if SPLIT:
        slot = slot * num_splits + split
        tl.store(lse + slot, log2_sum, mask=head_ok)
    elif WRITE_LSE:
        tl.store(lse + slot, log2_sum * LN_2, mask=head_ok)
    ptrs = out + slot[None, None, :] * 512 + (group[:, None, None] * WIDTH + width[None, :, None])
    result = (acc * inverse[None, None, :]).to(out.dtype.element_ty)
    tl.store(ptrs, result, mask=head_ok[None, None, :])
