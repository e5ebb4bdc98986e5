"""Make Triton's interpreter exact for bfloat16 and float8_e4m3fn.

With ``TRITON_INTERPRET=1`` Triton runs kernels in numpy, which has neither type: it stores their
bits in uint16 / uint8 arrays. Three operations then go wrong without any error (seen with Triton
3.6 to 3.9): a bfloat16 dot multiplies the raw bits as integers, bfloat16 arithmetic adds bit
patterns, and conversions truncate (bfloat16) or lose the rounding carry (float8). ``install()``
replaces these methods. ``test_interpreter_repair_interp.py`` asserts that the results equal torch's, bit
for bit.

The repair decodes to float32, computes there, and rounds once to nearest even. That is what the
hardware does for the operations covered: a product of two bfloat16 numbers is exact in float32,
and for a sum the double rounding changes nothing because 24 >= 2 * 8 + 2 significand bits.
The interpreter has no inline assembly. The three instructions that the kernels use are emulated in
numpy, each after its description in the PTX ISA.

float32 -> float8_e4m3fn saturates to +-448 and keeps NaN, as ``cvt.rn.satfinite.e4m3x2.f32`` does
(PTX ISA, "cvt") and as torch does.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as interpreter


def _e4m3_magnitudes() -> np.ndarray:
    """The 127 finite non-negative e4m3fn values in code order (OCP 8-bit floating point, E4M3)."""
    code = np.arange(0x7F)
    exponent, mantissa = code >> 3, code & 7
    normal = np.ldexp(1.0 + mantissa / 8.0, exponent - 7)
    return np.where(exponent == 0, np.ldexp(mantissa / 8.0, -6), normal)


_MAGNITUDES = _e4m3_magnitudes()
_MIDPOINTS = (_MAGNITUDES[1:] + _MAGNITUDES[:-1]) / 2
_E4M3_TABLE = np.concatenate([_MAGNITUDES, [np.nan], -_MAGNITUDES, [np.nan]]).astype(np.float32)


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    # Adding just under half a unit, plus the lowest kept bit, rounds to nearest, ties to even.
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    out = (rounded >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), out)


def e4m3_to_f32(codes: np.ndarray) -> np.ndarray:
    return _E4M3_TABLE[codes.astype(np.intp)]


def f32_to_e4m3(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        magnitude = np.minimum(np.abs(np.asarray(values, dtype=np.float64)), 448.0)
    code = np.searchsorted(_MIDPOINTS, magnitude, side="left")  # a tie goes to the lower code
    tie = _MIDPOINTS[np.minimum(code, len(_MIDPOINTS) - 1)] == magnitude
    code = np.where(tie & (code % 2 == 1), code + 1, code)
    code = np.where(np.isnan(values), 0x7F, code)
    return (code | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)


def _pair(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Two float16 values as one int32, the first in the lower half."""
    bits = [np.ascontiguousarray(half).view(np.uint16).astype(np.uint32) for half in (low, high)]
    return (bits[0] | (bits[1] << np.uint32(16))).view(np.int32)


def _halves(pair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bits = np.ascontiguousarray(pair).view(np.uint32)
    low, high = (bits & np.uint32(0xFFFF)), bits >> np.uint32(16)
    return low.astype(np.uint16).view(np.float16), high.astype(np.uint16).view(np.float16)


def _unpack_four(words: np.ndarray) -> tuple[np.ndarray, ...]:
    bits = np.ascontiguousarray(words).view(np.uint32)
    codes = [(bits >> np.uint32(8 * n)) & np.uint32(0xFF) for n in range(4)]
    half = [e4m3_to_f32(code).astype(np.float16) for code in codes]
    return _pair(half[0], half[1]), _pair(half[2], half[3])


def _multiply_pairs(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, ...]:
    with np.errstate(all="ignore"):
        low, high = (a * b for a, b in zip(_halves(one), _halves(other), strict=True))
    return (_pair(low, high),)


def _twice(values: np.ndarray) -> tuple[np.ndarray, ...]:
    with np.errstate(all="ignore"):
        half = values.astype(np.float16)
    return (_pair(half, half),)


ASSEMBLY: dict[str, Callable[..., tuple[np.ndarray, ...]]] = {
    "cvt.rn.f16x2.e4m3x2": _unpack_four,
    "mul.rn.f16x2": _multiply_pairs,
    "cvt.rn.f16x2.f32": _twice,
}
"""Emulations of inline assembly, each under an instruction that only its piece of assembly contains."""

_DECODE: dict[Any, Callable[[np.ndarray], np.ndarray]] = {
    tl.bfloat16: bf16_to_f32,
    tl.float8e4nv: e4m3_to_f32,
}
_ENCODE: dict[Any, Callable[[np.ndarray], np.ndarray]] = {
    tl.bfloat16: f32_to_bf16,
    tl.float8e4nv: f32_to_e4m3,
}


def _decoded(handle: Any) -> np.ndarray:
    decode = _DECODE.get(handle.dtype.scalar)
    return decode(handle.data) if decode else handle.data


def _is_repaired(dtype: Any) -> bool:
    return dtype.scalar in _DECODE


def install() -> None:
    """Replace the faulty methods of ``triton.runtime.interpreter``; a second call does nothing."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "_narrow_floats_repaired", False):
        return
    handle_type = interpreter.TensorHandle
    original_cast = builder.cast_impl
    original_fp_to_fp = builder.create_fp_to_fp
    original_binary = builder.binary_op
    original_ternary = builder.ternary_op

    def convert(src: Any, dst_type: Any) -> Any:
        dst = dst_type.scalar
        encode = _ENCODE.get(dst)
        values = _decoded(src)
        if encode:
            return handle_type(encode(values.astype(np.float32)), dst)
        return handle_type(values.astype(interpreter._get_np_dtype(dst)), dst)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if _is_repaired(src.dtype) or _is_repaired(dst_type):
            return convert(src, dst_type)
        return original_cast(self, src, dst_type)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if _is_repaired(src.dtype) or _is_repaired(dst_type):
            return convert(src, dst_type)
        return original_fp_to_fp(self, src, dst_type, rounding_mode)

    def rounded(output: np.ndarray, dtype: Any) -> Any:
        # Comparisons come through here too and stay boolean.
        if output.dtype == np.bool_:
            return handle_type(output, dtype.scalar)
        return handle_type(_ENCODE[dtype.scalar](output), dtype.scalar)

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if _is_repaired(lhs.dtype):
            with np.errstate(all="ignore"):  # inf and NaN are results here, as on the hardware
                return rounded(op(_decoded(lhs), _decoded(rhs)), lhs.dtype)
        return original_binary(self, lhs, rhs, op)

    def ternary_op(self: Any, first: Any, second: Any, third: Any, op: Any) -> Any:
        # `where` only moves bits and stays on the original path.
        if _is_repaired(third.dtype) and op is not np.where:
            values = op(_decoded(first), _decoded(second), _decoded(third))
            return rounded(values, third.dtype)
        return original_ternary(self, first, second, third, op)

    def create_dot(
        self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any
    ) -> Any:
        product = np.matmul(_decoded(a), _decoded(b), dtype=d.data.dtype)
        return handle_type(product + d.data, d.dtype.scalar)

    def create_inline_asm(
        self: Any, asm: str, constraints: str, values: Any, types: Any, is_pure: bool, pack: int
    ) -> Any:
        (run,) = (function for name, function in ASSEMBLY.items() if name in asm)
        results = [handle_type(data, tl.int32) for data in run(*(one.data for one in values))]
        return SimpleNamespace(get_result=results.__getitem__)

    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp
    builder.binary_op = binary_op
    builder.ternary_op = ternary_op
    builder.create_dot = create_dot
    builder.create_inline_asm = create_inline_asm
    builder._narrow_floats_repaired = True
