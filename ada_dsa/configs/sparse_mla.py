"""Configuration rows of sparse MLA.

In ``evidence``, bytes are shared memory per block. Times were measured on an H200 under the lowering of
the architecture named, or natively; the time in brackets is that of the alternative.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .config import Config

# fp8 rows are prefetched into registers and converted once, because Triton does not pipeline a tile that it
# converts. bf16 rows enter the dots unchanged and use Triton's own cp.async pipeline.
# SWAP: keys are M and heads are N of both dots, so that eight heads need no padding.
# The bandwidth of shared memory limits fp8 rows (82 % of its peak on an H200 under sm_89 with 8 heads): each
# warp reads Q again for every tile. Large tiles are faster as long as two blocks or eight warps fit.


def _mla(**params: int) -> Mapping[str, int]:
    return MappingProxyType(params)


ROWS: tuple[Config, ...] = (
    Config(
        op="sparse_mla",
        arch=80,
        bucket="fp8, heads<=8",
        num_warps=4,
        num_stages=1,
        blocks_per_sm=2,
        evidence="sm_80 to 120: 46,080 B, 215-245 registers x 128 threads: two blocks in 100 KB; without "
        "maxnreg ptxas uses 168 registers and spills on sm_120. On an H200 at 64 tokens: 55.0 us "
        "under sm_89 and 55.3 natively; 66.2 for eight warps and tiles of 64 rows; natively 71.7 "
        "for three blocks and tiles of 16 rows. sm_80/86 by count, a warp and 1024 scores: 2376 "
        "instructions and 104 HMMA (2968 and 176 for eight warps)",
        params=_mla(BLOCK_H=8, BLOCK_N=32, SWAP=1, MAXNREG=255),
    ),
    Config(
        op="sparse_mla",
        arch=80,
        bucket="fp8, heads<=16",
        num_warps=8,
        num_stages=1,
        blocks_per_sm=1,
        evidence="sm_80 to 89: 92,160 B, 227-252 registers x 256 threads; on an H200 at 64 tokens under "
        "sm_89 65.1 us, 89 for tiles of 32 rows. sm_80/86 by count, a warp and 1024 scores: 1210 "
        "instructions and 68 HMMA (1818 and 176 for tiles of 16 rows)",
        params=_mla(BLOCK_H=16, BLOCK_N=64, SWAP=0),
    ),
    Config(
        op="sparse_mla",
        arch=90,
        bucket="fp8, heads<=16",
        num_warps=4,
        num_stages=1,
        blocks_per_sm=2,
        evidence="sm_90: 55,296 B, 255 registers x 128 threads: two blocks in 227 KB; on an H200, against "
        "the row of sm_89: one token 10.6 us (12.6), 64 tokens 64.9 (65.0), 128 tokens 102.2 "
        "(124.4)",
        params=_mla(BLOCK_H=16, BLOCK_N=32, SWAP=0),
    ),
    Config(
        op="sparse_mla",
        arch=120,
        bucket="fp8, heads<=16",
        num_warps=8,
        num_stages=1,
        blocks_per_sm=1,
        evidence="as sm_89: the same lowering and the same limits",
        params=_mla(BLOCK_H=16, BLOCK_N=64, SWAP=0),
    ),
    Config(
        op="sparse_mla",
        arch=80,
        bucket="fp8, heads>16",
        num_warps=8,
        num_stages=1,
        blocks_per_sm=1,
        evidence="sm_80: 73,728 B, 243-255 registers x 256 threads; with 64 heads per block Q alone would "
        "need 72 KB. By count 992 instructions and 104 HMMA a warp and 1024 scores: an A100 is "
        "limited by the instructions (1210 and 68 for blocks of 16 heads)",
        params=_mla(BLOCK_H=32, BLOCK_N=32, SWAP=0),
    ),
    Config(
        op="sparse_mla",
        arch=86,
        bucket="fp8, heads>16",
        num_warps=8,
        num_stages=1,
        blocks_per_sm=1,
        evidence="sm_86/89: the tile of up to 16 heads. By count on sm_89 634 instructions and 68 HMMA a "
        "warp and 1024 scores, against 699 and 104 for blocks of 32 heads, whose eight warps "
        "compute every score 1.53 times. Tensor cores limit a 3090 and a 4090 here. An H200 under"
        " sm_89 took 243 us at 64 tokens and 64 heads for blocks of 16 heads (241 for 32)",
        params=_mla(BLOCK_H=16, BLOCK_N=64, SWAP=0),
    ),
    Config(
        op="sparse_mla",
        arch=90,
        bucket="fp8, heads>16",
        num_warps=8,
        num_stages=1,
        blocks_per_sm=1,
        evidence="sm_90: 110,592 B, 253 registers x 256 threads; on an H200 with 64 heads, against blocks "
        "of 32 heads and tiles of 32 rows: 64 tokens 148.7 us (222), 2048 tokens 4379 (6861)",
        params=_mla(BLOCK_H=32, BLOCK_N=64, SWAP=0),
    ),
    Config(
        op="sparse_mla",
        arch=120,
        bucket="fp8, heads>16",
        num_warps=8,
        num_stages=1,
        blocks_per_sm=1,
        evidence="as sm_89: the same lowering and the same limits",
        params=_mla(BLOCK_H=16, BLOCK_N=64, SWAP=0),
    ),
    Config(
        op="sparse_mla",
        arch=80,
        bucket="bf16",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=1,
        evidence="sm_80 to 120: 93,184 B, 168-190 registers x 128 threads, two cp.async buffers. By count "
        "422 instructions and 68 HMMA for eight warps and 1024 scores, against 900 and 176 for "
        "blocks of 32 heads and tiles of 16 rows; on an H200 at 64 tokens 8 heads, one such block"
        " a token, took 48.5 us, and 64 heads in two blocks of 32 took 334",
        params=_mla(BLOCK_H=16, BLOCK_N=32, SWAP=0),
    ),
)

# The TileLang kernel reads packed rows only and runs one block per multiprocessor.
TILELANG_ROWS: tuple[Config, ...] = (
    Config(
        op="sparse_mla_tilelang",
        arch=80,
        bucket="heads<=16",
        num_warps=4,
        num_stages=1,
        blocks_per_sm=1,
        evidence="sm_80 to 120: 57,472 B, 143-160 registers x 128 threads, no spill; on an H200 natively "
        "with 8 heads: one token 31.7 us, 64 tokens 373 (Triton 9.3 and 54.4), because rows are "
        "not prefetched",
        params=_mla(BLOCK_H=16, BLOCK_N=32),
    ),
    Config(
        op="sparse_mla_tilelang",
        arch=80,
        bucket="heads<=32",
        num_warps=8,
        num_stages=1,
        blocks_per_sm=1,
        evidence="sm_80 to 120: 77,952 B, 148-159 registers x 256 threads, no spill; not timed",
        params=_mla(BLOCK_H=32, BLOCK_N=32),
    ),
    Config(
        op="sparse_mla_tilelang",
        arch=80,
        bucket="heads>32",
        num_warps=8,
        num_stages=1,
        blocks_per_sm=1,
        evidence="sm_80 to 120: 96,320 B, 186-197 registers x 256 threads, no spill; rows are read and "
        "converted once for 64 heads; on an H200 natively one token 30.7 us, 64 tokens 369 "
        "(Triton 17.1 and 150)",
        params=_mla(BLOCK_H=64, BLOCK_N=16),
    ),
)


def bucket_triton(*, heads: int, layout: int) -> str:
    rows = "bf16" if layout == 2 else "fp8"  # kv_cache.layout.KvLayout.BF16
    if rows == "bf16":
        return rows
    return "fp8, heads<=8" if heads <= 8 else "fp8, heads<=16" if heads <= 16 else "fp8, heads>16"


def bucket_tilelang(*, heads: int) -> str:
    return "heads<=16" if heads <= 16 else "heads<=32" if heads <= 32 else "heads>32"
