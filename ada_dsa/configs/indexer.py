"""Configuration rows of the indexer: paged and ragged logits.

In ``evidence``, bytes are shared memory per block. Times were measured on an H200 under the lowering of
the architecture named; the time in brackets is that of the alternative.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .config import Config

# To cover the latency of DRAM, an RTX 4090 needs about 4.7 KB of loads in flight per multiprocessor
# (1008 GB/s x 600 ns / 128), and an H200 about 24 KB. While a block waits for one page, it keeps
# (num_stages - 2) x PAGES pages of 8 KB in flight. With two pages per iteration each warp owns whole rows
# of the product. The sum over heads then needs no shared memory, and q is read half as often.


def _paged(pages: int) -> Mapping[str, int]:
    return MappingProxyType({"PAGES": pages})


def _ragged(block_kv: int, queries: int = 0) -> Mapping[str, int]:
    return MappingProxyType({"BLOCK_KV": block_kv} | ({"QUERIES": queries} if queries else {}))


ROWS: tuple[Config, ...] = (
    Config(
        op="paged_logits",
        arch=80,
        bucket="columns<=32",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=2,
        evidence="sm_80/86: 42,496 B, 128 registers: two blocks in 100 KB; 1,161 instructions for two "
        "pages, 1,031 for one page",
        params=_paged(2),
    ),
    Config(
        op="paged_logits",
        arch=80,
        bucket="columns<=64",
        num_warps=4,
        num_stages=4,
        blocks_per_sm=2,
        evidence="sm_80/86: 41,984 B, 154 registers: two blocks in 100 KB",
        params=_paged(1),
    ),
    Config(
        op="paged_logits",
        arch=80,
        bucket="columns<=96",
        num_warps=8,
        num_stages=4,
        blocks_per_sm=1,
        evidence="as columns<=128",
        params=_paged(1),
    ),
    Config(
        op="paged_logits",
        arch=80,
        bucket="columns<=128",
        num_warps=8,
        num_stages=4,
        blocks_per_sm=1,
        evidence="sm_80/86: 58,368 B; with four warps 253 registers or two spills",
        params=_paged(1),
    ),
    Config(
        op="paged_logits",
        arch=80,
        bucket="columns>128",
        num_warps=8,
        num_stages=3,
        blocks_per_sm=1,
        evidence="sm_80/86: 256 columns as fp16 take 64 KB beside the key buffers",
        params=_paged(1),
    ),
    Config(
        op="paged_logits",
        arch=89,
        bucket="columns<=32",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=2,
        evidence="sm_89/120: 38,400 B, 122 registers: two blocks in 100 KB; 257 instructions and 2 "
        "barriers for two pages, 195 and 5 for one page",
        params=_paged(2),
    ),
    Config(
        op="paged_logits",
        arch=89,
        bucket="columns<=64",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=2,
        evidence="sm_89/120: 42,496 B, 160 registers: two blocks in 100 KB; 415 instructions for two "
        "pages, 246 for one page",
        params=_paged(2),
    ),
    Config(
        op="paged_logits",
        arch=89,
        bucket="columns<=96",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=2,
        evidence="sm_89/120: two blocks in 100 KB; on an H200 under sm_89, B=32 32K n=3: 96.8 us, "
        "127.8 with one page per iteration",
        params=_paged(2),
    ),
    Config(
        op="paged_logits",
        arch=89,
        bucket="columns<=128",
        num_warps=4,
        num_stages=4,
        blocks_per_sm=2,
        evidence="sm_89/120: 41,984 B, 128 registers; two pages at once would leave one block",
        params=_paged(1),
    ),
    Config(
        op="paged_logits",
        arch=89,
        bucket="columns>128",
        num_warps=8,
        num_stages=4,
        blocks_per_sm=1,
        evidence="sm_89/120: 58,368 B, 218 registers x 256 threads at 256 columns",
        params=_paged(1),
    ),
    Config(
        op="paged_logits",
        arch=90,
        bucket="columns<=32",
        num_warps=4,
        num_stages=4,
        blocks_per_sm=3,
        evidence="sm_90: 37,888 B, 77 registers, wgmma; on an H200, three blocks against four: "
        "B=1 128K 7.8 us (8.4), B=8 32K 13.3 (13.2); against two: B=1 8K 3.6 (3.5), B=8 8K 6.3 (5.9), "
        "B=64 128K 282 (300)",
        params=_paged(1),
    ),
    Config(
        op="paged_logits",
        arch=90,
        bucket="columns<=64",
        num_warps=4,
        num_stages=4,
        blocks_per_sm=3,
        evidence="sm_90: 41,984 B, 96 registers; on an H200 three blocks against four: B=8 32K n=2 15.1 us "
        "(15.4), H=64 13.7 (14.0)",
        params=_paged(1),
    ),
    Config(
        op="paged_logits",
        arch=90,
        bucket="columns<=96",
        num_warps=4,
        num_stages=4,
        blocks_per_sm=3,
        evidence="as columns<=128",
        params=_paged(1),
    ),
    Config(
        op="paged_logits",
        arch=90,
        bucket="columns<=128",
        num_warps=4,
        num_stages=4,
        blocks_per_sm=3,
        evidence="sm_90: 50,176 B, 110-154 registers: three blocks by registers",
        params=_paged(1),
    ),
    Config(
        op="paged_logits",
        arch=90,
        bucket="columns>128",
        num_warps=8,
        num_stages=4,
        blocks_per_sm=1,
        evidence="sm_90: 66,816 B, 134 registers x 256 threads at 256 columns",
        params=_paged(1),
    ),
    Config(
        op="paged_logits",
        arch=120,
        bucket="columns<=32",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=2,
        evidence="as sm_89: the same lowering and the same limits",
        params=_paged(2),
    ),
    Config(
        op="paged_logits",
        arch=120,
        bucket="columns<=64",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=2,
        evidence="as sm_89: the same lowering and the same limits",
        params=_paged(2),
    ),
    Config(
        op="paged_logits",
        arch=120,
        bucket="columns<=96",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=2,
        evidence="as sm_89: the same lowering and the same limits",
        params=_paged(2),
    ),
    Config(
        op="paged_logits",
        arch=120,
        bucket="columns<=128",
        num_warps=4,
        num_stages=4,
        blocks_per_sm=2,
        evidence="as sm_89: the same lowering and the same limits",
        params=_paged(1),
    ),
    Config(
        op="paged_logits",
        arch=120,
        bucket="columns>128",
        num_warps=8,
        num_stages=4,
        blocks_per_sm=1,
        evidence="as sm_89: the same lowering and the same limits",
        params=_paged(1),
    ),
    # A tile of 256 keys halves the reads of q, which are 4 KB per query and tile, from L2.
    Config(
        op="ragged_logits",
        arch=80,
        bucket="heads<=32",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=2,
        evidence="sm_80/86: 41,728 B, 128 registers; a block decodes its key tile once",
        params=_ragged(128),
    ),
    Config(
        op="ragged_logits",
        arch=80,
        bucket="heads<=64",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=1,
        evidence="as heads<=32",
        params=_ragged(128),
    ),
    Config(
        op="ragged_logits",
        arch=80,
        bucket="heads<=128",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=1,
        evidence="as heads<=32",
        params=_ragged(128),
    ),
    Config(
        op="ragged_logits",
        arch=89,
        bucket="heads<=32",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=2,
        evidence="sm_89/120: 42,240 B, 166 registers: two blocks in 100 KB; 200 instructions per query "
        "and 128 keys, 255 with tiles of 128",
        params=_ragged(256),
    ),
    Config(
        op="ragged_logits",
        arch=89,
        bucket="heads<=64",
        num_warps=4,
        num_stages=2,
        blocks_per_sm=2,
        evidence="sm_89/120: 42,240 B, 218 registers: two blocks in 100 KB; 326 instructions per query and "
        "128 keys, 415 with tiles of 128",
        params=_ragged(256),
    ),
    Config(
        op="ragged_logits",
        arch=89,
        bucket="heads<=128",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=1,
        evidence="tiles of 256 keys would need 256 accumulators per thread",
        params=_ragged(128),
    ),
    Config(
        op="ragged_logits",
        arch=90,
        bucket="heads<=32",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=2,
        evidence="sm_90: four queries per dot (N = 128 of wgmma) read the key tile once; on an H200, "
        "against one query per dot: 2Kx2K 34.8 us (53.3), 4Kx32K 1386 (1483), 2Kx128K 2887 (3036)",
        params=_ragged(128, queries=4),
    ),
    Config(
        op="ragged_logits",
        arch=90,
        bucket="heads<=64",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=2,
        evidence="sm_90: two queries per dot, as heads<=32; on an H200, 4Kx32K 2307 us (2672)",
        params=_ragged(128, queries=2),
    ),
    Config(
        op="ragged_logits",
        arch=90,
        bucket="heads<=128",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=1,
        evidence="tiles of 256 keys would need 256 accumulators per thread",
        params=_ragged(128),
    ),
    Config(
        op="ragged_logits",
        arch=120,
        bucket="heads<=32",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=2,
        evidence="as sm_89: the same lowering and the same limits",
        params=_ragged(256),
    ),
    Config(
        op="ragged_logits",
        arch=120,
        bucket="heads<=64",
        num_warps=4,
        num_stages=2,
        blocks_per_sm=2,
        evidence="as sm_89: the same lowering and the same limits",
        params=_ragged(256),
    ),
    Config(
        op="ragged_logits",
        arch=120,
        bucket="heads<=128",
        num_warps=4,
        num_stages=3,
        blocks_per_sm=1,
        evidence="as sm_89: the same lowering and the same limits",
        params=_ragged(128),
    ),
)


def bucket_paged_logits(*, heads: int, next_n: int) -> str:
    columns = heads * next_n
    limit = next((limit for limit in (32, 64, 96, 128) if columns <= limit), None)
    return f"columns<={limit}" if limit else "columns>128"


def bucket_ragged_logits(*, heads: int) -> str:
    return "heads<=32" if heads <= 32 else "heads<=64" if heads <= 64 else "heads<=128"
