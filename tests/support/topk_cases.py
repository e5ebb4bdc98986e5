"""Score rows that top-k tests share."""

from __future__ import annotations

import torch


def normal(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """Standard normal scores, float32 [rows, width]."""
    return torch.randn((rows, width), generator=torch.Generator().manual_seed(seed))


def hostile_rows(width: int) -> dict[str, torch.Tensor]:
    """Rows that break samplers, buffers and comparisons."""
    ramp = torch.arange(width, dtype=torch.float32)
    noise = normal(1, width, 5)[0]
    special = noise.clone()
    special[::5] = float("inf")
    special[1::5] = float("-inf")
    special[2::5] = float("nan")
    zeros = torch.zeros(width)
    zeros[::2] = -0.0
    clustered = noise.clone()
    clustered[40:90] += 100
    late = noise.clone()
    late[-20:] += 100
    tiny = torch.full((width,), 1e-45)
    tiny[::3] = -1e-45
    extremes = noise * 3e38
    mixed_nan = torch.full((width,), float("nan"))
    mixed_nan[50:60] = ramp[50:60]
    negative_nan = noise.clone()
    negative_nan.view(torch.int32)[::2] = -1
    return {
        "all equal": torch.full((width,), 1.5),
        "all zero of both signs": zeros,
        "integers with ties": torch.randint(
            -3, 3, (width,), generator=torch.Generator().manual_seed(2)
        ).float(),
        "ascending": ramp,
        "descending": -ramp,
        "periodic": ramp % 8,
        "infinities and NaN": special,
        "clustered": clustered,
        "late": late,
        "denormals": tiny,
        "huge": extremes,
        "all -inf": torch.full((width,), float("-inf")),
        "all NaN": torch.full((width,), float("nan")),
        "few numbers among NaN": mixed_nan,
        "NaN with the sign set": negative_nan,
        "one +inf": torch.where(ramp == 77, float("inf"), noise),
        "nearly equal": 1.0 + ramp * 1e-7,
    }
