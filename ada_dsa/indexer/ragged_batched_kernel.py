"""Ragged logits with several queries per dot, the alternative to the kernel with one query per dot.

On sm_90, wgmma reads the key tile (M) from shared memory again for each dot. With one query of 32 heads per
dot (N = 32) this needs three times the bandwidth of shared memory at wgmma's full rate. With four queries
per dot (N = 128) the key tile is read once for all four.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernel import decode_e4m3, find_visible_queries, load_keys


@triton.jit(do_not_specialize=["num_q", "num_kv", "max_seqlen_k"])
def ragged_mqa_logits_batched_kernel(
    q_ptr,  # [S, HEADS, DIM] e4m3 (FP8) or bytes
    key_ptr,  # [Skv, DIM] e4m3 or bytes
    scale_ptr,  # [Skv] fp32
    w_ptr,  # [S, HEADS] fp32
    ks_ptr,  # [S] int32, first key of each query's window
    ke_ptr,  # [S] int32, one beyond its last key
    out_ptr,  # [S, >= Skv] fp32; COMPRESSED: [S, >= max_seqlen_k], column 0 is key ks
    num_q,
    num_kv,
    max_seqlen_k,
    stride_q_s,
    stride_q_h,
    stride_k,
    stride_w,
    stride_out,
    HEADS: tl.constexpr,
    HEADS_PAD: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    CHUNK: tl.constexpr,  # queries per program
    COMPRESSED: tl.constexpr,
    FP8: tl.constexpr,
    STAGES: tl.constexpr,
    QUERIES: tl.constexpr,  # queries per dot, a power of two
):
    """Compute ragged logits: a program keeps its key tile and loops over queries, QUERIES at a time."""
    key_start = tl.program_id(0) * BLOCK_KV
    first, last = find_visible_queries(ks_ptr, ke_ptr, num_q, key_start, BLOCK_KV, CHUNK)
    if first > last:
        return

    keys = key_start + tl.arange(0, BLOCK_KV)
    in_pool = keys < num_kv
    k, scale = load_keys(key_ptr, scale_ptr, keys, in_pool, stride_k, DIM, FP8)
    column = tl.arange(0, QUERIES * HEADS_PAD)
    head = column % HEADS_PAD
    for base in tl.range(first, last + 1, QUERIES, num_stages=STAGES):
        # Beyond the last query, the last query is read again and nothing is stored.
        row = tl.minimum(base + column // HEADS_PAD, last).to(tl.int64)
        offsets = (row * stride_q_s + head * stride_q_h)[:, None] + tl.arange(0, DIM)[None, :]
        if HEADS == HEADS_PAD:
            q = tl.load(q_ptr + offsets)
            w = tl.load(w_ptr + row * stride_w + head)
        elif FP8:
            q = tl.load(q_ptr + offsets, mask=head[:, None] < HEADS, other=0.0)
            w = tl.load(w_ptr + row * stride_w + head, mask=head < HEADS, other=0.0)
        else:
            q = tl.load(q_ptr + offsets, mask=head[:, None] < HEADS, other=0)
            w = tl.load(w_ptr + row * stride_w + head, mask=head < HEADS, other=0.0)
        if not FP8:
            q = decode_e4m3(q)
            w = w * 65536.0
        query = base + tl.arange(0, QUERIES)
        ks = tl.load(ks_ptr + query, mask=query <= last, other=0)
        ke = tl.load(ke_ptr + query, mask=query <= last, other=0)

        dots = tl.dot(k, tl.trans(q), out_dtype=tl.float32)
        parts = tl.reshape(tl.maximum(dots, 0.0) * w[None, :], [BLOCK_KV, QUERIES, HEADS_PAD])
        logits = tl.sum(parts, axis=2) * scale[:, None]
        valid = (keys[:, None] >= ks[None, :]) & (keys[:, None] < ke[None, :]) & in_pool[:, None]
        columns = keys[:, None]
        if COMPRESSED:
            columns = keys[:, None] - ks[None, :]
            valid = valid & (columns < max_seqlen_k)
        rows = query.to(tl.int64)[None, :] * stride_out
        tl.store(out_ptr + rows + columns, logits, mask=valid)
