"""Distances between two servings of one model: logprobs, greedy answers, selected keys.

Pure functions of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Three standard errors of a difference, in parts of the value, at one token. An exponential's mean has a
# standard error of itself; its p99, ln(100) times as large, of sqrt(0.99 / 0.01) times the mean.
LUCK_OF_MEAN: Final = 3 * math.sqrt(2)
LUCK_OF_P99: Final = 3 * math.sqrt(2) * math.sqrt(99) / math.log(100)


@dataclass(frozen=True)
class Distance:
    """Absolute differences of the logprobs of the same tokens, in nats."""

    tokens: int
    mean: float
    p99: float
    max: float


def distance(one: ArrayLike, other: ArrayLike) -> Distance:
    """Compare two arrays of logprobs, of any one shape.

    Raises:
        ValueError: the shapes differ, there is no token, or a value is not finite.
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (one, other))
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"logprobs of shapes {a.shape} and {b.shape}: need the same, and a token")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        count = int((~np.isfinite(a)).sum()), int((~np.isfinite(b)).sum())
        raise ValueError(f"logprobs that are not finite: {count[0]} and {count[1]} of {a.size}")
    apart = np.abs(a - b).ravel()
    return Distance(
        tokens=apart.size,
        mean=float(apart.mean()),
        p99=float(np.quantile(apart, 0.99)),
        max=float(apart.max()),
    )


def no_further(
    fork: Distance, stock: Distance, *, factor: float = 1.1, slack: float = 0.005
) -> list[str]:
    """Reasons why the fork is further from the witness than stock; empty if it is not.

    ``mean`` and ``p99`` may exceed stock's by ``factor``, by ``slack`` nats (ten times that for p99),
    and by chance: three standard errors of the difference of two samples of as many tokens, whose
    absolute differences fall off exponentially. ``max`` is one token's and says nothing about a
    distribution: it is not compared.
    """
    found = []
    tokens = min(fork.tokens, stock.tokens)
    for name, grace, luck in (("mean", slack, LUCK_OF_MEAN), ("p99", 10 * slack, LUCK_OF_P99)):
        ours, theirs = getattr(fork, name), getattr(stock, name)
        allowed = theirs * (factor + luck * tokens**-0.5) + grace
        if ours > allowed:
            found.append(
                f"{name} of {tokens} tokens: the fork is {ours:.4f} nats from the witness, "
                f"stock {theirs:.4f}; allowed {allowed:.4f}"
            )
    return found


def no_further_than_either(
    fork: Distance, stock: Distance, rounding: Distance, *, factor: float = 1.1
) -> list[str]:
    """As :func:`no_further`, but the effect of rounding is allowed too.

    Stock answers bit for bit the same where its products keep their order. Products in bf16 do not keep it
    from one number of rows to another, so an engine with bf16 weights differs from itself by rounding.
    """
    return no_further(fork, stock, factor=factor) and no_further(fork, rounding, factor=factor)


@dataclass(frozen=True)
class Agreement:
    """Of ``compared`` greedy tokens the first ``length`` are the same."""

    length: int
    compared: int

    @property
    def whole(self) -> bool:
        return self.length == self.compared


def greedy_agreement(one: Sequence[int], other: Sequence[int]) -> Agreement:
    """Compare two greedy continuations; of unequal lengths, the shorter's length is compared."""
    compared = min(len(one), len(other))
    same = np.asarray(one[:compared]) == np.asarray(other[:compared])
    return Agreement(length=compared if same.all() else int(np.argmin(same)), compared=compared)


@dataclass(frozen=True)
class KeyAgreement:
    """Agreement of the key sets of ``rows`` queries; 1.0 means the same set."""

    rows: int
    jaccard: float
    intersection: float
    worst: float

    @classmethod
    def of(cls, jaccard: NDArray[np.float64], intersection: NDArray[np.float64]) -> KeyAgreement:
        return cls(
            rows=jaccard.size,
            jaccard=float(jaccard.mean()),
            intersection=float(intersection.mean()),
            worst=float(intersection.min()),
        )


def key_agreement(one: ArrayLike, other: ArrayLike) -> KeyAgreement:
    """Compare selected keys ``[rows, n]`` and ``[rows, m]``, in any order. Negative keys mean none.

    ``intersection`` is the part of the larger set that both have, as a mean and (``worst``) of the row
    where it is least. Two empty sets agree.

    Raises:
        ValueError: not two matrices of as many rows, or a key twice in a row.
    """
    a, b = np.asarray(one), np.asarray(other)
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or not len(a):
        raise ValueError(
            f"keys of shapes {a.shape} and {b.shape}: need [rows, keys] of as many rows"
        )
    jaccard, intersection = np.ones(len(a)), np.ones(len(a))
    for row, (x, y) in enumerate(zip(a, b, strict=True)):
        x, y = (_set(keys, row) for keys in (x, y))
        if x.size or y.size:
            both = np.intersect1d(x, y, assume_unique=True).size
            jaccard[row] = both / (x.size + y.size - both)
            intersection[row] = both / max(x.size, y.size)
    return KeyAgreement.of(jaccard, intersection)


def _set(keys: NDArray[np.integer], row: int) -> NDArray[np.integer]:
    kept = keys[keys >= 0]
    unique = np.unique(kept)
    if unique.size != kept.size:
        raise ValueError(f"row {row} selects {kept.size - unique.size} keys more than once")
    return unique


def layer_agreement(
    one: Mapping[int, ArrayLike], other: Mapping[int, ArrayLike]
) -> dict[int, KeyAgreement]:
    """:func:`key_agreement` per layer.

    Raises:
        ValueError: the layers differ, or as there.
    """
    if set(one) != set(other):
        raise ValueError(f"keys of layers {sorted(one)} and {sorted(other)}: need the same layers")
    return {layer: key_agreement(one[layer], other[layer]) for layer in sorted(one)}


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, columns aligned; floats with four digits after the point.

    Raises:
        ValueError: a row has not as many cells as there are headers.
    """
    cells = [list(headers)] + [[_cell(value) for value in row] for row in rows]
    if uneven := [row for row in cells if len(row) != len(headers)]:
        raise ValueError(
            f"a row of {len(uneven[0])} cells under {len(headers)} headers: {uneven[0]}"
        )
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(headers))]
    cells.insert(1, ["-" * width for width in widths])
    lines = (
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    )
    return "".join(f"| {line} |\n" for line in lines)


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float | np.floating) else str(value)
