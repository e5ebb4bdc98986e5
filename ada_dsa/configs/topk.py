"""Rows of top-k."""

from __future__ import annotations

from types import MappingProxyType

from .table import Config

# Integer work alone: the architectures differ little.
_PREFILTER: tuple[Config, ...] = tuple(
    Config(
        op="topk_prefilter",
        arch=arch,
        bucket=bucket,
        num_warps=4,
        num_stages=1,
        blocks_per_sm=2,
        evidence=evidence,
        params=MappingProxyType(params),
    )
    for bucket in ("topk<=1024", "topk<=2048", "topk<=4096")
    for arch, params, evidence in (
        (
            80,
            {"TILE": 2048, "maxnreg": 168},
            "no spill with up to 8,192 samples; on an H200, against 8 warps: 64x128K 70.3 us (74.4), "
            "32x32K 26.7 (28.7), 2048x32K 297 (305)",
        ),
        (
            86,
            {"TILE": 2048, "maxnreg": 255},
            "sm_86/89: with 168 registers and 8,192 samples Triton 3.8.0 spills 72 to 76 times, with 255 "
            "it takes 208-211 and spills none; two blocks of 128 threads fit either way",
        ),
        (90, {"TILE": 2048, "maxnreg": 168}, "the figures of sm_80 are of this row"),
    )
)

# SMALL and LARGE: scores or candidates selected from in registers. A row is thinned to about 1.6
# times the number wanted, so SMALL, twice that number, is the usual case and LARGE the margin;
# the compact selection has no margin, and takes rows with a sample large enough to do without.
_SELECT: tuple[Config, ...] = tuple(
    Config(
        op="topk_select",
        arch=80,
        bucket=bucket,
        num_warps=warps,
        num_stages=1,
        blocks_per_sm=blocks,
        evidence=evidence,
        params=MappingProxyType(params),
    )
    for bucket, warps, blocks, params, evidence in (
        (
            "topk<=1024",
            16,
            1,
            {"SMALL": 2048, "LARGE": 4096, "maxnreg": 128},
            "70 registers x 512 threads; left alone, ptxas takes 64 and spills",
        ),
        (
            "topk<=2048",
            32,
            1,
            {"SMALL": 4096, "LARGE": 8192, "maxnreg": 64},
            "50-62 registers x 1024 threads, no spill; with 512 threads 2 to 6 spills",
        ),
        (
            "topk<=4096",
            16,
            1,
            {"SMALL": 8192, "LARGE": 8192, "maxnreg": 128},
            "101-128 registers x 512 threads, no spill; with 1024 threads Triton 3.6.0 spills 4",
        ),
        (
            "topk<=2048, compact",
            8,
            2,
            {"SMALL": 4096, "LARGE": 4096, "maxnreg": 128},
            "124 registers x 256 threads: two rows a multiprocessor; on an H200, against 16 warps: "
            "1x8K 16.8 us (19.9), 32x32K 26.7 (30.8), 2048x32K 297 (355)",
        ),
        (
            "topk<=1024, unaligned",
            16,
            1,
            {"SMALL": 2048, "LARGE": 4096, "maxnreg": 128},
            "rows that allow no vector loads get another layout: with 64 registers 54 spills",
        ),
        (
            "topk<=2048, unaligned",
            16,
            1,
            {"SMALL": 4096, "LARGE": 8192, "maxnreg": 128},
            "as topk<=1024, unaligned",
        ),
        (
            "topk<=4096, unaligned",
            16,
            1,
            {"SMALL": 8192, "LARGE": 8192, "maxnreg": 128},
            "as topk<=1024, unaligned",
        ),
    )
)

ROWS: tuple[Config, ...] = _PREFILTER + _SELECT


def bucket_prefilter(*, topk: int) -> str:
    return "topk<=1024" if topk <= 1024 else "topk<=2048" if topk <= 2048 else "topk<=4096"


def bucket_select(*, topk: int, aligned: int = 1, compact: int = 0) -> str:
    return (
        bucket_prefilter(topk=topk)
        + ("" if aligned else ", unaligned")
        + (", compact" if compact else "")
    )
