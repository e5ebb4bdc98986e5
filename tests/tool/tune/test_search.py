"""Which row follows from what was measured: a result is never worse than the default."""

from __future__ import annotations

import random
from typing import Any

from tool.tune.candidates import Config, key
from tool.tune.search import BATCH, MARGIN, Search, Unit
from tool.tune.shapes import Shape

SHAPE = Shape("gemm", (512, 6144), "")
DEFAULT = {
    "BLOCK_SIZE_M": 64,
    "BLOCK_SIZE_N": 128,
    "BLOCK_SIZE_K": 128,
    "GROUP_SIZE_M": 32,
    "num_warps": 4,
    "num_stages": 3,
}


def timed(config: Config, us: float, error: float | None = None) -> dict[str, Any]:
    return {"config": dict(config), "us": us} | ({"error": error} if error is not None else {})


def answer(default_us: float, *results: dict[str, Any]) -> dict[str, Any]:
    return {"default": timed(DEFAULT, default_us, 0.001), "results": list(results)}


def make(m: int = 8) -> tuple[Search, Unit]:
    search = Search([SHAPE], (m,))
    return search, search.units[0]


def test_few_tokens_come_first_and_every_shape_gets_them() -> None:
    other = Shape("gemm", (128, 6144), "")
    search = Search([SHAPE, other], (1, 2))
    assert [(unit.m, unit.shape) for unit in search.units] == [
        (1, SHAPE),
        (1, other),
        (2, SHAPE),
        (2, other),
    ]


def test_a_faster_candidate_that_was_checked_becomes_the_row() -> None:
    search, unit = make()
    first, second, *_ = search.list_next(unit) or []
    search.observe(unit, answer(10.0, timed(first, 5.0, 0.002), timed(second, 7.0)))
    (row,) = search.list_rows()
    assert row.config == first and row.ratio == 2.0 and row.error == 0.002 and row.measured == 2


def test_what_is_slower_unchecked_wrong_or_within_the_noise_does_not() -> None:
    for result in (
        lambda one: timed(one, 11.0, 0.002),
        lambda one: timed(one, 5.0),
        lambda one: {
            "config": one,
            "rejected": "differs from the float reference by 0.5 of its norm",
        },
        lambda one: timed(one, 10.0 * MARGIN + 0.01, 0.002),
    ):
        search, unit = make()
        first, *_ = search.list_next(unit) or []
        search.observe(unit, answer(10.0, result(first)))
        (row,) = search.list_rows()
        assert row.config == DEFAULT and row.ratio == 1.0


def test_the_best_so_far_is_measured_again_and_must_win_again() -> None:
    search, unit = make()
    first, *_ = search.list_next(unit) or []
    search.observe(unit, answer(10.0, timed(first, 5.0, 0.002)))
    again = search.list_next(unit) or []
    assert again[0] == first and len(again) == BATCH + 1
    search.observe(unit, answer(10.0, timed(first, 9.9, 0.002)))
    (row,) = search.list_rows()
    assert row.config == DEFAULT


def test_no_row_is_ever_worse_than_the_default_of_its_own_measurement() -> None:
    dice = random.Random(0)
    for _ in range(50):
        search, unit = make(dice.choice((1, 64, 1024)))
        while configs := search.list_next(unit):
            default_us = dice.uniform(5, 10)
            results = [timed(one, dice.uniform(3, 20)) for one in configs]
            min(results, key=lambda one: float(one["us"]))["error"] = 0.001
            search.observe(unit, answer(default_us, *results))
            (row,) = search.list_rows()
            assert row.us <= default_us
            assert row.config == DEFAULT or row.us <= MARGIN * default_us


def test_every_candidate_is_measured_once_and_then_there_is_nothing_left() -> None:
    search, unit = make(1)
    seen: list[str] = []
    while configs := search.list_next(unit):
        assert len(configs) <= BATCH
        seen += [key(one) for one in configs]
        search.observe(unit, answer(10.0, *(timed(one, 20.0) for one in configs)))
    assert len(seen) == len(set(seen)) == 45


def test_a_default_that_does_not_run_is_replaced_by_whatever_does() -> None:
    search, unit = make()
    first, *_ = search.list_next(unit) or []
    search.observe(
        unit, {"default": {"config": DEFAULT, "rejected": "x"}, "results": [timed(first, 5.0, 0.0)]}
    )
    (row,) = search.list_rows()
    assert row.config == first and row.default_us is None and row.ratio is None


def test_after_a_crash_the_others_are_tried_and_the_best_is_kept() -> None:
    search, unit = make()
    first, *_ = search.list_next(unit) or []
    search.observe(unit, answer(10.0, timed(first, 5.0, 0.0)))
    configs = search.list_next(unit) or []
    search.observe(unit, search.answer_crash(unit, configs, "crashed"))
    (row,) = search.list_rows()
    assert row.config == first
    after = search.list_next(unit) or []
    assert after[0] == first and not {key(one) for one in after[1:]} & {key(one) for one in configs}


def test_a_shape_that_cannot_be_measured_is_left() -> None:
    search, unit = make()
    search.observe(unit, {"failed": "no memory"})
    assert search.list_next(unit) is None and search.list_rows() == []
    assert search.list_failures() == {unit.title: "no memory"}
