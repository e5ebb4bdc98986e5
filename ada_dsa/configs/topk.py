"""Configuration rows of top-k.

Times in ``evidence`` were measured on an H200; the time in brackets is that of the alternative.
"""

from __future__ import annotations

from types import MappingProxyType

from .config import Config

# The kernels do integer work only, so the architectures differ little.
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
            "no spill with up to 8,192 samples; against 8 warps: 64x128K 70.3 us (74.4), "
            "32x32K 26.7 (28.7), 2048x32K 297 (305)",
        ),
        (
            86,
            {"TILE": 2048, "maxnreg": 255},
            "sm_86/89: with at most 168 registers and 8,192 samples Triton 3.8.0 spills 72 to 76 times; with "
            "at most 255 it uses 208-211 and does not spill; two blocks of 128 threads fit either way",
        ),
        (90, {"TILE": 2048, "maxnreg": 168}, "as sm_80, whose times were measured on sm_90"),
    )
)

# SMALL and LARGE: numbers of scores or candidates that a program holds in registers. The prefilter keeps
# about 1.6 times topk candidates of a row. Therefore SMALL, which is about twice topk, is the usual case and
# LARGE is the margin. The compact selection has no margin: its rows have a sample so large that it needs
# none.
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
            "70 registers x 512 threads; without maxnreg ptxas uses 64 registers and spills",
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
            "124 registers x 256 threads: two rows per multiprocessor; against 16 warps: "
            "1x8K 16.8 us (19.9), 32x32K 26.7 (30.8), 2048x32K 297 (355)",
        ),
        (
            "topk<=1024, unaligned",
            16,
            1,
            {"SMALL": 2048, "LARGE": 4096, "maxnreg": 128},
            "without vector loads Triton chooses another layout, which spills 54 times with 64 registers",
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
