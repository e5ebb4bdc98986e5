"""Rows of sparse MLA."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .table import Config

# fp8 rows are prefetched into registers and converted once (Triton pipelines no tile that it
# converts); bf16 rows feed the dots as they are and go through Triton's own cp.async pipeline.
# SWAP: keys are M and heads are N of both dots, so that eight heads need no padding.


def _mla(**params: int) -> Mapping[str, int]:
    return MappingProxyType(params)


ROWS: tuple[Config, ...] = (
    Config(
        "sparse_mla",
        80,
        "fp8, heads<=8",
        8,
        1,
        1,
        "sm_80/86: 46,080 B, 164 registers x 256 threads; with 4 warps byte decoding spills",
        _mla(BLOCK_H=8, BLOCK_N=32, SWAP=1, PREFETCH=1),
    ),
    Config(
        "sparse_mla",
        89,
        "fp8, heads<=8",
        4,
        1,
        2,
        "sm_89: 46,080 B, 226-248 registers x 128 threads: two blocks in 100 KB; half the "
        "shared-memory traffic per row of 8 warps",
        _mla(BLOCK_H=8, BLOCK_N=32, SWAP=1, PREFETCH=1),
    ),
    Config(
        "sparse_mla",
        90,
        "fp8, heads<=8",
        4,
        1,
        3,
        "sm_90: 27,648 B, 168 registers x 128 threads: three blocks; tiles of 32 spill "
        "with Triton 3.8, which takes wgmma for them",
        _mla(BLOCK_H=8, BLOCK_N=16, SWAP=1, PREFETCH=1, MAXNREG=168),
    ),
    Config(
        "sparse_mla",
        120,
        "fp8, heads<=8",
        4,
        1,
        2,
        "as sm_89: same lowering, same limit",
        _mla(BLOCK_H=8, BLOCK_N=32, SWAP=1, PREFETCH=1),
    ),
    Config(
        "sparse_mla",
        80,
        "fp8, heads<=16",
        4,
        1,
        2,
        "sm_80/86: 36,864 B, 215 registers x 128 threads; byte decoding spills at 32 rows",
        _mla(BLOCK_H=16, BLOCK_N=16, SWAP=1, PREFETCH=1),
    ),
    Config(
        "sparse_mla",
        89,
        "fp8, heads<=16",
        8,
        1,
        1,
        "sm_89 to 120: 92,160 B, 241-253 registers x 256 threads, no spill with Triton 3.5.1 to "
        "3.8.0; on an H200 at 64 tokens 75.5 us natively and 79.4 us under sm_89, against 126.5 "
        "and 104.8 for SWAP tiles of 32; 4 warps at 32 rows (73.2, 76.4) spill",
        _mla(BLOCK_H=16, BLOCK_N=64, SWAP=0, PREFETCH=1),
    ),
    Config(
        "sparse_mla",
        80,
        "fp8, heads>16",
        8,
        1,
        1,
        "sm_80 to 120: 73,728 B, 204-254 registers x 256 threads; 64 heads a block would need "
        "72 KB for Q alone",
        _mla(BLOCK_H=32, BLOCK_N=32, SWAP=0, PREFETCH=1),
    ),
    Config(
        "sparse_mla",
        80,
        "bf16, heads<=16",
        4,
        3,
        1,
        "sm_80 to 120: 93,184 B, 168 registers x 128 threads, two cp.async buffers",
        _mla(BLOCK_H=16, BLOCK_N=32, SWAP=0, PREFETCH=0),
    ),
    Config(
        "sparse_mla",
        80,
        "bf16, heads>16",
        8,
        3,
        1,
        "sm_80 to 120: 74,752 B, 170 registers x 256 threads, two cp.async buffers",
        _mla(BLOCK_H=32, BLOCK_N=16, SWAP=0, PREFETCH=0),
    ),
)

# The TileLang kernel, packed rows only: one block a multiprocessor.
TILELANG_ROWS: tuple[Config, ...] = (
    Config(
        "sparse_mla_tilelang",
        80,
        "heads<=16",
        4,
        1,
        1,
        "sm_80 to 120: 57,472 B, 143-160 registers x 128 threads, no spill; not timed",
        _mla(BLOCK_H=16, BLOCK_N=32),
    ),
    Config(
        "sparse_mla_tilelang",
        80,
        "heads<=32",
        8,
        1,
        1,
        "sm_80 to 120: 77,952 B, 148-159 registers x 256 threads, no spill; not timed",
        _mla(BLOCK_H=32, BLOCK_N=32),
    ),
    Config(
        "sparse_mla_tilelang",
        80,
        "heads>32",
        8,
        1,
        1,
        "sm_80 to 120: 96,320 B, 186-197 registers x 256 threads, no spill: rows are read and converted "
        "once for 64 heads; not timed",
        _mla(BLOCK_H=64, BLOCK_N=16),
    ),
)


def bucket(*, heads: int, layout: int) -> str:
    rows = "bf16" if layout == 2 else "fp8"  # kv_cache.layout.KvLayout.BF16
    if heads <= 8 and rows == "fp8":
        return "fp8, heads<=8"
    return f"{rows}, heads<=16" if heads <= 16 else f"{rows}, heads>16"


def tilelang_bucket(*, heads: int) -> str:
    return "heads<=16" if heads <= 16 else "heads<=32" if heads <= 32 else "heads>32"
