"""A benchmark case: one shape of one kernel, and the other libraries' calls for the same work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

FOR_SCALE = frozenset({"torch.topk", "TileLang"})
"""Peers that no ratio counts: ``torch.topk`` does less than our kernel, TileLang's kernel is ours too."""


@dataclass(frozen=True)
class Case:
    """One row of a benchmark table.

    Attributes:
        group: the table that the row belongs to, for example ``"paged logits"``.
        name: the shape, for example ``"B=8 ctx=32768"``.
        ours: runs the kernel once; it can be captured in a CUDA graph.
        peers: the same work by the other libraries that are installed, by name.
        bytes: bytes that the work must at least read and write, each address counted once.
        flops: floating-point operations without padding; a multiply-add counts as two.
    """

    group: str
    name: str
    ours: Callable[[], object]
    peers: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    bytes: int = 0
    flops: int = 0
