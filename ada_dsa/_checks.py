"""Argument validation that every public function shares.

The checks read tensor metadata only. They take microseconds on the host, never synchronise with the
device, and are allowed while a CUDA graph is captured. Values on the device (lengths, page ids) are
checked only with ``ADA_DSA_DEBUG=1``, because reading them means waiting for the device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

DEBUG_VARIABLE = "ADA_DSA_DEBUG"


def _describe(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return (
            f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}, "
            f"strides {tuple(value.stride())}, on {value.device}"
        )
    return f"{value!r} ({type(value).__name__})"


def _format_dtypes(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(d).removeprefix("torch.") for d in dtypes)


def require_tensor(
    value: object,
    name: str,
    *,
    dtype: torch.dtype | Sequence[torch.dtype] | None = None,
    ndim: int | Sequence[int] | None = None,
    shape: Sequence[int | None] | None = None,
    device: torch.device | None = None,
    unit_last_stride: bool = True,
    contiguous: bool = False,
) -> torch.Tensor:
    """Return ``value`` if it is a tensor that meets the given requirements.

    An entry of ``shape`` that is None accepts any size. ``unit_last_stride`` requires
    ``stride(-1) == 1``; a last dimension of at most one element always passes.

    Raises:
        TypeError: ``value`` is not a tensor, or its dtype is not accepted.
        ValueError: rank, shape, stride or device is not accepted.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {_describe(value)}")
    if dtype is not None:
        accepted = (dtype,) if isinstance(dtype, torch.dtype) else tuple(dtype)
        if value.dtype not in accepted:
            raise TypeError(
                f"{name}: expected dtype {_format_dtypes(accepted)}, got {_describe(value)}"
            )
    if ndim is not None:
        ranks = (ndim,) if isinstance(ndim, int) else tuple(ndim)
        if value.dim() not in ranks:
            wanted = " or ".join(str(r) for r in ranks)
            raise ValueError(f"{name}: expected {wanted} dimension(s), got {_describe(value)}")
    if shape is not None:
        fits = value.dim() == len(shape) and all(
            want is None or want == got for want, got in zip(shape, value.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if s is None else str(s) for s in shape)
            raise ValueError(f"{name}: expected shape ({wanted}), got {_describe(value)}")
    if device is not None and value.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, got {_describe(value)}")
    if unit_last_stride and value.dim() and value.shape[-1] > 1 and value.stride(-1) != 1:
        raise ValueError(f"{name}: expected a last stride of 1, got {_describe(value)}")
    if contiguous and not value.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got {_describe(value)}")
    return value


def require_int(value: object, name: str, *, low: int, high: int) -> int:
    """Return ``value`` if it is an int in ``[low, high]``.

    Raises:
        TypeError: ``value`` is not an int (bool is refused).
        ValueError: ``value`` is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int in [{low}, {high}], got {_describe(value)}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected a value in [{low}, {high}], got {value}")
    return value


def require_multiple(value: int, name: str, divisor: int) -> int:
    """Return ``value`` if ``divisor`` divides it.

    Raises:
        ValueError: ``divisor`` does not divide ``value``.
    """
    if value % divisor:
        raise ValueError(f"{name}: expected a multiple of {divisor}, got {value}")
    return value


def require_choice(value: object, name: str, accepted: Sequence[object]) -> object:
    """Return ``value`` if it is one of ``accepted``.

    Raises:
        ValueError: ``value`` is not one of them.
    """
    if value not in accepted:
        wanted = ", ".join(repr(a) for a in accepted)
        raise ValueError(f"{name}: expected one of {wanted}; got {_describe(value)}")
    return value


def require_same_device(**tensors: torch.Tensor | None) -> torch.device:
    """Return the device that all given tensors share; a value of None is ignored.

    Raises:
        ValueError: the devices differ, and the message names the first tensor on another device; or
            no tensor is given.
    """
    first: tuple[str, torch.device] | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if first is None:
            first = (name, tensor.device)
        elif tensor.device != first[1]:
            raise ValueError(
                f"{name}: expected a tensor on {first[1]} like {first[0]}, got {_describe(tensor)}"
            )
    if first is None:
        raise ValueError("expected at least one tensor")
    return first[1]


def is_debug_enabled() -> bool:
    """Whether ``ADA_DSA_DEBUG=1`` asks for checks of device values, which wait for the device."""
    return os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


def debug_check_range(tensor: torch.Tensor, name: str, low: int, high: int) -> None:
    """Require every element of an integer tensor to be in [low, high] if ``ADA_DSA_DEBUG=1``.

    The check is skipped during graph capture, where waiting for the device is not allowed.

    Raises:
        ValueError: an element is out of range; the message names its flat position, value and range.
    """
    if not is_debug_enabled() or tensor.numel() == 0:
        return
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    bad = ((tensor < low) | (tensor > high)).flatten()
    if bool(bad.any()):
        where = int(bad.to(torch.int8).argmax())
        got = int(tensor.flatten()[where])
        raise ValueError(f"{name}[{where}] (flat): expected a value in [{low}, {high}], got {got}")
