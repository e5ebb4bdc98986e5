"""Random indexer inputs. Whatever a kernel must not read is poisoned (NaN)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

FP8 = torch.float8_e4m3fn
PAGE, DIM, ROW = 64, 128, 132


@dataclass(frozen=True)
class Paged:
    """Arguments of ``fp8_paged_mqa_logits``."""

    q: torch.Tensor
    kv_cache: torch.Tensor
    weights: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    max_context_len: int


@dataclass(frozen=True)
class Ragged:
    """Arguments of ``fp8_mqa_logits``."""

    q: torch.Tensor
    kv: tuple[torch.Tensor, torch.Tensor]
    weights: torch.Tensor
    ks: torch.Tensor
    ke: torch.Tensor


def fp8(generator: torch.Generator, *shape: int, device: str | torch.device) -> torch.Tensor:
    """Normal values rounded to e4m3."""
    return torch.randn(shape, generator=generator, device=device).to(FP8)


def make_paged(
    lens: list[list[int]] | list[int],
    *,
    next_n: int = 1,
    heads: int = 32,
    width: int | None = None,
    table_stride: int = 1,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Paged:
    """Requests of the given lengths on scattered pages of a poisoned pool.

    Pool bytes that no request uses are 0xFF (an e4m3 NaN, and NaN as float32), as are the keys
    after a request's last one; table entries past a request's pages point at a poisoned page.

    Args:
        lens: per request, or per request and query.
        width: block-table columns; by default just enough.
        table_stride: take every n-th row of a larger table, as speculative verify does.
    """
    g = torch.Generator(device=device).manual_seed(seed)
    batch = len(lens)
    context_lens = torch.tensor(lens, dtype=torch.int32, device=device)
    longest = [max(x) if isinstance(x, list) else x for x in lens]
    pages = [-(-n // PAGE) for n in longest]
    width = width or max([1, *pages])
    total = sum(pages)
    pool = torch.full((total + 3, PAGE * ROW), 0xFF, dtype=torch.uint8, device=device)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)) + 2
    table = torch.ones((batch * table_stride, width), dtype=torch.int32, device=device)
    at = 0
    for b in range(batch):
        for p in range(pages[b]):
            page = int(order[at])
            at += 1
            table[b * table_stride, p] = page
            used = min(PAGE, longest[b] - p * PAGE)
            keys = fp8(g, used, DIM, device=device).view(torch.uint8)
            pool[page, : used * DIM] = keys.flatten()
            scale = torch.rand(used, generator=g, device=device) + 0.5
            pool[page, PAGE * DIM : PAGE * DIM + used * 4] = scale.view(torch.uint8)
    return Paged(
        q=fp8(g, batch, next_n, heads, DIM, device=device),
        kv_cache=pool.view(-1, PAGE, 1, ROW),
        weights=torch.randn((batch * next_n, heads), generator=g, device=device),
        context_lens=context_lens,
        block_tables=table[::table_stride],
        max_context_len=width * PAGE,
    )


def make_ragged(
    windows: list[tuple[int, int]],
    num_kv: int,
    *,
    heads: int = 32,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Ragged:
    """One query for each window (ks, ke) over ``num_kv`` keys. Keys outside all windows are NaN."""
    g = torch.Generator(device=device).manual_seed(seed)
    k = fp8(g, num_kv, DIM, device=device)
    scale = torch.rand(num_kv, generator=g, device=device) + 0.5
    seen = torch.zeros(num_kv, dtype=torch.bool)
    for lo, hi in windows:
        seen[lo:hi] = True
    unseen = ~seen.to(device)
    k.view(torch.uint8)[unseen] = 0xFF
    scale[unseen] = float("nan")
    spans = torch.tensor(windows, dtype=torch.int32, device=device).view(-1, 2)
    return Ragged(
        q=fp8(g, len(windows), heads, DIM, device=device),
        kv=(k, scale),
        weights=torch.randn((len(windows), heads), generator=g, device=device),
        ks=spans[:, 0].contiguous(),
        ke=spans[:, 1].contiguous(),
    )


def causal_windows(lengths: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], int]:
    """Windows of requests with (prefix, new) tokens whose keys are concatenated, and all keys."""
    windows, base = [], 0
    for prefix, new in lengths:
        windows += [(base, base + prefix + i + 1) for i in range(new)]
        base += prefix + new
    return windows, base


def assert_close(
    got: torch.Tensor, want: torch.Tensor, tolerance: float, what: str, rms: float = 0.0
) -> None:
    """Assert a bound on the relative norm of the error, and that no element has over 30 times its share.

    ``rms``: the typical size of the values. It is a lower limit for the norm that the error is divided by.
    """
    got, want = got.double(), want.double()
    assert torch.isfinite(got).all(), f"{what}: {int((~got.isfinite()).sum())} non-finite values"
    norm = want.norm().clamp(min=max(1e-30, rms * want.numel() ** 0.5))
    error = ((got - want).norm() / norm).item()
    worst = (got - want).abs().max().item() if got.numel() else 0.0
    rms = (norm / max(1, want.numel()) ** 0.5).item()
    assert error <= tolerance, f"{what}: relative error {error:.3e} > {tolerance:.1e}"
    assert worst <= 30 * tolerance * rms, f"{what}: worst {worst:.3e}, rms {rms:.3e}"
