"""The release's own loader loads the whole checkpoint of the tiny model, with the weights of the torch
reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_cuda
import pytest
import releases
import torch
import tree
from safetensors.torch import load_file

from tests.serving.support import tiny_model, witness

SPEC = tiny_model.Spec(heads=8, hidden=256, q_lora=256, dense=256, expert=128, vocab=512)
PREDICTION = f"model.layers.{SPEC.layers}."
SHARED = [layer for layer in range(SPEC.layers) if not SPEC.is_full(layer)]


@pytest.fixture(scope="module")
def folder(configs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("tiny"), SPEC)


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
    from sglang.srt.models import glm4_moe

    with fake_cuda.capability(8, 9):
        args = tree.server_args(str(folder))
        tree.publish(args)
        given = ModelConfig.from_server_args(args, is_draft_model=draft).hf_config
        quantised = Fp8Config.from_config(given.quantization_config)
        with tree.bf16_by_default():
            model = getattr(glm4_moe, given.architectures[0])(given, quant_config=quantised)
        tree.load_onto_nan(model, checkpoint)
    return model


def test_every_parameter_is_written(loaded: Any) -> None:
    """Except indexers that a shared layer has before 0.5.18 and never uses."""
    indexers = {
        name
        for name, _ in loaded.named_parameters()
        if ".indexer." in name and int(name.split(".")[2]) in SHARED
    }
    assert tree.unwritten(loaded) == indexers
    assert bool(indexers) == releases.at("<0.5.18")


def sizes(model: Any, checkpoint: dict[str, torch.Tensor]) -> tuple[int, int]:
    """The number of elements that were written, and of elements in the tensors that they come from."""
    parameters = dict(model.named_parameters())
    left = tree.unwritten(model)
    written = sum(
        parameter.numel()
        for name, parameter in parameters.items()
        if name not in left and not name.endswith(("k_scale", "v_scale"))
    )
    fused = any(name.endswith("indexer.wk_weights_proj.weight") for name in parameters)
    given = sum(
        tensor.numel()
        for name, tensor in checkpoint.items()
        # Fused with the index weights, index keys are bf16: their scale is gone.
        if not (fused and name.endswith("indexer.wk.weight_scale_inv"))
    )
    return written, given


def test_no_tensor_is_ignored(loaded: Any, checkpoint: dict[str, torch.Tensor]) -> None:
    """The loader wrote as many elements as the checkpoint has, without those of the prediction layer."""
    own = {name: one for name, one in checkpoint.items() if not name.startswith(PREDICTION)}
    assert len(own) < len(checkpoint)
    written, given = sizes(loaded, own)
    assert written == given


@releases.only(">=0.5.16")
def test_the_prediction_layer_is_loaded_whole(
    folder: Path, checkpoint: dict[str, torch.Tensor]
) -> None:
    """The draft model loads it, and takes embedding and head from the target model."""
    draft = load(folder, checkpoint, draft=True)
    assert type(draft).__name__ == "GlmMoeDsaForCausalLMNextN"
    assert tree.unwritten(draft) == {"model.embed_tokens.weight", "lm_head.weight"}
    own = {name: one for name, one in checkpoint.items() if name.startswith(PREDICTION)}
    written, given = sizes(draft, own)
    assert written == given


def test_the_loader_reads_the_witnesss_weights(loaded: Any, folder: Path) -> None:
    """Scales are powers of two, so a weight dequantised at load is the same number in bf16 and in fp32."""
    ours = witness.load(folder).weights
    layer = "model.layers.6.self_attn"
    attention = loaded.model.layers[6].self_attn
    kv = ours[f"{layer}.kv_b_proj.weight"].view(SPEC.heads, -1, tiny_model.LATENT)
    assert torch.equal(attention.w_kc.float(), kv[:, : tiny_model.GLM.nope])
    assert torch.equal(attention.w_vc.float(), kv[:, tiny_model.GLM.nope :].mT)
    first = attention.fused_qkv_a_proj_with_mqa
    assert torch.equal(
        tiny_model.dequantise(first.weight, first.weight_scale_inv),
        torch.cat([ours[f"{layer}.{name}.weight"] for name in ("q_a_proj", "kv_a_proj_with_mqa")]),
    )
    if hasattr(attention.indexer, "wk_weights_proj"):
        parts = [ours[f"{layer}.indexer.{name}.weight"] for name in ("wk", "weights_proj")]
        assert torch.equal(attention.indexer.wk_weights_proj.weight.float(), torch.cat(parts))
    experts = loaded.model.layers[6].mlp.experts
    halves = [ours[f"model.layers.6.mlp.experts.5.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(
        tiny_model.dequantise(experts.w13_weight[5], experts.w13_weight_scale_inv[5]),
        torch.cat(halves),
    )


def test_layers_share_indexers_as_the_witness_has_it(loaded: Any) -> None:
    attention = [layer.self_attn for layer in loaded.model.layers]
    skips = [number in SHARED for number in range(SPEC.layers)]
    assert [one.skip_topk for one in attention] == skips
    assert [one.next_skip_topk for one in attention[:-1]] == skips[1:]


def test_attention_scale_and_rope_are_the_witnesss(loaded: Any, folder: Path) -> None:
    """Attention and indexer use the reference's rope table for all 4096 tokens, in interleaved pairs."""
    attention = loaded.model.layers[0].self_attn
    assert attention.scaling == (tiny_model.GLM.nope + tiny_model.ROPE) ** -0.5
    table = witness.rope_table(witness.load(folder), 4096)
    for rotary in (attention.rotary_emb, attention.indexer.rotary_emb):
        assert not rotary.is_neox_style
        assert torch.allclose(
            rotary.cos_sin_cache[:4096].float(), torch.cat([table.real, table.imag], -1), atol=1e-3
        )
