"""Where the patches choose nothing new, the patched tree selects what the stock tree selects."""

from __future__ import annotations

import json
from typing import Any

import pytest
import releases

NEW_FLAG = "enforce_shared_experts_fusion"
BACKENDS = ("nsa_prefill_backend", "nsa_decode_backend")
Found = dict[str, Any]


@pytest.fixture(scope="module")
def compared(both: tuple[Found, Found]) -> tuple[Found, Found]:
    """The selections without the one field that stock lacks before 0.5.11. It is off by default."""
    stock, patched = both
    if releases.at("<0.5.11"):
        for key, value in patched.items():
            if key.endswith(" arguments") and isinstance(value, dict):
                assert value.pop(NEW_FLAG) == "False"
    return stock, patched


def of(found: Found, sm: str) -> Found:
    return {key: value for key, value in found.items() if key.startswith(f"{sm} ")}


@pytest.mark.parametrize("sm", ["sm_80", "sm_90", "sm_100"])
def test_selects_what_stock_selects(sm: str, compared: tuple[Found, Found]) -> None:
    stock, patched = (of(one, sm) for one in compared)
    assert len(stock) > 50
    assert patched == stock


@pytest.mark.parametrize("sm", ["sm_89", "sm_120"])
def test_another_attention_backend_gets_stocks_arguments(
    sm: str, compared: tuple[Found, Found]
) -> None:
    """It would read packed fp8 rows as if they were its own, and nothing would say so."""
    stock, patched = (
        {key: value for key, value in of(one, sm).items() if "attention_backend" in key}
        for one in compared
    )
    assert patched == stock
    assert sum(isinstance(value, dict) for value in stock.values()) > 3


def test_sm120_changes_the_two_backends_and_what_follows_from_them(
    compared: tuple[Found, Found],
) -> None:
    """No NSA kernel of these releases runs on sm_120, so the default there is ada_dsa too."""
    stock, patched = (of(one, "sm_120") for one in compared)
    assert patched.keys() == stock.keys()
    changed = 0
    for key, before in stock.items():
        after = patched[key]
        if "deepseek_v3 " in key or " fusion " in key:
            assert after == before
        elif key.endswith(" arguments"):
            asked = json.loads(key.removesuffix(" arguments").split(" ", 2)[2])
            if any("attention_backend" in name for name in asked):
                continue
            differing = {name for name in before if after[name] != before[name]}
            given = {name for name in BACKENDS if name in asked}
            if len(given) == 1 and releases.at(">=0.5.10,<0.5.11"):
                assert differing == set(BACKENDS)  # stock writes trtllm over what was asked for
            else:
                assert differing == set(BACKENDS) - given
            for name in differing:
                assert after[name] == repr(asked.get(name, "ada_dsa"))
            changed += bool(differing)
        elif all(name in key for name in BACKENDS):
            # Both backends were asked for: the same kernels are reached.
            assert after == before
    assert changed == 16


def test_the_comparison_sees_real_selections(compared: tuple[Found, Found]) -> None:
    """Known answers of the stock tree, so that two trees that fail in the same way do not count as equal."""
    stock, _ = compared
    refused = [
        key
        for key, value in stock.items()
        if isinstance(value, str) and "attention_backend" not in key
    ]
    assert refused == ['sm_100 deepseek_v3 {"kv_cache_dtype": "bfloat16"} arguments']
    assert len(stock["sm_90 glm {} arguments"]) > 300
    hopper = stock["sm_90 glm {} backend"]
    assert hopper["EXTEND attention calls"] == ["sgl_kernel.flash_attn.flash_attn_varlen_func x1"]
    assert hopper["DECODE attention calls"] == ["sgl_kernel.flash_attn.flash_attn_with_kvcache x1"]
    assert hopper["DECODE metadata calls"] == [
        "deep_gemm.get_num_sms x1",
        "deep_gemm.get_paged_mqa_logits_metadata x1",
    ]
    blackwell = stock["sm_100 glm {} backend"]
    if releases.at("<0.5.10"):
        assert blackwell["EXTEND method"] == "RAGGED"
        assert blackwell["EXTEND topk calls"] == ["sgl_kernel.fast_topk_transform_ragged_fused x1"]
        reached = [blackwell[f"{mode} attention calls"] for mode in ("EXTEND", "DECODE")]
        assert reached == [
            ["sgl_kernel.flash_mla.flash_mla_sparse_fwd x1"],
            ["sgl_kernel.flash_mla.flash_mla_with_kvcache x1"],
        ]
        assert blackwell["kv"] == [[1088, 1, 656], "torch.float8_e4m3fn"]
    else:
        assert blackwell["nsa_decode_impl"] == "trtllm"
        assert blackwell["kv"] == [[1088, 1, 576], "torch.float8_e4m3fn"]
    assert stock["sm_90 indexer {}"] == {
        "built": ["deep_gemm.get_num_sms x1"],
        "class": "Indexer",
        "paged": [
            "deep_gemm.fp8_paged_mqa_logits x1",
            "sgl_kernel.fast_topk_transform_fused x1",
        ],
    }
    assert stock["sm_90 fusion False 256"] == [1, False]
