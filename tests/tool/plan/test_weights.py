"""The weights add up: to published checkpoints, to real files, and to the models of transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tool.errors import UsageError
from tool.plan import GIB, find_model
from tool.plan import model as models
from tool.plan.weights import PREDICTION, list_weights, share_weights, sum_stored


def by_part(model: models.Model) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in list_weights(model)[0]:
        if one.stored:
            found[one.part] = found.get(one.part, 0) + one.size
    return found


@pytest.mark.parametrize(
    ("name", "weights", "published"),
    [
        ("GLM-5.2", "fp8", 753e9),  # renning22/glm-5.2-4090, README
        # Inferact/GLM-5.3-NVFP4, whose sizes are those of GLM-5.2: 464,867,183,339 bytes.
        ("GLM-5.2", "nvfp4", 464_867_183_339),
        ("GLM-5.3-Flash", "fp8", 306 * GIB),
    ],
)
def test_published_checkpoints(name: str, weights: str, published: float) -> None:
    total = sum_stored(list_weights(find_model(name, weights))[0])
    assert total == pytest.approx(published, rel=0.01)


def test_what_a_published_server_loaded() -> None:
    """GLM-5.2-NVFP4 at TP8 was reported to take 56 GB of each card (SemiAnalysisAI/InferenceX#2335)."""
    shares = share_weights(list_weights(find_model("GLM-5.2", "nvfp4"))[0], 78, 8)
    assert sum(shares.hold(0, 78).values()) == pytest.approx(56 * GIB, rel=0.03)


SIZES = {
    "hidden_size": st.sampled_from([256, 512]),
    "vocab_size": st.integers(100, 2000),
    "num_attention_heads": st.sampled_from([4, 8]),
    "num_hidden_layers": st.integers(1, 6),
    "first_k_dense_replace": st.integers(0, 3),
    "n_routed_experts": st.integers(2, 8),
    "moe_intermediate_size": st.sampled_from([128, 256]),
    "intermediate_size": st.sampled_from([256, 512]),
    "q_lora_rank": st.sampled_from([64, 128]),
    "kv_lora_rank": st.sampled_from([128, 512]),
    "qk_nope_head_dim": st.sampled_from([32, 64]),
    "v_head_dim": st.sampled_from([32, 64]),
    "index_n_heads": st.sampled_from([2, 4]),
}


SMALL_TOWER = {
    "depth": 1,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "projection_intermediate_size": 64,
}
WIDE = ("conv1d", "_hc.", "dt_bias", "A_log")
"""Parameters that sglang keeps in fp32."""


def count_in_transformers(kind: str, sizes: dict[str, int]) -> tuple[dict[str, Any], int]:
    """The config, and the bytes of transformers' own model of it in bf16."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    heads = {"num_key_value_heads": sizes["num_attention_heads"], "pad_token_id": 0}
    if kind == "Glm5NextForConditionalGeneration":
        deep = {"num_hidden_layers": 4 + sizes["num_hidden_layers"], "qk_rope_head_dim": 0}
        text = transformers.Glm5NextTextConfig(**sizes | heads | deep, index_kpool=4).to_dict()
        made = transformers.Glm5NextConfig(text_config=text, vision_config=SMALL_TOWER)
    elif kind == "GlmMoeDsaForCausalLM":
        rule = {"index_topk_freq": 2, "index_skip_topk_offset": 2}
        made = transformers.GlmMoeDsaConfig(**sizes, **heads, **rule)
    else:
        made = transformers.DeepseekV32Config(**sizes, **heads)
    with torch.device("meta"):
        parameters = list(getattr(transformers, kind)(made).named_parameters())
    config = {**made.to_dict(), "architectures": [kind], "num_nextn_predict_layers": 0}
    if "text_config" in config:
        config["text_config"]["first_k_dense_replace"] = 3
    size = sum(p.numel() * (4 if any(w in name for w in WIDE) else 2) for name, p in parameters)
    return config, size


@pytest.mark.parametrize(
    "kind",
    ["GlmMoeDsaForCausalLM", "DeepseekV32ForCausalLM", "Glm5NextForConditionalGeneration"],
)
@settings(max_examples=5, phases=[Phase.generate])
@given(sizes=st.fixed_dictionaries(SIZES))
def test_weights_add_up_to_those_of_transformers(kind: str, sizes: dict[str, int]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config, size = count_in_transformers(kind, sizes)
    model = models._read_config(config, "x")
    assert sum_stored(list_weights(model)[0]) == pytest.approx(size, rel=0.01)


def test_sizes_of_a_config_are_those_of_its_files(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.serving.support import tiny_model

    spec = tiny_model.Spec(layers=4, heads=2, hidden=256, q_lora=128, experts=4, vocab=1000)
    tiny_model.write(tmp_path, spec)
    model = find_model(str(tmp_path), None)
    weights, source, _ = list_weights(model)
    assert (model.format, source) == ("fp8", "the 1 safetensors file(s)")
    size = (tmp_path / "model.safetensors").stat().st_size
    assert sum_stored(weights) == pytest.approx(size, rel=0.01)
    read, computed = by_part(model), by_part(replace(model, folder=None))
    assert read.keys() == computed.keys()
    for part, size in computed.items():
        assert read[part] == pytest.approx(size, rel=0.01, abs=20_000), part


def write_file(path: Path, tensors: dict[str, int]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, size in tensors.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def test_names_of_a_checkpoint_find_their_place(tmp_path: Path) -> None:
    names = {
        "model.embed_tokens.weight": ("embedding", True),
        "lm_head.weight": ("head", True),
        "model.norm.weight": ("head", False),
        "model.layers.0.mlp.gate_proj.weight": ("dense MLP", True),
        "model.layers.5.mlp.gate.weight": ("router", False),
        "model.layers.5.mlp.gate.e_score_correction_bias": ("router", False),
        "model.layers.5.mlp.experts.17.down_proj.weight_scale_inv": ("experts", True),
        "model.layers.5.mlp.shared_experts.up_proj.weight": ("shared expert", True),
        "model.layers.5.self_attn.q_a_proj.weight": ("attention", False),
        "model.layers.5.self_attn.kv_a_proj_with_mqa.weight": ("attention", False),
        "model.layers.5.self_attn.q_a_layernorm.weight": ("attention", False),
        "model.layers.5.self_attn.q_b_proj.weight": ("attention", True),
        "model.layers.6.self_attn.indexer.wk.weight": ("indexer", False),
        "model.layers.5.input_layernorm.weight": ("norms", False),
        "model.layers.78.mlp.experts.0.up_proj.weight": ("MTP", True),
    }
    write_file(tmp_path / "model-1.safetensors", dict.fromkeys(names, 100))
    (tmp_path / "config.json").write_text(json.dumps(glm()))
    weights, *_ = list_weights(find_model(str(tmp_path), None))
    stored = [(one.part, one.divided) for one in weights if one.stored]
    assert stored == list(names.values())
    assert [one.place for one in weights if one.stored][-1] == PREDICTION
    flash = find_model("GLM-5.3-Flash", None)
    for name in (
        "layers.0.self_attn.q_proj.weight",
        "layers.0.self_attn.forget_gate.f_a_proj.weight",
    ):
        write_file(tmp_path / "model-1.safetensors", {f"model.language_model.{name}": 1})
        (one,) = models_read(flash, tmp_path)
        assert (one.part, one.divided) == ("linear attention", "f_a_proj" not in name)
    write_file(tmp_path / "model-1.safetensors", {"model.visual.blocks.0.attn.qkv.weight": 1})
    assert [one.part for one in models_read(flash, tmp_path)] == ["vision"]


def glm() -> dict[str, Any]:
    table = json.loads(Path(models.__file__).with_name("models.json").read_text())
    config: dict[str, Any] = table["GLM-5.2"]["config"]
    return config


def models_read(model: models.Model, folder: Path) -> list[Any]:
    return [one for one in list_weights(replace(model, folder=folder))[0] if one.stored]


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]", b"\x09" + b"\0" * 7 + b'{"a":1}']
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text(json.dumps(glm()))
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match="no whole safetensors file") as error:
        list_weights(find_model(str(tmp_path), None))
    assert "model.safetensors" in str(error.value)


def test_an_index_without_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(glm()))
    index = {"metadata": {"total_size": 1}, "weight_map": {"lm_head.weight": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert list_weights(find_model(str(tmp_path), None))[1] == "the sizes in its config"
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UsageError, match="is damaged"):
        list_weights(find_model(str(tmp_path), None))
