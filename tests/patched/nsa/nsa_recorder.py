"""Stand-ins for the functions that the patches call. They record their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import releases
import torch

RECORDED = (
    "get_paged_mqa_logits_metadata",
    "fp8_paged_mqa_logits",
    "fp8_mqa_logits",
    "sparse_mla_fwd",
)
TOPK_FUNCTIONS = ("fast_topk_v2", "fast_topk_transform_fused", "fast_topk_transform_ragged_fused")
BUNDLED_TOPK = releases.at("<0.5.10")
"""Whether the top-k is that of ada_dsa. From 0.5.10 on, sgl_kernel's runs on every GPU and is kept."""


class Recorder:
    """Stands for every function that the patches call, and records (name, arguments by name)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from sglang.srt.layers.attention import ada_dsa

        self.calls: list[tuple[str, SimpleNamespace]] = []
        if not BUNDLED_TOPK:
            import sgl_kernel
        for name in (*RECORDED, *TOPK_FUNCTIONS):
            home = sgl_kernel if name in TOPK_FUNCTIONS and not BUNDLED_TOPK else ada_dsa
            monkeypatch.setattr(home, name, self.noting(name, getattr(self, name)))

    def noting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        def note(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            self.calls.append((name, SimpleNamespace(**bound.arguments)))
            return function(*args, **kwargs)

        return note

    def of(self, name: str) -> list[SimpleNamespace]:
        return [arguments for called, arguments in self.calls if called == name]

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    # The signatures of ada_dsa's functions, and results of the shapes that sglang reads.

    def get_paged_mqa_logits_metadata(
        self, context_lens: Any, block_kv: int, num_sms: int
    ) -> torch.Tensor:
        filled = torch.zeros(num_sms + 1, 2, dtype=torch.int32)
        filled[0, 0] = int(context_lens.sum())
        return filled

    def fp8_paged_mqa_logits(
        self,
        q: Any,
        kv_cache: Any,
        weights: Any,
        context_lens: Any,
        block_tables: Any,
        schedule_metadata: Any,
        max_context_len: int,
        clean_logits: bool = False,
        indices: Any = None,
    ) -> torch.Tensor:
        return torch.zeros(q.shape[0] * q.shape[1], max_context_len)

    def fp8_mqa_logits(
        self,
        q: Any,
        kv: Any,
        weights: Any,
        ks: Any,
        ke: Any,
        clean_logits: bool = False,
        max_seqlen_k: int = 0,
    ) -> torch.Tensor:
        return torch.zeros(q.shape[0], kv[0].shape[0])

    def fast_topk_v2(
        self, score: Any, lengths: Any, topk: int, row_starts: Any = None
    ) -> torch.Tensor:
        return torch.zeros(score.shape[0], topk, dtype=torch.int32)

    def fast_topk_transform_fused(
        self,
        score: Any,
        lengths: Any,
        page_table_size_1: Any,
        cu_seqlens_q: Any,
        topk: int,
        row_starts: Any = None,
    ) -> torch.Tensor:
        return torch.zeros(score.shape[0], topk, dtype=torch.int32)

    def fast_topk_transform_ragged_fused(
        self,
        score: Any,
        lengths: Any,
        topk_indices_offset: Any,
        topk: int,
        row_starts: Any = None,
    ) -> torch.Tensor:
        return torch.zeros(score.shape[0], topk, dtype=torch.int32)

    def sparse_mla_fwd(
        self,
        q: Any,
        kv: Any,
        indices: Any,
        sm_scale: float,
        d_v: int = 512,
        q_rope: Any = None,
        return_lse: bool = False,
    ) -> torch.Tensor:
        return torch.zeros(q.shape[0], q.shape[1], d_v, dtype=torch.bfloat16)
