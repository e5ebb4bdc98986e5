"""The libraries that the kernels are compared with: which can be imported here, and in what version."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import torch
import triton

LIBRARIES = ("deep_gemm", "flash_mla", "sgl_kernel", "flashinfer", "tilelang", "sglang")
# What an import raises when the library was built for another version of torch or CUDA.
_IMPORT_ERRORS = (ImportError, OSError, RuntimeError)


@functools.cache
def import_failure(module: str) -> str:
    """Import ``module``. Returns why that fails, or an empty string."""
    try:
        importlib.import_module(module)
    except _IMPORT_ERRORS as err:
        reason = (str(err).splitlines() or [type(err).__name__])[0]
        return f"{module} cannot be imported: {reason}"[:200]
    return ""


def tilelang_failure() -> str:
    """Why TileLang cannot compile a kernel here, or an empty string."""
    if importlib.util.find_spec("tilelang") is None:
        return "tilelang is not installed"
    return "" if nvcc() else "TileLang compiles its kernel at the first call, which needs nvcc"


def nvcc() -> str | None:
    """The path of a CUDA compiler, from PATH or CUDA_HOME, where the libraries look for it too."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home) / "bin"))


def versions() -> dict[str, str]:
    """Versions of torch, Triton and every installed library; or why one cannot be imported."""
    found = {"torch": torch.__version__, "triton": triton.__version__}
    for module in LIBRARIES:
        if importlib.util.find_spec(module) is None:
            continue
        if failure := import_failure(module):
            found[module] = failure
        else:
            found[module] = str(getattr(sys.modules[module], "__version__", "present"))
    return found
