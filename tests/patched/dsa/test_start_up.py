"""The patched tree's choices and refusals when a server starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_cuda
import pytest
import releases
import tiny_models
import torch
import tree
from tiny_models import DSA
from tiny_models import SPECULATIVE as SPEC

BOTH = {"dsa_prefill_backend": "ada_dsa", "dsa_decode_backend": "ada_dsa"}
FP8 = {"kv_cache_dtype": "fp8_e4m3"}
BF16 = {"kv_cache_dtype": "bfloat16"}


MIXED = (
    "cannot be mixed.*ada_dsa for both.*bfloat16"
    if releases.at(">=0.5.22")
    else "cannot read the KV cache that trtllm writes.*Set both of them to ada_dsa"
)


def chosen(path: str, **options: Any) -> tuple[str, str, str]:
    """KV dtype, prefill backend and decode backend after argument resolution."""
    r = tree.resolved(tree.server_args(path, **options))
    return r["kv_cache_dtype"], r["dsa_prefill_backend"], r["dsa_decode_backend"]


def bundled() -> dict[str, Any]:
    from sglang.srt.layers.attention import ada_dsa

    return {
        "num_sms": fake_cuda.NUM_SMS,
        "metadata": ada_dsa.get_paged_mqa_logits_metadata,
        "paged": ada_dsa.fp8_paged_mqa_logits,
        "ragged": ada_dsa.fp8_mqa_logits,
    }


# -- defaults -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["glm", "deepseek_v32"])
@pytest.mark.parametrize("options", [{}, SPEC, {"disable_cuda_graph": False}])
@pytest.mark.parametrize("device", [(8, 0), (8, 6), (8, 9)])
def test_sm8x_defaults_to_ada_dsa_on_fp8_rows(
    configs: dict[str, str], model: str, options: dict[str, Any], device: tuple[int, int]
) -> None:
    with fake_cuda.capability(*device):
        assert chosen(configs[model], **options) == ("fp8_e4m3", "ada_dsa", "ada_dsa")


@pytest.mark.parametrize("model", ["glm", "deepseek_v32"])
@pytest.mark.parametrize("device", [(12, 0), (12, 1)])
def test_sm12x_defaults_to_ada_dsa_where_sglang_has_no_kernel(
    configs: dict[str, str], model: str, device: tuple[int, int]
) -> None:
    """An upgrade keeps what served DeepSeek-V3.2 up to 0.5.16; from 0.5.17 on sglang has a kernel for GLM."""
    with fake_cuda.capability(*device):
        found = chosen(configs[model])
        bf16 = chosen(configs[model], **BF16)
    assert bf16 == ("bfloat16", "ada_dsa", "ada_dsa")
    if model == "glm" and releases.at(">=0.5.17"):
        assert found == ("fp8_e4m3", "flashinfer_sparse_mla", "flashinfer_sparse_mla")
    else:
        assert found == ("fp8_e4m3", "ada_dsa", "ada_dsa")


@releases.only(">=0.5.17")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tp_size": 2}, "flashinfer_sparse_mla"),
        ({"tp_size": 4}, "ada_dsa"),
        ({"tp_size": 4, "dp_size": 4, "enable_dp_attention": True}, "flashinfer_sparse_mla"),
    ],
)
def test_sm120_takes_ada_dsa_for_head_counts_that_flashinfer_has_not(
    configs: dict[str, str], options: dict[str, Any], expected: str
) -> None:
    """The tiny model has 16 heads: 8, 4 and 16 on a rank."""
    with fake_cuda.capability(12, 0):
        assert chosen(configs["glm"], **options) == ("fp8_e4m3", expected, expected)


@pytest.mark.parametrize("device", [(8, 0), (8, 6), (8, 9)])
def test_sm8x_keeps_ada_dsa_on_bf16_rows(configs: dict[str, str], device: tuple[int, int]) -> None:
    with fake_cuda.capability(*device):
        assert chosen(configs["glm"], **BF16) == ("bfloat16", "ada_dsa", "ada_dsa")


@pytest.mark.parametrize("device", [(8, 0), (9, 0), (10, 0), (12, 0)])
def test_the_override_puts_any_gpu_on_the_sm89_path(
    configs: dict[str, str], monkeypatch: pytest.MonkeyPatch, device: tuple[int, int]
) -> None:
    monkeypatch.setenv("SGLANG_ADA_DSA_OVERRIDE_ARCH", "sm89")
    with fake_cuda.capability(*device):
        assert chosen(configs["glm"]) == ("fp8_e4m3", "ada_dsa", "ada_dsa")
        built = tree.backend(tree.server_args(configs["glm"]))
        assert (built.dsa_prefill_impl, built.dsa_decode_impl) == ("ada_dsa", "ada_dsa")
        assert built.kv_cache_dim == 656
        assert not tree.takes_dense_prefill(built)
        assert tree.logits_functions() == bundled()


def test_a_wrong_override_is_refused_at_start(
    configs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_ADA_DSA_OVERRIDE_ARCH", "sm90")
    with (
        fake_cuda.capability(9, 0),
        pytest.raises(ValueError, match="SGLANG_ADA_DSA_OVERRIDE_ARCH"),
    ):
        tree.server_args(configs["glm"])


@pytest.mark.parametrize("device", releases.DOCTORED)
@pytest.mark.parametrize("model", ["glm", "deepseek_v32"])
def test_what_tool_doctor_recommends_starts(
    configs: dict[str, str], device: tuple[int, int], model: str
) -> None:
    """With the options that doctor prints for the GPU, or without any where it says that ada_dsa is the
    default. Where it prints options, sglang's own kernels are the default, but for DeepSeek-V3.2 on sm_12x.
    """
    kind, options = releases.doctors_route(device)
    with fake_cuda.capability(*device):
        built = tree.backend(tree.server_args(configs[model], **options))
        assert (built.dsa_prefill_impl, built.dsa_decode_impl) == ("ada_dsa", "ada_dsa")
        assert tree.logits_functions() == bundled()
        default = chosen(configs[model])[1:]
    if kind == "default" or (device[0] == 12 and model == "deepseek_v32"):
        assert default == ("ada_dsa", "ada_dsa")
    else:
        assert kind == "request" and "ada_dsa" not in default


def test_a_gpu_that_tool_doctor_refuses_does_not_start(configs: dict[str, str]) -> None:
    assert releases.doctors_route((7, 5)) == ("refused", {})
    with (
        fake_cuda.capability(7, 5),
        pytest.raises(ValueError, match="compute capability 8.0 or later"),
    ):
        tree.backend(tree.server_args(configs["glm"], **FP8, **BOTH))


# -- explicit choices -----------------------------------------------------------------------------


@pytest.mark.parametrize("device", [(8, 0), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("dtype", ["fp8_e4m3", "bfloat16"])
def test_selectable_on_any_cuda_gpu(
    configs: dict[str, str], device: tuple[int, int], dtype: str
) -> None:
    with fake_cuda.capability(*device):
        args = tree.server_args(configs["glm"], kv_cache_dtype=dtype, **BOTH)
        built = tree.backend(args)
        dense = tree.takes_dense_prefill(built)
    assert (built.dsa_prefill_impl, built.dsa_decode_impl) == ("ada_dsa", "ada_dsa")
    assert built.kv_cache_dim == (656 if dtype == "fp8_e4m3" else 576)
    assert built.dsa_kv_cache_store_fp8 == (dtype == "fp8_e4m3")
    # Like every other backend it leaves short prompts to dense attention where stock has it.
    assert dense == (device in ((9, 0), (10, 0)))


@pytest.mark.parametrize(
    ("device", "options", "expected"),
    [
        ((9, 0), {"dsa_prefill_backend": "ada_dsa"}, ("ada_dsa", "flashmla_kv")),
        ((9, 0), {"dsa_decode_backend": "ada_dsa"}, ("flashmla_kv", "ada_dsa")),
        pytest.param(
            (12, 0),
            {"dsa_prefill_backend": "ada_dsa"},
            ("ada_dsa", "flashinfer_sparse_mla"),
            marks=releases.only(">=0.5.17"),
        ),
        pytest.param(
            (12, 0),
            {"dsa_decode_backend": "ada_dsa"},
            ("flashinfer_sparse_mla", "ada_dsa"),
            marks=releases.only(">=0.5.17"),
        ),
    ],
)
def test_mixes_with_backends_that_read_packed_rows(
    configs: dict[str, str],
    device: tuple[int, int],
    options: dict[str, Any],
    expected: tuple[str, str],
) -> None:
    with fake_cuda.capability(*device):
        built = tree.backend(tree.server_args(configs["glm"], **FP8, **options))
    assert (built.dsa_prefill_impl, built.dsa_decode_impl) == expected
    assert built.kv_cache_dim == 656


def test_sm89_keeps_an_explicit_tilelang_pair(configs: dict[str, str]) -> None:
    """From 0.5.22 on this backend reads raw fp8 rows, so it stays available as a reference."""
    pair = {"dsa_prefill_backend": "tilelang", "dsa_decode_backend": "tilelang"}
    with fake_cuda.capability(8, 9):
        with pytest.raises(
            ValueError, match="--dsa-prefill-backend tilelang has no kernel for sm_89"
        ):
            chosen(configs["glm"], **BF16, **pair)
        if releases.at(">=0.5.22"):
            assert chosen(configs["glm"], **pair) == ("fp8_e4m3", "tilelang", "tilelang")


def test_the_command_line_offers_ada_dsa() -> None:
    import argparse

    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    flags = ["dsa-prefill-backend", "dsa-decode-backend"]
    if releases.at(">=0.5.22"):
        flags.append("dsa-paged-mqa-logits-backend")
    given = parser.parse_args(
        ["--model-path", "m", *(w for f in flags for w in (f"--{f}", "ada_dsa"))]
    )
    assert {getattr(given, f.replace("-", "_")) for f in flags} == {"ada_dsa"}


# -- indexer logits -------------------------------------------------------------------------------


@releases.only(">=0.5.22")
@pytest.mark.parametrize(
    ("device", "choice", "expected"),
    [
        ((8, 9), "auto", "ADA_DSA"),
        ((8, 9), "ada_dsa", "ADA_DSA"),
        ((8, 0), "auto", "ADA_DSA"),
        ((8, 6), "auto", "ADA_DSA"),
        ((9, 0), "deepgemm", "DEEPGEMM"),
        ((9, 0), "auto", "DEEPGEMM"),
        ((9, 0), "ada_dsa", "ADA_DSA"),
        ((10, 0), "cutedsl", "CUTEDSL"),
        ((12, 0), "auto", "DEEPGEMM"),
        ((12, 0), "ada_dsa", "ADA_DSA"),
    ],
)
def test_logits_backend(
    configs: dict[str, str], device: tuple[int, int], choice: str, expected: str
) -> None:
    import deep_gemm
    from sglang.srt.layers.attention.dsa.paged_mqa_logits_backend import DSAPagedMQALogitsBackend

    with fake_cuda.capability(*device):
        assert DSAPagedMQALogitsBackend.resolve(choice).name == expected
        tree.publish(tree.server_args(configs["glm"], dsa_paged_mqa_logits_backend=choice))
        found = tree.logits_functions()
    if expected == "ADA_DSA":
        assert found == bundled()
    else:
        assert found["metadata"] is deep_gemm.get_paged_mqa_logits_metadata
        assert found["paged"] is deep_gemm.fp8_paged_mqa_logits
        assert found["ragged"] is deep_gemm.fp8_mqa_logits


@releases.only(">=0.5.22")
def test_logits_follow_their_own_flag_not_the_attention_backends(configs: dict[str, str]) -> None:
    import deep_gemm

    with fake_cuda.capability(9, 0):
        tree.publish(tree.server_args(configs["glm"], **FP8, **BOTH))
        assert tree.logits_functions()["paged"] is deep_gemm.fp8_paged_mqa_logits


@releases.only(">=0.5.22")
def test_upstreams_torch_fallback_outranks_ada_dsa(
    configs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.layers.attention.dsa import utils

    monkeypatch.setenv("SGLANG_FP8_PAGED_MQA_LOGITS_TORCH", "1")
    with fake_cuda.capability(8, 9):
        tree.publish(tree.server_args(configs["glm"]))
        found = tree.logits_functions()
    assert found["paged"] is utils._fp8_paged_mqa_logits_torch
    assert found["ragged"] is utils._fp8_mqa_logits_torch


@releases.only("<0.5.22")
@pytest.mark.parametrize(
    ("device", "options", "expected"),
    [
        ((8, 0), {}, True),
        ((8, 6), BOTH, True),
        ((8, 9), {}, True),
        ((9, 0), {}, False),
        ((9, 0), BOTH, True),
        ((9, 0), {"dsa_decode_backend": "ada_dsa"}, True),
        ((10, 0), {}, False),
        ((12, 0), {}, releases.at("<0.5.17")),
        ((12, 0), BOTH, True),
    ],
)
def test_logits_follow_the_attention_backends(
    configs: dict[str, str], device: tuple[int, int], options: dict[str, Any], expected: bool
) -> None:
    import deep_gemm

    with fake_cuda.capability(*device):
        tree.publish(tree.server_args(configs["glm"], **FP8, **options))
        found = tree.logits_functions()
    assert (found == bundled()) == expected
    assert (found["paged"] is deep_gemm.fp8_paged_mqa_logits) != expected
    assert (found["ragged"] is deep_gemm.fp8_mqa_logits) != expected


@releases.only(">=0.5.15,<0.5.22")
def test_a_logits_backend_that_was_asked_for_stays(configs: dict[str, str]) -> None:
    import deep_gemm

    with fake_cuda.capability(9, 0):
        tree.publish(
            tree.server_args(configs["glm"], **BOTH, dsa_paged_mqa_logits_backend="deepgemm")
        )
        assert tree.logits_functions()["paged"] is deep_gemm.fp8_paged_mqa_logits


@releases.only("<0.5.22")
def test_deep_gemm_need_not_be_installed(
    configs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.layers.attention.dsa import dsa_indexer

    missing = ModuleNotFoundError("No module named 'deep_gemm'")
    monkeypatch.setattr(dsa_indexer.deep_gemm, "native", missing)
    with fake_cuda.capability(8, 9):
        tree.publish(tree.server_args(configs["glm"]))
        assert tree.logits_functions() == bundled()
    with fake_cuda.capability(9, 0):
        tree.publish(tree.server_args(configs["glm"]))
        with pytest.raises(ModuleNotFoundError, match="deep_gemm"):
            tree.logits_functions()


@releases.only(">=0.5.22")
def test_sm89_needs_no_deep_gemm(configs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "deep_gemm", None)  # import deep_gemm raises ImportError
    with fake_cuda.capability(8, 9):
        tree.publish(tree.server_args(configs["glm"]))
        assert tree.logits_functions() == bundled()


# -- top-k ----------------------------------------------------------------------------------------


@releases.only(">=0.5.15")
@pytest.mark.parametrize("device", [(8, 0), (8, 6), (8, 9), (9, 0), (12, 0)])
@pytest.mark.parametrize("asked", [None, "1", "0"])
def test_topk_v2_is_off_where_it_does_not_compile(
    configs: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    device: tuple[int, int],
    asked: str | None,
) -> None:
    """From 0.5.15, its first release, to 0.5.20 its source needs thread-block clusters."""
    from sglang.srt.environ import envs

    if asked:
        monkeypatch.setenv("SGLANG_OPT_USE_TOPK_V2", asked)
    with fake_cuda.capability(*device):
        built = tree.backend(tree.server_args(configs["glm"]))
        assert built.dsa_topk_backend.is_sgl_kernel()
        off = device < (9, 0) and releases.at("<0.5.21")
        assert envs.SGLANG_OPT_USE_TOPK_V2.get() == (asked == "1" if asked else not off)


# -- refusals -------------------------------------------------------------------------------------


def test_the_bundle_checks_the_models_values(configs: dict[str, str], record: Any) -> None:
    calls = record("check_config")
    with fake_cuda.capability(8, 9):
        tree.backend(tree.server_args(configs["glm"]))
    assert calls == [
        (
            (),
            {
                "kv_cache_dtype": torch.float8_e4m3fn,
                "page_size": 64,
                "num_heads": 16,
                "index_heads": 32,
                "index_head_dim": 128,
                "index_topk": 2048,
                "kv_lora_rank": 512,
                "rope_dim": 64,
                **({"index_kpool": 1} if releases.at(">=0.5.21") else {}),
            },
        )
    ]


@pytest.mark.parametrize("phase", ["dsa_prefill_backend", "dsa_decode_backend"])
def test_the_bundles_refusal_stops_the_start(
    configs: dict[str, str], record: Any, phase: str
) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("refused by the kernels")

    record("check_config", refuse)
    with (
        fake_cuda.capability(9, 0),
        pytest.raises(ValueError, match="refused by the kernels"),
    ):
        tree.backend(tree.server_args(configs["glm"], **FP8, **{phase: "ada_dsa"}))


def test_nothing_is_checked_when_ada_dsa_is_not_used(configs: dict[str, str], record: Any) -> None:
    calls = record("check_config")
    with fake_cuda.capability(9, 0):
        tree.backend(tree.server_args(configs["glm"], **FP8))
    assert calls == []


@pytest.mark.parametrize(
    "options",
    [
        {"dsa_prefill_backend": "trtllm", "dsa_decode_backend": "ada_dsa"},
        {"dsa_prefill_backend": "ada_dsa", "dsa_decode_backend": "trtllm"},
    ],
)
@pytest.mark.parametrize("device", [(10, 0)])
def test_trtllms_raw_fp8_rows_are_refused(
    configs: dict[str, str], device: tuple[int, int], options: dict[str, Any]
) -> None:
    with (
        fake_cuda.capability(*device),
        pytest.raises(ValueError, match=MIXED),
    ):
        tree.backend(tree.server_args(configs["glm"], **FP8, **options))


@releases.only(">=0.5.22")
def test_trtllm_mixes_on_bf16_rows(configs: dict[str, str]) -> None:
    mix = {"dsa_prefill_backend": "ada_dsa", "dsa_decode_backend": "trtllm"}
    with fake_cuda.capability(10, 0):
        built = tree.backend(tree.server_args(configs["glm"], **BF16, **mix))
    assert (built.dsa_prefill_impl, built.kv_cache_dim) == ("ada_dsa", 576)


@releases.only(">=0.5.22")
@pytest.mark.parametrize("phase", ["dsa_prefill_backend", "dsa_decode_backend"])
def test_tilelangs_raw_fp8_rows_are_refused(configs: dict[str, str], phase: str) -> None:
    with (
        fake_cuda.capability(8, 9),
        pytest.raises(ValueError, match="requires both DSA backends to be tilelang"),
    ):
        tree.server_args(configs["glm"], **FP8, **{phase: "tilelang"})


@releases.only("<0.5.22")
@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda face: setattr(face, "page_size", 32), "--page-size 64"),
        (lambda face: setattr(face.token_to_kv_pool, "dtype", torch.float16), "--kv-cache-dtype"),
        (lambda face: setattr(face.model_config, "num_attention_heads", 256), "--tp-size"),
        (lambda face: setattr(face.model_config.hf_config, "index_head_dim", 64), "index_head_dim"),
    ],
)
def test_what_is_not_supported_stops_the_start(
    configs: dict[str, str], change: Callable[[Any], None], advice: str, tmp_path: Path
) -> None:
    from sglang.srt.layers.attention.dsa_backend import DeepseekSparseAttnBackend

    # A folder of its own: sglang keeps one configuration object for a path.
    path = tiny_models.write(tmp_path, tree.CONFIGS["glm"])
    with fake_cuda.capability(8, 9):
        face = tree.runner(tree.server_args(path))
        change(face)
        with pytest.raises(ValueError, match=advice):
            DeepseekSparseAttnBackend(face)


def validate(**changed: Any) -> None:
    """The patch's own start-up check on supported values, some of them changed."""
    from sglang.srt.layers.attention.dsa_backend import _validate_ada_dsa_backend

    values: dict[str, Any] = {
        "prefill_impl": "ada_dsa",
        "decode_impl": "flashmla_kv",
        "kv_cache_dtype": torch.float8_e4m3fn,
        "page_size": 64,
        "num_q_heads": 16,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "index_kpool": 1,
        "dcp_size": 1,
        "hf_config": SimpleNamespace(**DSA),
    }
    _validate_ada_dsa_backend(**{**values, **changed})


@releases.only(">=0.5.22")
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("dcp_size", 2, "--dcp-size"), ("index_kpool", 3, "index_kpool")],
)
def test_unsupported_layouts_are_refused(field: str, value: int, message: str) -> None:
    with fake_cuda.capability(8, 9):
        validate()
        with pytest.raises(ValueError, match=message):
            validate(**{field: value})


@releases.only(">=0.5.22")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kv_cache_dtype": torch.float16}, "--kv-cache-dtype"),
        ({"page_size": 32}, "--page-size"),
        ({"num_q_heads": 0}, "head"),
        ({"kv_lora_rank": 256}, "kv_lora_rank"),
        ({"qk_rope_head_dim": 32}, "rope"),
        ({"hf_config": SimpleNamespace(**{**DSA, "index_head_dim": 64})}, "index_head_dim"),
    ],
)
def test_the_bundle_refuses_what_its_kernels_do_not_cover(
    changed: dict[str, Any], message: str
) -> None:
    with fake_cuda.capability(8, 9):
        validate()
        with pytest.raises(ValueError, match=message):
            validate(**changed)


@releases.only(">=0.5.22")
def test_other_platforms_are_refused(record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record("check_config")
    monkeypatch.setattr("sglang.srt.layers.attention.dsa_backend._is_cuda", False)
    with pytest.raises(ValueError, match="NVIDIA GPUs only"):
        validate()


@pytest.mark.parametrize("version", ["3.4.0", "3.10.0"])
def test_an_untested_triton_stops_the_start(
    configs: dict[str, str], monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    import importlib.metadata

    with fake_cuda.capability(8, 9):
        args = tree.server_args(configs["glm"])
        installed = importlib.metadata.version
        monkeypatch.setattr(
            importlib.metadata, "version", lambda p: version if p == "triton" else installed(p)
        )
        with pytest.raises(ValueError, match=f"supports Triton .*, got {version}"):
            tree.backend(args)


@releases.only(">=0.5.22")
def test_a_gpu_before_ampere_is_refused() -> None:
    with fake_cuda.capability(7, 5), pytest.raises(ValueError, match="got sm_75"):
        validate()


@releases.only(">=0.5.17")
@pytest.mark.parametrize("other", ["tilelang", "flashmla_kv", "trtllm"])
def test_sm120_still_refuses_kernels_it_has_not(configs: dict[str, str], other: str) -> None:
    pair = {"dsa_prefill_backend": other, "dsa_decode_backend": other}
    with (
        fake_cuda.capability(12, 0),
        pytest.raises(
            ValueError,
            match="(supports only flashinfer_sparse_mla|has no kernel for sm_120).*ada_dsa",
        ),
    ):
        tree.backend(tree.server_args(configs["glm"], **FP8, **pair))


HISPARSE = {"enable_hisparse": True, "disable_radix_cache": True}


def test_hisparse_keeps_its_own_default_and_refuses_ada_dsa(configs: dict[str, str]) -> None:
    hisparse = HISPARSE
    with fake_cuda.capability(9, 0):
        found = chosen(configs["glm"], **hisparse)
        by_dtype = {"fp8_e4m3": "flashmla_kv", "bfloat16": "flashmla_sparse"}
        assert found[1] == found[2] == by_dtype[found[0]]
        asked = tree.server_args(configs["glm"], **hisparse, dsa_decode_backend="ada_dsa")
        with pytest.raises(ValueError, match="HiSparse"):
            asked.check_server_args()


# -- what no kernel serves on this GPU ---------------------------------------------------------------


@pytest.mark.parametrize("device", [(8, 0), (8, 6), (8, 9), (12, 0), (12, 1)])
@pytest.mark.parametrize("backend", ["flashmla_kv", "flashmla_sparse", "fa3", "trtllm"])
@pytest.mark.parametrize("dtype", [FP8, BF16])
def test_a_backend_without_a_kernel_is_refused_by_the_option_that_named_it(
    configs: dict[str, str], device: tuple[int, int], backend: str, dtype: dict[str, str]
) -> None:
    sm = "sm_{}{}".format(*device)
    with fake_cuda.capability(*device):
        for option in ("prefill", "decode"):
            with pytest.raises(
                ValueError,
                match=f"--dsa-{option}-backend {backend} has no kernel for {sm}.*ada_dsa",
            ):
                chosen(configs["deepseek_v32"], **dtype, **{f"dsa_{option}_backend": backend})


@pytest.mark.parametrize("device", [(8, 0), (8, 6), (8, 9)])
@pytest.mark.parametrize("model", ["glm", "deepseek_v32"])
def test_hisparse_is_refused_where_its_kernels_are_not(
    configs: dict[str, str], device: tuple[int, int], model: str
) -> None:
    with fake_cuda.capability(*device), pytest.raises(ValueError, match="Drop --enable-hisparse"):
        chosen(configs[model], **HISPARSE)


@releases.only(">=0.5.22")
@pytest.mark.parametrize("device", [(8, 0), (8, 6), (8, 9), (12, 0)])
@pytest.mark.parametrize("options", [{}, BOTH])
def test_dcp_is_refused_where_its_kernels_are_not(
    configs: dict[str, str], device: tuple[int, int], options: dict[str, str]
) -> None:
    with (
        fake_cuda.capability(*device),
        pytest.raises(ValueError, match="--dcp-size 2 has no DSA kernel.*Drop --dcp-size"),
    ):
        chosen(configs["glm"], tp_size=2, dcp_size=2, **options)


@releases.only(">=0.5.15")
@pytest.mark.parametrize("device", [(8, 0), (8, 6), (8, 9), (12, 0)])
@pytest.mark.parametrize("choice", ["deepgemm", "cutedsl"])
def test_logits_without_a_kernel_are_refused(
    configs: dict[str, str], device: tuple[int, int], choice: str
) -> None:
    if device == (12, 0) and choice == "deepgemm" and releases.at(">=0.5.17"):
        pytest.skip("this DeepGEMM has kernels for sm_120")
    sm = "sm_{}{}".format(*device)
    with (
        fake_cuda.capability(*device),
        pytest.raises(ValueError, match=f"--dsa-paged-mqa-logits-backend {choice} .*{sm}"),
    ):
        tree.server_args(configs["glm"], dsa_paged_mqa_logits_backend=choice)


@pytest.mark.parametrize("device", [(8, 0), (8, 6), (8, 9)])
def test_fp8_experts_are_refused_below_sm89(tmp_path: Path, device: tuple[int, int]) -> None:
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    path = tiny_models.write(tmp_path, {**tree.CONFIGS["glm"], "quantization_config": fp8})
    with fake_cuda.capability(*device):
        if device == (8, 9):
            assert chosen(path) == ("fp8_e4m3", "ada_dsa", "ada_dsa")
            return
        with pytest.raises(ValueError, match="no MoE kernel for FP8 weights.*4-bit"):
            chosen(path)


@releases.only("<0.5.21")
@pytest.mark.parametrize("device", [(8, 0), (8, 9), (12, 0)])
def test_a_pooled_indexer_is_refused_and_no_option_is_blamed(
    tmp_path: Path, device: tuple[int, int]
) -> None:
    """GLM-5.3-Flash pools its index keys. No backend has a kernel, so none is recommended."""
    path = tiny_models.write(tmp_path, {**tree.CONFIGS["glm"], "index_kpool": 4})
    if releases.at("<0.5.20") and device == (12, 0) and releases.at(">=0.5.17"):
        pytest.skip("this release does not know index_kpool, and GLM has sglang's own kernel")
    with fake_cuda.capability(*device):
        if device == (12, 0) and releases.at(">=0.5.17"):
            # sglang's own kernel is chosen; whether it serves the pooled indexer is its own affair.
            assert "ada_dsa" not in chosen(path)
            return
        advice = "No option changes this" if device == (8, 0) else "sglang 0.5.21 or later"
        with pytest.raises(ValueError, match=f"pooled indexer.*{advice}") as refusal:
            chosen(path)
    assert "--dsa" not in str(refusal.value)


@releases.only(">=0.5.21")
def test_speculation_on_pipeline_stages_names_the_variable_that_allows_it(
    configs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**SPEC, "pp_size": 2, "disable_overlap_schedule": True}

    def start() -> None:
        tree.server_args(configs["glm"], **options).check_server_args()

    with fake_cuda.capability(8, 9):
        with pytest.raises(AssertionError, match="SGLANG_ENABLE_PP_SPEC=1"):
            start()
        monkeypatch.setenv("SGLANG_ENABLE_PP_SPEC", "1")
        start()


# -- shared-expert fusion -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "flags", "expected"),
    [
        ((8, 9), {}, 0),
        ((8, 9), {"enforce_shared_experts_fusion": True}, 1),
        ((8, 9), {"disable_shared_experts_fusion": True}, 0),
        ((8, 0), {}, 1),
        ((9, 0), {}, 1),
        ((12, 0), {}, 1),
        ((9, 0), {"disable_shared_experts_fusion": True}, 0),
    ],
)
def test_shared_expert_fusion(
    configs: dict[str, str], device: tuple[int, int], flags: dict[str, Any], expected: int
) -> None:
    with fake_cuda.capability(*device):
        assert tree.fused_shared_experts(tree.server_args(configs["glm"], **flags))[0] == expected


@pytest.mark.parametrize(
    "attention",
    [
        {"attention_backend": "flashinfer"},
        {"attention_backend": "triton"},
        {"prefill_attention_backend": "flashinfer", "decode_attention_backend": "triton"},
    ],
)
def test_fusion_is_sglangs_where_the_attention_is_not_dsas(
    configs: dict[str, str], attention: dict[str, str]
) -> None:
    with fake_cuda.capability(8, 9):
        args = tree.server_args(configs["glm"], **attention)
        assert tree.fused_shared_experts(args)[0] == 1


def test_fusion_is_sglangs_for_a_model_without_dsa(configs: dict[str, str]) -> None:
    """DeepSeek-V3 on an RTX 4090 is served by sglang itself."""
    with fake_cuda.capability(8, 9):
        args = tree.server_args(configs["deepseek_v3"])
        assert tree.fused_shared_experts(args, dsa=False)[0] == 1


def test_the_override_turns_fusion_off(
    configs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_ADA_DSA_OVERRIDE_ARCH", "sm89")
    with fake_cuda.capability(9, 0):
        assert tree.fused_shared_experts(tree.server_args(configs["glm"])) == (0, True)
