"""Triton kernel that quantises the indexer's keys and queries in blocks of 128 values."""

from __future__ import annotations

import triton
import triton.language as tl

from ..kv_cache.kernel import FP8_MAX, encode_e4m3_bytes


@triton.jit
def quantize_blocks_kernel(
    x,  # bfloat16 or float32 [N, 128]
    codes,  # e4m3 (or uint8) [N, 128]
    scales,  # float32 [N]
    num_blocks,
    ROUND: tl.constexpr,  # scales are powers of two
    BYTES: tl.constexpr,  # codes are encoded as bytes, without the fp8 type
    BLOCKS: tl.constexpr,
):
    """Quantise BLOCKS blocks per program, one block per warp."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    ok = block < num_blocks
    at = block[:, None] * 128 + tl.arange(0, 128)[None, :]
    value = tl.load(x + at, mask=ok[:, None], other=0.0).to(tl.float32)
    # The floor of sglang's act_quant; it makes a block of zeros harmless.
    scale = tl.maximum(tl.max(tl.abs(value), axis=1), 1e-4) * (1.0 / FP8_MAX)
    if ROUND:
        # The next power of two, from the exponent: the floor keeps it in the normal range.
        bits = scale.to(tl.uint32, bitcast=True)
        scale = ((bits + 0x7FFFFF) & 0xFF800000).to(tl.float32, bitcast=True)
    scaled = tl.clamp(value / scale[:, None], -FP8_MAX, FP8_MAX)
    quantised = encode_e4m3_bytes(scaled) if BYTES else scaled.to(codes.dtype.element_ty)
    tl.store(codes + at, quantised, mask=ok[:, None])
    tl.store(scales + block, scale, mask=ok)
