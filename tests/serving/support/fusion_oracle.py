"""Mixture-of-experts layers in plain torch, for block-fp8 weights as GLM-5.2's checkpoint has them.

``w1`` is [E, 2I, H] (gate rows, then up rows) and ``w2`` [E, H, I], float8_e4m3fn with float32 scales for
blocks of 128x128. The last expert is the shared one where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

BLOCK: Final = 128
E4M3_MAX: Final = 448.0


@dataclass(frozen=True)
class Weights:
    """Stacked experts; ``s1`` and ``s2`` are the scales of ``w1`` and ``w2``."""

    w1: torch.Tensor
    s1: torch.Tensor
    w2: torch.Tensor
    s2: torch.Tensor

    def part(self, start: int, end: int) -> Weights:
        return Weights(*(one[start:end] for one in (self.w1, self.s1, self.w2, self.s2)))


@dataclass(frozen=True)
class Distance:
    """Relative errors: of the whole result, and of the token that is furthest off."""

    whole: float
    worst: float


def make_weights(
    experts: int, hidden: int, inter: int, *, seed: int, device: str = "cuda"
) -> Weights:
    """Random experts whose outputs are about as large as their inputs."""
    generator = torch.Generator(device).manual_seed(seed)

    def stack(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (experts, rows // BLOCK, columns // BLOCK)
        scales = torch.rand(shape, generator=generator, device=device) + 0.5
        codes = torch.empty(experts, rows, columns, dtype=torch.float8_e4m3fn, device=device)
        for expert in range(experts):  # one at a time: the float32 values of all need much memory
            values = torch.randn(rows, columns, generator=generator, device=device) * 64
            codes[expert] = values.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
        return codes, scales / (64 * columns**0.5)

    w1, s1 = stack(2 * inter, hidden)
    w2, s2 = stack(hidden, inter)
    return Weights(w1, s1, w2, s2)


def dequantized(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """float32 [..., N, K] of codes with a scale for each block."""
    wide = scales.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)
    return codes.float() * wide


def through_fp8(x: torch.Tensor) -> torch.Tensor:
    """``x`` as float32 after the rounding that a block-fp8 product applies to its left operand."""
    groups = x.float().unflatten(-1, (-1, BLOCK))
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-10) / E4M3_MAX
    codes = (groups / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return (codes.float() * scale).flatten(-2)


def product(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """float32 ``x @ w.T`` of one expert, ``x`` rounded to fp8."""
    return through_fp8(x) @ dequantized(codes, scales).T


def expert(x: torch.Tensor, weights: Weights, index: int, *, rounded: bool) -> torch.Tensor:
    """One expert's float32 output for bf16 ``x`` [M, H].

    Args:
        rounded: apply the roundings of a served layer (operands to fp8, results to bf16); False gives
            what the weights mean.
    """
    w1 = dequantized(weights.w1[index], weights.s1[index])
    w2 = dequantized(weights.w2[index], weights.s2[index])
    both = (through_fp8(x) if rounded else x.float()) @ w1.T
    if rounded:
        both = both.bfloat16().float()
    gate, up = both.chunk(2, -1)
    middle = torch.nn.functional.silu(gate) * up
    if rounded:
        middle = through_fp8(middle.bfloat16())
    return middle @ w2.T


def layer(
    x: torch.Tensor,
    weights: Weights,
    ids: torch.Tensor,
    shares: torch.Tensor,
    scaling: float,
    *,
    rounded: bool,
) -> torch.Tensor:
    """float32 [M, H]: ``scaling`` times the sum of each token's experts by their shares.

    Args:
        ids: int [M, K], experts of each token.
        shares: float32 [M, K].
    """
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for index in ids.unique().tolist():
        token, slot = (ids == index).nonzero(as_tuple=True)
        result = expert(x[token], weights, index, rounded=rounded) * shares[token, slot, None]
        out.index_add_(0, token, result.bfloat16().float() if rounded else result)
    return out * scaling


def distance(actual: torch.Tensor, expected: torch.Tensor) -> Distance:
    """Relative to the norm of ``expected``, over everything and row by row. NaN counts as infinite."""
    apart = (actual.float() - expected.float()).nan_to_num(float("inf"), float("inf"), float("inf"))
    rows = apart.norm(dim=-1) / expected.float().norm(dim=-1).clamp(min=1e-20)
    return Distance(float(apart.norm() / expected.float().norm()), float(rows.max()))
