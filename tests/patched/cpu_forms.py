"""CPU versions of those Triton helpers of sglang whose results a test needs."""

from __future__ import annotations

import torch


def seqlens_expand(
    extend_seq_lens: torch.Tensor, seq_lens: torch.Tensor, total_len: int, max_q_len: int
) -> torch.Tensor:
    """``seqlens_expand_triton`` of 0.5.10 and later: the number of keys that each new token may see."""
    pairs = zip(extend_seq_lens.tolist(), seq_lens.tolist(), strict=True)
    expanded = [torch.arange(n - e + 1, n + 1, dtype=torch.int32) for e, n in pairs]
    return torch.cat(expanded)
