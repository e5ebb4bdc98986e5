"""The repaired interpreter equals torch bit for bit, through real Triton kernels, and so does what makes
it faster (``interpreter_speed``): a file of its own would start one more process.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from ada_dsa.sparse_mla.row_loads import (
    _decode_e4m3_words,
    _multiply_float16_pairs,
    _pack_float16_twice,
    _unpack_float16,
)


@triton.jit
def _words_kernel(words, factor, dst, BYTES: tl.constexpr, COUNT: tl.constexpr):
    """Widen [COUNT, 32] words of four codes, as a kernel widens a chunk of a packed row; one ``factor`` a
    row.
    """
    row, column = tl.arange(0, COUNT), tl.arange(0, 32)
    first, second = _decode_e4m3_words(tl.load(words + row[:, None] * 32 + column[None, :]), BYTES)
    factors = _pack_float16_twice(tl.load(factor + row))[:, None]
    wide = _unpack_float16(
        _multiply_float16_pairs(first, factors), _multiply_float16_pairs(second, factors), False
    )
    tl.store(dst + row[:, None] * 128 + tl.arange(0, 128)[None, :], wide)


@triton.jit
def _cast_kernel(src, dst, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(src + offs, mask=offs < n)
    tl.store(dst + offs, x.to(dst.dtype.element_ty), mask=offs < n)


@triton.jit
def _binary_kernel(a, b, dst, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(a + offs, mask=offs < n)
    y = tl.load(b + offs, mask=offs < n)
    if OP == "add":
        z = x + y
    elif OP == "sub":
        z = x - y
    else:
        z = x * y
    tl.store(dst + offs, z, mask=offs < n)


@triton.jit
def _dot_kernel(a, b, dst, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    x = tl.load(a + m[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * N + n[None, :])
    tl.store(dst + m[:, None] * N + n[None, :], tl.dot(x, y))


@triton.jit
def _largest(a, at, b, bt):
    later = b > a
    return tl.where(later, b, a), tl.where(later, bt, at)


@triton.jit
def _reduce_kernel(
    src, value, place, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXIS: tl.constexpr
):
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    at = row * COLUMNS + column
    most, where = tl.reduce((tl.load(src + at), at), AXIS, _largest)
    out = tl.arange(0, ROWS if AXIS == 1 else COLUMNS)
    tl.store(value + out, most)
    tl.store(place + out, where)


def _bits(t: torch.Tensor) -> torch.Tensor:
    return t.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[t.element_size()])


def _assert_same_bits(got: torch.Tensor, want: torch.Tensor) -> None:
    nan = want.float().isnan()
    assert torch.equal(got.float().isnan(), nan)
    assert torch.equal(_bits(got)[~nan], _bits(want)[~nan])


def _cast(src: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    dst = torch.empty(src.shape, dtype=dtype)
    n = src.numel()
    _cast_kernel[(triton.cdiv(n, 4096),)](src, dst, n, BLOCK=4096)
    return dst


def _float32_samples() -> torch.Tensor:
    """Random bit patterns, every e4m3 and bfloat16 neighbourhood, and the special values."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 65_536, dtype=np.uint32).view(np.float32)
    e4m3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    mid = (e4m3[:126] + e4m3[1:127]) / 2
    near = np.concatenate([mid, np.nextafter(mid, 0), np.nextafter(mid, np.float32(1e9)), e4m3])
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 464, 464.1, 1e4, 1e-45, 2**-10], "f4")
    return torch.from_numpy(np.concatenate([bits, near, -near, special]).astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_float32_narrows_like_torch(dtype: torch.dtype) -> None:
    x = _float32_samples()
    _assert_same_bits(_cast(x, dtype), x.to(dtype))


def test_every_narrow_value_widens_like_torch() -> None:
    bf16 = torch.arange(65_536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    e4m3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    _assert_same_bits(_cast(bf16, torch.float32), bf16.float())
    _assert_same_bits(_cast(e4m3, torch.float32), e4m3.float())
    _assert_same_bits(_cast(e4m3, torch.bfloat16), e4m3.to(torch.bfloat16))


def test_integers_become_bfloat16_values_not_bit_patterns() -> None:
    x = torch.arange(-300, 300, dtype=torch.int32)
    _assert_same_bits(_cast(x, torch.bfloat16), x.to(torch.bfloat16))
    _assert_same_bits(
        _cast(x.to(torch.bfloat16), torch.int32), x.to(torch.bfloat16).to(torch.int32)
    )


@pytest.mark.parametrize("op", ["add", "sub", "mul"])
def test_bfloat16_arithmetic_like_torch(op: str) -> None:
    rng = np.random.default_rng(1)
    a, b = (
        torch.from_numpy(rng.integers(-32768, 32768, 20_000, dtype=np.int16)).view(torch.bfloat16)
        for _ in range(2)
    )
    out = torch.empty_like(a)
    _binary_kernel[(5,)](a, b, out, a.numel(), OP=op, BLOCK=4096)
    _assert_same_bits(out, getattr(torch, op)(a, b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_dot_of_integers_is_exact(dtype: torch.dtype) -> None:
    """Small integers: every partial sum is exact in float32, so the order of sums cannot matter."""
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randint(-8, 9, s, generator=generator).float() for s in ((16, 64), (64, 32)))
    out = torch.empty(16, 32)
    _dot_kernel[(1,)](a.to(dtype), b.to(dtype), out, M=16, N=32, K=64)
    assert torch.equal(out, a @ b)


def test_dot_of_random_bfloat16_values() -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(s, generator=generator).bfloat16() for s in ((16, 512), (512, 32)))
    out = torch.empty(16, 32)
    _dot_kernel[(1,)](a, b, out, M=16, N=32, K=512)
    want = a.double() @ b.double()
    assert (out - want).norm() / want.norm() < 1e-6


@pytest.mark.parametrize("unit", [1.0, 256.0], ids=["native", "bytes"])
def test_codes_are_widened_and_multiplied_like_torch(unit: float) -> None:
    """The inline assembly and the decoding without it agree for every code and every kind of factor."""
    codes = torch.arange(256, dtype=torch.uint8).view(2, 128)
    factor = torch.tensor([1.0, 0.3333, 1.5, 0.0, 2.0**-20, 7e-8, 65504.0, float("nan")])
    words = codes[torch.arange(16) % 2].contiguous()
    factors = factor.repeat_interleave(2)
    out = torch.empty(16, 128, dtype=torch.float16)
    _words_kernel[(1,)](words.view(torch.int32), factors, out, BYTES=unit != 1.0, COUNT=16)
    half = (words.view(torch.float8_e4m3fn).float() / unit).half()
    _assert_same_bits(out, half * factors.half()[:, None])


@pytest.mark.parametrize("axis", [0, 1])
def test_reduction_with_a_function_of_the_kernel(axis: int) -> None:
    """The largest of each column or row, and where it stands."""
    src = torch.randperm(16 * 32, generator=torch.Generator().manual_seed(4)).to(torch.int32)
    src = src.view(16, 32)
    value, place = (torch.empty(src.shape[1 - axis], dtype=torch.int32) for _ in range(2))
    _reduce_kernel[(1,)](src, value, place, ROWS=16, COLUMNS=32, AXIS=axis)
    assert torch.equal(value, src.amax(axis))
    assert torch.equal(src.view(-1)[place.long()], value)
