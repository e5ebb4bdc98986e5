"""The type of a row of the configuration table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Config:
    """One row of the table.

    Attributes:
        op: operation, for example ``paged_logits``.
        arch: lowest architecture that the row serves (``major * 10 + minor``). An architecture without
            a row of its own uses the row of the next lower architecture.
        bucket: shape bucket, a name that the operation's bucket function returns.
        num_warps: warps per block.
        num_stages: depth of the software pipeline.
        blocks_per_sm: intended number of resident blocks per multiprocessor. Launch plans size the grid
            by it.
        params: further compile-time parameters of the kernel.
        evidence: the compile record or measurement that justifies the row.
    """

    op: str
    arch: int
    bucket: str
    num_warps: int
    num_stages: int
    blocks_per_sm: int
    evidence: str
    params: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
