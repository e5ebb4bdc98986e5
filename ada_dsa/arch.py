"""Which GPUs use these kernels by default, and the architecture that kernels are compiled for.

Nothing here imports torch or triton at module level, because server start-up code imports this module
on every platform.
"""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

OVERRIDE_VARIABLE = "SGLANG_ADA_DSA_OVERRIDE_ARCH"
TRITON_OVERRIDE_VARIABLE = "TRITON_OVERRIDE_ARCH"

# Compute capabilities that the compile gate covers, as major * 10 + minor.
GATED_ARCHS = (80, 86, 89, 90, 110, 120, 121)


def forces_sm89_path() -> bool:
    """Whether ``SGLANG_ADA_DSA_OVERRIDE_ARCH=sm89`` puts any GPU on the sm_89 path, for testing.

    Raises:
        ValueError: the variable has a value other than ``sm89``.
    """
    override = os.environ.get(OVERRIDE_VARIABLE)
    if override is None or override == "":
        return False
    if override != "sm89":
        raise ValueError(
            f"{OVERRIDE_VARIABLE}={override!r}: the only accepted value is 'sm89' "
            "(puts any GPU on the sm_89 path, for testing); unset it otherwise"
        )
    return True


def prefers_ada_dsa(device_sm: int) -> bool:
    """Whether a GPU uses these kernels by default for every DSA model, because sglang has none for it.

    Args:
        device_sm: compute capability as ``major * 10 + minor``, for example 89.

    Returns:
        True on sm_80 to sm_89. Also True on every GPU while ``SGLANG_ADA_DSA_OVERRIDE_ARCH=sm89`` is set.
        On sm_12x the choice depends on the model: :func:`.start_up.settle_backends`.

    Raises:
        ValueError: the variable has a value other than ``sm89``.
    """
    return forces_sm89_path() or 80 <= device_sm < 90


def selects_dsa(server_args: object) -> bool:
    """Whether sglang's arguments leave attention to its DSA backend: none is named, or that one is.

    The other backends read neither packed rows nor the indexer's choice of keys, so the defaults of the
    fork must not reach them. ``nsa`` is the backend's name up to 0.5.12.post1.
    """
    names = ("attention_backend", "prefill_attention_backend", "decode_attention_backend")
    return all(getattr(server_args, name, None) in (None, "dsa", "nsa") for name in names)


def target_arch(device: torch.device | None = None) -> int:
    """Return the capability (``major * 10 + minor``) that kernels are compiled for on ``device``.

    If ``TRITON_OVERRIDE_ARCH`` is set (for example ``sm89``), Triton compiles for that architecture.
    Every choice that depends on the architecture (operand types, tile sizes) must follow it too.

    Raises:
        ValueError: the variable's value does not have the form ``sm<number>``.
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
    """Whether Triton accepts the e4m3 type when it compiles for ``arch``; it does from sm_89 on."""
    return arch >= 89


@functools.cache  # every layer asks, and the GPU of a process stays the same
def lacks_e4m3() -> bool:
    """Whether Triton has no e4m3 type for the current NVIDIA GPU, so that codes are written as bytes.

    False on other platforms.
    """
    return nvidia_sm() is not None and not has_native_fp8(target_arch())


def nvidia_sm() -> int | None:
    """Compute capability of the current GPU as ``major * 10 + minor``; None if it is not NVIDIA's."""
    import torch

    if torch.version.cuda is None or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return int(major * 10 + minor)
