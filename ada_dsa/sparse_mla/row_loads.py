"""Loads of pool rows for sparse MLA, and their conversion to operands of a dot.

fp8 rows are loaded as 32-bit words. Loaded as bytes, each code would occupy a register of its own from one
tile to the next, and Triton would take words apart and put them together again.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Row formats of the pool, see kv_cache.layout.KvLayout.
PACKED_FP8 = tl.constexpr(0)  # 512 e4m3, 4 float32 scales, ROPE bfloat16
RAW_FP8 = tl.constexpr(1)  # 512 + ROPE e4m3
BF16 = tl.constexpr(2)  # 512 + ROPE bfloat16


@triton.jit
def _decode_e4m3_pair(codes):
    """Decode two e4m3 codes, one in the low byte of each half of an int32, to float16 times 2^-8.

    NaN stays NaN.
    """
    magnitude = codes & 0x7F007F
    bits = ((codes & 0x800080) << 8) | (magnitude << 7)
    # Adding one to the seven bits of NaN gives a carry. Moved to bit 14, it makes the exponent all ones,
    # and the value NaN again.
    return bits | (((magnitude + 0x10001) & 0x800080) << 7)


@triton.jit
def _decode_e4m3_words(words, BYTES: tl.constexpr):
    """Decode int32 words of four e4m3 codes to two int32 of two float16 each, exactly.

    With BYTES the float16 are 2^-8 times the values, and no fp8 instruction is used.
    """
    if BYTES:
        first = _decode_e4m3_pair((words & 0xFF) | ((words & 0xFF00) << 8))
        second = _decode_e4m3_pair(((words >> 16) & 0xFF) | ((words >> 8) & 0xFF0000))
    else:
        first, second = tl.inline_asm_elementwise(
            """{
            .reg .b16 low, high;
            mov.b32 {low, high}, $2;
            cvt.rn.f16x2.e4m3x2 $0, low;
            cvt.rn.f16x2.e4m3x2 $1, high;
            }""",
            "=r,=r,r",
            [words],
            dtype=(tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
    return first, second


@triton.jit
def _pack_float16_twice(value):
    """Convert float32 to float16 and store it in both halves of an int32."""
    return tl.inline_asm_elementwise(
        "cvt.rn.f16x2.f32 $0, $1, $1;", "=r,f", [value], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _multiply_float16_pairs(pair, factors):
    """Multiply pairs of float16, each pair held in an int32."""
    return tl.inline_asm_elementwise(
        "mul.rn.f16x2 $0, $1, $2;", "=r,r,r", [pair, factors], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def deinterleave_chunk(values):
    """Reorder [H, 128] from the order of latent values to that of a converted chunk.

    Q and the accumulators use this order too. A thread loads 16 codes. The first eight go to the first
    half of the tile's row, and the others to the second half. Neighbouring threads then store to
    neighbouring addresses of shared memory, without bank conflicts.
    """
    rows: tl.constexpr = values.shape[0]
    reordered = tl.permute(tl.reshape(values, [rows, 8, 2, 8]), 0, 2, 1, 3)
    return tl.reshape(reordered, [rows, 128])


@triton.jit
def interleave_chunk(sums, SWAP: tl.constexpr):
    """Reorder [H, 128], or [128, H] if SWAP, back to the order of latent values.

    This is the inverse of :func:`deinterleave_chunk`.
    """
    if SWAP:
        heads: tl.constexpr = sums.shape[1]
        reordered = tl.permute(tl.reshape(sums, [2, 8, 8, heads]), 1, 0, 2, 3)
        result = tl.reshape(reordered, [128, heads])
    else:
        rows: tl.constexpr = sums.shape[0]
        reordered = tl.permute(tl.reshape(sums, [rows, 2, 8, 8]), 0, 2, 1, 3)
        result = tl.reshape(reordered, [rows, 128])
    return result


@triton.jit
def _unpack_float16(first, second, HALVES: tl.constexpr):
    """Unpack two int32 [N, M] of two float16 each to float16 [N, 4 M].

    With HALVES the result has the order of :func:`deinterleave_chunk`. The result is built with
    ``tl.where``: after ``tl.join`` Triton gives the operand of a dot a layout that ldmatrix cannot load.
    """
    rows: tl.constexpr = first.shape[0]
    words: tl.constexpr = first.shape[1]
    parts: tl.constexpr = 2 if HALVES else 1
    shape: tl.constexpr = [rows, words // (2 * parts), parts, 2, 1]
    place = tl.arange(0, 4)[None, None, None, None, :]
    word = tl.where(place < 2, tl.reshape(first, shape), tl.reshape(second, shape))
    each = (word >> ((place & 1) * 16)).to(tl.uint16).to(tl.float16, bitcast=True)
    return tl.reshape(tl.permute(each, 0, 2, 1, 3, 4), [rows, 4 * words])


@triton.jit
def convert_chunk(raw, ratio, LAYOUT: tl.constexpr, BYTES: tl.constexpr):
    """Convert a chunk of latent values from its stored form to an operand [BLOCK_N, 128].

    ``ratio`` is the chunk's scale divided by the row's largest scale.
    """
    if LAYOUT == BF16:
        result = raw
    else:
        first, second = _decode_e4m3_words(raw, BYTES)
        if LAYOUT == PACKED_FP8:
            factors = _pack_float16_twice(ratio)[:, None]
            first = _multiply_float16_pairs(first, factors)
            second = _multiply_float16_pairs(second, factors)
        result = _unpack_float16(first, second, True)
    return result


@triton.jit
def convert_rope(raw, LAYOUT: tl.constexpr, BYTES: tl.constexpr):
    """Convert the rotary part from its stored form to an operand [BLOCK_N, 64]."""
    if LAYOUT == PACKED_FP8:
        shape: tl.constexpr = [raw.shape[0], raw.shape[1], 1]
        each = tl.reshape(raw, shape) >> (tl.arange(0, 2) * 16)[None, None, :]
        each = each.to(tl.uint16).to(tl.bfloat16, bitcast=True)
        result = tl.reshape(each, [raw.shape[0], 2 * raw.shape[1]])
    elif LAYOUT == RAW_FP8:
        first, second = _decode_e4m3_words(raw, BYTES)
        result = _unpack_float16(first, second, False)
    else:
        result = raw
    return result


@triton.jit
def normalize_scales(valid, s0, s1, s2, s3, LAYOUT: tl.constexpr):
    """Return a row's largest scale, -inf if the row is absent, and each chunk's ratio to it."""
    if LAYOUT == PACKED_FP8:
        largest = tl.maximum(tl.maximum(s0, s1), tl.maximum(s2, s3))
        inverse = tl.where(largest == 0.0, 0.0, 1.0 / largest)
        s0, s1, s2, s3 = s0 * inverse, s1 * inverse, s2 * inverse, s3 * inverse
    else:
        largest = s0
    return tl.where(valid, largest, float("-inf")), s0, s1, s2, s3


@triton.jit
def _load_nope(kv, rows, valid, chunk: tl.constexpr, LAYOUT: tl.constexpr, WIDTH: tl.constexpr):
    """Load chunk ``chunk`` (128 values) of the selected rows in its stored form, and its scale."""
    scale = tl.full(rows.shape, 1.0, tl.float32)
    if LAYOUT == PACKED_FP8:
        ptrs = kv + rows[:, None] * WIDTH + (chunk * 32 + tl.arange(0, 32))[None, :]
        scale = tl.load(kv + rows * WIDTH + (128 + chunk), mask=valid, other=0)
        scale = scale.to(tl.float32, bitcast=True)
    elif LAYOUT == RAW_FP8:
        ptrs = kv + rows[:, None] * WIDTH + (chunk * 32 + tl.arange(0, 32))[None, :]
    else:
        ptrs = kv + rows[:, None] * WIDTH + (chunk * 128 + tl.arange(0, 128))[None, :]
    return tl.load(ptrs, mask=valid[:, None], other=0), scale


@triton.jit
def _load_rope(kv, rows, valid, LAYOUT: tl.constexpr, WIDTH: tl.constexpr):
    """Load the rotary part of the selected rows, 64 values, in its stored form."""
    if LAYOUT == PACKED_FP8:
        ptrs = kv + rows[:, None] * WIDTH + (132 + tl.arange(0, 32))[None, :]
    elif LAYOUT == RAW_FP8:
        ptrs = kv + rows[:, None] * WIDTH + (128 + tl.arange(0, 16))[None, :]
    else:
        ptrs = kv + rows[:, None] * WIDTH + (512 + tl.arange(0, 64))[None, :]
    return tl.load(ptrs, mask=valid[:, None], other=0)


@triton.jit
def load_rows(kv, index, LAYOUT: tl.constexpr, ROPE: tl.constexpr):
    """Load the selected rows in their stored form; a negative index reads nothing and gives zeros.

    ``kv`` points to int32 words if rows are fp8 (with rope 164 words per packed row, 144 per raw row), and
    to bfloat16 values otherwise (576 per row). Without rope (ROPE is 0) the rotary part is a placeholder.
    """
    # Words or values of a row.
    NOPE: tl.constexpr = 132 if LAYOUT == PACKED_FP8 else 128 if LAYOUT == RAW_FP8 else 512
    EACH: tl.constexpr = 2 if LAYOUT == PACKED_FP8 else 4 if LAYOUT == RAW_FP8 else 1
    WIDTH: tl.constexpr = NOPE + ROPE // EACH
    valid = index >= 0
    rows = index.to(tl.int64)
    r0, s0 = _load_nope(kv, rows, valid, 0, LAYOUT, WIDTH)
    r1, s1 = _load_nope(kv, rows, valid, 1, LAYOUT, WIDTH)
    r2, s2 = _load_nope(kv, rows, valid, 2, LAYOUT, WIDTH)
    r3, s3 = _load_nope(kv, rows, valid, 3, LAYOUT, WIDTH)
    rr = _load_rope(kv, rows, valid, LAYOUT, WIDTH) if ROPE else s0
    return valid, r0, r1, r2, r3, rr, s0, s1, s2, s3
