"""Row formats of the MLA latent pool.

A row holds 512 latent ("nope") values, which are both key and value, and 64 rotary values. Models whose
attention has no rotary part (GLM-5.3-Flash) have rows without it.

======== ====== ============ =====================================================================
format   bytes  without rope content
======== ====== ============ =====================================================================
packed   656    528          512 e4m3, 4 float32 scales (one per 128 values), 64 or 0 bfloat16
raw fp8  576                 576 e4m3, no scales
bf16     1152   1024         512 and 64 or 0 bfloat16
======== ====== ============ =====================================================================

Source: sglang's ``calculate_mla_kv_cache_dim`` and ``quant_k_cache.py`` (0.5.9 to 0.5.23), and
FlashMLA's README ("FP8 KV cache layout") for the packed row.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NOPE_DIM = 512
ROPE_DIM = 64
ROW_DIM = NOPE_DIM + ROPE_DIM
TILE = 128  # values that share one scale
NUM_TILES = NOPE_DIM // TILE
NOPE_BYTES = NOPE_DIM + 4 * NUM_TILES  # codes and scales
ROPE_BYTES = 2 * ROPE_DIM
PACKED_BYTES = NOPE_BYTES + ROPE_BYTES
FP8_MAX = 448.0


class KvLayout(enum.IntEnum):
    """Format of a pool's rows. The values are those of the kernels' ``LAYOUT`` parameter."""

    PACKED_FP8 = 0
    RAW_FP8 = 1
    BF16 = 2


def detect_layout(kv: torch.Tensor, name: str = "kv") -> tuple[KvLayout, int]:
    """Return the format of ``kv`` and the rotary values of a row, 64 or 0.

    Both follow from the width of the last dimension and from the dtype.

    Raises:
        ValueError: no format has this width and dtype.
    """
    import torch

    fp8 = kv.dtype in (torch.float8_e4m3fn, torch.uint8)
    width = kv.shape[-1] if kv.dim() else 0
    if fp8 and width in (PACKED_BYTES, NOPE_BYTES):
        return KvLayout.PACKED_FP8, ROPE_DIM if width == PACKED_BYTES else 0
    if fp8 and width == ROW_DIM:
        return KvLayout.RAW_FP8, ROPE_DIM
    if kv.dtype == torch.bfloat16 and width in (ROW_DIM, NOPE_DIM):
        return KvLayout.BF16, width - NOPE_DIM
    dtype = str(kv.dtype).removeprefix("torch.")
    raise ValueError(
        f"{name}: rows of {width} x {dtype}; accepted are {PACKED_BYTES} x float8_e4m3fn or uint8 "
        f"(packed; {NOPE_BYTES} without a rotary part), {ROW_DIM} x float8_e4m3fn or uint8 (raw) and "
        f"{ROW_DIM} x bfloat16 ({NOPE_DIM} without). "
        "The pool's format follows sglang's --kv-cache-dtype (fp8_e4m3 or bfloat16)"
    )
