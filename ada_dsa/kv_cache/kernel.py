"""Triton kernels that pack latent rows to the 656-byte format and unpack them.

One program handles TOKENS rows, all four tiles and the rotary part of each, so that a row costs
one pass and a scatter into the pool needs no second launch. Row offsets are int64: a pool passes
2^31 bytes at 3.3 million rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

FP8_MAX = tl.constexpr(448.0)


@triton.jit
def encode_e4m3_bytes(x):
    """float32 within +-448 -> e4m3 code as uint8, to nearest even, without the fp8 type."""
    bits = x.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # Normal range: drop 20 mantissa bits with rounding, then rebias the exponent (127 -> 7).
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - 960
    # Below 2^-6 the step is 2^-9: adding 1.5 * 2^23 makes the float adder round to that step.
    stepped = tl.abs(x) * 512.0 + 12582912.0
    small = stepped.to(tl.uint32, bitcast=True) & 0xFF
    code = tl.where(magnitude < 0x3C800000, small, normal)
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def decode_e4m3_bytes(codes):
    """uint8 e4m3 codes -> float32, exact, without the fp8 type (Triton has it from sm_89 on)."""
    wide = codes.to(tl.uint32)
    magnitude = wide & 0x7F
    # Exponent and mantissa placed into the float32 fields are too small by 2^(127 - 7); the
    # product restores that and is exact for subnormals as well.
    value = (magnitude << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36
    value = tl.where(magnitude == 0x7F, float("nan"), value)
    return tl.where(wide >= 0x80, -value, value)


@triton.jit
def pack_rows_kernel(
    k_nope,  # bfloat16 [N, 512]
    k_rope,  # bfloat16 [N, 64]
    codes,  # e4m3 (or uint8) [., 512]
    scales,  # float32 [., 4]
    rope,  # bfloat16 [., 64]
    slots,  # int [N], read only when SCATTER
    num_rows,
    k_nope_stride,
    k_rope_stride,
    codes_stride,
    scales_stride,
    rope_stride,
    SCATTER: tl.constexpr,
    BYTES: tl.constexpr,
    TOKENS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    ok = row < num_rows
    if SCATTER:
        target = tl.load(slots + row, mask=ok, other=-1).to(tl.int64)
        ok = ok & (target >= 0)
    else:
        target = row

    tile = tl.arange(0, 4)
    cols = tile[None, :, None] * 128 + tl.arange(0, 128)[None, None, :]
    source = k_nope + row[:, None, None] * k_nope_stride + cols
    x = tl.load(source, mask=ok[:, None, None], other=0.0).to(tl.float32)
    # The same operations in the same order as sglang's kernel, so the bytes agree; the guard
    # against 0 * inf is the only difference.
    scale = tl.max(tl.abs(x), axis=2) / FP8_MAX
    inverse = (1.0 / scale)[:, :, None]
    scaled = tl.clamp(tl.where(inverse == float("inf"), 0.0, x * inverse), -FP8_MAX, FP8_MAX)
    quantised = encode_e4m3_bytes(scaled) if BYTES else scaled.to(codes.dtype.element_ty)
    tl.store(codes + target[:, None, None] * codes_stride + cols, quantised, mask=ok[:, None, None])
    tl.store(scales + target[:, None] * scales_stride + tile[None, :], scale, mask=ok[:, None])

    dr = tl.arange(0, 64)
    r = tl.load(k_rope + row[:, None] * k_rope_stride + dr[None, :], mask=ok[:, None])
    tl.store(rope + target[:, None] * rope_stride + dr[None, :], r, mask=ok[:, None])


@triton.jit
def unpack_rows_kernel(
    codes,  # e4m3 (or uint8) [., 512]
    scales,  # float32 [., 4]
    rope,  # bfloat16 [., 64]
    out,  # bfloat16 [N, 576]
    slots,  # int [N], read only when GATHER
    num_rows,
    codes_stride,
    scales_stride,
    rope_stride,
    GATHER: tl.constexpr,
    BYTES: tl.constexpr,
    TOKENS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    ok = row < num_rows
    source = tl.load(slots + row, mask=ok, other=-1).to(tl.int64) if GATHER else row
    read = ok & (source >= 0)

    tile = tl.arange(0, 4)
    cols = tile[None, :, None] * 128 + tl.arange(0, 128)[None, None, :]
    code = tl.load(
        codes + source[:, None, None] * codes_stride + cols, mask=read[:, None, None], other=0.0
    )
    scale = tl.load(
        scales + source[:, None] * scales_stride + tile[None, :], mask=read[:, None], other=0.0
    )
    value = decode_e4m3_bytes(code) if BYTES else code.to(tl.float32)
    value = (value * scale[:, :, None]).to(tl.bfloat16)
    tl.store(out + row[:, None, None] * 576 + cols, value, mask=ok[:, None, None])

    dr = tl.arange(0, 64)
    r = tl.load(rope + source[:, None] * rope_stride + dr[None, :], mask=read[:, None], other=0.0)
    tl.store(out + row[:, None] * 576 + 512 + dr[None, :], r, mask=ok[:, None])
