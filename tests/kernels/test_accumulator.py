"""The emulated fp8 accumulator against a scalar one in rational arithmetic, and its bounds."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))

import accumulator as acc

UNITS = (acc.ADA, acc.ADA_PROMOTED, acc.HOPPER, acc.BLACKWELL)
FINITE = [code for code in range(256) if code & 0x7F != 0x7F]


def _exponent(value: float) -> int:
    """Exponent field of a non-zero e4m3 value; subnormals have that of the least normal one."""
    return max(math.frexp(abs(value))[1] - 1, -6)


def _toward_zero(value: Fraction, unit: Fraction) -> Fraction:
    return int(value / unit) * unit


def scalar_dot(q: list[float], k: list[float], unit: acc.Unit) -> float:
    """One dot product, step by step, summand by summand, without floating point."""
    total, outside = Fraction(0), Fraction(0)
    for begin in range(0, len(q), unit.products):
        if unit.promote and begin and begin % unit.promote == 0:
            # A float addition of two float32 values, rounded once more to float32: both in double.
            both = torch.tensor(float(outside + total), dtype=torch.float64)
            outside, total = Fraction(float(both.float())), Fraction(0)
        summands, exponents = [total], []
        if total:
            exponents.append(math.frexp(float(total))[1] - 1)
        for a, b in zip(q[begin : begin + unit.products], k[begin:], strict=False):
            if a and b:
                summands.append(Fraction(a) * Fraction(b))
                exponents.append(_exponent(a) + _exponent(b))
        if not exponents:
            continue
        step = Fraction(2) ** (max(exponents) - unit.fraction)
        total = sum((_toward_zero(s, step) for s in summands), Fraction(0))
        if total:
            place = Fraction(2) ** (math.frexp(float(total))[1] - 1 - unit.mantissa)
            total = _toward_zero(total, place)
    if unit.promote:
        total = Fraction(float(torch.tensor(float(outside + total), dtype=torch.float64).float()))
    return float(total)


def _values(codes: list[int]) -> torch.Tensor:
    return torch.tensor(codes, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_equals_the_scalar_reference(unit: acc.Unit, data: st.DataObject) -> None:
    narrow = data.draw(
        st.sampled_from([FINITE, [c for c in FINITE if c & 0x7F > 0x30], [0, 1, 0x80, 0x7E]])
    )
    rows = st.lists(st.sampled_from(narrow), min_size=64, max_size=64)
    q, k = (_values(data.draw(rows)) for _ in range(2))
    keys = torch.stack([k, k.flip(0), -k])
    got, bound = acc.dots(q[None], keys, unit)
    want = [scalar_dot(q.tolist(), key.tolist(), unit) for key in keys]
    assert got[0].tolist() == want
    exact = q.double() @ keys.double().t()
    assert bool(((got[0] - exact).abs() <= bound[0]).all())


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_equals_the_scalar_reference_on_the_studied_inputs(unit: acc.Unit) -> None:
    g = torch.Generator().manual_seed(0)
    for make in acc.FAMILIES.values():
        inputs = make(2, 24, g)
        got, bound = acc.dots(inputs.q, inputs.k, unit)
        for h, q in enumerate(inputs.q):
            want = [scalar_dot(q.tolist(), k.tolist(), unit) for k in inputs.k]
            assert got[h].tolist() == want, make.__name__
        exact = inputs.q.double() @ inputs.k.double().t()
        assert bool(((got - exact).abs() <= bound).all()), make.__name__


def test_more_keys_than_a_chunk() -> None:
    inputs = acc.gaussian(1, acc._CHUNK + 5, torch.Generator().manual_seed(1))
    whole, _ = acc.dots(inputs.q, inputs.k, acc.ADA)
    tail, _ = acc.dots(inputs.q, inputs.k[-7:], acc.ADA)
    assert torch.equal(whole[:, -7:], tail)


def test_a_long_sum_of_equal_products_loses_what_falls_below_its_unit() -> None:
    """8192 x (1/32 * 3): beyond 512 a product of 3/32 counts as 2/32, so 170 of 512 steps add 1.0."""
    q, k = torch.full((1, 8192), 1 / 32), torch.full((1, 8192), 3.0)
    assert float(acc.dots(q, k, acc.ADA)[0]) == 513 + 170 * 1.0
    assert float(acc.dots(q, k, acc.ADA_PROMOTED)[0]) == 768
    assert float(acc.dots(q, k, acc.BLACKWELL)[0]) == 768


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_order_free_bound_holds_for_any_order(data: st.DataObject) -> None:
    rows = st.lists(st.sampled_from(FINITE), min_size=64, max_size=64)
    q, k = (_values(data.draw(rows)) for _ in range(2))
    order = torch.tensor(data.draw(st.permutations(range(64))))
    bound = acc.order_free_bound(q[None], k[None], acc.ADA)
    got, _ = acc.dots(q[None, order], k[None, order], acc.ADA)
    assert abs(float(got) - float(q.double() @ k.double())) <= float(bound)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), keys=st.integers(5, 40), topk=st.integers(1, 20))
def test_no_scores_within_the_interval_change_more_keys(seed: int, keys: int, topk: int) -> None:
    g = torch.Generator().manual_seed(seed)
    exact = torch.randn(keys, generator=g, dtype=torch.float64).mul(4).round() / 4
    error = torch.rand(keys, generator=g, dtype=torch.float64) * 0.5
    limit = acc.changed_at_most(exact, exact - error, exact + error, topk)
    before = set(acc.select(exact, topk).tolist())
    worst = 0
    for _ in range(20):
        sign = torch.randint(-1, 2, (keys,), generator=g)
        after = set(acc.select(exact + sign * error, topk).tolist())
        worst = max(worst, len(before - after))
    assert worst <= limit <= min(topk, max(0, keys - topk))


def test_score_interval_encloses_every_combination() -> None:
    g = torch.Generator().manual_seed(3)
    dot = torch.randn(4, 50, generator=g, dtype=torch.float64)
    error = torch.rand(4, 50, generator=g, dtype=torch.float64)
    weights, scale = torch.randn(4, generator=g), torch.rand(50, generator=g)
    low, high = acc.score_interval(dot, error, weights, scale)
    for _ in range(50):
        moved = dot + error * (torch.rand(4, 50, generator=g) * 2 - 1)
        score = acc.scores(moved, weights, scale)
        assert bool(((low <= score + 1e-12) & (score <= high + 1e-12)).all())


def test_expected_changes_agree_with_drawn_errors() -> None:
    g = torch.Generator().manual_seed(4)
    exact = torch.randn(65_536, generator=g, dtype=torch.float64)
    error = torch.randn(65_536, generator=g, dtype=torch.float64) * 1e-2
    kept = set(acc.select(exact).tolist())
    changed = len(kept - set(acc.select(exact + error).tolist()))
    assert acc.expected_changes(exact, error) == pytest.approx(changed, rel=0.3)
