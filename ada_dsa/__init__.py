"""DeepSeek Sparse Attention (DSA) kernels in portable Triton: indexer logits, top-k, sparse MLA, KV cache.

Importing this package loads neither triton nor CUDA: a function's module is imported on first use.
The Triton kernels serve CUDA tensors, and the torch oracles of :mod:`.reference` serve CPU tensors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .arch import prefers_ada_dsa

_EXPORTS = {
    "act_quant": ".indexer",
    "get_num_sms": ".indexer",
    "get_paged_mqa_logits_metadata": ".indexer",
    "fp8_paged_mqa_logits": ".indexer",
    "fp8_mqa_logits": ".indexer",
    "fast_topk_v2": ".topk",
    "fast_topk_transform_fused": ".topk",
    "fast_topk_transform_ragged_fused": ".topk",
    "sparse_mla_fwd": ".sparse_mla",
    "quantize_k_cache": ".kv_cache",
    "quantize_k_cache_separate": ".kv_cache",
    "dequantize_k_cache": ".kv_cache",
    "dequantize_k_cache_paged": ".kv_cache",
    "quantize_and_scatter": ".kv_cache",
    "check_config": ".requirements_check",
}

__all__ = ["prefers_ada_dsa", *_EXPORTS]  # noqa: PLE0604

if TYPE_CHECKING:
    from .indexer import act_quant as act_quant
    from .indexer import fp8_mqa_logits as fp8_mqa_logits
    from .indexer import fp8_paged_mqa_logits as fp8_paged_mqa_logits
    from .indexer import get_num_sms as get_num_sms
    from .indexer import get_paged_mqa_logits_metadata as get_paged_mqa_logits_metadata
    from .kv_cache import dequantize_k_cache as dequantize_k_cache
    from .kv_cache import dequantize_k_cache_paged as dequantize_k_cache_paged
    from .kv_cache import quantize_and_scatter as quantize_and_scatter
    from .kv_cache import quantize_k_cache as quantize_k_cache
    from .kv_cache import quantize_k_cache_separate as quantize_k_cache_separate
    from .requirements_check import check_config as check_config
    from .sparse_mla import sparse_mla_fwd as sparse_mla_fwd
    from .topk import fast_topk_transform_fused as fast_topk_transform_fused
    from .topk import fast_topk_transform_ragged_fused as fast_topk_transform_ragged_fused
    from .topk import fast_topk_v2 as fast_topk_v2


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
