"""The release's own loader loads the whole checkpoint of the tiny GLM-5.3-Flash: the witness's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_cuda
import pytest
import releases
import torch
import tree
from safetensors.torch import load_file

from tests.serving.support import flash_model
from tests.serving.support.flash_model import INDEX_DIM, LATENT, NOPE, PREFIX, STREAMS, VISION
from tests.serving.support.tiny_model import dequantise

pytestmark = releases.only(">=0.5.21")

SPEC = flash_model.Spec(
    heads=8, linear_heads=2, hidden=256, q_lora=256, dense=256, experts=4, vocab=512
)
PREDICTION = f"{PREFIX}.layers.{SPEC.layers}."
LINEAR, DSA = 4, 7
"""Layers with experts, of each kind."""


@pytest.fixture(scope="module")
def folder(configs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flash_model.write(tmp_path_factory.mktemp("flash"), SPEC)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def loaded(folder: Path, checkpoint: dict[str, torch.Tensor]) -> Any:
    return load(folder, checkpoint, draft=False)


def load(folder: Path, checkpoint: dict[str, torch.Tensor], *, draft: bool) -> Any:
    """The model as it is built and loaded on sm_89. What the loader does not write is NaN."""
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.layers.quantization.fp8 import Fp8Config
    from sglang.srt.models import glm5_next, glm5_next_nextn

    with fake_cuda.capability(8, 9):
        args = tree.server_args(str(folder))
        tree.publish(args)
        given = ModelConfig.from_server_args(args, is_draft_model=draft).hf_config
        module = glm5_next_nextn if draft else glm5_next
        made = getattr(module, given.architectures[0])
        quantised = Fp8Config.from_config(given.quantization_config)
        quantised.packed_modules_mapping = made.packed_modules_mapping
        # As the loader does.
        mapper = made.get_hf_to_sglang_mapper(given) if draft else made.hf_to_sglang_mapper
        quantised.apply_weight_name_mapper(mapper)
        with tree.bf16_by_default():
            model = made(given, quant_config=quantised)
        tree.load_onto_nan(model, checkpoint)
    return model


def written(model: Any) -> int:
    """The number of elements that the loader wrote."""
    left = tree.unwritten(model)
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if name not in left and not name.endswith(("k_scale", "v_scale"))
    )


def test_every_parameter_is_written(loaded: Any) -> None:
    assert type(loaded).__name__ == flash_model.ARCHITECTURE
    assert tree.unwritten(loaded) == set()


def test_no_tensor_is_ignored(loaded: Any, checkpoint: dict[str, torch.Tensor]) -> None:
    """The loader wrote as many elements as the checkpoint has, without those of the prediction layer."""
    own = [one for name, one in checkpoint.items() if not name.startswith(PREDICTION)]
    assert len(own) < len(checkpoint)
    assert written(loaded) == sum(one.numel() for one in own)


def test_the_prediction_layer_is_loaded_whole(
    folder: Path, checkpoint: dict[str, torch.Tensor]
) -> None:
    """The draft model loads it, and takes embedding and head from the target model."""
    draft = load(folder, checkpoint, draft=True)
    assert type(draft).__name__ == f"{flash_model.ARCHITECTURE}NextN"
    assert tree.unwritten(draft) == {"model.embed_tokens.weight", "lm_head.weight"}
    own = [one for name, one in checkpoint.items() if name.startswith(PREDICTION)]
    assert written(draft) == sum(one.numel() for one in own)


def test_the_layers_are_those_of_the_checkpoint(loaded: Any) -> None:
    layers = loaded.model.layers
    kinds = [SPEC.is_linear(number) for number in range(SPEC.layers)]
    assert [one.is_linear_attn for one in layers] == kinds
    assert [hasattr(one.mlp, "experts") for one in layers] == [
        not SPEC.is_dense(number) for number in range(SPEC.layers)
    ]
    assert {one.config.hc_mult for one in layers} == {STREAMS}
    linear, attention = layers[LINEAR].self_attn, layers[DSA].self_attn
    assert linear.attn.lower_bound == flash_model.LOWER_BOUND
    assert attention.scaling == NOPE**-0.5
    assert attention.rotary_emb is None and attention.indexer.skip_rope
    assert (attention.indexer.index_kpool, attention.indexer.index_topk) == (SPEC.kpool, SPEC.topk)


def test_the_loader_reads_the_witnesss_weights(
    loaded: Any, checkpoint: dict[str, torch.Tensor]
) -> None:
    """Scales are powers of two, so a weight dequantised at load is the same number in bf16 and in fp32."""

    def ours(name: str) -> torch.Tensor:
        weight = checkpoint[name]
        scale = checkpoint.get(f"{name}_scale_inv")
        return weight.float() if scale is None else dequantise(weight, scale)

    def joined(layer: int, names: str, ending: str = "_proj.weight") -> torch.Tensor:
        prefix = f"{PREFIX}.layers.{layer}."
        return torch.cat([ours(f"{prefix}{name}{ending}") for name in names.split()])

    linear, attention = (loaded.model.layers[one].self_attn for one in (LINEAR, DSA))
    names = " ".join(f"self_attn.{name}" for name in ("q", "k", "v", "b", "f_a", "g_a"))
    assert torch.equal(linear.fused_qkvbfg_a_proj.weight.float(), joined(LINEAR, names))
    second = joined(LINEAR, "self_attn.f_b self_attn.g_b")
    assert torch.equal(linear.fused_fg_b_proj.weight.float().flatten(), second.flatten())
    convolved = " ".join(f"self_attn.{name}_conv1d" for name in "qkv")
    assert torch.equal(linear.qkv_conv1d.weight, joined(LINEAR, convolved, ".weight"))
    for name in ("A_log", "dt_bias"):
        stored = checkpoint[f"{PREFIX}.layers.{LINEAR}.self_attn.{name}"]
        assert torch.equal(getattr(linear, name).flatten(), stored)

    kv = joined(DSA, "self_attn.kv_b").view(SPEC.heads, -1, LATENT)
    assert torch.equal(attention.w_kc.float(), kv[:, :NOPE])
    assert torch.equal(attention.w_vc.float(), kv[:, NOPE:].mT)
    first = attention.fused_qkv_a_proj_with_mqa
    names = "self_attn.q_a_proj self_attn.kv_a_proj_with_mqa"
    assert torch.equal(
        dequantise(first.weight, first.weight_scale_inv), joined(DSA, names, ".weight")
    )
    for name in ("wq_b.weight", "wk.weight", "weights_proj.weight", "k_norm.bias"):
        stored = ours(f"{PREFIX}.layers.{DSA}.self_attn.indexer.{name}")
        assert torch.equal(attention.indexer.get_parameter(name).float(), stored)
    for name, shape in (("gate", (INDEX_DIM, SPEC.hidden)), ("ape", (SPEC.kpool, INDEX_DIM))):
        read = attention.indexer.get_parameter(f"index_kpool_compress_{name}")
        assert read.shape == shape
        stored = ours(f"{PREFIX}.layers.{DSA}.self_attn.indexer.index_kpool_compress_{name}")
        assert torch.equal(read.float(), stored)

    experts = loaded.model.layers[DSA].mlp.experts
    assert torch.equal(
        dequantise(experts.w13_weight[3], experts.w13_weight_scale_inv[3]),
        joined(DSA, "mlp.experts.3.gate mlp.experts.3.up"),
    )
    vision = loaded.visual.blocks[0].attn.qkv_proj.weight
    assert torch.equal(vision, checkpoint[f"{VISION}.blocks.0.attn.qkv.weight"])
