"""Torch oracles of the indexer, for CPU tensors and for tests. They run on any device.

They compute in float32, or in float64 on request. Products of e4m3 values are exact in both.
"""

from __future__ import annotations

import torch

PAGE = 64
DIM = 128
ROW_BYTES = DIM + 4


def unpack_index_pages(kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split index-K pages into keys and scales.

    A page is 64 x 128 e4m3 keys followed by 64 float32 scales. The 132-byte rows in the pool's shape only
    count its bytes: a row does not hold a key and its scale. Source: DeepGEMM's
    ``fp8_paged_mqa_logits``, fused KV cache.

    Args:
        kv_cache: uint8 or e4m3 [pages, 64, 1, 132].

    Returns:
        keys e4m3 [pages, 64, 128], scales float32 [pages, 64].
    """
    flat = kv_cache.reshape(kv_cache.shape[0], PAGE * ROW_BYTES).view(torch.uint8)
    keys = flat[:, : PAGE * DIM].contiguous().view(torch.float8_e4m3fn)
    scales = flat[:, PAGE * DIM :].contiguous().view(torch.float32)
    return keys.view(-1, PAGE, DIM), scales


def expand_query_lengths(context_lens: torch.Tensor, next_n: int) -> torch.Tensor:
    """Expand lengths [B] or [B, next_n] to the number of keys that each query sees, int64 [B, next_n].

    With one length per request, the request's last query sees all keys, and each earlier query sees one
    key fewer. This is causal verification of speculative tokens, as in DeepGEMM with one-dimensional
    ``context_lens``.
    """
    lens = context_lens.to(torch.int64)
    if lens.dim() == 2:
        return lens
    back = torch.arange(next_n - 1, -1, -1, device=lens.device)
    return lens[:, None] - back


def get_paged_mqa_logits_metadata(
    context_lens: torch.Tensor, block_kv: int, num_sms: int
) -> torch.Tensor:
    """Compute where each of ``num_sms`` equal shares of all pages begins: int32 [num_sms + 1, 2]."""
    lens = context_lens.to(torch.int64)
    longest = lens.amax(dim=1) if lens.dim() == 2 else lens
    pages = (longest.clamp(min=0) + block_kv - 1) // block_kv
    ends = torch.cumsum(pages, dim=0)
    total = ends[-1] if ends.numel() else torch.zeros((), dtype=torch.int64, device=lens.device)
    starts = torch.arange(num_sms + 1, device=lens.device) * total // num_sms
    row = torch.searchsorted(ends, starts, right=True)
    begin = torch.cat([ends.new_zeros(1), ends])[row]
    return torch.stack([row, starts - begin], dim=1).to(torch.int32)


def _compute_scores(
    q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Sum w * relu(q . k) over heads: q [N, H, D], k [T, D], weights [N, H]; returns [N, T]."""
    heads = q.shape[1]
    rows = []
    step = max(1, (1 << 24) // max(1, heads * k.shape[0]))  # 64 MB of float32 products at a time
    k_t = k.to(dtype).t()
    for i in range(0, q.shape[0], step):
        dots = q[i : i + step].to(dtype) @ k_t
        gate = weights[i : i + step].to(dtype)
        rows.append(torch.einsum("nht,nh->nt", dots.clamp_(min=0), gate))
    return torch.cat(rows) if rows else torch.empty((0, k.shape[0]), dtype=dtype, device=k.device)


def fp8_paged_mqa_logits(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    max_context_len: int,
    clean_logits: bool = False,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Compute the oracle of :func:`ada_dsa.fp8_paged_mqa_logits`.

    A column that the query does not see is 0, or -inf with ``clean_logits``.

    Returns:
        ``dtype`` [B * next_n, max_context_len].
    """
    batch, next_n = q.shape[:2]
    fill = float("-inf") if clean_logits else 0.0
    out = torch.full((batch * next_n, max_context_len), fill, dtype=dtype, device=q.device)
    keys, scales = unpack_index_pages(kv_cache)
    limit = min(max_context_len, block_tables.shape[1] * PAGE)
    lens = expand_query_lengths(context_lens, next_n).clamp(0, limit).tolist()
    for b in range(batch):
        pages = (max(lens[b]) + PAGE - 1) // PAGE
        if pages == 0:
            continue
        ids = block_tables[b, :pages].to(torch.int64).clamp(0, kv_cache.shape[0] - 1)
        k = keys.view(torch.uint8)[ids].view(torch.float8_e4m3fn).reshape(-1, DIM)
        scale = scales[ids].reshape(-1).to(dtype)
        for j in range(next_n):
            r, n = b * next_n + j, lens[b][j]
            score = _compute_scores(q[b, j : j + 1], k[:n], weights[r : r + 1], dtype)
            out[r, :n] = score[0] * scale[:n]
    return out


def quantize_blocks(blocks: torch.Tensor, round_scales: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the oracle of :func:`ada_dsa.act_quant` for blocks [N, 128].

    Returns:
        e4m3 [N, 128] and float32 [N].
    """
    values = blocks.float()
    scale = values.abs().amax(dim=1).clamp(min=1e-4) * torch.tensor(1.0 / 448.0)
    if round_scales:
        mantissa, exponent = torch.frexp(scale)
        scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
    codes = (values / scale[:, None]).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    return codes, scale


def fp8_mqa_logits(
    q: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    ks: torch.Tensor,
    ke: torch.Tensor,
    clean_logits: bool = False,
    max_seqlen_k: int = 0,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Compute the oracle of :func:`ada_dsa.fp8_mqa_logits`.

    A column outside the query's window is 0, or -inf with ``clean_logits``.

    Returns:
        ``dtype`` [S, Skv], or [S, max_seqlen_k] when that is positive (column 0 is key ``ks``).
    """
    k, k_scale = kv
    fill = float("-inf") if clean_logits else 0.0
    positions = torch.arange(k.shape[0], device=q.device)
    scores = _compute_scores(q, k, weights, dtype) * k_scale.reshape(1, -1).to(dtype)
    visible = (positions >= ks[:, None]) & (positions < ke[:, None])
    full = torch.where(visible, scores, torch.full_like(scores, fill))
    if max_seqlen_k <= 0:
        return full
    columns = torch.arange(max_seqlen_k, device=q.device)
    source = ks[:, None].to(torch.int64) + columns
    present = (source >= 0) & (source < torch.clamp(ke[:, None].to(torch.int64), max=k.shape[0]))
    if k.shape[0] == 0:
        return torch.full((q.shape[0], max_seqlen_k), fill, dtype=dtype, device=q.device)
    picked = torch.gather(full, 1, source.clamp(0, k.shape[0] - 1))
    return torch.where(present, picked, torch.full_like(picked, fill))
