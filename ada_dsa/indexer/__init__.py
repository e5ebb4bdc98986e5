"""DSA indexer: paged and ragged fp8 MQA logits."""

from .api import fp8_mqa_logits, fp8_paged_mqa_logits, get_paged_mqa_logits_metadata

__all__ = ["fp8_mqa_logits", "fp8_paged_mqa_logits", "get_paged_mqa_logits_metadata"]
