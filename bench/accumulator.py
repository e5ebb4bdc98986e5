"""How many selected keys can Ada's reduced fp8 accumulator change? Emulated on a CPU.

    python bench/accumulator.py [--queries 4] [--contexts 8192 32768 131072] [--heads 32 64]

An fp8 MMA with a float32 accumulator does not add in float32 on sm_89. Published studies agree on what
it does instead; :class:`Unit` holds the parameters.

* DeepSeek-V3 Technical Report (arXiv:2412.19437, sections 3.3.2 and 3.5.2), about Hopper: products are
  aligned to the largest exponent by right shifts, about 14 bits of each are kept, the rest is cut off.
* SageAttention2 (arXiv:2411.10958): on Ada and Hopper the accumulator of ``mma.f32.f8.f8.f32`` keeps
  1 sign, 8 exponent and 13 mantissa bits; the low ten bits of what is passed in come back as zeros.
* MMA-Sim (Xie, Wang, Yang and Yang, arXiv:2511.10909), bitwise equal to the hardware over its random
  tests: a fused step adds its products and the accumulator exactly after each was cut, towards zero,
  to 13 fractional bits of the largest exponent among them (a product's exponent is the sum of its
  factors' exponents, not normalised), then cuts the sum to 13 mantissa bits. On Ada m16n8k32 is two
  such steps of 16 products; Hopper's wgmma takes 32 products a step; consumer Blackwell keeps 25
  fractional bits and a float32 result.

Queries and keys are made as floats and quantised as the indexer does, one scale per row of 128 values.
The score of a key is ``k_scale * sum_h w_h * relu(q_h . k)``; "changed" counts keys of the exact top
2048 that the emulated scores leave out.
"""

from __future__ import annotations

import argparse
import datetime
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

TOPK, DIM = 2048, 128
E4M3_MAX, E4M3_LEAST = 448.0, 2.0**-6  # largest value; smallest normal one
_CHUNK = 1024  # keys at a time: the working set stays in the cache


@dataclass(frozen=True)
class Unit:
    """Arithmetic of one tensor core for e4m3 products and a float32 accumulator.

    Attributes:
        name: label in the table.
        products: products that one fused step adds.
        fraction: fractional bits kept of each summand, relative to the largest exponent of the step.
        mantissa: mantissa bits of a step's result.
        promote: 0, or the number of products after which the result is added to a float32 sum
            outside the tensor core and the accumulator starts from zero.
    """

    name: str
    products: int
    fraction: int
    mantissa: int
    promote: int = 0


ADA = Unit("sm_89", products=16, fraction=13, mantissa=13)
ADA_PROMOTED = Unit(
    "sm_89, float32 sum every 32", products=16, fraction=13, mantissa=13, promote=32
)
HOPPER = Unit("sm_90 wgmma", products=32, fraction=13, mantissa=13)
BLACKWELL = Unit("sm_120", products=32, fraction=25, mantissa=23)


def _cut(value: torch.Tensor, mantissa: int) -> torch.Tensor:
    """``value`` with mantissa bits beyond ``mantissa`` cleared: rounded towards zero."""
    if value.dtype == torch.float32:
        mask = -1 << (23 - mantissa)
        return (value.view(torch.int32) & mask).view(torch.float32)
    mask = -1 << (52 - mantissa)
    return (value.view(torch.int64) & mask).view(torch.float64)


def _power(value: torch.Tensor) -> torch.Tensor:
    """The power of two at or below each magnitude, as a float; 0 for 0. ``value`` is normal or 0."""
    if value.dtype == torch.float32:
        return (value.view(torch.int32) & 0x7F800000).view(torch.float32)
    return (value.view(torch.int64) & (0x7FF << 52)).view(torch.float64)


def _e4m3_power(code: torch.Tensor) -> torch.Tensor:
    """2 to the exponent field of an e4m3 value: that of the smallest normal for subnormals, 0 for 0."""
    return torch.where(code == 0, 0.0, _power(code.abs()).clamp(min=E4M3_LEAST))


def dots(q: torch.Tensor, k: torch.Tensor, unit: Unit) -> tuple[torch.Tensor, torch.Tensor]:
    """Emulated dot products of e4m3 values, and a running bound on their errors.

    The bound follows from the steps taken: every summand that loses bits is off by less than one unit
    of its step, 2^(largest exponent - fraction), and cutting the sum loses less than
    2^(its exponent - mantissa). (A running error bound as in Higham, Accuracy and Stability of
    Numerical Algorithms, section 3.3.)

    Args:
        q: float32 [H, D] of e4m3 values, D a multiple of ``unit.products``.
        k: float32 [N, D] of e4m3 values.

    Returns:
        float64 [H, N] dot products as ``unit`` computes them; float64 [H, N] bounds.
    """
    # Everything below is exact: integers of at most 20 bits, or 34 for the wide accumulator.
    dtype = torch.float32 if unit.fraction <= 13 else torch.float64
    heads, keys = q.shape[0], k.shape[0]
    out = torch.empty(heads, keys, dtype=torch.float64)
    bound = torch.empty(heads, keys, dtype=torch.float64)
    q_t = q.to(dtype).t().contiguous()[:, :, None]
    q_powers = _e4m3_power(q).to(dtype).t().contiguous()[:, :, None]
    for at in range(0, keys, _CHUNK):
        part = k[at : at + _CHUNK]
        k_t = part.to(dtype).t().contiguous()[:, None, :]
        k_powers = _e4m3_power(part).to(dtype).t().contiguous()[:, None, :]
        out[:, at : at + _CHUNK], bound[:, at : at + _CHUNK] = _chunk(
            q_t, q_powers, k_t, k_powers, unit
        )
    return out, bound


def _chunk(
    q: torch.Tensor, q_powers: torch.Tensor, k: torch.Tensor, k_powers: torch.Tensor, unit: Unit
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`dots` of a few keys; [D, H, 1] and [D, 1, n], one outer product per dimension."""
    dim = q.shape[0]
    shape = (q.shape[1], k.shape[2])
    acc = torch.zeros(shape, dtype=q.dtype)
    work, cut, total, lost = (torch.empty_like(acc) for _ in range(4))
    bound = torch.zeros(shape, dtype=torch.float64)
    outside = torch.zeros(shape, dtype=torch.float32)
    for begin in range(0, dim, unit.products):
        if unit.promote and begin and begin % unit.promote == 0:
            outside += acc
            bound += outside.abs().double() * 2.0**-24  # rounded to nearest
            acc.zero_()
        largest = _power(acc)
        for d in range(begin, begin + unit.products):
            torch.mul(q_powers[d], k_powers[d], out=work)
            torch.maximum(largest, work, out=largest)
        # A step of zeros has no exponent; nothing representable lies below the least product's.
        largest.clamp_(min=E4M3_LEAST**2)
        scale = 2.0**unit.fraction / largest
        torch.mul(acc, scale, out=work)
        torch.trunc(work, out=total)
        torch.ne(work, total, out=lost)
        for d in range(begin, begin + unit.products):
            torch.mul(q[d], k[d], out=work)
            work.mul_(scale)
            torch.trunc(work, out=cut)
            total += cut
            torch.ne(work, cut, out=work)
            lost += work
        exact = total / scale
        acc = _cut(exact, unit.mantissa)
        bound += (lost / scale).double()
        bound += torch.where(acc == exact, 0.0, _power(acc) * 2.0**-unit.mantissa).double()
    if not unit.promote:
        return acc.double(), bound
    outside += acc
    return outside.double(), bound + outside.abs().double() * 2.0**-24


def order_free_bound(q: torch.Tensor, k: torch.Tensor, unit: Unit) -> torch.Tensor:
    """Bound on the error of :func:`dots` whatever the order and grouping of the products, [H, N].

    Let P and N be the sums of the positive and of the negated negative products, X the larger. Cutting
    only shrinks a summand, so by induction every accumulator lies in [-N, P], and no exponent of a
    step exceeds that of X. So each of the D products and each of the G = D / products accumulators
    passed in is cut by less than X 2^-fraction, and each result by less than X 2^-mantissa.
    (A subnormal factor counts with the exponent of the least normal value, in the hardware and in X.)
    """
    q, k = (torch.where(x == 0, x, x.sign() * x.abs().clamp(min=E4M3_LEAST)) for x in (q, k))
    positive = q.clamp(min=0) @ k.clamp(min=0).t() + q.clamp(max=0) @ k.clamp(max=0).t()
    negative = -(q.clamp(min=0) @ k.clamp(max=0).t() + q.clamp(max=0) @ k.clamp(min=0).t())
    x = torch.maximum(positive, negative).double() * (1 + 2.0**-16)  # float32 sums, rounded up
    steps = q.shape[1] // unit.products
    return x * ((q.shape[1] + steps) * 2.0**-unit.fraction + steps * 2.0**-unit.mantissa)


# ------------------------------------------------------------------------------- from dots to keys


def scores(dot: torch.Tensor, weights: torch.Tensor, k_scale: torch.Tensor) -> torch.Tensor:
    """``k_scale * sum_h w_h relu(dot)`` in the dtype of ``dot``; [H, N], [H], [N] -> [N]."""
    return (weights.to(dot.dtype) @ dot.clamp(min=0)) * k_scale.to(dot.dtype)


def score_interval(
    dot: torch.Tensor, error: torch.Tensor, weights: torch.Tensor, k_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and largest score that dots within ``error`` of ``dot`` can give."""
    low, high = (dot - error).clamp(min=0), (dot + error).clamp(min=0)
    plus, minus = weights.clamp(min=0).double(), weights.clamp(max=0).double()
    scale = k_scale.double()
    return (plus @ low + minus @ high) * scale, (plus @ high + minus @ low) * scale


def select(score: torch.Tensor, topk: int = TOPK) -> torch.Tensor:
    """Indices of the highest scores; among equal ones the lowest index, as the kernels select."""
    return torch.sort(score, descending=True, stable=True).indices[:topk]


def changed_at_most(
    exact: torch.Tensor, low: torch.Tensor, high: torch.Tensor, topk: int = TOPK
) -> int:
    """Keys of the exact selection that scores within [low, high] can drop, at most.

    The threshold stays between the topk-th highest of ``low`` and of ``high``: scores only have to be
    compared one by one. A selected key can go only if its low end does not clear the upper limit, and
    for each one that goes another has to come whose high end reaches the lower limit.
    """
    if exact.numel() <= topk:
        return 0
    least = torch.topk(low, topk).values[-1]
    most = torch.topk(high, topk).values[-1]
    selected = torch.zeros_like(exact, dtype=torch.bool)
    selected[select(exact, topk)] = True
    can_go = int((selected & (low <= most)).sum())
    can_come = int((~selected & (high >= least)).sum())
    return min(can_go, can_come)


def expected_changes(exact: torch.Tensor, error: torch.Tensor, topk: int = TOPK) -> float:
    """Changes expected of independent errors: density of keys at the threshold x sd / sqrt(2 pi).

    Keys lie at density f around the threshold t, each moved by an error of standard deviation s. (A
    mean error moves the threshold with them.) The expected number that falls from above t to below is
    the integral over x > 0 of f P(error < -x), which is f E[error^-] = f s / sqrt(2 pi) for normal
    errors.
    """
    order = torch.sort(exact, descending=True).indices
    reach = min(64, topk // 2, exact.numel() - topk - 1)
    near = order[topk - reach : topk + reach]
    gap = float(exact[near[0]] - exact[near[-1]])
    deviation = float(error[near].std())
    return 2 * reach / gap * deviation / math.sqrt(2 * math.pi) if gap > 0 else math.inf


# ------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True)
class Inputs:
    """One query and its keys after quantisation: e4m3 values as float32."""

    q: torch.Tensor  # [H, 128]
    k: torch.Tensor  # [N, 128]
    k_scale: torch.Tensor  # [N]
    weights: torch.Tensor  # [H], the query scales folded in


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of 128 to e4m3 with the scale amax / 448 (DeepSeek-V3.2's indexer): values and scales."""
    scale = x.abs().amax(dim=1, keepdim=True).clamp(min=1e-4) / E4M3_MAX
    return (x / scale).to(torch.float8_e4m3fn).float(), scale[:, 0]


def _inputs(q: torch.Tensor, k: torch.Tensor, g: torch.Generator) -> Inputs:
    q_values, q_scale = quantise(q)
    k_values, k_scale = quantise(k)
    weights = torch.randn(q.shape[0], generator=g) * q_scale
    return Inputs(q_values, k_values, k_scale, weights)


def gaussian(heads: int, keys: int, g: torch.Generator) -> Inputs:
    """Independent normal values, as after the indexer's Hadamard rotation."""
    return _inputs(torch.randn(heads, DIM, generator=g), torch.randn(keys, DIM, generator=g), g)


def topics(heads: int, keys: int, g: torch.Generator) -> Inputs:
    """Keys around 64 centres and heads that each look for one of them: scores with a long tail."""
    centres = torch.randn(64, DIM, generator=g)
    of_key = torch.randint(0, 64, (keys,), generator=g)
    of_head = torch.randint(0, 64, (heads,), generator=g)
    strength = torch.rand(keys, 1, generator=g) * 2
    k = centres[of_key] * strength + torch.randn(keys, DIM, generator=g)
    return _inputs(centres[of_head] * 2 + torch.randn(heads, DIM, generator=g), k, g)


def outlier_channels(heads: int, keys: int, g: torch.Generator) -> Inputs:
    """Two channels 50 times larger, as without a rotation: all others are small beside them."""
    gain = torch.ones(DIM)
    gain[torch.tensor([5, 70])] = 50.0
    return _inputs(
        torch.randn(heads, DIM, generator=g) * gain, torch.randn(keys, DIM, generator=g) * gain, g
    )


def wide_range(heads: int, keys: int, g: torch.Generator) -> Inputs:
    """Magnitudes uniform in the exponent over 2^16, more than e4m3 can hold."""

    def values(rows: int) -> torch.Tensor:
        exponent = torch.rand(rows, DIM, generator=g) * 16
        sign = torch.randint(0, 2, (rows, DIM), generator=g) * 2 - 1
        return sign * torch.exp2(exponent)

    return _inputs(values(heads), values(keys), g)


def near_ties(heads: int, keys: int, g: torch.Generator) -> Inputs:
    """Every key the same but for one step of the e4m3 grid in four of its values."""
    base, _ = quantise(torch.randn(1, DIM, generator=g))
    codes = base.to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int16).repeat(keys, 1)
    where = torch.rand(keys, DIM, generator=g).topk(4, dim=1).indices
    step = torch.randint(0, 2, (keys, 4), generator=g, dtype=torch.int16) * 2 - 1
    moved = (codes.gather(1, where) & 0x7F).add(step).clamp(0, 0x7E)
    codes.scatter_(1, where, moved | (codes.gather(1, where) & 0x80))
    k = codes.to(torch.uint8).view(torch.float8_e4m3fn).float()
    q = _inputs(torch.randn(heads, DIM, generator=g), base, g)
    return Inputs(q.q, k, torch.full((keys,), 0.01), q.weights)


def cancelling(heads: int, keys: int, g: torch.Generator) -> Inputs:
    """The worst order: large products that all cancel later, and small ones added in between.

    48 dimensions add up positive products of up to 2^17, 32 hold values at 1/128 of that, on which
    the score depends, and the last 48 take the large sum away again.
    """
    q = torch.empty(heads, DIM)
    k = torch.empty(keys, DIM)
    for rows, x in ((heads, q), (keys, k)):
        large = torch.rand(rows, 48, generator=g) * 192 + 256
        x[:, :48] = large
        x[:, 48:80] = torch.randn(rows, 32, generator=g) * 30
        x[:, 80:] = large
    k[:, 80:] *= -1
    return _inputs(q, k, g)


FAMILIES: dict[str, Callable[[int, int, torch.Generator], Inputs]] = {
    "gaussian": gaussian,
    "topics": topics,
    "outlier channels": outlier_channels,
    "wide range": wide_range,
    "near ties": near_ties,
    "cancelling": cancelling,
}


# -------------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class Result:
    """One query at one context.

    Attributes:
        changed: keys of the exact 2048 left out, by way of computing.
        gap: largest distance of a key that sm_89 changes from the threshold, over the threshold.
        spread: the same distance over the standard deviation of all scores.
        expected: :func:`expected_changes` of the sm_89 errors.
        running: rigorous bound on the changes, for the order of steps emulated.
        order_free: rigorous bound on the changes for any order.
    """

    changed: dict[str, int]
    gap: float
    spread: float
    expected: float
    running: int
    order_free: int


UNITS = (ADA, ADA_PROMOTED, HOPPER, BLACKWELL)


def study(inputs: Inputs, contexts: list[int]) -> Iterator[tuple[int, Result]]:
    """Results for prefixes of the keys."""
    exact_dots = inputs.q.double() @ inputs.k.double().t()
    exact = scores(exact_dots, inputs.weights, inputs.k_scale)
    ways = {"float32": inputs.q @ inputs.k.t()}
    running = None
    for unit in UNITS:
        values, bound = dots(inputs.q, inputs.k, unit)
        if unit is ADA:
            running = score_interval(exact_dots, bound, inputs.weights, inputs.k_scale)
        ways[unit.name] = values.float()
    assert running is not None
    free = order_free_bound(inputs.q, inputs.k, ADA)
    order_free = score_interval(exact_dots, free, inputs.weights, inputs.k_scale)
    emulated = {
        name: scores(way, inputs.weights, inputs.k_scale).double() for name, way in ways.items()
    }
    for context in contexts:
        here = slice(0, context)
        chosen = select(exact[here])
        threshold = float(exact[chosen[-1]])
        kept = torch.zeros(context, dtype=torch.bool)
        kept[chosen] = True
        changed: dict[str, int] = {}
        moved = torch.zeros(0, dtype=torch.int64)
        for name, score in emulated.items():
            other = torch.zeros(context, dtype=torch.bool)
            other[select(score[here])] = True
            changed[name] = int((kept & ~other).sum())
            if name == ADA.name:
                moved = (kept ^ other).nonzero()[:, 0]
        distance = float((exact[here][moved] - threshold).abs().max()) if len(moved) else 0.0
        yield (
            context,
            Result(
                changed,
                distance / abs(threshold) if threshold else math.inf,
                distance / float(exact[here].std()),
                expected_changes(exact[here], (emulated[ADA.name] - exact)[here]),
                changed_at_most(exact[here], running[0][here], running[1][here]),
                changed_at_most(exact[here], order_free[0][here], order_free[1][here]),
            ),
        )


def _cell(values: list[int]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.1f} / {max(values)}"


def row(name: str, heads: int, context: int, results: list[Result]) -> str:
    cells = [name, str(heads), f"{context // 1024}K"]
    for way in ("float32", *(u.name for u in UNITS)):
        cells.append(_cell([r.changed[way] for r in results]))
    cells.append(f"{max(r.gap for r in results):.1e}")
    cells.append(f"{max(r.spread for r in results):.1e}")
    cells.append(f"{sum(r.expected for r in results) / len(results):.1f}")
    cells.append(str(max(r.running for r in results)))
    cells.append(str(max(r.order_free for r in results)))
    return f"| {' | '.join(cells)} |"


def table(
    families: list[str], heads: list[int], contexts: list[int], queries: int
) -> Iterator[str]:
    """Rows of the Markdown table as they are ready."""
    header = ["inputs", "H", "context", "float32", *(u.name for u in UNITS)]
    header += ["gap / threshold", "gap / sd", "expected", "bound", "order-free bound"]
    yield f"| {' | '.join(header)} |"
    yield f"|---|---:|---:|{'---:|' * (len(header) - 3)}"
    for name in families:
        for count in heads:
            found: dict[int, list[Result]] = {c: [] for c in contexts}
            for seed in range(queries):
                g = torch.Generator().manual_seed(1000 * seed + count)
                inputs = FAMILIES[name](count, max(contexts), g)
                for context, result in study(inputs, contexts):
                    found[context].append(result)
            for context in contexts:
                yield row(name, count, context, found[context])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=4, help="queries of each kind (default 4)")
    parser.add_argument("--contexts", type=int, nargs="+", default=[8192, 32_768, 131_072])
    parser.add_argument("--heads", type=int, nargs="+", default=[32, 64], help="index heads")
    parser.add_argument("--inputs", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    options = parser.parse_args()
    command = shlex.join(["python", f"bench/{Path(__file__).name}", *sys.argv[1:]])
    today = datetime.datetime.now(datetime.UTC).date()
    print(
        f"Made {today} by `{command}`, torch {torch.__version__}. Emulated on a CPU.\n", flush=True
    )
    for line in table(options.inputs, options.heads, sorted(options.contexts), options.queries):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
