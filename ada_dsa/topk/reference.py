"""Torch oracles of top-k, for CPU tensors and for tests (they run on any device)."""

from __future__ import annotations

import torch

NAN_KEY = -(2**31) + 1


def encode_keys(score: torch.Tensor) -> torch.Tensor:
    """Convert float32 scores to int32 keys in the same order; -0 equals +0, NaN is lower than -inf."""
    bits = score.contiguous().view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    key = torch.where(bits < 0, -magnitude - 1, bits)
    key = torch.where(magnitude == 0, torch.zeros_like(key), key)
    return torch.where(score.isnan(), torch.full_like(key, NAN_KEY), key)


def fast_topk_v2(
    score: torch.Tensor,
    lengths: torch.Tensor,
    topk: int,
    row_starts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the oracle of :func:`ada_dsa.fast_topk_v2`."""
    rows, width = score.shape
    out = torch.full((rows, topk), -1, dtype=torch.int32, device=score.device)
    starts = [0] * rows if row_starts is None else row_starts.clamp(0, width).tolist()
    for row, (length, start) in enumerate(zip(lengths.tolist(), starts, strict=True)):
        n = max(0, length)
        if n > topk:
            n = min(n, width - start)
        if n <= topk:
            out[row, :n] = torch.arange(n, device=score.device)
            continue
        keys = encode_keys(score[row, start : start + n])
        best = torch.sort(keys, descending=True, stable=True).indices[:topk]
        out[row] = best.sort().values.to(torch.int32)
    return out


def fast_topk_transform_fused(
    score: torch.Tensor,
    lengths: torch.Tensor,
    page_table_size_1: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    topk: int,
    row_starts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the oracle of :func:`ada_dsa.fast_topk_transform_fused`."""
    local = fast_topk_v2(score, lengths, topk, row_starts).to(torch.int64)
    rows, tables = score.shape[0], cu_seqlens_q.shape[0] - 1
    which = torch.arange(rows, device=score.device)
    if rows != tables:
        which = torch.searchsorted(cu_seqlens_q[1:tables].contiguous(), which, right=True)
    width = page_table_size_1.shape[1]
    known = (local >= 0) & (local < width)
    if rows == 0 or width == 0:
        return torch.full((rows, topk), -1, dtype=torch.int32, device=score.device)
    picked = page_table_size_1[which[:, None], local.clamp(0, width - 1)]
    return torch.where(known, picked, -1).to(torch.int32)


def fast_topk_transform_ragged_fused(
    score: torch.Tensor,
    lengths: torch.Tensor,
    topk_indices_offset: torch.Tensor,
    topk: int,
    row_starts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the oracle of :func:`ada_dsa.fast_topk_transform_ragged_fused`."""
    local = fast_topk_v2(score, lengths, topk, row_starts)
    return torch.where(local >= 0, local + topk_indices_offset[:, None], local)
