"""Kernel configurations: one table, and one function that picks a row of it.

Nothing is tuned while the server runs. The key of a row is (operation, architecture, shape bucket). Each
row states the compile record or the measurement that justifies it. The shared memory and registers in
these statements are those of Triton 3.7.1; the compile-gate tests assert the limits per architecture.
"""

from __future__ import annotations

from collections.abc import Callable

from . import indexer, sparse_mla, topk
from .config import Config

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
    """Return the configuration of ``op`` on ``arch`` for a shape.

    It is the row of the operation and bucket with the highest architecture that is not above ``arch``.

    Args:
        op: operation name.
        arch: from :func:`.arch.target_arch`.
        shape: arguments of the operation's bucket function.

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
