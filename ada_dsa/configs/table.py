"""What a row of the configuration table holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Config:
    """One row of the table.

    Attributes:
        op: operation, as in ``paged_logits``.
        arch: lowest architecture the row serves (``major * 10 + minor``); an architecture without a
            row of its own takes the one of the highest architecture below it.
        bucket: shape bucket, as the operation's bucket function names it.
        num_warps: warps per block.
        num_stages: depth of the software pipeline.
        blocks_per_sm: residency aimed at; split counts make about one full wave of it.
        params: further compile-time parameters of the kernel.
        evidence: what justifies the row.
    """

    op: str
    arch: int
    bucket: str
    num_warps: int
    num_stages: int
    blocks_per_sm: int
    evidence: str
    params: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
