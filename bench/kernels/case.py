"""The shape every benchmark case has, and what modules of cases share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

FOR_SCALE = frozenset({"torch.topk", "TileLang"})
"""Ways timed beside ours that no ratio counts: another operation, and another version of ours."""


def nvcc() -> str | None:
    """Path of a CUDA compiler, from PATH or CUDA_HOME, as libraries that compile at run time look."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home) / "bin"))


@dataclass(frozen=True)
class Case:
    """One row of the benchmark table.

    Attributes:
        group: table the row belongs to, for example ``"paged logits"``.
        name: the shape, for example ``"B=8 ctx=32768"``.
        ours: runs the kernel once; capturable in a CUDA graph.
        peers: the same work by other libraries present in this environment, by name.
        bytes: bytes the work must move, at least (reads and writes of distinct addresses).
        flops: multiply-adds counted as two, without padding.
    """

    group: str
    name: str
    ours: Callable[[], object]
    peers: dict[str, Callable[[], object]] = field(default_factory=dict)
    bytes: int = 0
    flops: int = 0
