"""Run a CUDA kernel that TileLang generated on CPU threads, for its numbers where there is no GPU.

Slow (a tile of attention takes milliseconds) and no proof of anything but arithmetic and indexing: no
memory model, no alignment, no timing.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch

HERE = Path(__file__).parent
_SCALARS = {"float": ctypes.c_float, "int": ctypes.c_int, "int64_t": ctypes.c_int64}


def missing() -> str:
    """What this machine lacks to run a kernel, or an empty string."""
    return next((f"no {name}" for name in ("g++", "nvcc") if shutil.which(name) is None), "")


def _cuda_headers() -> list[str]:
    """Where nvcc takes CUDA's headers from, as compiler flags."""
    command = ["nvcc", "--dryrun", "-x", "cu", "-c", "/dev/null"]
    steps = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return re.findall(r'"?(-I[^"\s]+)', steps[steps.index("INCLUDES=") :].splitlines()[0])


def run(
    source: str,
    arguments: Mapping[str, torch.Tensor | int | float],
    *,
    grid: tuple[int, int],
    threads: int,
    folder: Path,
) -> None:
    """Launch the one kernel in ``source`` on CPU tensors; its outputs are written in place.

    Args:
        arguments: by parameter name; tensors are passed by address, as they are.
        folder: where the shared library is built.
    """
    source = source[source.index('extern "C"') :]
    shared = r"extern __shared__ __align__\(1024\) uchar buf_dyn_shmem\[\];"
    source, found = re.subn(shared, "uchar *buf_dyn_shmem = simt::block->shared;", source)
    head = re.search(r"void (?:__launch_bounds__\([^)]*\) )?(\w+)\(([^)]*)\);", source)
    if not found or head is None:
        raise ValueError("this source has no kernel with dynamic shared memory")
    parameters = [p.strip() for p in head[2].split(",")]
    names = [re.split(r"[ *]", p)[-1] for p in parameters]
    call = f"simt::launch(grid_x, grid_y, threads, [=] {{ {head[1]}({', '.join(names)}); }});"
    entry = f'extern "C" void entry(unsigned grid_x, unsigned grid_y, unsigned threads, {head[2]})'
    path = folder / "kernel.cpp"
    path.write_text(f'#include "simt.h"\n{source}\n{entry} {{ {call} }}\n')
    flags = ["-O1", "-std=c++20", "-pthread", "-w", "-shared", "-fPIC", f"-I{HERE}"]
    flags += _cuda_headers()
    done = subprocess.run(
        ["g++", *flags, "-o", str(folder / "kernel.so"), str(path)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"g++ refused the generated source:\n{done.stderr[:2000]}")
    values: list[object] = [*grid, threads]
    for parameter, name in zip(parameters, names, strict=True):
        value = arguments[name]
        if isinstance(value, torch.Tensor):
            if not value.is_contiguous():
                raise ValueError(f"{name}: expected a contiguous tensor")
            values.append(ctypes.c_void_p(value.data_ptr()))
        else:
            values.append(_SCALARS[parameter.split()[0]](value))
    ctypes.CDLL(str(folder / "kernel.so")).entry(*values)
