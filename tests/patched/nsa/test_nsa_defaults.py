"""The backends, KV cache dtype and shared-expert layout that the patched 0.5.9 tree chooses."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import fake_cuda
import nsa_tree
import pytest
import releases
import tiny_models

OVERRIDE = "SGLANG_ADA_DSA_OVERRIDE_ARCH"
BF16_HOPPER = ("bfloat16", "flashmla_sparse", "fa3")
FP8_BLACKWELL = ("fp8_e4m3", "flashmla_auto", "flashmla_kv")
if releases.at(">=0.5.10"):
    FP8_BLACKWELL = ("fp8_e4m3", "trtllm", "trtllm")
FP8_HOPPER_PREFILL = "flashmla_auto" if releases.at("<0.5.11") else "flashmla_kv"
ADA = ("fp8_e4m3", "ada_dsa", "ada_dsa")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return nsa_tree.write_configs(tmp_path_factory.mktemp("models"))


def chosen(path: str, capability: tuple[int, int], **options: Any) -> tuple[str, str, str]:
    with fake_cuda.capability(*capability):
        args = nsa_tree.server_args(path, **options)
    return args.kv_cache_dtype, args.nsa_prefill_backend, args.nsa_decode_backend


@pytest.mark.parametrize("model", ["glm", "glm_sharing", "deepseek_v32"])
@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((8, 0), ADA),
        ((8, 6), ADA),
        ((8, 9), ADA),
        ((9, 0), BF16_HOPPER),
        ((10, 0), FP8_BLACKWELL),
        ((10, 3), FP8_BLACKWELL),
        ((12, 0), ADA),
        ((12, 1), ADA),
    ],
)
def test_defaults(
    models: dict[str, str],
    model: str,
    capability: tuple[int, int],
    expected: tuple[str, str, str],
) -> None:
    assert chosen(models[model], capability) == expected


@pytest.mark.parametrize("device", releases.DOCTORED)
@pytest.mark.parametrize("model", ["glm", "deepseek_v32"])
def test_what_tool_doctor_recommends_starts(
    models: dict[str, str], device: tuple[int, int], model: str, tmp_path: Path
) -> None:
    """With the options that doctor prints for the GPU, or without any where it says that ada_dsa is the
    default. Where it prints options, sglang's own kernels are the default.
    """
    kind, options = releases.doctors_route(device)
    assert chosen(models[model], device, **options) == ADA
    default = chosen(models[model], device)
    assert (default == ADA) == (kind == "default")
    assert kind == "default" or "ada_dsa" not in default
    with fake_cuda.capability(*device):
        args = nsa_tree.server_args(models[model], **options)
        nsa_tree.start_one_rank(args, tmp_path)
        built = nsa_tree.backend(args)
    assert (built.nsa_prefill_impl, built.nsa_decode_impl) == ("ada_dsa", "ada_dsa")


def test_a_gpu_that_tool_doctor_refuses_does_not_start(
    models: dict[str, str], tmp_path: Path
) -> None:
    assert releases.doctors_route((7, 5)) == ("refused", {})
    both = {"nsa_prefill_backend": "ada_dsa", "nsa_decode_backend": "ada_dsa"}
    with fake_cuda.capability(7, 5):
        args = nsa_tree.server_args(models["glm"], kv_cache_dtype="fp8_e4m3", **both)
        nsa_tree.start_one_rank(args, tmp_path)
        with pytest.raises(ValueError, match="compute capability 8.0 or later"):
            nsa_tree.backend(args)


def test_page_size_and_attention_backend_are_stocks(models: dict[str, str]) -> None:
    with fake_cuda.capability(8, 9):
        args = nsa_tree.server_args(models["glm"])
    assert (args.attention_backend, args.page_size) == ("nsa", 64)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0), (12, 0)])
def test_override_takes_the_sm89_path(
    models: dict[str, str], capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OVERRIDE, "sm89")
    assert chosen(models["glm"], capability) == ADA


def test_unknown_override_is_refused(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OVERRIDE, "sm90")
    with pytest.raises(ValueError, match=OVERRIDE):
        chosen(models["glm"], (9, 0))


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (12, 0), (12, 1)])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kv_cache_dtype": "bfloat16"}, ("bfloat16", "ada_dsa", "ada_dsa")),
        ({"kv_cache_dtype": "bf16"}, ("bfloat16", "ada_dsa", "ada_dsa")),
        ({"nsa_decode_backend": "ada_dsa"}, ADA),
    ],
)
def test_an_explicit_choice_wins(
    models: dict[str, str],
    capability: tuple[int, int],
    options: dict[str, Any],
    expected: tuple[str, str, str],
) -> None:
    assert chosen(models["glm"], capability, **options) == expected


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (12, 0), (12, 1)])
@pytest.mark.parametrize("backend", ["flashmla_kv", "flashmla_sparse", "tilelang", "fa3"])
@pytest.mark.parametrize("option", ["prefill", "decode"])
def test_a_backend_without_a_kernel_is_refused_by_the_option_that_named_it(
    models: dict[str, str], capability: tuple[int, int], backend: str, option: str
) -> None:
    named = f"--nsa-{option}-backend {backend}"
    if capability[0] == 12 and releases.at(">=0.5.10,<0.5.11"):
        named = ""  # this release replaces what was asked for, so there is nothing to refuse
    with pytest.raises(ValueError, match=f"{named} has no kernel for sm_.*ada_dsa"):
        chosen(
            models["glm"],
            capability,
            kv_cache_dtype="bfloat16",
            **{f"nsa_{option}_backend": backend},
        )


def test_fp8_experts_are_refused_below_sm89(tmp_path: Path) -> None:
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    path = tiny_models.write(
        tmp_path, {**nsa_tree.CONFIGS["deepseek_v32"], "quantization_config": fp8}
    )
    assert chosen(path, (8, 9)) == ADA
    for capability in ((8, 0), (8, 6)):
        with pytest.raises(ValueError, match="no MoE kernel for FP8 weights.*4-bit"):
            chosen(path, capability)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_ada_dsa_can_be_asked_for_anywhere(
    models: dict[str, str], capability: tuple[int, int]
) -> None:
    """The backend selects the packed fp8 cache too, unless a dtype is given."""
    both = {"nsa_prefill_backend": "ada_dsa", "nsa_decode_backend": "ada_dsa"}
    assert chosen(models["glm"], capability, **both) == ADA
    explicit = chosen(models["glm"], capability, kv_cache_dtype="bfloat16", **both)
    assert explicit == ("bfloat16", "ada_dsa", "ada_dsa")
    decode = chosen(models["glm"], capability, nsa_decode_backend="ada_dsa")
    prefill = FP8_HOPPER_PREFILL
    if capability == (8, 0):
        prefill = "ada_dsa"  # sglang's choice has no kernel there
    if capability == (10, 0) and releases.at(">=0.5.11"):
        prefill = "trtllm"  # the backend's constructor refuses this mix
    assert decode == ("fp8_e4m3", prefill, "ada_dsa")


@pytest.mark.skipif(releases.at("<0.5.10"), reason="HiSparse came with 0.5.10")
@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_hisparse_keeps_its_own_default_or_is_refused(
    models: dict[str, str], capability: tuple[int, int]
) -> None:
    options = {"enable_hisparse": True, "disable_radix_cache": True}
    if capability == (9, 0):
        assert "ada_dsa" not in chosen(models["glm"], capability, **options)
        return
    with pytest.raises(ValueError, match="Drop --enable-hisparse"):
        chosen(models["glm"], capability, **options)


def test_command_line_accepts_the_choice() -> None:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    flags = ["--nsa-prefill-backend", "ada_dsa", "--nsa-decode-backend", "ada_dsa"]
    parsed = parser.parse_args(["--model-path", "m", *flags, "--enforce-shared-experts-fusion"])
    assert (parsed.nsa_prefill_backend, parsed.nsa_decode_backend) == ("ada_dsa", "ada_dsa")
    assert parsed.enforce_shared_experts_fusion is True
    assert parser.parse_args(["--model-path", "m"]).enforce_shared_experts_fusion is False


def test_a_model_without_dsa_is_untouched(models: dict[str, str]) -> None:
    with fake_cuda.capability(8, 9):
        args = nsa_tree.server_args(models["deepseek_v3"])
    assert args.kv_cache_dtype == "auto"
    assert args.nsa_prefill_backend is None
    assert args.nsa_decode_backend is None
    assert args.attention_backend != "nsa"


def fused_experts(
    models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    sm: int,
    dsa: bool = True,
    **options: Any,
) -> tuple[int, bool]:
    """The number of shared experts that the model folds into the routed ones, and the flag afterwards."""
    from sglang.srt.models import deepseek_v2

    monkeypatch.setattr(deepseek_v2, "get_moe_expert_parallel_world_size", lambda: 1)
    with fake_cuda.capability(sm // 10, sm % 10):
        args = nsa_tree.server_args(models["glm" if dsa else "deepseek_v3"], **options)
        return nsa_tree.fused_shared_experts(args, dsa=dsa)


@pytest.mark.parametrize("sm", [80, 86, 90, 100, 120])
def test_fusion_stays_where_stock_has_it(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch, sm: int
) -> None:
    # From 0.5.12 on sm_100 has a MoE backend that rules it out.
    stock = (0, True) if sm == 100 and releases.at(">=0.5.12") else (1, False)
    assert fused_experts(models, monkeypatch, sm) == stock
    assert fused_experts(models, monkeypatch, sm, disable_shared_experts_fusion=True) == (0, True)


def test_fusion_is_off_on_sm89_unless_enforced(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fused_experts(models, monkeypatch, 89) == (0, True)
    assert fused_experts(models, monkeypatch, 89, disable_shared_experts_fusion=True) == (0, True)
    assert fused_experts(models, monkeypatch, 89, enforce_shared_experts_fusion=True) == (1, False)
    off = {"disable_shared_experts_fusion": True, "enforce_shared_experts_fusion": True}
    assert fused_experts(models, monkeypatch, 89, **off) == (0, True)


@pytest.mark.parametrize("backend", ["flashinfer", "triton"])
def test_fusion_is_sglangs_where_the_attention_is_not_dsas(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    assert fused_experts(models, monkeypatch, 89, attention_backend=backend) == (1, False)


def test_fusion_is_sglangs_for_a_model_without_dsa(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSeek-V3 on an RTX 4090 is served by sglang itself."""
    assert fused_experts(models, monkeypatch, 89, dsa=False) == (1, False)


def test_override_turns_fusion_off_too(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OVERRIDE, "sm89")
    assert fused_experts(models, monkeypatch, 90) == (0, True)


def test_sharing_model_starts_where_every_stage_computes_a_topk(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """GLM-5.2's 78 layers on four stages: even stages fail, the named partition passes."""
    config = {**nsa_tree.CONFIGS["glm_sharing"], "num_hidden_layers": 78}
    path = tiny_models.write(tmp_path / "glm78", config)
    options = {"pp_size": 4, "tp_size": 8, "nnodes": 4, "disable_overlap_schedule": True}
    with fake_cuda.capability(8, 9):
        with pytest.raises(ValueError, match="SGLANG_PP_LAYER_PARTITION=18,20,20,20") as refusal:
            nsa_tree.server_args(path, **options)
        assert "--pp-size 4" in str(refusal.value)
        monkeypatch.setenv("SGLANG_PP_LAYER_PARTITION", "18,20,20,20")
        assert nsa_tree.server_args(path, **options).pp_size == 4
        monkeypatch.setenv("SGLANG_PP_LAYER_PARTITION", "19,19,20,20")
        with pytest.raises(ValueError, match="layer 19"):
            nsa_tree.server_args(path, **options)
