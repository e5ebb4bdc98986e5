"""Where sglang serves, the patched tree selects what the stock tree selects; elsewhere there is a reason."""

from __future__ import annotations

import pytest
import releases
from stock_parity import Found, of
from stock_parity import (
    test_every_difference_of_a_start_has_a_reason as test_every_difference_of_a_start_has_a_reason,
)

UNCHANGED = ["sm_90", "sm_100"]


@pytest.mark.parametrize("sm", UNCHANGED)
def test_selects_what_stock_selects(sm: str, both: tuple[Found, Found]) -> None:
    stock, patched = (of(one, sm) for one in both)
    assert len(stock) > 50
    assert patched == stock


@pytest.mark.parametrize("sm", ["sm_80", "sm_120"])
def test_what_is_not_dsa_is_stocks(sm: str, both: tuple[Found, Found]) -> None:
    """A model without DSA and the shared expert's fusion, on GPUs where the defaults for DSA differ."""
    stock, patched = (
        {k: v for k, v in of(one, sm).items() if " deepseek_v3 " in k or " fusion " in k}
        for one in both
    )
    assert len(stock) > 10
    assert patched == stock


@releases.only(">=0.5.17")
def test_glm_over_fp8_rows_on_sm120_is_stocks(both: tuple[Found, Found]) -> None:
    """Arguments, backend and logits: sglang's own kernel serves it."""
    stock, patched = (
        {
            k: v
            for k, v in of(one, "sm_120").items()
            if " glm " in k and "bfloat16" not in k and "_backend" not in k
        }
        for one in both
    )
    assert len(stock) > 10
    assert patched == stock


@pytest.mark.parametrize("sm", ["sm_89", "sm_120"])
def test_another_attention_backend_gets_stocks_arguments(
    sm: str, both: tuple[Found, Found]
) -> None:
    """It would read packed fp8 rows as if they were its own, and nothing would say so."""
    stock, patched = (
        {key: value for key, value in of(one, sm).items() if "attention_backend" in key}
        for one in both
    )
    assert patched == stock
    dtypes = {value["kv_cache_dtype"] for value in stock.values() if isinstance(value, dict)}
    assert "'fp8_e4m3'" not in dtypes or sm == "sm_120"
    assert sum(isinstance(value, dict) for value in stock.values()) > 3


def test_the_comparison_sees_real_selections(both: tuple[Found, Found]) -> None:
    """Known answers of the stock tree, so that two trees that fail in the same way do not count as equal."""
    stock, _ = both
    built = {k: v for k, v in stock.items() if k.endswith((" arguments", " backend"))}
    refused = {k: v for k, v in built.items() if isinstance(v, str)}
    # Stock's own refusals: bf16 KV for DeepSeek-V3 on sm_100; where it has them, raw-fp8 TileLang
    # below sm_89 and other kernels than its own on sm_120.
    assert set(refused.values()) == {"raises ValueError"}
    assert 0 < len(refused) < len(built) / 5
    assert all(isinstance(v, dict) for k, v in stock.items() if k.endswith(" logits"))
    hopper = stock["sm_90 glm {} arguments"]
    assert len(hopper) > 380
    assert hopper["dsa_prefill_backend"] == "'flashmla_sparse'"
    assert hopper["dsa_decode_backend"] == "'fa3'"
    assert hopper["kv_cache_dtype"] == "'bfloat16'"
    blackwell = "trtllm" if releases.at("<0.5.17") else "flashinfer_sparse_mla"
    assert stock["sm_120 glm {} backend"]["dsa_decode_impl"] == blackwell
    if releases.at(">=0.5.15"):
        assert stock["sm_100 logits cutedsl"] == "CUTEDSL"
    native = {
        "num_sms": "deep_gemm.get_num_sms()",
        "metadata": "deep_gemm.get_paged_mqa_logits_metadata",
        "paged": "deep_gemm.fp8_paged_mqa_logits",
        "ragged": "deep_gemm.fp8_mqa_logits",
    }
    assert stock["sm_90 logits, torch fallback 0"] == native
    assert (stock["sm_90 logits, torch fallback 1"] == native) == releases.at("<0.5.22")
    assert stock["sm_90 fusion {} 256"] == [1, False]
