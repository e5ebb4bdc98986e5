"""Torch oracles of packing and unpacking latent rows. They run on any device."""

from __future__ import annotations

import torch

from .layout import (
    FP8_MAX,
    NOPE_BYTES,
    NOPE_DIM,
    NUM_TILES,
    ROW_DIM,
    TILE,
    KvLayout,
)


def pack_rows(k_nope: torch.Tensor, k_rope: torch.Tensor) -> torch.Tensor:
    """Quantise rows to the packed format.

    For each 128 values ``scale = amax / 448``, and a code is e4m3 of ``value * (1 / scale)``. sglang's
    ``_quantize_k_cache_fast_kernel`` computes the same. If ``1 / scale`` is infinite (all values of the
    tile are zero or below the normal range), the codes are 0, while sglang's are NaN.

    Args:
        k_nope: bfloat16 [N, 512].
        k_rope: bfloat16 [N, 64], or [N, 0] for rows without a rotary part.

    Returns:
        uint8 [N, 656], or [N, 528].
    """
    tiles = k_nope.float().unflatten(1, (NUM_TILES, TILE))
    scale = tiles.abs().amax(dim=2) / FP8_MAX
    inverse = (1.0 / scale).unsqueeze(2)
    scaled = torch.where(inverse == float("inf"), 0.0, tiles * inverse)
    codes = scaled.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    parts = (codes.flatten(1), scale.contiguous(), k_rope.contiguous())
    return torch.cat([part.view(torch.uint8) for part in parts], dim=1)


def unpack_rows(rows: torch.Tensor) -> torch.Tensor:
    """Unpack rows uint8 [N, 656] to bfloat16 [N, 576]: code times scale in float32, rounded once."""
    return dequantize_rows(rows, KvLayout.PACKED_FP8, torch.float32).to(torch.bfloat16)


def dequantize_rows(rows: torch.Tensor, layout: KvLayout, dtype: torch.dtype) -> torch.Tensor:
    """Convert rows [N, width] of any format to ``dtype`` (float32 or float64) without rounding.

    Returns:
        [N, 576], or [N, 512] if rows have no rotary part.
    """
    if layout is not KvLayout.PACKED_FP8:
        return (rows if layout is KvLayout.BF16 else rows.view(torch.float8_e4m3fn)).to(dtype)
    rows = rows.view(torch.uint8)
    codes = rows[:, :NOPE_DIM].contiguous().view(torch.float8_e4m3fn).to(dtype)
    scale = rows[:, NOPE_DIM:NOPE_BYTES].contiguous().view(torch.float32).to(dtype)
    nope = codes.unflatten(1, (NUM_TILES, TILE)) * scale.unsqueeze(2)
    rope = rows[:, NOPE_BYTES:].contiguous().view(torch.bfloat16)
    return torch.cat([nope.flatten(1), rope.to(dtype)], dim=1)


def unpack_rows_at(rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Unpack the rows ``slots`` (int [N]) of packed rows uint8 [P, 656]; a negative slot gives zeros."""
    out = torch.zeros(slots.shape[0], ROW_DIM, dtype=torch.bfloat16, device=rows.device)
    chosen = slots >= 0
    out[chosen] = unpack_rows(rows[slots[chosen].long()])
    return out


def scatter_rows(
    k_nope: torch.Tensor, k_rope: torch.Tensor, pool: torch.Tensor, slots: torch.Tensor
) -> None:
    """Quantise rows and write them to ``pool`` uint8 [P, 656] at ``slots``; skip negative slots."""
    chosen = slots >= 0
    pool[slots[chosen].long()] = pack_rows(k_nope[chosen], k_rope[chosen])
