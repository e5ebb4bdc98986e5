"""Sparse MLA: each query token attends to the latent rows that its index list names."""

from __future__ import annotations

from .api import sparse_mla_fwd

__all__ = ["sparse_mla_fwd"]
