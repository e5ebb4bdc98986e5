"""Where the patches choose nothing new, the patched tree selects what the stock tree selects."""

from __future__ import annotations

import pytest
import releases
from stock_parity import Found, of
from stock_parity import (
    test_every_difference_of_a_start_has_a_reason as test_every_difference_of_a_start_has_a_reason,
)

NEW_FLAG = "enforce_shared_experts_fusion"


@pytest.fixture(scope="module")
def compared(both: tuple[Found, Found]) -> tuple[Found, Found]:
    """The selections without the one field that stock lacks before 0.5.11. It is off by default."""
    stock, patched = both
    if releases.at("<0.5.11"):
        for key, value in patched.items():
            if key.endswith(" arguments") and isinstance(value, dict):
                assert value.pop(NEW_FLAG) == "False"
    return stock, patched


@pytest.mark.parametrize("sm", ["sm_90", "sm_100"])
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


@pytest.mark.parametrize("sm", ["sm_80", "sm_120"])
def test_what_is_not_dsa_is_stocks(sm: str, compared: tuple[Found, Found]) -> None:
    """A model without DSA and the shared expert's fusion, on GPUs where the defaults for DSA differ."""
    stock, patched = (
        {k: v for k, v in of(one, sm).items() if " deepseek_v3 " in k or " fusion " in k}
        for one in compared
    )
    assert len(stock) > 10
    assert patched == stock


def test_the_comparison_sees_real_selections(compared: tuple[Found, Found]) -> None:
    """Known answers of the stock tree, so that two trees that fail in the same way do not count as equal."""
    stock, _ = compared
    refused = [
        key
        for key, value in stock.items()
        if isinstance(value, str)
        and "attention_backend" not in key
        and not key.startswith("boundary ")
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
