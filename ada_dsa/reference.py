"""Torch oracles of all kernels.

The oracles define the results. They serve CPU tensors, and tests compare the kernels with them. An oracle of
the indexer or of top-k has the arguments of the public function of the same name.
"""

from __future__ import annotations

from .indexer.reference import (
    expand_query_lengths,
    fp8_mqa_logits,
    fp8_paged_mqa_logits,
    get_paged_mqa_logits_metadata,
    quantize_blocks,
    unpack_index_pages,
)
from .kv_cache.reference import (
    pack_rows,
    scatter_rows,
    unpack_rows,
    unpack_rows_at,
)
from .sparse_mla.reference import sparse_mla
from .topk.reference import (
    encode_keys,
    fast_topk_transform_fused,
    fast_topk_transform_ragged_fused,
    fast_topk_v2,
)

__all__ = [
    "fast_topk_transform_fused",
    "fast_topk_transform_ragged_fused",
    "fast_topk_v2",
    "fp8_mqa_logits",
    "fp8_paged_mqa_logits",
    "get_paged_mqa_logits_metadata",
    "encode_keys",
    "pack_rows",
    "quantize_blocks",
    "expand_query_lengths",
    "scatter_rows",
    "sparse_mla",
    "unpack_index_pages",
    "unpack_rows",
    "unpack_rows_at",
]
