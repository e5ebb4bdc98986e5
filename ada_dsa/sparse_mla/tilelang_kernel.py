"""Sparse MLA in TileLang for packed fp8 rows, an alternative to the Triton kernel and never the default.

The kernel uses warp-level MMA only (no WGMMA, no tensor memory) and less than 99 KB of shared memory, so that
the same source serves sm_80 to sm_120. A block processes BLOCK_H heads of one token over one split of the
token's index list. It reads a tile of rows once from the pool and dequantises it to bfloat16 in shared
memory. The tile serves as key and as value. With BLOCK_H = 64 a row is read and converted once for 64 heads,
while the Triton kernel does this once per 16 or 32 heads.

This is the only module of the package that imports tilelang (see ``requirements-tilelang.txt``).
"""

# There is no ``from __future__ import annotations`` here, because TileLang reads shapes and types from the
# annotations of the program.
import functools
from typing import Any

import tilelang
import tilelang.language as T  # noqa: N812

LOG2_E = 1.4426950408889634
# Score of an absent row, and the running maximum before the first row. It is below every score and finite,
# so that the difference of two such values is a number.
LOWEST = -(2.0**100)

# Without this, TileLang uses WGMMA for 64 heads on sm_90, which is another program than the one for sm_89.
PASS_CONFIGS: dict[str, Any] = {"tl.disable_wgmma": True}


@functools.cache
def build(*, heads: int, block_h: int, block_n: int, warps: int, split: bool) -> Any:
    """Build the kernel as a TileLang program for any number of tokens, slots, indices and splits.

    The program's arguments are ``q_nope`` bfloat16 [T, H, 512], ``q_rope`` bfloat16 [T, H, 64], three views
    of the pool's memory (``codes`` e4m3 [slots, 656], ``scales`` float32 [slots, 164], ``rope`` bfloat16
    [slots, 328]), ``indices`` int32 [T, topk], ``out``, ``lse``, the number of indices per split, and the
    softmax scale times log2(e).

    Args:
        heads: heads of the query.
        block_h: heads per block, a multiple of 16.
        block_n: rows per tile, a multiple of 16.
        warps: warps per block.
        split: write partial results for the combine kernel. ``out`` is then float32 [T, H, splits, 512] and
            ``lse`` is in base 2, -inf for an empty split. Otherwise ``out`` is bfloat16 [T, H, 512] and
            ``lse`` is the natural logarithm [T, H].
    """
    # A row's offset needs 64 bits: it exceeds 2^31 from 3.3 million slots on.
    tokens, slots, topk, splits = (
        T.dynamic(name, "int64") for name in ("tokens", "slots", "topk", "splits")
    )
    head_blocks = -(-heads // block_h)
    shape = (tokens, heads, splits) if split else (tokens, heads)
    bf16, f32 = "bfloat16", "float32"
    natural = 1.0 if split else 1 / LOG2_E
    # Both products divide heads among warps in the same way, so that the values of a head stay in the
    # registers of one warp.
    by_rows = T.GemmWarpPolicy.FullRow

    @T.prim_func
    def sparse_mla_tilelang(
        q_nope: T.Tensor((tokens, heads, 512), bf16),
        q_rope: T.Tensor((tokens, heads, 64), bf16),
        codes: T.Tensor((slots, 656), "float8_e4m3fn"),
        scales: T.Tensor((slots, 164), f32),
        rope: T.Tensor((slots, 328), bf16),
        indices: T.Tensor((tokens, topk), "int32"),
        out: T.Tensor((*shape, 512), f32 if split else bf16),
        lse: T.Tensor(shape, f32),
        split_len: T.int32,
        scale_log2: T.float32,
    ):
        with T.Kernel(tokens * head_blocks, splits if split else 1, threads=32 * warps) as (bx, by):
            q_s = T.alloc_shared((block_h, 512), bf16)
            q_rope_s = T.alloc_shared((block_h, 64), bf16)
            k_s = T.alloc_shared((block_n, 512), bf16)
            k_rope_s = T.alloc_shared((block_n, 64), bf16)
            p_s = T.alloc_shared((block_h, block_n), bf16)
            row = T.alloc_shared((block_n,), "int32")
            score = T.alloc_fragment((block_h, block_n), f32)
            acc = T.alloc_fragment((block_h, 512), f32)
            top = T.alloc_fragment((block_h,), f32)
            before = T.alloc_fragment((block_h,), f32)
            decay = T.alloc_fragment((block_h,), f32)
            part = T.alloc_fragment((block_h,), f32)
            total = T.alloc_fragment((block_h,), f32)

            token = bx // head_blocks
            first = (bx % head_blocks) * block_h
            start = by * split_len
            stop = T.min(start + split_len, topk)
            for h, d in T.Parallel(block_h, 512):
                q_s[h, d] = T.if_then_else(
                    first + h < heads, q_nope[token, first + h, d], T.cast(0, bf16)
                )
            for h, d in T.Parallel(block_h, 64):
                q_rope_s[h, d] = T.if_then_else(
                    first + h < heads, q_rope[token, first + h, d], T.cast(0, bf16)
                )
            T.clear(acc)
            T.clear(total)
            T.fill(top, LOWEST)

            for tile in T.serial(T.ceildiv(stop - start, block_n)):
                for n in T.Parallel(block_n):
                    at = start + tile * block_n + n
                    row[n] = T.if_then_else(at < stop, indices[token, at], -1)
                # The address of an absent row is that of slot 0, and none of its values is used, because they
                # may be NaN.
                for n, d in T.Parallel(block_n, 512):
                    k_s[n, d] = T.if_then_else(
                        row[n] >= 0,
                        T.cast(
                            T.cast(codes[T.max(row[n], 0), d], f32)
                            * scales[T.max(row[n], 0), 128 + d // 128],
                            bf16,
                        ),
                        T.cast(0, bf16),
                    )
                for n, d in T.Parallel(block_n, 64):
                    k_rope_s[n, d] = T.if_then_else(
                        row[n] >= 0, rope[T.max(row[n], 0), 264 + d], T.cast(0, bf16)
                    )
                T.clear(score)
                T.gemm(q_s, k_s, score, transpose_B=True, policy=by_rows)
                T.gemm(q_rope_s, k_rope_s, score, transpose_B=True, policy=by_rows)
                T.copy(top, before)
                for h, n in T.Parallel(block_h, block_n):
                    score[h, n] = T.if_then_else(row[n] >= 0, score[h, n] * scale_log2, LOWEST)
                T.reduce_max(score, top, dim=1, clear=False)
                for h in T.Parallel(block_h):
                    decay[h] = T.exp2(before[h] - top[h])
                for h, n in T.Parallel(block_h, block_n):
                    score[h, n] = T.if_then_else(row[n] >= 0, T.exp2(score[h, n] - top[h]), 0.0)
                T.reduce_sum(score, part, dim=1)
                for h in T.Parallel(block_h):
                    total[h] = total[h] * decay[h] + part[h]
                for h, d in T.Parallel(block_h, 512):
                    acc[h, d] = acc[h, d] * decay[h]
                T.copy(score, p_s)
                T.gemm(p_s, k_s, acc, policy=by_rows)

            # A sum of 0 is an empty split. NaN stays NaN.
            for h, d in T.Parallel(block_h, 512):
                if first + h < heads:
                    value = T.if_then_else(total[h] == 0, 0.0, acc[h, d] / total[h])
                    if split:
                        out[token, first + h, by, d] = value
                    else:
                        out[token, first + h, d] = T.cast(value, bf16)
            for h in T.Parallel(block_h):
                if first + h < heads:
                    log_sum = T.if_then_else(
                        total[h] == 0,
                        -T.infinity(f32),
                        (top[h] + T.log2(total[h])) * natural,
                    )
                    if split:
                        lse[token, first + h, by] = log_sum
                    else:
                        lse[token, first + h] = log_sum

    return sparse_mla_tilelang


@functools.cache
def compile_kernel(capability: tuple[int, int], **shape: Any) -> Any:
    """Compile the program of :func:`build` for a GPU of this capability; needs a CUDA compiler."""
    target = {"kind": "cuda", "arch": f"sm_{capability[0]}{capability[1]}"}
    return tilelang.compile(build(**shape), target=target, pass_configs=PASS_CONFIGS)
