"""Exact and reproducible top-k of score rows, fused with the index transforms of sparse attention."""

from .api import fast_topk_transform_fused, fast_topk_transform_ragged_fused, fast_topk_v2

__all__ = ["fast_topk_transform_fused", "fast_topk_transform_ragged_fused", "fast_topk_v2"]
