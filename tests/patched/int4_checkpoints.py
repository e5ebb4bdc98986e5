"""The shared expert of 4-bit checkpoints whose routed experts alone have 4 bits. A test of every era.

The configurations have the structure of published GLM checkpoints: llm-compressor writes
``compressed-tensors``, and its recipes name the quantised modules by class or by a pattern
(canada-quant/GLM-5.2-W4A16-MTP keeps the shared expert in bf16); AutoAWQ, GPTQModel and AutoRound write the
others. sglang#25261 reports wrong logits of such an AutoRound checkpoint with the fused form.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
import releases
import tiny_models

tree: Any = importlib.import_module(
    "nsa_tree" if releases.era(releases.RELEASE) == "nsa" else "tree"
)
SHARED = "model.layers.1.mlp.shared_experts"
APART = [f"{SHARED}.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
WHOLE = ["lm_head", "model.layers.0", "model.layers.1.mlp.gate", "model.layers.1.self_attn"]


def compressed(target: str) -> dict[str, Any]:
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 128,
        "dynamic": False,
        "observer": "minmax",
    }
    group = {"targets": [target], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "output_activations": None}},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*mlp.gate$", *APART],
        "kv_cache_scheme": None,
    }


CHECKPOINTS: dict[str, dict[str, Any]] = {
    "compressed-tensors, by class": compressed("Linear"),
    "compressed-tensors, by pattern": compressed(r"re:.*mlp\.experts\.\d+\..*_proj$"),
    "awq": {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "modules_to_not_convert": [*WHOLE, *APART],
    },
    "gptq": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "sym": True,
        "desc_act": False,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "dynamic": {r"-:.*shared_experts.*": {}, r"-:.*self_attn.*": {}, r"-:.*mlp\.gate$": {}},
    },
    "auto-round": {
        "quant_method": "auto-round",
        "bits": 4,
        "group_size": 128,
        "sym": True,
        "data_type": "int",
        "packing_format": "auto_round:auto_gptq",
        "extra_config": {name: {"bits": 16, "data_type": "fp"} for name in (*WHOLE, *APART)},
    },
}


def quantisation(args: Any) -> Any:
    """sglang's quantisation of the checkpoint, as its loader makes it before the model is built."""
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_loader import loader

    return loader._get_quantization_config(ModelConfig.from_server_args(args), LoadConfig())


def fused(folder: Path, name: str, device: tuple[int, int], **options: Any) -> int:
    """How many shared experts the model folds into its routed ones."""
    config = {**tree.CONFIGS["glm"], "quantization_config": CHECKPOINTS[name]}
    path = tiny_models.write(folder, config)
    with fake_cuda.capability(*device):
        args = tree.server_args(path, **options)
        tree.start_one_rank(args, folder)
        found: int = tree.fused_shared_experts(args, quant_config=quantisation(args))[0]
    return found


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("device", [(8, 0), (8, 6), (8, 9), (9, 0), (12, 0)])
def test_the_shared_expert_of_an_int4_checkpoint(
    tmp_path: Path, name: str, device: tuple[int, int]
) -> None:
    """Apart on sm_89. Elsewhere sglang decides: it reads one of these configurations, from 0.5.16 on."""
    seen_by_sglang = name == "compressed-tensors, by class" and releases.at(">=0.5.16")
    assert fused(tmp_path, name, device) == (0 if device == (8, 9) or seen_by_sglang else 1)


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("device", [(8, 0), (8, 6), (12, 0)])
def test_the_option_keeps_the_shared_expert_apart(
    tmp_path: Path, name: str, device: tuple[int, int]
) -> None:
    """What docs/models.md and the commands of ``tool plan`` recommend for these checkpoints."""
    assert fused(tmp_path, name, device, disable_shared_experts_fusion=True) == 0
