"""The arithmetic of the metrics, on cases that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.serving.support import metrics


def test_distance_is_of_absolute_differences() -> None:
    found = metrics.distance([[-1.0, -2.0], [-3.0, -4.0]], [[-1.5, -2.0], [-2.0, -4.25]])
    assert found == metrics.Distance(tokens=4, mean=0.4375, p99=pytest.approx(0.985), max=1.0)


def test_distance_does_not_overflow_fp16() -> None:
    one = np.full(3, -60000, dtype=np.float16)
    assert metrics.distance(one, -one).max == 120000


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ([-1.0], [-1.0, -2.0], r"shapes \(1,\) and \(2,\)"),
        ([], [], "and a token"),
        ([-1.0, np.nan], [-1.0, -2.0], "not finite: 1 and 0 of 2"),
        ([-1.0, -2.0], [-np.inf, -2.0], "not finite: 0 and 1 of 2"),
    ],
)
def test_distance_refuses_what_has_none(one: list[float], other: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.distance(one, other)


def apart(mean: float, p99: float, tokens: int = 10**8) -> metrics.Distance:
    return metrics.Distance(tokens=tokens, mean=mean, p99=p99, max=9.0)


def test_a_fork_as_near_as_stock_passes() -> None:
    stock = apart(0.1, 0.4)
    assert metrics.no_further(stock, stock) == []
    assert metrics.no_further(apart(0.1149, 0.4899), stock) == []
    assert metrics.no_further(apart(0.0, 0.0), stock) == []


def test_a_fork_further_away_does_not() -> None:
    stock = apart(0.1, 0.4)
    assert metrics.no_further(apart(0.1152, 0.4), stock) == [
        "mean of 100000000 tokens: the fork is 0.1152 nats from the witness, stock 0.1000; "
        "allowed 0.1150"
    ]
    assert [line[:4] for line in metrics.no_further(apart(0.2, 0.4910), stock)] == ["mean", "p99 "]
    assert metrics.no_further(apart(0.11, 0.4), stock, factor=1.0, slack=0.0) != []


def test_rounding_is_allowed_where_stock_is_equal_to_the_bit() -> None:
    rounding = metrics.Distance(tokens=200_000, mean=0.02, p99=0.07, max=0.13)
    exact = metrics.Distance(tokens=63, mean=0.0, p99=0.0, max=0.0)
    rounded = metrics.Distance(tokens=63, mean=0.023, p99=0.072, max=0.08)
    wrong = metrics.Distance(tokens=63, mean=0.045, p99=0.2, max=0.3)
    assert metrics.no_further(rounded, exact)
    assert not metrics.no_further_than_either(rounded, exact, rounding)
    assert not metrics.no_further_than_either(wrong, wrong, rounding)
    assert metrics.no_further_than_either(wrong, exact, rounding)


def test_few_tokens_prove_little() -> None:
    stock, fork = apart(0.1, 0.4, tokens=64), apart(0.16, 0.9, tokens=10**6)
    assert metrics.no_further(fork, stock) == []
    assert len(metrics.no_further(fork, apart(0.1, 0.4, tokens=6400))) == 2


def test_samples_of_one_distribution_pass() -> None:
    """At every size, three standard errors being what they are called."""
    draw = np.random.default_rng(1).exponential
    for tokens in (48, 500, 4000):
        pairs = [
            [metrics.distance(draw(0.2, tokens), np.zeros(tokens)) for _ in "ab"]
            for _ in range(200)
        ]
        failed = sum(bool(metrics.no_further(*pair, factor=1.0, slack=0.0)) for pair in pairs)
        assert failed <= 8


@pytest.mark.parametrize(
    ("one", "other", "length", "compared"),
    [
        ([1, 2, 3], [1, 2, 3], 3, 3),
        ([1, 2, 3], [1, 9, 3], 1, 3),
        ([9, 2], [1, 2], 0, 2),
        ([1, 2, 3], [1, 2], 2, 2),
        ([], [1], 0, 0),
    ],
)
def test_greedy_agreement(one: list[int], other: list[int], length: int, compared: int) -> None:
    found = metrics.greedy_agreement(one, other)
    assert found == metrics.Agreement(length, compared)
    assert found.whole == (length == compared)


def test_key_agreement_ignores_order_and_padding() -> None:
    one = [[3, 1, 2, -1], [4, 5, 6, 7], [-1, -1, -1, -1]]
    other = [[1, 2, 3], [7, 6, 9], [-1, -7, -1]]
    found = metrics.key_agreement(one, other)
    assert found.rows == 3
    assert found.jaccard == pytest.approx((1 + 2 / 5 + 1) / 3)
    assert found.intersection == pytest.approx((1 + 2 / 4 + 1) / 3)
    assert found.worst == 0.5


def test_an_empty_set_does_not_agree_with_another() -> None:
    assert metrics.key_agreement([[-1, -1]], [[0, 1]]) == metrics.KeyAgreement(1, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ([[1, 2]], [[1, 2], [3, 4]], "as many rows"),
        ([1, 2], [1, 2], "as many rows"),
        (np.zeros((0, 4)), np.zeros((0, 4)), "as many rows"),
        ([[1, 2], [5, 5]], [[1, 2], [5, 6]], "row 1 selects 1 keys more than once"),
    ],
)
def test_key_agreement_refuses_what_are_no_sets(one: object, other: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.key_agreement(one, other)


def test_layer_agreement_is_per_layer() -> None:
    found = metrics.layer_agreement({6: [[1, 2]], 0: [[1, 2]]}, {0: [[2, 1]], 6: [[1, 3]]})
    assert [(layer, one.intersection) for layer, one in found.items()] == [(0, 1.0), (6, 0.5)]
    with pytest.raises(ValueError, match=r"layers \[0\] and \[0, 6\]"):
        metrics.layer_agreement({0: [[1]]}, {0: [[1]], 6: [[1]]})


def test_table() -> None:
    text = metrics.table(["layer", "x"], [[0, 0.5], ["twelve", np.float32(0.25)], [None, 3]])
    assert text == (
        "| layer  | x      |\n"
        "| ------ | ------ |\n"
        "| 0      | 0.5000 |\n"
        "| twelve | 0.2500 |\n"
        "| None   | 3      |\n"
    )
    with pytest.raises(ValueError, match="a row of 1 cells under 2 headers"):
        metrics.table(["a", "b"], [["only one"]])
