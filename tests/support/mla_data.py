"""Inputs and comparisons shared by the sparse MLA and KV cache tests."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ada_dsa.kv_cache import reference as kv_reference
from ada_dsa.kv_cache.layout import NOPE_DIM, ROPE_DIM, KvLayout
from ada_dsa.sparse_mla.plan import LaunchPlan

SM_SCALE = 1 / math.sqrt(192 + 64)
FORMATS = [
    *((layout, ROPE_DIM) for layout in KvLayout),
    (KvLayout.PACKED_FP8, 0),
    (KvLayout.BF16, 0),
]
"""The rows that the kernels read: how they are stored, and their rotary values."""


@dataclass(frozen=True)
class Problem:
    """One attention problem. Every byte of a pool row that no index names is NaN."""

    q: torch.Tensor  # bfloat16 [T, H, 576], or 512 where rows have no rotary part
    kv: torch.Tensor  # [slots, 1, width]
    layout: KvLayout
    indices: torch.Tensor  # int32 [T, topk]


def random_indices(
    tokens: int, topk: int, slots: int, absent: float, generator: torch.Generator
) -> torch.Tensor:
    """Random slots above 0 with repeats; a share ``absent`` of the entries is negative."""
    device = generator.device
    index = torch.randint(1, slots, (tokens, topk), generator=generator, device=device)
    gone = torch.rand(tokens, topk, generator=generator, device=device) < absent
    return index.masked_fill(gone, -1).to(torch.int32)


def poison(kv: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """``kv`` [slots, width] with the bytes 0xFF (NaN in e4m3, bfloat16 and float32) where unused."""
    used = indices[indices >= 0].long().unique()
    bytes_ = torch.full(
        (kv.shape[0], kv.shape[1] * kv.element_size()), 0xFF, dtype=torch.uint8, device=kv.device
    )
    bytes_[used] = kv.view(torch.uint8)[used]
    return bytes_.view(kv.dtype)


def make_rows(
    slots: int, layout: KvLayout, generator: torch.Generator, rope: int = ROPE_DIM
) -> torch.Tensor:
    rows = torch.randn(slots, NOPE_DIM + rope, generator=generator, device=generator.device)
    rows = rows.to(torch.bfloat16)
    if layout is KvLayout.BF16:
        return rows
    if layout is KvLayout.RAW_FP8:
        return rows.to(torch.float8_e4m3fn)
    packed = kv_reference.pack_rows(rows[:, :NOPE_DIM], rows[:, NOPE_DIM:])
    return packed.view(torch.float8_e4m3fn)


def make_problem(
    tokens: int,
    heads: int,
    topk: int,
    layout: KvLayout,
    *,
    slots: int = 512,
    absent: float = 0.1,
    seed: int = 0,
    device: str = "cpu",
    indices: torch.Tensor | None = None,
    rope: int = ROPE_DIM,
) -> Problem:
    generator = torch.Generator(device).manual_seed(seed)
    q = torch.randn(tokens, heads, NOPE_DIM + rope, generator=generator, device=device)
    q = q.to(torch.bfloat16)
    if indices is None:
        indices = random_indices(tokens, topk, slots, absent, generator)
    kv = poison(make_rows(slots, layout, generator, rope), indices).unsqueeze(1)
    return Problem(q, kv, layout, indices)


def uneven_problem(
    heads: int, topk: int, layout: KvLayout, *, device: str = "cpu", rope: int = ROPE_DIM
) -> Problem:
    """Two tokens whose values differ widely in size between the chunks of a row, rows, and heads.

    The latent values of a row's four chunks are of order 1e-3, 1, 30 and 0 (all zero, with scale zero).
    Every seventh row is 1e-4 of that. The queries of the heads range from 2^-60 to 2^6.
    """
    problem = make_problem(
        2, heads, topk, KvLayout.BF16, slots=topk + 1, absent=0.0, device=device, rope=rope
    )
    rows = problem.kv[:, 0].view(torch.int16).view(torch.bfloat16).nan_to_num(0.0).float()
    chunk = torch.tensor([1e-3, 1.0, 30.0, 0.0], device=device).repeat_interleave(128)
    rows[:, :NOPE_DIM] *= chunk
    rows[::7, :NOPE_DIM] *= 1e-4
    powers = torch.linspace(-60, 6, heads, device=device).round().exp2()
    q = problem.q.float() * powers[:, None]
    rows, q = rows.to(torch.bfloat16), q.to(torch.bfloat16)
    if layout is KvLayout.RAW_FP8:
        rows = rows.clamp(-448, 448).to(torch.float8_e4m3fn)
    elif layout is KvLayout.PACKED_FP8:
        rows = kv_reference.pack_rows(rows[:, :NOPE_DIM], rows[:, NOPE_DIM:])
        rows = rows.view(torch.float8_e4m3fn)
    return Problem(q, poison(rows, problem.indices)[:, None], layout, problem.indices)


def launch_kernels(
    problem: Problem, plan: LaunchPlan, return_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Launch the kernels on the problem's latent and rotary parts, without the checks of the API."""
    from ada_dsa.sparse_mla.api import launch

    return launch(
        problem.q[..., :NOPE_DIM],
        problem.q[..., NOPE_DIM:],
        problem.kv[:, 0],
        problem.layout,
        problem.indices,
        SM_SCALE,
        plan,
        return_lse,
    )


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Norm of the difference over the norm of ``want``; NaN if anything is not finite."""
    norm = want.double().norm()
    difference = (got.double() - want.double()).norm()
    return float(difference) if norm == 0 else float(difference / norm)


def assert_close(got: torch.Tensor, want: torch.Tensor, limit: float, what: str) -> None:
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, want {tuple(want.shape)}"
    assert got.isfinite().all(), f"{what}: {int((~got.isfinite()).sum())} values are not finite"
    error = relative_error(got, want)
    if error > limit:
        rows = (got.double() - want.double()).flatten(1).norm(dim=1)
        rows = rows / want.double().flatten(1).norm(dim=1).clamp_min(1e-30)
        worst = int(rows.argmax())
        raise AssertionError(
            f"{what}: relative error {error:.3e} > {limit:.1e}; worst row {worst} "
            f"({float(rows[worst]):.3e}); {int((rows > limit).sum())} of {len(rows)} rows above"
        )
