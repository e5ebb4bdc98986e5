"""Which configurations are measured, and in which order."""

from __future__ import annotations

import pytest

from tool.tune.candidates import (
    KEYS,
    distance,
    key,
    list_candidates,
    order_nearest,
    order_seeds,
)
from tool.tune.shapes import TOKENS, Shape

GEMM = Shape("gemm", (6144, 2048), "")
MOE = Shape("moe", (256, 256, 6144, 8, 0), "")


@pytest.mark.parametrize("shape", [GEMM, MOE], ids=lambda one: one.kind)
@pytest.mark.parametrize("m", TOKENS)
def test_every_candidate_is_a_row_of_sglangs_format_and_there_once(shape: Shape, m: int) -> None:
    found = list_candidates(shape, m)
    assert len(found) > 20
    assert all(tuple(one) == KEYS and key(one) == name for name, one in found.items())


@pytest.mark.parametrize("m", TOKENS)
def test_tiles_fit_the_matrix_and_the_registers(m: int) -> None:
    for one in list_candidates(GEMM, m).values():
        assert one["BLOCK_SIZE_M"] <= max(16, 2 * m)
        assert one["BLOCK_SIZE_M"] * one["BLOCK_SIZE_N"] <= 256 * 32 * one["num_warps"]
    assert {one["BLOCK_SIZE_M"] for one in list_candidates(GEMM, 1).values()} == {16}


def test_no_tile_is_wider_than_a_narrow_matrix_and_no_pipeline_longer_than_a_short_sum() -> None:
    narrow = list_candidates(Shape("gemm", (64, 6144), ""), 16).values()
    assert max(one["BLOCK_SIZE_N"] for one in narrow) == 64
    short = list_candidates(Shape("gemm", (6144, 256), ""), 16).values()
    assert max(one["num_stages"] for one in short) == 3


def test_a_dense_gemm_takes_whole_blocks_of_scales_and_an_moe_halves_too() -> None:
    assert {one["BLOCK_SIZE_K"] for one in list_candidates(GEMM, 64).values()} == {128}
    assert {one["BLOCK_SIZE_K"] for one in list_candidates(MOE, 64).values()} == {64, 128}


def test_the_order_of_launches_is_tried_only_where_it_differs() -> None:
    assert {one["GROUP_SIZE_M"] for one in list_candidates(GEMM, 16).values()} == {1}
    assert {one["GROUP_SIZE_M"] for one in list_candidates(GEMM, 512).values()} >= {1, 8, 32}


@pytest.mark.parametrize("m", [1, 64, 4096])
def test_the_first_ones_are_apart_and_the_nearest_of_the_best_come_next(m: int) -> None:
    found = list_candidates(GEMM, m).values()
    seeds = order_seeds(GEMM, m, 6)
    assert len(seeds) == 6 and all(one in found for one in seeds)
    assert min(distance(a, b) for a in seeds for b in seeds if a is not b) >= 2
    steps = [distance(one, seeds[0]) for one in order_nearest(found, seeds[0])]
    assert steps == sorted(steps) and steps[0] == 0 and steps[1] <= 1
