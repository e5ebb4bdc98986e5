"""Torch oracle of sparse MLA. It runs on any device."""

from __future__ import annotations

import torch

from ..kv_cache.layout import NOPE_DIM, KvLayout
from ..kv_cache.reference import dequantize_rows

_ROWS_AT_ONCE = 1 << 16  # gathered rows held at a time: 150 MB in float32


def sparse_mla(
    q: torch.Tensor,
    rows: torch.Tensor,
    layout: KvLayout,
    indices: torch.Tensor,
    sm_scale: float,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the attention of each token over the rows that its index list names.

    All arithmetic is in ``dtype``. Rows are converted to ``dtype`` without rounding, while
    ``dequantize_k_cache`` rounds them to bfloat16. A negative index is absent. A repeated index counts
    each time.

    Args:
        q: [T, H, 576], or [T, H, 512] if rows have no rotary part.
        rows: [N, width], format ``layout``. Rows that no index names are never read.
        indices: int [T, topk].
        sm_scale: factor on the scores.
        dtype: float32 or float64.

    Returns:
        ``dtype`` [T, H, 512] and the natural log-sum-exp of the scaled scores, ``dtype`` [T, H];
        a token without a present index gives zeros and -inf.
    """
    tokens, heads, _ = q.shape
    out = torch.zeros(tokens, heads, NOPE_DIM, dtype=dtype, device=q.device)
    lse = torch.full((tokens, heads), float("-inf"), dtype=dtype, device=q.device)
    if rows.shape[0] == 0 or indices.shape[1] == 0:
        return out, lse
    step = max(1, _ROWS_AT_ONCE // indices.shape[1])
    for first in range(0, tokens, step):
        part = slice(first, first + step)
        index = indices[part].long()
        absent = index < 0
        # One row per distinct index, so that an absent index reads no row.
        named, where = index.clamp(min=-1).unique(return_inverse=True)
        keys = torch.zeros(len(named), q.shape[2], dtype=dtype, device=q.device)
        present = named >= 0
        keys[present] = dequantize_rows(rows[named[present]], layout, dtype)
        gathered = keys[where]
        scores = torch.einsum("thd,tkd->thk", q[part].to(dtype), gathered) * sm_scale
        scores = scores.masked_fill(absent[:, None, :], float("-inf"))
        total = scores.logsumexp(dim=2)
        empty = absent.all(dim=1)[:, None]
        weights = (scores - total.masked_fill(empty, 0.0)[:, :, None]).exp()
        out[part] = torch.einsum("thk,tkd->thd", weights, gathered[..., :NOPE_DIM])
        lse[part] = total
    return out, lse
