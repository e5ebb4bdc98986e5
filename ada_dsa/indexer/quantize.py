"""Quantisation of the indexer's keys and queries, with the contract of sglang's ``act_quant``."""

from __future__ import annotations

import torch

from .._checks import require_choice, require_tensor
from .._launch import on_device
from ..arch import has_native_fp8, target_arch
from . import reference
from .reference import DIM

_FP8 = torch.float8_e4m3fn
_BLOCKS = 4  # blocks per program, one per warp


def act_quant(
    x: torch.Tensor, block_size: int = DIM, scale_fmt: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise blocks of 128 values. No fp8 type is needed below sm_89, where Triton has none.

    Args:
        x: bfloat16 or float32, contiguous, [..., D] with D a multiple of 128.
        block_size: values per scale; 128.
        scale_fmt: None, or any name of a format (``ue8m0``) to round scales up to powers of two.

    Returns:
        float8_e4m3fn [..., D] and float32 [..., D / 128]: ``scale = max(amax, 1e-4) / 448``, and a code is
        e4m3 of ``value / scale``.

    Raises:
        TypeError, ValueError: dtype, shape, layout or ``block_size`` is not accepted.

    Source: sglang ``act_quant`` (``nsa/triton_kernel.py`` in 0.5.9, ``act_quant_triton.py`` in 0.5.23). It
    rounds scales with approximate logarithms, so a scale that is a power of two may be twice as large there.
    """
    require_choice(block_size, "block_size", (DIM,))
    require_tensor(x, "x", dtype=(torch.bfloat16, torch.float32), contiguous=True)
    if x.dim() == 0 or x.shape[-1] % DIM:
        raise ValueError(f"x: expected a last dimension divisible by {DIM}, got {tuple(x.shape)}")
    codes = torch.empty(x.shape, dtype=_FP8, device=x.device)
    scales = torch.empty((*x.shape[:-1], x.shape[-1] // DIM), dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        return codes, scales
    blocks = x.view(-1, DIM)
    if not x.is_cuda:
        got, scale = reference.quantize_blocks(blocks, scale_fmt is not None)
        return got.view(x.shape), scale.view(scales.shape)
    launch(
        blocks,
        codes.view(-1, DIM),
        scales.view(-1),
        scale_fmt is not None,
        not has_native_fp8(target_arch(x.device)),
    )
    return codes, scales


def launch(
    blocks: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    round_scales: bool,
    bytes_only: bool,
) -> None:
    """Launch the kernel on [N, 128] blocks."""
    from .quantize_kernel import quantize_blocks_kernel

    count = blocks.shape[0]
    with on_device(blocks.device):
        quantize_blocks_kernel[(-(-count // _BLOCKS),)](
            blocks,
            codes.view(torch.uint8) if bytes_only else codes,
            scales,
            count,
            ROUND=round_scales,
            BYTES=bytes_only,
            BLOCKS=_BLOCKS,
            num_warps=_BLOCKS,
        )
