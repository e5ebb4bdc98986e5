"""Pack latent rows into the pool's 656-byte format, and unpack them."""

from __future__ import annotations

from .api import (
    dequantize_k_cache,
    dequantize_k_cache_paged,
    quantize_and_scatter,
    quantize_k_cache,
    quantize_k_cache_separate,
)

__all__ = [
    "dequantize_k_cache",
    "dequantize_k_cache_paged",
    "quantize_and_scatter",
    "quantize_k_cache",
    "quantize_k_cache_separate",
]
