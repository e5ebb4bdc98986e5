"""Triton kernels that pack latent rows to the 656-byte format and unpack them.

One program processes TOKENS rows, with all four tiles and the rotary part of each. Therefore a row is read
once, and a scatter into the pool needs no second launch. Row offsets are int64, because a pool exceeds 2^31
bytes at 3.3 million rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

FP8_MAX = tl.constexpr(448.0)


@triton.jit
def encode_e4m3_bytes(x):
    """Encode float32 values within +-448 as e4m3 codes (uint8), rounded to nearest even.

    The fp8 type, which Triton has from sm_89 on, is not used.
    """
    bits = x.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # Normal range: round away 20 mantissa bits, then change the exponent's bias from 127 to 7.
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - 960
    # Below 2^-6 the step is 2^-9. Adding 1.5 * 2^23 makes the float addition round to that step.
    stepped = tl.abs(x) * 512.0 + 12582912.0
    small = stepped.to(tl.uint32, bitcast=True) & 0xFF
    code = tl.where(magnitude < 0x3C800000, small, normal)
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def decode_e4m3_bytes(codes):
    """Decode e4m3 codes (uint8) to float32, exactly and without the fp8 type."""
    wide = codes.to(tl.uint32)
    magnitude = wide & 0x7F
    # Exponent and mantissa in the float32 fields give 2^-(127 - 7) times the value. The product corrects
    # this, and it is exact for subnormals too.
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
    slots,  # int [N], read only if SCATTER
    num_rows,
    k_nope_stride,
    k_rope_stride,
    codes_stride,
    scales_stride,
    rope_stride,
    SCATTER: tl.constexpr,
    BYTES: tl.constexpr,  # codes are encoded as bytes, without the fp8 type
    TOKENS: tl.constexpr,
):
    """Pack TOKENS rows per program; with SCATTER row i goes to slot slots[i], and not if that is negative."""
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
    # These are the operations of sglang's kernel in the same order, so that the bytes are equal. The only
    # difference is the guard against 0 * inf.
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
    slots,  # int [N], read only if GATHER
    num_rows,
    codes_stride,
    scales_stride,
    rope_stride,
    GATHER: tl.constexpr,
    BYTES: tl.constexpr,  # codes are decoded from bytes, without the fp8 type
    TOKENS: tl.constexpr,
):
    """Unpack TOKENS rows per program; with GATHER row i is row slots[i], and zero if that is negative."""
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
