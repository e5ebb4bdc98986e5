"""The shape every benchmark case has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


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
