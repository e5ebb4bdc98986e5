"""Which configurations are worth measuring for a shape and an M, and in which order.

A configuration is a row of sglang's JSON files: block sizes, the group size of the launch order, warps and
pipeline stages.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tool.tune.shapes import BLOCK, Shape

Config = Mapping[str, Any]

KEYS: Final = (
    "BLOCK_SIZE_M",
    "BLOCK_SIZE_N",
    "BLOCK_SIZE_K",
    "GROUP_SIZE_M",
    "num_warps",
    "num_stages",
)
_HIGHEST: Final = 256
"""Rows of the highest tile."""
_STAGES: Final = (2, 3, 4, 5, 6)
_WARPS: Final = (4, 8)
_MOST_ACCUMULATORS: Final = 256
"""fp32 sums that a thread can hold; the register file has 255 for it, so more would certainly spill."""
_FEWEST_ACCUMULATORS: Final = 2
_APART: Final = 2.0
"""Least distance between two of the first candidates."""


def key(config: Config) -> str:
    """Two configurations with the same key are the same."""
    return json.dumps(config, sort_keys=True)


def list_candidates(shape: Shape, m: int) -> dict[str, Config]:
    """The whole grid by key, without what cannot be good: tiles larger than the matrix, and accumulators
    that a thread cannot hold or that leave it without work."""
    return dict(_make_grid(_find_limits(shape, m)))


def order_seeds(shape: Shape, m: int, count: int) -> list[Config]:
    """``count`` candidates to begin with: those nearest to a guess that are apart from each other."""
    return list(_make_seeds(_find_limits(shape, m), key(_guess(shape, m)), count))


@dataclass(frozen=True)
class _Limits:
    """What the grid of a shape and an M follows from; most shapes share it."""

    block_m: tuple[int, ...]
    block_n: tuple[int, ...]
    block_k: tuple[int, ...]
    rows: int
    depth: int


def _find_limits(shape: Shape, m: int) -> _Limits:
    # Rows of the launch, and the longest sum in channels.
    rows = m if shape.kind == "gemm" else m * shape.sizes[3]
    depth = shape.sizes[1] if shape.kind == "gemm" else max(shape.sizes[1:3])
    return _Limits(
        tuple(_list_block_m(shape, m)),
        tuple(_list_block_n(shape)),
        _list_block_k(shape),
        min(rows, _HIGHEST + 1),
        min(depth, max(_STAGES) * BLOCK),
    )


@functools.cache
def _make_grid(limits: _Limits) -> Mapping[str, Config]:
    found = {}
    for block_m, block_n, warps in itertools.product(limits.block_m, limits.block_n, _WARPS):
        held = block_m * block_n // (warps * 32)
        if not _FEWEST_ACCUMULATORS <= held <= _MOST_ACCUMULATORS:
            continue
        # With one row of tiles every launch order is the same.
        groups = (1,) if limits.rows <= block_m else (1, 8, 32)
        for block_k, group, stages in itertools.product(limits.block_k, groups, _STAGES):
            if (stages - 1) * block_k > limits.depth:
                continue  # more stages than the loop has steps
            values = (block_m, block_n, block_k, group, warps, stages)
            config = dict(zip(KEYS, values, strict=True))
            found[key(config)] = config
    return found


@functools.cache
def _make_seeds(limits: _Limits, guess: str, count: int) -> tuple[Config, ...]:
    chosen: list[Config] = []
    for one in order_nearest(_make_grid(limits).values(), json.loads(guess)):
        if all(distance(one, other) >= _APART for other in chosen):
            chosen.append(one)
        if len(chosen) == count:
            break
    return tuple(chosen)


def _guess(shape: Shape, m: int) -> Config:
    """Tiles as high as the rows, and narrow ones for few rows: they give more blocks than the GPU has
    processors, and a pipeline that hides the memory's latency."""
    block_m = min(max(_list_block_m(shape, m)), 64)
    block_n, group, stages = (32, 1, 4) if m <= 32 else (64, 1, 4) if m <= 128 else (128, 8, 3)
    values = (block_m, block_n, BLOCK, group, 4, stages)
    return dict(zip(KEYS, values, strict=True))


def order_nearest(candidates: Iterable[Config], best: Config) -> list[Config]:
    """The candidates nearest to ``best`` first."""
    return sorted(candidates, key=lambda one: distance(one, best))


def distance(one: Config, other: Config) -> float:
    """Steps between two configurations: a doubling of a size or of the warps, or one stage. Group sizes
    matter least, so a change of it is half a step."""
    steps = abs(one["num_stages"] - other["num_stages"]) + 0.5 * (
        one["GROUP_SIZE_M"] != other["GROUP_SIZE_M"]
    )
    for name in ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "num_warps"):
        if one[name] != other[name]:
            steps += abs(math.log2(one[name] / other[name]))
    return float(steps)


def _list_block_m(shape: Shape, m: int) -> list[int]:
    rows = m if shape.kind == "gemm" else _rows_per_expert(shape, m)
    largest = max(16, 1 << math.ceil(math.log2(max(rows, 1))))
    if shape.kind == "moe":
        largest *= 2  # experts get more or fewer rows than the mean
        return [size for size in (16, 32, 64, 128) if size <= largest]
    smallest = 16 if m < 256 else 32 if m < 1024 else 64
    return [size for size in (16, 32, 64, 128, _HIGHEST) if smallest <= size <= largest]


def _rows_per_expert(shape: Shape, m: int) -> int:
    experts, _, _, per_token, _ = shape.sizes
    return math.ceil(m * per_token / experts)


def _list_block_n(shape: Shape) -> list[int]:
    # Of an MoE both matrices: gate and up, and down.
    widest = shape.sizes[0] if shape.kind == "gemm" else max(2 * shape.sizes[1], shape.sizes[2])
    return [size for size in (16, 32, 64, 128, 256) if size <= widest]


def _list_block_k(shape: Shape) -> tuple[int, ...]:
    # The dense kernel of some releases takes whole blocks of scales alone.
    return (BLOCK,) if shape.kind == "gemm" else (BLOCK // 2, BLOCK)
