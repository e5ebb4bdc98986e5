"""DSA indexer: paged and ragged fp8 MQA logits, and quantisation of keys and queries."""

from .._launch import get_num_sms
from .api import fp8_mqa_logits, fp8_paged_mqa_logits, get_paged_mqa_logits_metadata
from .quantize import act_quant

__all__ = [
    "act_quant",
    "fp8_mqa_logits",
    "fp8_paged_mqa_logits",
    "get_num_sms",
    "get_paged_mqa_logits_metadata",
]
