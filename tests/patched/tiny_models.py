"""Model folders with tiny configurations, as the resolution of a server's arguments reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MLA: dict[str, Any] = {
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 256,
    "kv_lora_rank": 512,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 128,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 16,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 128,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 512,
}
DSA = {"index_head_dim": 128, "index_n_heads": 32, "index_topk": 2048}


def glm5_next(kpool: int) -> dict[str, Any]:
    """GLM-5.3-Flash: three of four layers are linear attention; rows and indexer have no rotary part."""
    text = {
        **MLA,
        **DSA,
        "model_type": "glm5_next_text",
        "num_hidden_layers": 4,
        "qk_rope_head_dim": 0,
        "index_kpool": kpool,
        "index_kpool_compress": True,
        "index_kpool_always_select_tail": True,
        "mhc": True,
        "hc_mult": 4,
        "linear_conv_kernel_dim": 4,
        "linear_head_dim": 128,
        "linear_num_heads": 4,
        "pad_token_id": 0,
        "swiglu_limit": 10.0,
    }
    return {
        "architectures": ["Glm5NextForConditionalGeneration"],
        "model_type": "glm5_next",
        "text_config": text,
        "torch_dtype": "bfloat16",
        "vision_config": {"depth": 1, "swiglu_limit": 10.0},
    }


SPECULATIVE = {
    "speculative_algorithm": "EAGLE",
    "speculative_num_steps": 3,
    "speculative_eagle_topk": 1,
    "speculative_num_draft_tokens": 4,
}


def write(folder: Path, config: Mapping[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def write_all(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Write each as a model folder below ``folder``: name to path."""
    return {name: write(folder / name, config) for name, config in configs.items()}
