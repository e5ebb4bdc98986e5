"""Triton kernels of the DSA indexer: paged (decode) and ragged (prefill) MQA logits.

Both kernels compute, for query i and key j,

    logit[i, j] = k_scale[j] * sum_h weights[i, h] * relu(q[i, h] . k[j])

This is equation 1 of the DeepSeek-V3.2 technical report with the query scale folded into the weights. The
keys are the M operand of the dot. Heads then reduce along N inside a warp, and the keys of a page are one
contiguous block of 8 KB.

Triton has no e4m3 type on sm_80 and sm_86. There the operands are bytes, which the kernels decode to fp16
times 2^-8. This is exact for every finite e4m3 value. The weights take the factor 2^16.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def decode_e4m3(bits):
    """Decode bytes of finite e4m3 values to fp16 values times 2^-8, exactly, subnormals included."""
    wide = bits.to(tl.uint16)
    return (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True)


@triton.jit
def _load_query(
    q_ptr,
    w_ptr,
    stride_q_h,
    HEADS: tl.constexpr,
    HEADS_PAD: tl.constexpr,
    DIM: tl.constexpr,
    FP8: tl.constexpr,
):
    """Load one query's heads as an operand [DIM, HEADS_PAD] and its head weights; padding is zero."""
    heads = tl.arange(0, HEADS_PAD)
    dims = tl.arange(0, DIM)
    offsets = heads[:, None] * stride_q_h + dims[None, :]
    if HEADS == HEADS_PAD:
        q = tl.load(q_ptr + offsets)
        w = tl.load(w_ptr + heads)
    elif FP8:
        q = tl.load(q_ptr + offsets, mask=heads[:, None] < HEADS, other=0.0)
        w = tl.load(w_ptr + heads, mask=heads < HEADS, other=0.0)
    else:
        q = tl.load(q_ptr + offsets, mask=heads[:, None] < HEADS, other=0)
        w = tl.load(w_ptr + heads, mask=heads < HEADS, other=0.0)
    if not FP8:
        q = decode_e4m3(q)
        w = w * 65536.0
    return tl.trans(q), w


@triton.jit
def _compute_scores(k, q, w):
    """Sum the positive dot products of keys [M, D] and heads [D, N], weighted by [N]; returns [M]."""
    dots = tl.dot(k, q, out_dtype=tl.float32)
    return tl.sum(tl.maximum(dots, 0.0) * w[None, :], axis=1)


@triton.jit
def _load_page_entry(table_ptr, page, stop):
    """Load the block-table entry of logical page ``page``, or of page ``stop - 1`` from ``stop`` on."""
    return tl.load(table_ptr + tl.maximum(tl.minimum(page, stop - 1), 0))


@triton.jit
def _clamp_page_id(entry, num_pages):
    """Return the page id of an entry, clamped to the pool, so that no table content reads outside it."""
    return tl.minimum(tl.maximum(entry, 0), num_pages - 1).to(tl.int64)


@triton.jit
def _load_length(
    lens_ptr,
    row,
    stride_len_b,
    stride_len_n,
    J: tl.constexpr,
    NEXT_N: tl.constexpr,
    LENS_2D: tl.constexpr,
    limit,
):
    """Load the number of keys that query J of request ``row`` sees, at most ``limit``."""
    if LENS_2D:
        length = tl.load(lens_ptr + row * stride_len_b + J * stride_len_n)
    else:
        length = tl.load(lens_ptr + row * stride_len_b) - (NEXT_N - 1 - J)
    return tl.minimum(length, limit)


@triton.jit
def _load_longest(
    lens_ptr,
    rows,
    mask,
    stride_len_b,
    stride_len_n,
    NEXT_N: tl.constexpr,
    LENS_2D: tl.constexpr,
    limit,
):
    """Load the largest number of keys that a query of each request sees, limited to [0, limit].

    ``rows`` and ``mask`` are vectors of requests.
    """
    longest = tl.load(
        lens_ptr + rows * stride_len_b + (NEXT_N - 1) * stride_len_n, mask=mask, other=0
    )
    if LENS_2D:
        for j in tl.static_range(NEXT_N - 1):
            other = tl.load(lens_ptr + rows * stride_len_b + j * stride_len_n, mask=mask, other=0)
            longest = tl.maximum(longest, other)
    return tl.minimum(tl.maximum(longest, 0), limit)


@triton.jit
def _store_logits(out_ptr, columns, score, scale, length):
    tl.store(out_ptr + columns, score * scale, mask=columns < length)


@triton.jit(do_not_specialize=["batch", "num_pages", "limit", "stride_len_b", "stride_len_n"])
def paged_mqa_logits_kernel(
    q_ptr,  # [B, NEXT_N, HEADS, DIM] e4m3 (FP8) or bytes
    key_ptr,  # pool as e4m3 or bytes: page p's keys start at p * stride_page
    scale_ptr,  # the same pool as fp32: page p's scales follow its keys
    w_ptr,  # [B * NEXT_N, HEADS] fp32
    lens_ptr,  # [B] or [B, NEXT_N] int32
    table_ptr,  # [B, >= cdiv(limit, PAGE)] int32
    out_ptr,  # [B * NEXT_N, >= limit] fp32
    batch,
    num_pages,
    limit,  # number of output columns that may be written
    stride_q_b,
    stride_q_n,
    stride_q_h,
    stride_page,  # bytes
    stride_scale,  # fp32 elements
    stride_w,
    stride_len_b,
    stride_len_n,
    stride_table,
    stride_out,
    NEXT_N: tl.constexpr,
    LENS_2D: tl.constexpr,
    HEADS: tl.constexpr,
    HEADS_PAD: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BATCH_PAD: tl.constexpr,  # 0: one request per program_id(0), divided along program_id(1)
    FP8: tl.constexpr,
    PAGES: tl.constexpr,  # pages per iteration, 1 or 2
    STAGES: tl.constexpr,
):
    """Compute paged logits with the keys divided among programs.

    The division follows the lengths on the device, and the host does not take part. With BATCH_PAD > 0
    the pages of all requests form one list, and each program takes an equal share of it. A share may
    span requests. With BATCH_PAD == 0 each request is divided into equal shares.
    """
    if BATCH_PAD > 0:
        rows = tl.arange(0, BATCH_PAD)
        longest = _load_longest(
            lens_ptr, rows, rows < batch, stride_len_b, stride_len_n, NEXT_N, LENS_2D, limit
        )
        pages = (longest + (PAGE - 1)) // PAGE
        ends = tl.cumsum(pages, 0)
        total = tl.sum(pages, 0).to(tl.int64)
        worker = tl.program_id(0)
        start = (worker * total // tl.num_programs(0)).to(tl.int32)
        stop = ((worker + 1) * total // tl.num_programs(0)).to(tl.int32)
        first_row = tl.sum((ends <= start).to(tl.int32), 0)
        last_row = tl.sum((ends < stop).to(tl.int32), 0)
        before = tl.sum(tl.where(ends <= start, pages, 0), 0)
    else:
        first_row = tl.program_id(0)
        last_row = first_row
        one = first_row + tl.arange(0, 1)
        longest = _load_longest(
            lens_ptr, one, one >= 0, stride_len_b, stride_len_n, NEXT_N, LENS_2D, limit
        )
        row_pages = (tl.sum(longest, 0) + (PAGE - 1)) // PAGE
        share = (row_pages + tl.num_programs(1) - 1) // tl.num_programs(1)
        start = tl.program_id(1) * share
        stop = tl.minimum(start + share, row_pages)
        before = 0
    if start >= stop:
        return

    keys = tl.arange(0, PAGES * PAGE)
    slots = keys % PAGE
    key_offsets = slots[:, None] * DIM + tl.arange(0, DIM)[None, :]
    for row in range(first_row, last_row + 1):
        row64 = tl.cast(row, tl.int64)
        length0 = _load_length(
            lens_ptr, row64, stride_len_b, stride_len_n, 0, NEXT_N, LENS_2D, limit
        )
        reach = length0
        if NEXT_N > 1:
            length1 = _load_length(
                lens_ptr, row64, stride_len_b, stride_len_n, 1, NEXT_N, LENS_2D, limit
            )
            reach = tl.maximum(reach, length1)
        if NEXT_N > 2:
            length2 = _load_length(
                lens_ptr, row64, stride_len_b, stride_len_n, 2, NEXT_N, LENS_2D, limit
            )
            reach = tl.maximum(reach, length2)
        if NEXT_N > 3:
            length3 = _load_length(
                lens_ptr, row64, stride_len_b, stride_len_n, 3, NEXT_N, LENS_2D, limit
            )
            reach = tl.maximum(reach, length3)
        row_pages = (tl.maximum(reach, 0) + (PAGE - 1)) // PAGE
        page_lo = tl.maximum(start - before, 0)
        page_hi = tl.minimum(stop - before, row_pages)
        before += row_pages

        # These values do not change in the page loop, which runs zero times for an empty request.
        q_row = q_ptr + row64 * stride_q_b
        w_row = w_ptr + row64 * NEXT_N * stride_w
        out_row = out_ptr + row64 * NEXT_N * stride_out
        table_row = table_ptr + row64 * stride_table
        q0, w0 = _load_query(q_row, w_row, stride_q_h, HEADS, HEADS_PAD, DIM, FP8)
        if NEXT_N > 1:
            q1, w1 = _load_query(
                q_row + stride_q_n, w_row + stride_w, stride_q_h, HEADS, HEADS_PAD, DIM, FP8
            )
        if NEXT_N > 2:
            q2, w2 = _load_query(
                q_row + 2 * stride_q_n, w_row + 2 * stride_w, stride_q_h, HEADS, HEADS_PAD, DIM, FP8
            )
        if NEXT_N > 3:
            q3, w3 = _load_query(
                q_row + 3 * stride_q_n, w_row + 3 * stride_w, stride_q_h, HEADS, HEADS_PAD, DIM, FP8
            )

        # Keys beyond this program's share belong to another program. A share with an odd number of
        # pages ends in the middle of a pair.
        share_end = page_hi * PAGE
        length0 = tl.minimum(length0, share_end)
        if NEXT_N > 1:
            length1 = tl.minimum(length1, share_end)
        if NEXT_N > 2:
            length2 = tl.minimum(length2, share_end)
        if NEXT_N > 3:
            length3 = tl.minimum(length3, share_end)

        # Table entries are loaded one iteration before their use and are carried unchanged. If the loop
        # used an entry before carrying it, Triton would make its load an asynchronous copy, and waiting
        # for this copy waits for all earlier ones. With entries clamped here, no key load overlapped
        # another.
        entry0 = _load_page_entry(table_row, page_lo, page_hi)
        if PAGES == 2:
            entry1 = _load_page_entry(table_row, page_lo + 1, page_hi)
        for page in tl.range(page_lo, page_hi, PAGES, num_stages=STAGES):
            if PAGES == 1:
                page64 = _clamp_page_id(entry0, num_pages)
                k = tl.load(key_ptr + page64 * stride_page + key_offsets)
                scale = tl.load(scale_ptr + page64 * stride_scale + PAGE * DIM // 4 + keys)
            else:
                pages64 = tl.where(
                    keys < PAGE,
                    _clamp_page_id(entry0, num_pages),
                    _clamp_page_id(entry1, num_pages),
                )
                k = tl.load(key_ptr + (pages64 * stride_page)[:, None] + key_offsets)
                scale = tl.load(scale_ptr + pages64 * stride_scale + PAGE * DIM // 4 + slots)
                entry1 = _load_page_entry(table_row, page + 3, page_hi)
            entry0 = _load_page_entry(table_row, page + PAGES, page_hi)
            if not FP8:
                k = decode_e4m3(k)
            columns = page * PAGE + keys
            _store_logits(out_row, columns, _compute_scores(k, q0, w0), scale, length0)
            if NEXT_N > 1:
                _store_logits(
                    out_row + stride_out, columns, _compute_scores(k, q1, w1), scale, length1
                )
            if NEXT_N > 2:
                _store_logits(
                    out_row + 2 * stride_out, columns, _compute_scores(k, q2, w2), scale, length2
                )
            if NEXT_N > 3:
                _store_logits(
                    out_row + 3 * stride_out, columns, _compute_scores(k, q3, w3), scale, length3
                )


@triton.jit
def find_visible_queries(
    ks_ptr, ke_ptr, num_q, key_start, BLOCK_KV: tl.constexpr, CHUNK: tl.constexpr
):
    """Find the first and the last query of this program's chunk (axis 1) that see the key tile.

    If no query sees it, the first is greater than the last.
    """
    queries = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    exists = queries < num_q
    all_ks = tl.load(ks_ptr + queries, mask=exists, other=0)
    all_ke = tl.load(ke_ptr + queries, mask=exists, other=0)
    sees = (all_ks < key_start + BLOCK_KV) & (all_ke > key_start) & (all_ke > all_ks)
    first = tl.min(tl.where(sees, queries, num_q), axis=0)
    last = tl.max(tl.where(sees, queries, -1), axis=0)
    return first, last


@triton.jit
def load_keys(key_ptr, scale_ptr, keys, in_pool, stride_k, DIM: tl.constexpr, FP8: tl.constexpr):
    """Load the key tile of the ragged kernels as an operand [BLOCK_KV, DIM], and its scales."""
    key_offsets = keys.to(tl.int64)[:, None] * stride_k + tl.arange(0, DIM)[None, :]
    if FP8:
        k = tl.load(key_ptr + key_offsets, mask=in_pool[:, None], other=0.0)
    else:
        k = decode_e4m3(tl.load(key_ptr + key_offsets, mask=in_pool[:, None], other=0))
    return k, tl.load(scale_ptr + keys, mask=in_pool, other=0.0)


@triton.jit(do_not_specialize=["num_q", "num_kv", "max_seqlen_k"])
def ragged_mqa_logits_kernel(
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
):
    """Compute ragged logits: a program keeps its key tile and loops over the queries that see the tile.

    Axis 0 of the grid is key tiles, and axis 1 is chunks of queries. A program reads all windows of its
    chunk and visits the queries from the first to the last that sees the tile. For the monotone windows
    of concatenated requests these are exactly the queries that see it. For other windows there may be
    queries between them that do not see it; nothing is stored for these.
    """
    key_start = tl.program_id(0) * BLOCK_KV
    first, last = find_visible_queries(ks_ptr, ke_ptr, num_q, key_start, BLOCK_KV, CHUNK)
    if first > last:
        return

    keys = key_start + tl.arange(0, BLOCK_KV)
    in_pool = keys < num_kv
    k, scale = load_keys(key_ptr, scale_ptr, keys, in_pool, stride_k, DIM, FP8)
    ks = tl.load(ks_ptr + first)
    ke = tl.load(ke_ptr + first)
    for query in tl.range(first, last + 1, num_stages=STAGES):
        query64 = tl.cast(query, tl.int64)
        q, w = _load_query(
            q_ptr + query64 * stride_q_s,
            w_ptr + query64 * stride_w,
            stride_q_h,
            HEADS,
            HEADS_PAD,
            DIM,
            FP8,
        )
        following = tl.minimum(query + 1, last)
        next_ks = tl.load(ks_ptr + following)
        next_ke = tl.load(ke_ptr + following)
        logits = _compute_scores(k, q, w) * scale
        valid = (keys >= ks) & (keys < ke) & in_pool
        columns = keys
        if COMPRESSED:
            columns = keys - ks
            valid = valid & (columns < max_seqlen_k)
        tl.store(out_ptr + query64 * stride_out + columns, logits, mask=valid)
        ks = next_ks
        ke = next_ke


@triton.jit
def _count_request_pages(
    lens_ptr,
    rows,
    batch,
    stride_len_b,
    stride_len_n,
    NEXT_N: tl.constexpr,
    PAGE: tl.constexpr,
):
    """Count the pages that the queries of each request see, int64; 0 beyond the last request."""
    longest = _load_longest(
        lens_ptr,
        rows,
        rows < batch,
        stride_len_b,
        stride_len_n,
        NEXT_N,
        True,
        2147483647 - PAGE,
    )
    return ((longest + (PAGE - 1)) // PAGE).to(tl.int64)


@triton.jit(do_not_specialize=["batch", "stride_len_b", "stride_len_n"])
def paged_schedule_kernel(
    lens_ptr,  # [B] or [B, NEXT_N] int32
    out_ptr,  # [programs, 2] int32
    batch,
    stride_len_b,
    stride_len_n,
    NEXT_N: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the schedule: program s stores (request, page) where share s begins.

    There are as many equal shares as programs, less one. The last program stores the end.
    """
    share = tl.program_id(0)
    shares = tl.num_programs(0) - 1
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((), dtype=tl.int64)
    for base in range(0, batch, BLOCK):
        pages = _count_request_pages(
            lens_ptr, base + lanes, batch, stride_len_b, stride_len_n, NEXT_N, PAGE
        )
        total += tl.sum(pages, 0)
    start = share * total // shares
    row = tl.zeros((), dtype=tl.int32)
    passed = tl.zeros((), dtype=tl.int64)
    before = tl.zeros((), dtype=tl.int64)
    for base in range(0, batch, BLOCK):
        rows = base + lanes
        pages = _count_request_pages(
            lens_ptr, rows, batch, stride_len_b, stride_len_n, NEXT_N, PAGE
        )
        ends = before + tl.cumsum(pages, 0)
        done = (ends <= start) & (rows < batch)
        row += tl.sum(done.to(tl.int32), 0)
        passed += tl.sum(tl.where(done, pages, 0), 0)
        before += tl.sum(pages, 0)
    tl.store(out_ptr + share * 2, row)
    tl.store(out_ptr + share * 2 + 1, (start - passed).to(tl.int32))
