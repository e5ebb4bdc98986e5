"""Launch plan of sparse MLA: tile sizes and the number of splits, from shape and device alone."""

from __future__ import annotations

from dataclasses import dataclass

from .._launch import next_power_of_2
from ..arch import has_native_fp8
from ..configs import Config, pick
from ..kv_cache.layout import KvLayout

# Model of the time of a launch, in units of one main-loop iteration: what a block spends before and after its
# loop (latency of the first indices and rows, Q, result), and what the combine kernel costs.
_PROLOGUE_TILES = 4
_COMBINE_TILES = 2
_COMBINE_TILES_PER_SPLIT = 1 / 16
_MAX_SPLITS = 64
# Largest size of the partial results in bytes. A launch that would exceed it has enough blocks without
# splits.
_WORKSPACE_LIMIT = 128 << 20
# A block reads the index list of its split to find the last selected index. Lists up to this length use one
# width, so that the server compiles few variants.
_SHORT_SPAN = 256


@dataclass(frozen=True)
class LaunchPlan:
    """How one call is divided on the device.

    Attributes:
        config: row of the configuration table that gives the tile sizes.
        head_blocks: number of blocks that a token's heads are divided into.
        num_splits: number of splits that a token's index list is divided into.
        split_len: indices per split, a multiple of the tile.
        span: power of two that is at least ``split_len``.
        bytes_only: whether fp8 values are decoded from bytes, because Triton has no fp8 type on the
            architecture.
    """

    config: Config
    head_blocks: int
    num_splits: int
    split_len: int
    span: int
    bytes_only: bool


def choose_splits(blocks: int, tiles: int, slots: int) -> int:
    """Choose the number of splits that minimises the modelled time of a launch.

    The time is the number of waves of blocks, times the iterations of one block, plus the combine kernel.
    Its unit is one main-loop iteration.

    Args:
        blocks: blocks of the launch without splits (tokens times head blocks).
        tiles: main-loop iterations of one block without splits.
        slots: blocks that the device holds at once.
    """
    best, best_time = 1, float("inf")
    for splits in range(1, min(tiles, _MAX_SPLITS) + 1):
        per_split = -(-tiles // splits)
        if splits > 1 and -(-tiles // per_split) != splits:
            continue  # the last split would be empty
        waves = -(-blocks * splits // slots)
        combine = 0.0 if splits == 1 else _COMBINE_TILES + splits * _COMBINE_TILES_PER_SPLIT
        time = waves * (per_split + _PROLOGUE_TILES) + combine
        if time < best_time:
            best, best_time = splits, time
    return best


def plan_launch(
    *,
    arch: int,
    num_sms: int,
    layout: KvLayout,
    num_tokens: int,
    num_heads: int,
    topk: int,
    config: Config | None = None,
    num_splits: int | None = None,
) -> LaunchPlan:
    """Plan one call; ``config`` and ``num_splits`` replace the plan's own choice, for tuning.

    The plan depends on the shapes of the call and on the device, and not on values in device memory.
    Therefore a captured graph and a repeated call do the same additions in the same order.
    """
    if config is None:
        config = pick("sparse_mla", arch, heads=num_heads, layout=int(layout))
    block_h, block_n = config.params["BLOCK_H"], config.params["BLOCK_N"]
    head_blocks = -(-num_heads // block_h)
    tiles = max(1, -(-topk // block_n))
    if num_splits is None:
        blocks = num_tokens * head_blocks
        num_splits = choose_splits(blocks, tiles, num_sms * config.blocks_per_sm)
        if num_tokens * num_heads * num_splits * 2048 > _WORKSPACE_LIMIT:
            num_splits = 1
    split_len = -(-tiles // num_splits) * block_n
    num_splits = -(-tiles * block_n // split_len)
    span = _SHORT_SPAN if split_len <= _SHORT_SPAN else next_power_of_2(topk)
    bytes_only = layout is not KvLayout.BF16 and not has_native_fp8(arch)
    return LaunchPlan(config, head_blocks, num_splits, split_len, max(span, block_n), bytes_only)
