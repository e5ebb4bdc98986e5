"""Public functions of the KV cache, with the contracts of sglang's ``quant_k_cache`` and ``dequant_k_cache``.

The bytes equal those of sglang's Triton kernels (0.5.9 to 0.5.23) with one exception: the codes of a tile of
128 zeros are 0, while sglang stores NaN (0 * inf).
"""

from __future__ import annotations

import torch

from .._checks import (
    debug_check_range,
    require_choice,
    require_int,
    require_same_device,
    require_tensor,
)
from .._launch import on_device
from ..arch import has_native_fp8, target_arch
from . import reference
from .layout import (
    NOPE_BYTES,
    NOPE_DIM,
    PACKED_BYTES,
    ROPE_BYTES,
    ROPE_DIM,
    ROW_DIM,
    TILE,
)

_FP8 = torch.float8_e4m3fn
_CODES = (_FP8, torch.uint8)
_TOKENS = 4  # rows per program, one row per warp


def _split_views(rows: torch.Tensor, bytes_only: bool) -> tuple[torch.Tensor, ...]:
    """Return codes, scales and rotary part of uint8 rows [N, 656] as typed views of the same memory."""
    codes = rows[:, :NOPE_DIM]
    return (
        codes if bytes_only else codes.view(_FP8),
        rows[:, NOPE_DIM:NOPE_BYTES].view(torch.float32),
        rows[:, NOPE_BYTES:].view(torch.bfloat16),
    )


def _view_2d(tensor: object, name: str, width: int) -> torch.Tensor:
    """Check bfloat16 [N, width] or [N, 1, width], any row stride, and return it as [N, width]."""
    filled = isinstance(tensor, torch.Tensor) and tensor.numel() > 0
    checked = require_tensor(
        tensor, name, dtype=torch.bfloat16, ndim=(2, 3), unit_last_stride=filled
    )
    if checked.dim() == 3:
        require_tensor(checked, name, shape=(None, 1, width), unit_last_stride=filled)
        return checked[:, 0]
    return require_tensor(checked, name, shape=(None, width), unit_last_stride=filled)


def _view_rows(pool: object, name: str) -> torch.Tensor:
    """Check packed rows of any rank with last dimension 656 and view them as uint8 [N, 656]."""
    checked = require_tensor(pool, name, dtype=_CODES, contiguous=True)
    if checked.dim() < 2 or checked.shape[-1] != PACKED_BYTES:
        raise ValueError(
            f"{name}: expected packed rows, last dimension {PACKED_BYTES}, "
            f"got shape {tuple(checked.shape)}"
        )
    if checked.data_ptr() % 16:
        raise ValueError(f"{name}: expected memory aligned to 16 bytes")
    return checked.view(torch.uint8).view(-1, PACKED_BYTES)


def _check_slots(slots: object, name: str, like: torch.Tensor, count: int | None) -> torch.Tensor:
    checked = require_tensor(
        slots, name, dtype=(torch.int32, torch.int64), shape=(count,), device=like.device
    )
    debug_check_range(checked, name, -(2**31), like.shape[0] - 1)
    return checked


def _needs_bytes(device: torch.device) -> bool:
    return not has_native_fp8(target_arch(device))


def _pack(
    k_nope: torch.Tensor,
    k_rope: torch.Tensor,
    targets: tuple[torch.Tensor, ...],
    slots: torch.Tensor | None,
    bytes_only: bool,
) -> None:
    from .kernel import pack_rows_kernel

    count = k_nope.shape[0]
    if count == 0:
        return
    codes, scales, rope = targets
    with on_device(k_nope.device):
        pack_rows_kernel[(-(-count // _TOKENS),)](
            k_nope,
            k_rope,
            codes,
            scales,
            rope,
            codes if slots is None else slots,
            count,
            k_nope.stride(0),
            k_rope.stride(0),
            codes.stride(0),
            scales.stride(0),
            rope.stride(0),
            SCATTER=slots is not None,
            BYTES=bytes_only,
            TOKENS=_TOKENS,
            num_warps=_TOKENS,
        )


def _unpack(rows: torch.Tensor, slots: torch.Tensor | None, bytes_only: bool) -> torch.Tensor:
    from .kernel import unpack_rows_kernel

    count = rows.shape[0] if slots is None else slots.shape[0]
    out = torch.empty(count, ROW_DIM, dtype=torch.bfloat16, device=rows.device)
    if count == 0:
        return out
    codes, scales, rope = _split_views(rows, bytes_only)
    with on_device(rows.device):
        unpack_rows_kernel[(-(-count // _TOKENS),)](
            codes,
            scales,
            rope,
            out,
            codes if slots is None else slots,
            count,
            codes.stride(0),
            scales.stride(0),
            rope.stride(0),
            GATHER=slots is not None,
            BYTES=bytes_only,
            TOKENS=_TOKENS,
            num_warps=_TOKENS,
        )
    return out


def quantize_k_cache(cache_k: torch.Tensor, dv: int | None = None) -> torch.Tensor:
    """Pack bfloat16 latent rows.

    Args:
        cache_k: bfloat16 [..., 576], usually [blocks, block_size, 1, 576].
        dv: width of the latent part; 512 or None.

    Returns:
        float8_e4m3fn [..., 656], newly allocated: 512 codes, 4 float32 scales (each amax / 448 of 128
        values), 64 bfloat16.

    Raises:
        TypeError, ValueError: dtype, width or ``dv`` is not accepted.

    Source: sglang ``nsa/quant_k_cache.py`` (0.5.9), ``dsa_quant_k_cache.py`` (0.5.23).
    """
    require_tensor(cache_k, "cache_k", dtype=torch.bfloat16, unit_last_stride=False)
    if cache_k.dim() < 2 or cache_k.shape[-1] != ROW_DIM:
        raise ValueError(
            f"cache_k: expected last dimension {ROW_DIM} and at least two dimensions, "
            f"got shape {tuple(cache_k.shape)}"
        )
    if dv is not None:
        require_int(dv, "dv", low=NOPE_DIM, high=NOPE_DIM)
    flat = cache_k.reshape(-1, ROW_DIM)
    k_nope, k_rope = flat[:, :NOPE_DIM], flat[:, NOPE_DIM:]
    if flat.is_cuda:
        rows = torch.empty(flat.shape[0], PACKED_BYTES, dtype=torch.uint8, device=flat.device)
        bytes_only = _needs_bytes(flat.device)
        _pack(k_nope, k_rope, _split_views(rows, bytes_only), None, bytes_only)
    else:
        rows = reference.pack_rows(k_nope, k_rope)
    return rows.view(_FP8).view(*cache_k.shape[:-1], PACKED_BYTES)


def quantize_k_cache_separate(
    k_nope: torch.Tensor, k_rope: torch.Tensor, tile_size: int = TILE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack the latent and the rotary part into two byte tensors, for sglang's two-part pool writer.

    Args:
        k_nope: bfloat16 [N, 512] or [N, 1, 512].
        k_rope: bfloat16 [N, 64] or [N, 1, 64].
        tile_size: values per scale; 128.

    Returns:
        uint8 [N, 1, 528] (codes, then scales) and uint8 [N, 1, 128] (bytes of bfloat16). Concatenated,
        they are the packed rows of :func:`quantize_k_cache`.

    Raises:
        TypeError, ValueError: dtype, shape or ``tile_size`` is not accepted.
    """
    require_choice(tile_size, "tile_size", (TILE,))
    nope, rope = _view_2d(k_nope, "k_nope", NOPE_DIM), _view_2d(k_rope, "k_rope", ROPE_DIM)
    count = nope.shape[0]
    require_tensor(rope, "k_rope", shape=(count, ROPE_DIM), unit_last_stride=False)
    device = require_same_device(k_nope=nope, k_rope=rope)
    if device.type != "cuda":
        rows = reference.pack_rows(nope, rope)
        nope_part, rope_part = rows[:, :NOPE_BYTES].contiguous(), rows[:, NOPE_BYTES:].contiguous()
        return nope_part.unsqueeze(1), rope_part.unsqueeze(1)
    nope_part = torch.empty(count, NOPE_BYTES, dtype=torch.uint8, device=device)
    rope_part = torch.empty(count, ROPE_BYTES, dtype=torch.uint8, device=device)
    bytes_only = _needs_bytes(device)
    codes = nope_part[:, :NOPE_DIM]
    targets = (
        codes if bytes_only else codes.view(_FP8),
        nope_part[:, NOPE_DIM:].view(torch.float32),
        rope_part.view(torch.bfloat16),
    )
    _pack(nope, rope, targets, None, bytes_only)
    return nope_part.unsqueeze(1), rope_part.unsqueeze(1)


def quantize_and_scatter(
    k_nope: torch.Tensor, k_rope: torch.Tensor, kv_buffer: torch.Tensor, loc: torch.Tensor
) -> None:
    """Pack rows directly into their pool slots, in one launch instead of one to quantise and one to scatter.

    Args:
        k_nope: bfloat16 [N, 512] or [N, 1, 512].
        k_rope: bfloat16 [N, 64] or [N, 1, 64].
        kv_buffer: float8_e4m3fn or uint8, contiguous, [..., 656]. A slot is a flat row number.
        loc: int32 or int64 [N] slots. A row with a negative slot is skipped. If two rows have the same
            slot (padding rows have slot 0), the slot receives one of them; which one is undefined.

    Raises:
        TypeError, ValueError: dtype, shape, layout or device is not accepted. With
            ``ADA_DSA_DEBUG=1`` also if a slot is beyond the end of the pool.
    """
    nope, rope = _view_2d(k_nope, "k_nope", NOPE_DIM), _view_2d(k_rope, "k_rope", ROPE_DIM)
    count = nope.shape[0]
    require_tensor(rope, "k_rope", shape=(count, ROPE_DIM), unit_last_stride=False)
    rows = _view_rows(kv_buffer, "kv_buffer")
    device = require_same_device(kv_buffer=rows, k_nope=nope, k_rope=rope)
    slots = _check_slots(loc, "loc", rows, count)
    if device.type != "cuda":
        reference.scatter_rows(nope, rope, rows, slots)
        return
    bytes_only = _needs_bytes(device)
    _pack(nope, rope, _split_views(rows, bytes_only), slots, bytes_only)


def dequantize_k_cache(quant_k_cache: torch.Tensor, dv: int | None = None) -> torch.Tensor:
    """Unpack packed rows.

    Args:
        quant_k_cache: float8_e4m3fn or uint8, contiguous, [..., 656].
        dv: width of the latent part; 512 or None.

    Returns:
        bfloat16 [..., 576]: code times scale in float32, rounded once. The rotary part is copied.

    Raises:
        TypeError, ValueError: dtype, width, layout or ``dv`` is not accepted.
    """
    if dv is not None:
        require_int(dv, "dv", low=NOPE_DIM, high=NOPE_DIM)
    rows = _view_rows(quant_k_cache, "quant_k_cache")
    shape = (*quant_k_cache.shape[:-1], ROW_DIM)
    if not rows.is_cuda:
        return reference.unpack_rows(rows).view(shape)
    return _unpack(rows, None, _needs_bytes(rows.device)).view(shape)


def dequantize_k_cache_paged(
    quant_k_cache: torch.Tensor, page_table_1_flattened: torch.Tensor, group_size: int = TILE
) -> torch.Tensor:
    """Unpack the rows that a flat page table (page size 1) names.

    Args:
        quant_k_cache: float8_e4m3fn or uint8, contiguous, [..., 656].
        page_table_1_flattened: int32 or int64 [N] row numbers; a negative one gives a zero row.
        group_size: values per scale; 128.

    Returns:
        bfloat16 [N, 1, 576].

    Raises:
        TypeError, ValueError: dtype, shape, layout or device is not accepted. With
            ``ADA_DSA_DEBUG=1`` also if a row number is beyond the end.

    Source: sglang ``dequantize_k_cache_paged`` (0.5.9), ``dequantize_k_cache_paged_dsa`` (0.5.23).
    """
    require_choice(group_size, "group_size", (TILE,))
    rows = _view_rows(quant_k_cache, "quant_k_cache")
    slots = _check_slots(page_table_1_flattened, "page_table_1_flattened", rows, None)
    if not rows.is_cuda:
        return reference.unpack_rows_at(rows, slots).unsqueeze(1)
    return _unpack(rows, slots, _needs_bytes(rows.device)).unsqueeze(1)
