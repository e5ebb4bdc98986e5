"""Which GPUs take these kernels, and for which architecture configurations are chosen.

No torch or triton at module level: server start-up code imports this on every platform.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

OVERRIDE_VARIABLE = "SGLANG_ADA_DSA_OVERRIDE_ARCH"
TRITON_OVERRIDE_VARIABLE = "TRITON_OVERRIDE_ARCH"

# Capabilities the compile gate covers, as major * 10 + minor.
GATED_ARCHS = (80, 86, 89, 90, 120)


def prefers_ada_dsa(device_sm: int) -> bool:
    """Whether a GPU takes these kernels by default.

    Args:
        device_sm: compute capability as ``major * 10 + minor``, for example 89.

    Returns:
        True on sm_89. Also True everywhere while ``SGLANG_ADA_DSA_OVERRIDE_ARCH=sm89`` is set, so
        that a GPU of another architecture can be put on the sm_89 path for testing.

    Raises:
        ValueError: the variable holds anything but ``sm89``.
    """
    override = os.environ.get(OVERRIDE_VARIABLE)
    if override is not None and override != "":
        if override != "sm89":
            raise ValueError(
                f"{OVERRIDE_VARIABLE}={override!r}: the only accepted value is 'sm89' "
                "(puts any GPU on the sm_89 path, for testing); unset it otherwise"
            )
        return True
    return device_sm == 89


def target_arch(device: torch.device | None = None) -> int:
    """Capability (``major * 10 + minor``) that kernels are compiled for on ``device``.

    Triton compiles for ``TRITON_OVERRIDE_ARCH`` when it is set (accepted form: ``sm89``), so
    whatever is chosen per architecture (operand types, tile sizes) must follow it too.

    Raises:
        ValueError: the variable is set to something that is not ``sm<number>``.
    """
    override = os.environ.get(TRITON_OVERRIDE_VARIABLE)
    if override:
        found = re.fullmatch(r"sm_?(\d+)[af]?", override)
        if found is None:
            raise ValueError(
                f"{TRITON_OVERRIDE_VARIABLE}={override!r}: expected the form 'sm89'; "
                "unset it to compile for the device"
            )
        return int(found.group(1))
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def has_native_fp8(arch: int) -> bool:
    """Whether Triton accepts the e4m3 type when compiling for ``arch`` (it does from sm_89)."""
    return arch >= 89
