"""Print, as JSON, everything a sglang tree of this era selects: ``python selections.py TREE``.

Run once on the stock tree and once on the patched one; the two must agree wherever the patches
choose nothing new. TREE is the tree's ``python`` folder; the model folders are written to the
current one.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

gc.set_threshold(100_000, 50, 100)  # before the imports, as tests/conftest.py does after them

overlay = [os.environ["ADA_OVERLAY"]] if "ADA_OVERLAY" in os.environ else []
sys.path[:0] = [sys.argv[1], *overlay, str(Path(__file__).parents[1])]

import boundaries  # noqa: E402
import fake_cuda  # noqa: E402
import releases  # noqa: E402
import tiny_models  # noqa: E402

CAPABILITIES = ((8, 0), (9, 0), (10, 0), (12, 0))
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"kv_cache_dtype": "fp8_e4m3"},
    {"kv_cache_dtype": "bfloat16"},
    {
        "kv_cache_dtype": "fp8_e4m3",
        "dsa_prefill_backend": "tilelang",
        "dsa_decode_backend": "tilelang",
    },
    {"kv_cache_dtype": "fp8_e4m3", "dsa_decode_backend": "flashmla_kv"},
    {"disable_cuda_graph": False},
    tiny_models.SPECULATIVE,
)
OTHER_BACKENDS: tuple[dict[str, Any], ...] = (
    {"attention_backend": "flashinfer"},
    {"attention_backend": "triton"},
    {"prefill_attention_backend": "flashinfer", "decode_attention_backend": "triton"},
)
"""Attention that is not DSA's: its backends read neither packed rows nor selected keys."""
IMPLS = (
    "flashmla_sparse",
    "flashmla_kv",
    "flashinfer_sparse_mla",
    "triton_sparse_mla",
    "fa3",
    "tilelang",
    "trtllm",
)


def attempt(function: Callable[[], Any]) -> Any:
    """The result, or the type of the error. The text is left out: it may list more choices on the patched
    tree.
    """
    try:
        return describe(function())
    except Exception as err:
        return f"raises {type(err).__name__}"


def describe(value: Any) -> Any:
    if isinstance(value, MagicMock):
        return value._extract_mock_name()
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return value if isinstance(value, (bool, int, str, list, dict, type(None))) else repr(value)


def arguments(path: str, options: dict[str, Any]) -> Any:
    resolved = tree.resolved(tree.server_args(path, **options))
    plain = (bool, int, float, str, list, tuple, dict, type(None))
    return {n: repr(value) for n, value in sorted(resolved.items()) if isinstance(value, plain)}


def logits() -> dict[str, Any]:
    return {
        name: function if isinstance(function, str) else describe(function)
        for name, function in tree.logits_functions().items()
    }


def constructed(path: str, options: dict[str, Any]) -> dict[str, Any]:
    """The plain values of a backend built from these options, and its per-batch choices."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    built = tree.backend(tree.server_args(path, **options))
    modes = (ForwardMode.EXTEND, ForwardMode.DECODE, ForwardMode.TARGET_VERIFY)
    plain = (bool, int, str, type(None))
    return {
        **{name: v for name, v in sorted(vars(built).items()) if isinstance(v, plain)},
        "workspace": built.workspace_buffer is not None,
        "topk": [built.get_topk_transform_method(mode).name for mode in modes],
    }


def fusion(path: str, options: dict[str, Any], experts: int) -> Any:
    return list(tree.fused_shared_experts(tree.server_args(path, **options), experts))


def allowed_on_sm120(arch: str, major: int, dtype: Any, prefill: str, decode: str) -> Any:
    from sglang.kernels.ops.attention import flash_mla_sm120 as module

    return module._validate_flashinfer_sparse_mla_backend(
        model_arch=arch,
        device_sm_major=major,
        kv_cache_dtype=dtype,
        prefill_impl=prefill,
        decode_impl=decode,
    )


def selections(configs: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for capability in CAPABILITIES:
        with fake_cuda.capability(*capability):
            sm = "sm_{}{}".format(*capability)
            for (name, path), options in itertools.product(configs.items(), OPTIONS):
                key = f"{sm} {name} {json.dumps(options)}"
                found[f"{key} arguments"] = attempt(lambda p=path, o=options: arguments(p, o))
                if name != "deepseek_v3":
                    found[f"{key} backend"] = attempt(lambda p=path, o=options: constructed(p, o))
                    found[f"{key} logits"] = attempt(logits)
            if releases.at(">=0.5.15"):
                found |= {
                    f"{sm} logits {choice}": attempt(lambda c=choice: logits_backend(c))
                    for choice in ("auto", "deepgemm", "cutedsl", "aiter", "triton")
                }
            tree.publish(tree.server_args(configs["glm"]))
            for fallback in ("0", "1"):
                os.environ["SGLANG_FP8_PAGED_MQA_LOGITS_TORCH"] = fallback
                found[f"{sm} logits, torch fallback {fallback}"] = attempt(logits)
            del os.environ["SGLANG_FP8_PAGED_MQA_LOGITS_TORCH"]
            if releases.at(">=0.5.17"):
                for arch, dtype, prefill, decode in itertools.product(
                    ("GlmMoeDsaForCausalLM", "DeepseekV32ForCausalLM"),
                    (torch.float8_e4m3fn, torch.bfloat16),
                    IMPLS,
                    IMPLS,
                ):
                    asked = (arch, capability[0], dtype, prefill, decode)
                    found[f"{sm} {arch} {dtype} allows {prefill} {decode}"] = attempt(
                        lambda a=asked: allowed_on_sm120(*a)
                    )
            flags = ({}, {"disable_shared_experts_fusion": True})
            flags += ({"enforce_shared_experts_fusion": True},)
            for flag, experts in itertools.product(flags, (8, 256)):
                found[f"{sm} fusion {flag} {experts}"] = attempt(
                    lambda f=flag, e=experts: fusion(configs["glm"], f, e)
                )
    # Last: other backends leave settings of theirs in the process.
    for capability in ((8, 9), *CAPABILITIES):
        with fake_cuda.capability(*capability):
            for (name, path), options in itertools.product(configs.items(), OTHER_BACKENDS):
                key = "sm_{}{} {} {}".format(*capability, name, json.dumps(options))
                found[f"{key} arguments"] = attempt(lambda p=path, o=options: arguments(p, o))
    return found


def logits_backend(choice: str) -> str:
    from sglang.srt.layers.attention.dsa.paged_mqa_logits_backend import DSAPagedMQALogitsBackend

    name: str = DSAPagedMQALogitsBackend.resolve(choice).name
    return name


def main() -> None:
    configs = tree.write_configs(Path())
    tree.start_one_rank(tree.server_args(configs["glm"]), Path.cwd())
    found = selections(configs)
    found |= boundaries.cells(
        tree.CONFIGS,
        lambda path, **options: tree.resolved(tree.server_args(path, **options)),
        tiny_models.write,
        fake_cuda.capability,
        "dsa",
    )
    print(json.dumps(found))


if __name__ == "__main__":
    fake_cuda.install((9, 0))
    import torch
    import tree

    main()
