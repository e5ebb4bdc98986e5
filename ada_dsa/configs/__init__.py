"""Kernel configurations: one table, one function that picks from it.

Nothing is tuned while serving. A row is keyed by (operation, architecture, shape bucket) and carries
the compile record or measurement that justifies it; shared memory and registers quoted in the tables are
those of Triton 3.7.1 and are asserted per architecture by the compile-gate tests.
"""

from __future__ import annotations

from collections.abc import Callable

from . import indexer, sparse_mla, topk
from .table import Config

__all__ = ["ROWS", "Config", "pick"]

_BUCKETS: dict[str, Callable[..., str]] = {
    "paged_logits": indexer.bucket_paged_logits,
    "ragged_logits": indexer.bucket_ragged_logits,
    "topk_prefilter": topk.bucket_prefilter,
    "topk_select": topk.bucket_select,
    "sparse_mla": sparse_mla.bucket_triton,
    "sparse_mla_tilelang": sparse_mla.bucket_tilelang,
}

ROWS: tuple[Config, ...] = indexer.ROWS + topk.ROWS + sparse_mla.ROWS + sparse_mla.TILELANG_ROWS


def pick(op: str, arch: int, **shape: int) -> Config:
    """The configuration of ``op`` on ``arch`` for a shape.

    Args:
        op: operation name, a key of the table.
        arch: from :func:`.arch.target_arch`.
        shape: what the operation's bucket function takes.

    Raises:
        ValueError: no row serves that operation, architecture and bucket.
    """
    bucket = _BUCKETS[op](**shape)
    best: Config | None = None
    for row in ROWS:
        if row.op == op and row.bucket == bucket and row.arch <= arch:
            best = row if best is None or row.arch > best.arch else best
    if best is None:
        lowest = min((row.arch for row in ROWS if row.op == op), default=None)
        raise ValueError(
            f"{op}: no configuration for sm_{arch} and {bucket}; supported from sm_{lowest}"
        )
    return best
