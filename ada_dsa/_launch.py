"""Device properties and device context of a kernel launch."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch


@functools.cache
def _query_num_sms(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def get_num_sms(device: torch.device | None = None) -> int:
    """Return the number of multiprocessors of a CUDA device, by default of the current one.

    The answer is cached, because the query takes tens of microseconds. Without an argument this is
    DeepGEMM's function of this name, which callers give to ``get_paged_mqa_logits_metadata``.
    """
    index = None if device is None else device.index
    return _query_num_sms(torch.cuda.current_device() if index is None else index)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make ``device`` current for a launch; do nothing for CPU tensors, on which the interpreter runs."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is at least ``n``, and at least 1."""
    return 1 << max(0, n - 1).bit_length()
