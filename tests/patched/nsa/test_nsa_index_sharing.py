"""Layers that reuse another layer's top-k, on the patched 0.5.9 tree and a 12-layer model.

The model, its attention layers, the memory pools and the weight loader are sglang's own, on the
CPU. Only the indexer's scoring (Triton) is replaced, by a function that counts its calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_cuda
import nsa_tree
import pytest
import releases
import tiny_models
import torch

LAYERS = 12
FULL = nsa_tree.SHARING_FULL
SOURCE = [max(f for f in FULL if f <= layer) for layer in range(LAYERS)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    paths = nsa_tree.write_configs(folder)
    # sglang renames the architecture in the configuration that it keeps for a path.
    paths["draft"] = tiny_models.write(folder / "draft", nsa_tree.CONFIGS["glm_sharing"])
    with fake_cuda.capability(8, 9):
        nsa_tree.start_one_rank(nsa_tree.server_args(paths["glm"]), folder)
    return paths


@pytest.fixture(scope="module")
def build(models: dict[str, str]) -> Iterator[Callable[[str], Any]]:
    """Build a GlmMoeDsaForCausalLM of a named configuration, once each, on sm_89."""
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.models.glm4_moe import GlmMoeDsaForCausalLM

    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        args = nsa_tree.server_args(models[name])
        if name not in made:
            torch.manual_seed(0)
            torch.set_default_dtype(torch.bfloat16)
            try:
                made[name] = GlmMoeDsaForCausalLM(ModelConfig.from_server_args(args).hf_config)
            finally:
                torch.set_default_dtype(torch.float32)
        return made[name]

    with fake_cuda.capability(8, 9):
        yield get


def attentions(model: Any) -> list[Any]:
    return [layer.self_attn for layer in model.model.layers]


# --- which layers have an indexer -------------------------------------------------------------


def test_only_full_layers_have_an_indexer(build: Callable[[str], Any]) -> None:
    from sglang.srt.layers.attention.nsa.nsa_indexer import Indexer

    model = build("glm_sharing")
    has = [isinstance(a.indexer, Indexer) for a in attentions(model)]
    assert [i for i, one in enumerate(has) if one] == list(FULL)
    with_weights = {
        int(name.split(".")[2]) for name, _ in model.named_parameters() if ".indexer." in name
    }
    assert with_weights == set(FULL)


@pytest.mark.parametrize("name", ["glm", "deepseek_v32"])
def test_a_model_of_full_layers_has_stocks_indexers(
    build: Callable[[str], Any], models: dict[str, str], name: str
) -> None:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.layers.attention.nsa.nsa_indexer import Indexer, get_indexer_class

    config = ModelConfig.from_server_args(nsa_tree.server_args(models[name])).hf_config
    assert {get_indexer_class(config, layer) for layer in range(LAYERS)} == {Indexer}
    if name == "glm":
        assert {type(a.indexer) for a in attentions(build(name))} == {Indexer}


@pytest.mark.parametrize(
    ("fields", "full"),
    [
        ({"indexer_types": ["full", "shared", "shared"] * 4}, [0, 3, 6, 9]),
        ({"index_topk_pattern": "FSSF" * 3}, [0, 3, 4, 7, 8, 11]),
        ({"index_topk_freq": 4}, [0, 1, 5, 9]),
        ({"index_topk_freq": 1, "index_skip_topk_offset": 3}, list(range(12))),
    ],
)
def test_every_form_of_the_rule_survives_the_config_loader(
    models: dict[str, str], tmp_path: Path, fields: dict[str, Any], full: list[int]
) -> None:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.layers.attention.nsa.nsa_indexer import SharedIndexer, get_indexer_class

    path = tiny_models.write(tmp_path, {**nsa_tree.GLM, **fields})
    with fake_cuda.capability(8, 9):
        config = ModelConfig.from_server_args(nsa_tree.server_args(path)).hf_config
    found = [i for i in range(LAYERS) if get_indexer_class(config, i) is not SharedIndexer]
    assert found == full


def test_the_mtp_layer_has_an_indexer_of_its_own(
    models: dict[str, str], build: Callable[[str], Any]
) -> None:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.layers.attention.nsa.nsa_indexer import Indexer
    from sglang.srt.models.deepseek_nextn import DeepseekV3ForCausalLMNextN

    build("glm_sharing")
    args = nsa_tree.server_args(models["draft"])
    config = ModelConfig.from_server_args(args, is_draft_model=True).hf_config
    assert config.architectures == ["DeepseekV3ForCausalLMNextN"]
    torch.set_default_dtype(torch.bfloat16)
    try:
        draft = DeepseekV3ForCausalLMNextN(config)
    finally:
        torch.set_default_dtype(torch.float32)
    assert isinstance(draft.model.decoder.self_attn.indexer, Indexer)
    assert any(".indexer.wk." in name for name, _ in draft.named_parameters())


# --- one forward pass -------------------------------------------------------------------------


@pytest.fixture
def scored(
    build: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[Any, list[tuple[int, bool]]]]:
    """A model that can prepare attention on the CPU, and a list with (layer, indices asked for) of each
    scoring.
    """
    from sglang.srt.models import deepseek_v2
    from sglang.srt.models.deepseek_common.attention_forward_methods import forward_mha

    if releases.at(">=0.5.10"):
        from sglang.srt.models.deepseek_common.attention_forward_methods import forward_mla

        modules = [forward_mla, forward_mha]
    else:
        modules = [deepseek_v2, forward_mha]

    def get(name: str) -> tuple[Any, list[tuple[int, bool]]]:
        model = build(name)
        calls: list[tuple[int, bool]] = []

        def score(
            x: Any,
            q_lora: Any,
            positions: Any,
            forward_batch: Any,
            layer_id: int,
            return_indices: bool = True,
        ) -> torch.Tensor | None:
            calls.append((layer_id, return_indices))
            if not return_indices:
                return None
            return torch.full((x.shape[0], 2048), layer_id, dtype=torch.int32)

        for attention in attentions(model):
            for norm in (attention.q_a_layernorm, attention.kv_a_layernorm):
                monkeypatch.setattr(norm, "_forward_method", norm.forward_native)
            if hasattr(attention.indexer, "_forward_method"):
                monkeypatch.setattr(attention.indexer, "_forward_method", score)
            monkeypatch.setattr(
                attention.rotary_emb, "forward", attention.rotary_emb.forward_native
            )
            attention.w_kc = torch.zeros(16, 128, 512, dtype=torch.bfloat16)
            monkeypatch.setattr(attention, "_concat_and_cast_mha_k", lambda k, *_: k)
        return model, calls

    latent = SimpleNamespace(
        fetch_qkv_latent=lambda: torch.randn(5, 128 + 512 + 64, dtype=torch.bfloat16)
    )
    for module in modules:
        monkeypatch.setattr(module, "get_attn_tp_context", lambda: latent)
    return get


def new_batch() -> SimpleNamespace:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    return SimpleNamespace(
        forward_mode=ForwardMode.EXTEND,
        nsa_cp_metadata=None,
        attn_cp_metadata=None,
        mha_one_shot=False,
        out_cache_loc=torch.arange(5),
        token_to_kv_pool=SimpleNamespace(set_mla_kv_buffer=lambda *_: None),
    )


HIDDEN = torch.zeros(5, 256, dtype=torch.bfloat16)
POSITIONS = torch.arange(5)


CARRIED = releases.at(">=0.5.10")
"""Whether a layer gets the top-k of the layer before it as an argument, or finds it on the batch."""


def absorbed_topk(
    attention: Any, batch: Any, before: torch.Tensor | None = None
) -> torch.Tensor | None:
    """The top-k that a layer attends to. `before` is what the layer before it returned."""
    handed = {"prev_topk_indices": before} if CARRIED else {}
    prepared = attention.forward_absorb_prepare(POSITIONS, HIDDEN, batch, None, **handed)
    topk: torch.Tensor | None = prepared[7]
    return topk


def handed_on(attention: Any, topk: torch.Tensor | None) -> torch.Tensor | None:
    """What forward_absorb_core returns in addition to a layer's output."""
    return topk if CARRIED and attention.next_skip_topk else None


def test_absorbed_path_reuses_the_last_full_layers_topk(
    scored: Callable[[str], tuple[Any, list[tuple[int, bool]]]],
) -> None:
    model, calls = scored("glm_sharing")
    batch = new_batch()
    results: list[torch.Tensor | None] = []
    before = None
    for attention in attentions(model):
        results.append(absorbed_topk(attention, batch, before))
        before = handed_on(attention, results[-1])
    assert calls == [(layer, True) for layer in FULL]
    assert [int(one[0, 0]) for one in results if one is not None] == SOURCE
    # The same tensor, not a copy of it.
    assert [results[layer] is results[SOURCE[layer]] for layer in range(LAYERS)] == [True] * LAYERS


def test_dense_path_stores_keys_on_full_layers_alone(
    scored: Callable[[str], tuple[Any, list[tuple[int, bool]]]],
) -> None:
    model, calls = scored("glm_sharing")
    batch = new_batch()
    for attention in attentions(model):
        attention.forward_normal_prepare(POSITIONS, HIDDEN, batch, None)
    assert calls == [(layer, False) for layer in FULL]


def test_batches_in_flight_do_not_mix(
    scored: Callable[[str], tuple[Any, list[tuple[int, bool]]]],
) -> None:
    """Two batches take turns layer by layer, as in overlapped execution."""
    model, _ = scored("glm_sharing")
    batches = new_batch(), new_batch()
    kept: list[list[torch.Tensor | None]] = [[], []]
    before: list[torch.Tensor | None] = [None, None]
    for attention in attentions(model):
        for i, (results, batch) in enumerate(zip(kept, batches, strict=True)):
            results.append(absorbed_topk(attention, batch, before[i]))
            before[i] = handed_on(attention, results[-1])
    for results in kept:
        assert [results[i] is results[SOURCE[i]] for i in range(LAYERS)] == [True] * LAYERS
    assert all(a is not b for a, b in zip(*kept, strict=True))


def test_a_model_of_full_layers_scores_on_every_layer_and_keeps_nothing(
    scored: Callable[[str], tuple[Any, list[tuple[int, bool]]]],
) -> None:
    model, calls = scored("glm")
    batch = new_batch()
    before = set(vars(batch))
    for attention in attentions(model):
        assert handed_on(attention, absorbed_topk(attention, batch)) is None
    assert calls == [(layer, True) for layer in range(LAYERS)]
    assert set(vars(batch)) == before


def test_a_shared_layer_without_a_topk_fails(
    scored: Callable[[str], tuple[Any, list[tuple[int, bool]]]],
) -> None:
    model, _ = scored("glm_sharing")
    message = "handed none" if CARRIED else "nsa_topk_indices"
    with pytest.raises(RuntimeError if CARRIED else AttributeError, match=message):
        absorbed_topk(attentions(model)[3], new_batch())


# --- memory -----------------------------------------------------------------------------------


def memory(
    models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    start: int = 0,
    end: int = LAYERS,
    draft: bool = False,
) -> Any:
    """A ModelRunner's memory set up by its own init_memory_pool, for layers start..end."""
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_executor import model_runner_kv_cache_mixin as mixin
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    class Runner(mixin.ModelRunnerKVCacheMixin):
        pass

    with fake_cuda.capability(8, 9):
        args = nsa_tree.server_args(models[name], max_total_tokens=1024)
        runner = Runner()
        vars(runner).update(
            server_args=args,
            model_config=ModelConfig.from_server_args(args, is_draft_model=draft),
            kv_cache_dtype=torch.float8_e4m3fn,
            use_mla_backend=True,
            mambaish_config=None,
            is_draft_worker=draft,
            is_hybrid_swa=False,
            enable_hisparse=False,
            spec_algorithm=SpeculativeAlgorithm.NONE,
            start_layer=start,
            end_layer=end,
            num_effective_layers=end - start,
            mem_fraction_static=0.5,
            page_size=64,
            pp_size=1,
            device="cpu",
            gpu_id=0,
            req_to_token_pool=None,
            token_to_kv_pool_allocator=None,
        )
        monkeypatch.setattr(mixin, "get_available_gpu_memory", lambda *_, **__: 1.0)
        monkeypatch.setattr(
            mixin, "get_world_group", lambda: SimpleNamespace(world_size=1, cpu_group=None)
        )
        runner.init_memory_pool(1)
    return runner


def cell_size(runner: Any, layers: int) -> int:
    """Bytes that the runner counts for a token."""
    if releases.at("<0.5.11"):
        return int(runner.get_cell_size_per_token(layers))
    from sglang.srt.model_executor.pool_configurator import DefaultPoolConfigurator

    return int(DefaultPoolConfigurator(runner)._compute_cell_size(runner, layers))


def most_tokens(runner: Any) -> int:
    """The number of tokens that fit the memory that the runner finds free."""
    if releases.at("<0.5.11"):
        return int(runner.profile_max_num_token(1))
    from sglang.srt.model_executor.pool_configurator import DefaultPoolConfigurator

    sizes = DefaultPoolConfigurator(runner).calculate_pool_sizes(1 << 30, 64)
    return int(sizes.max_total_num_tokens)


ROW = 576  # what 0.5.9 counts for a token's fp8 latent in one layer
KEY = 132  # index key and its scale


def test_shared_layers_have_no_index_keys_of_their_own(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = memory(models, monkeypatch, "glm_sharing")
    pool = runner.token_to_kv_pool
    buffers = pool.index_k_with_scale_buffer
    assert len(buffers) == LAYERS
    assert len({b.data_ptr() for b in buffers}) == len(FULL)
    for layer in range(LAYERS):
        assert pool.get_index_k_with_scale_buffer(layer) is buffers[SOURCE[layer]]
    assert cell_size(runner, LAYERS) == LAYERS * ROW + len(FULL) * KEY
    latents = sum(b.nbytes for b in pool.kv_buffer)
    assert pool.get_kv_size_bytes() == latents + len(FULL) * buffers[0].nbytes
    # Offloading and disaggregation address one buffer a layer.
    assert [len(infos) for infos in pool.get_state_buf_infos()] == [LAYERS] * 3


def test_a_pipeline_stage_counts_its_own_layers(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = memory(models, monkeypatch, "glm_sharing", start=6)
    pool = runner.token_to_kv_pool
    assert len({b.data_ptr() for b in pool.index_k_with_scale_buffer}) == 2
    assert pool.get_index_k_with_scale_buffer(9) is pool.get_index_k_with_scale_buffer(6)
    assert pool.get_index_k_with_scale_buffer(10) is not pool.get_index_k_with_scale_buffer(6)
    assert cell_size(runner, 6) == 6 * ROW + 2 * KEY


def test_the_draft_has_its_own_index_keys(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = memory(models, monkeypatch, "draft", end=1, draft=True)
    assert len(runner.token_to_kv_pool.index_k_with_scale_buffer) == 1
    assert cell_size(runner, 1) == ROW + KEY


def test_a_model_of_full_layers_has_all_index_keys(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = memory(models, monkeypatch, "glm")
    pool = runner.token_to_kv_pool
    assert len({b.data_ptr() for b in pool.index_k_with_scale_buffer}) == LAYERS
    assert cell_size(runner, LAYERS) == LAYERS * (ROW + KEY)
    shared = memory(models, monkeypatch, "glm_sharing")
    assert most_tokens(shared) > most_tokens(runner)


# --- weights ----------------------------------------------------------------------------------


def test_weights_of_full_layers_load_and_others_are_passed_over(
    build: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint without, or with, indexer weights for shared layers."""
    model = build("glm_sharing")
    monkeypatch.setattr(model, "post_load_weights", lambda **_: None)
    names = [f"model.layers.{layer}.self_attn.indexer.wk.weight" for layer in range(LAYERS)]
    values = [torch.full((128, 256), float(layer + 1)) for layer in range(LAYERS)]
    model.load_weights([(names[layer], values[layer]) for layer in FULL])
    assert "not found" not in caplog.text
    model.load_weights(zip(names, values, strict=True))
    for layer, attention in enumerate(attentions(model)):
        if layer in FULL:
            assert bool((attention.indexer.wk.weight == layer + 1).all())
        else:
            assert f"{names[layer]} not found in params_dict" in caplog.text


# --- start-up ---------------------------------------------------------------------------------


def test_two_batch_overlap_is_refused(models: dict[str, str]) -> None:
    options = {"enable_two_batch_overlap": True, "moe_a2a_backend": "deepep"}
    with fake_cuda.capability(8, 9):
        with pytest.raises(ValueError, match="Remove --enable-two-batch-overlap"):
            nsa_tree.server_args(models["glm_sharing"], **options)
        assert nsa_tree.server_args(models["glm"], **options).enable_two_batch_overlap


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (12, 0)])
def test_stages_are_checked_on_every_gpu(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    options = {"pp_size": 3, "disable_overlap_schedule": True}
    with fake_cuda.capability(*capability):
        with pytest.raises(ValueError, match="SGLANG_PP_LAYER_PARTITION=2,4,6"):
            nsa_tree.server_args(models["glm_sharing"], **options)
        monkeypatch.setenv("SGLANG_PP_LAYER_PARTITION", "2,4,6")
        assert nsa_tree.server_args(models["glm_sharing"], **options).pp_size == 3
        monkeypatch.delenv("SGLANG_PP_LAYER_PARTITION")
        assert nsa_tree.server_args(models["glm"], **options).pp_size == 3
        with pytest.raises(ValueError, match="--pp-size 5 or less"):
            nsa_tree.server_args(models["glm_sharing"], **{**options, "pp_size": 6})
