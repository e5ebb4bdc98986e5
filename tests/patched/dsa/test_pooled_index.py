"""GLM-5.3-Flash on the patched tree: start, dispatch, and the pooled indexer's calls.

Its indexer keeps one key for ``index_kpool`` tokens, its latent rows have no rotary part, and a list of
selected keys has up to ``index_kpool - 1`` tokens of the open pool behind ``index_topk``.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_cuda
import pytest
import releases
import tiny_models
import torch
import tree

SERVED = ">=0.5.21,<0.5.24"
HEADS, TOPK, PAGE, KPOOL = 16, 2048, 64, 4
WIDTH = TOPK + KPOOL - 1
GROUP = KPOOL if releases.at(">=0.5.22") else 1
"""Pages of 64 rows in a page of sglang's. Before, pooled keys stand where the first page's keys would."""
SLOTS = 1024
FP8, BF16 = {"kv_cache_dtype": "fp8_e4m3"}, {"kv_cache_dtype": "bfloat16"}
BOTH = {"dsa_prefill_backend": "ada_dsa", "dsa_decode_backend": "ada_dsa"}
LOGITS = {"dsa_paged_mqa_logits_backend": "ada_dsa"} if releases.at(">=0.5.22") else {}
ADA, SM120 = (8, 9), (12, 0)

pytestmark = releases.only(">=0.5.20")


def chosen(path: str, **options: Any) -> tuple[str, str, str]:
    r = tree.resolved(tree.server_args(path, **options))
    return r["kv_cache_dtype"], r["dsa_prefill_backend"], r["dsa_decode_backend"]


def deep_gemm_calls() -> list[str]:
    return [call for call in fake_cuda.calls() if call.startswith("deep_gemm.")]


# -- start ----------------------------------------------------------------------------------------


@releases.only(SERVED)
@pytest.mark.parametrize("device", [ADA, SM120, (12, 1)])
@pytest.mark.parametrize("options", [{}, FP8, BF16, tiny_models.SPECULATIVE])
def test_ada_dsa_serves_it_where_sglang_has_no_kernel(
    configs: dict[str, str], device: tuple[int, int], options: dict[str, Any]
) -> None:
    rows = options.get("kv_cache_dtype", "fp8_e4m3")
    with fake_cuda.capability(*device):
        assert chosen(configs["glm5_next"], **options) == (rows, "ada_dsa", "ada_dsa")


@pytest.mark.parametrize("device", [(9, 0), (10, 0)])
def test_where_sglang_serves_it_nothing_changes(
    configs: dict[str, str], device: tuple[int, int]
) -> None:
    """The comparison with the stock tree has every argument; this names the backends."""
    with fake_cuda.capability(*device):
        found = chosen(configs["glm5_next"])
    hopper = ("bfloat16", "flashmla_sparse", "fa3")
    assert found == (hopper if device == (9, 0) else ("fp8_e4m3", "trtllm", "trtllm"))


@pytest.mark.parametrize("device", [(8, 0), (8, 6)])
@pytest.mark.parametrize("options", [{}, BF16, BOTH])
def test_ampere_is_refused_with_the_reason(
    configs: dict[str, str], device: tuple[int, int], options: dict[str, Any]
) -> None:
    """sglang writes the pooled keys with a Triton kernel that stores e4m3."""
    with fake_cuda.capability(*device), pytest.raises(ValueError, match="e4m3.*8.9 or later"):
        tree.server_args(configs["glm5_next"], **options)


@releases.only("==0.5.20")
@pytest.mark.parametrize("device", [ADA, SM120])
def test_the_first_release_with_the_model_is_refused(
    configs: dict[str, str], device: tuple[int, int]
) -> None:
    with fake_cuda.capability(*device), pytest.raises(ValueError, match="0.5.21 or later"):
        tree.server_args(configs["glm5_next"])


@releases.only(SERVED)
@pytest.mark.parametrize("device", [ADA, SM120])
@pytest.mark.parametrize("backend", ["trtllm", "flashmla_sparse", "fa3", "flashinfer_sparse_mla"])
def test_a_backend_without_a_kernel_is_refused(
    configs: dict[str, str], device: tuple[int, int], backend: str
) -> None:
    asked = {"dsa_prefill_backend": backend, "dsa_decode_backend": backend}
    with fake_cuda.capability(*device), pytest.raises(ValueError, match=f"{backend} has no kernel"):
        tree.server_args(configs["glm5_next"], **BF16, **asked)


@releases.only(SERVED)
@pytest.mark.parametrize("options", [FP8, BF16])
@pytest.mark.parametrize("device", [ADA, (9, 0), SM120])
def test_the_backend_checks_the_model_and_is_built(
    configs: dict[str, str], record: Any, device: tuple[int, int], options: dict[str, Any]
) -> None:
    calls = record("check_config")
    with fake_cuda.capability(*device):
        built = tree.backend(tree.server_args(configs["glm5_next"], **options, **BOTH))
    dtype = torch.float8_e4m3fn if options is FP8 else torch.bfloat16
    [((), values)] = calls
    assert values == {
        "kv_cache_dtype": dtype,
        "page_size": PAGE,
        "num_heads": HEADS,
        "index_heads": 32,
        "index_head_dim": 128,
        "index_topk": TOPK,
        "kv_lora_rank": 512,
        "rope_dim": 0,
        "index_kpool": KPOOL,
    }
    assert built.kv_cache_dim == (528 if options is FP8 else 512)
    assert (built.dsa_prefill_impl, built.dsa_decode_impl) == ("ada_dsa", "ada_dsa")


@releases.only(SERVED)
@pytest.mark.parametrize("kpool", [2, 16, 64])
def test_every_pool_that_divides_a_page_starts(tmp_path: Path, kpool: int) -> None:
    """transformers takes 16 where a configuration names none. sglang's page grows with the pool, and its
    interval of saved linear states has to be a multiple of the page.
    """
    path = tiny_models.write(tmp_path / "model", tiny_models.glm5_next(kpool))
    with fake_cuda.capability(*ADA):
        args = tree.server_args(path, mamba_track_interval=max(256, PAGE * kpool))
        page_size = PAGE * kpool if releases.at(">=0.5.22") else PAGE
        assert tree.resolved(args)["page_size"] == page_size
        assert tree.backend(args).dsa_index_kpool == kpool


@releases.only(SERVED)
@pytest.mark.parametrize(
    ("device", "options", "apart"),
    [
        (ADA, {}, True),
        (ADA, {"enforce_shared_experts_fusion": True}, False),
        (SM120, {}, False),
        ((9, 0), {}, False),
    ],
)
def test_the_shared_expert_stays_apart_on_sm89(
    configs: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    device: tuple[int, int],
    options: dict[str, Any],
    apart: bool,
) -> None:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.models import glm5_next

    monkeypatch.setattr(glm5_next, "_device_sm", device[0] * 10 + device[1])
    with fake_cuda.capability(*device):
        args = tree.server_args(configs["glm5_next"], **options)
        tree.publish(args)
        reason = glm5_next.Glm5NextForConditionalGeneration.shared_experts_fusion_disable_reason(
            ModelConfig.from_server_args(args).hf_config, None
        )
    assert ("SM89" in (reason or "")) == apart
    assert (reason is None) == (not apart)


# -- attention ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(configs: dict[str, str]) -> Any:
    """A Glm5NextForConditionalGeneration of four layers, of which the last is DSA, built on sm_89."""
    from sglang.srt.models.glm5_next import Glm5NextForConditionalGeneration

    return tree.build_model(Glm5NextForConditionalGeneration, configs["glm5_next"])


@pytest.fixture
def layer(model: Any) -> Any:
    one = model.model.layers[3].self_attn.attn_mqa
    return SimpleNamespace(
        **{name: getattr(one, name) for name in ("scaling", "v_head_dim", "head_dim")},
        tp_q_head_num=HEADS,
        layer_id=0,  # the pool here has one layer
        is_cross_attention=False,
    )


def batch(mode: str, rows: int) -> SimpleNamespace:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    return SimpleNamespace(
        forward_mode=ForwardMode[mode],
        batch_size=rows,
        out_cache_loc=torch.arange(rows),
        extend_prefix_lens_cpu=[0],
    )


def lists(rows: int, live: int = WIDTH) -> torch.Tensor:
    """Lists as the pooled indexer makes them: live slots, then -1, in rows whose stride is not aligned."""
    found = torch.full((rows, WIDTH), -1, dtype=torch.int32)
    found[:, :live] = torch.randint(0, SLOTS, (rows, live), dtype=torch.int32)
    return found


@releases.only(SERVED)
@pytest.mark.parametrize("mode", ["DECODE", "EXTEND", "TARGET_VERIFY", "DRAFT_EXTEND_V2"])
@pytest.mark.parametrize("options", [FP8, BF16], ids=["fp8", "bf16"])
def test_attention_gets_the_list_with_its_tail(
    configs: dict[str, str], layer: Any, record: Any, mode: str, options: dict[str, Any]
) -> None:
    answer = torch.randn(3, HEADS, 512).to(torch.bfloat16)
    calls = record("sparse_mla_fwd", answer)
    slots = lists(3)
    with fake_cuda.capability(*ADA):
        built = tree.backend(tree.server_args(configs["glm5_next"], **options))
        built.forward_metadata = SimpleNamespace(dsa_cache_seqlens_int32=None)
        run = built.forward_decode if mode == "DECODE" else built.forward_extend
        q = torch.randn(3, HEADS, 512).to(torch.bfloat16)
        out = run(
            q=q,
            k=None,
            v=None,
            layer=layer,
            forward_batch=batch(mode, 3),
            topk_indices=slots,
            q_rope=q[..., :0],
        )
    assert out is answer
    [((q_nope, kv, indices, scale), given)] = calls
    assert torch.equal(q_nope, q)
    assert given.pop("q_rope").shape == (3, HEADS, 0)
    assert given == {"d_v": 512}
    assert scale == layer.scaling
    assert torch.equal(indices, slots)
    width = 528 if options is FP8 else 512
    assert kv.shape == (SLOTS + PAGE * GROUP, 1, width)


@releases.only(SERVED)
@pytest.mark.parametrize("options", [FP8, BF16], ids=["fp8", "bf16"])
def test_attention_over_the_pool_is_the_models(
    configs: dict[str, str], layer: Any, options: dict[str, Any]
) -> None:
    """The kernels' CPU references on rows as the pool has them, and on lists of every length around kpool."""
    from sglang.srt.layers.attention.ada_dsa.kv_cache.reference import pack_rows

    torch.manual_seed(0)
    counts = (TOPK + 3, TOPK, 5, 1, 0)
    with fake_cuda.capability(*ADA):
        built = tree.backend(tree.server_args(configs["glm5_next"], **options))
        pool = built.token_to_kv_pool.get_key_buffer(0)
        rows = torch.randn(pool.shape[0], 512).to(torch.bfloat16)
        if options is FP8:
            packed = pack_rows(rows, torch.zeros(len(rows), 64, dtype=torch.bfloat16))[:, :528]
            pool.view(torch.uint8).copy_(packed.view(torch.uint8).unsqueeze(1))
        else:
            pool.copy_(rows.unsqueeze(1))
        q = torch.randn(len(counts), HEADS, 512).to(torch.bfloat16)
        slots = torch.full((len(counts), WIDTH), -1, dtype=torch.int32)
        for row, count in enumerate(counts):
            slots[row, :count] = torch.randint(0, SLOTS, (count,), dtype=torch.int32)
        built.forward_metadata = SimpleNamespace()
        out = built.forward_decode(
            q.reshape(len(counts), -1),
            None,
            None,
            layer,
            batch("DECODE", len(counts)),
            topk_indices=slots,
        )
    assert bool((out[counts.index(0)] == 0).all())
    for row, count in enumerate(counts[:-1]):
        keys = rows[slots[row, :count].long()].float()
        weights = torch.softmax(q[row].float() @ keys.T * layer.scaling, -1)
        close = torch.nn.functional.cosine_similarity(
            out[row].float().flatten(), (weights @ keys).flatten(), dim=0
        )
        assert close > (0.998 if options is FP8 else 0.9999)


# -- indexer --------------------------------------------------------------------------------------


@pytest.fixture
def indexer(model: Any) -> Any:
    return model.model.layers[3].self_attn.indexer


@pytest.fixture(params=[ADA, SM120], ids=["sm_89", "sm_120"])
def in_forward(request: pytest.FixtureRequest, configs: dict[str, str]) -> Any:
    """A backend inside a forward context with ada_dsa's logits, as the indexer finds it."""
    from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

    fake_cuda.forget()
    with fake_cuda.capability(*request.param):
        options = LOGITS if request.param == SM120 else {}
        built = tree.backend(tree.server_args(configs["glm5_next"], **options))
        with forward_context(ForwardContext(attn_backend=built)):
            yield built
    assert deep_gemm_calls() == []


@releases.only(SERVED)
def test_the_indexer_asks_the_bundle_for_everything(in_forward: Any, indexer: Any) -> None:
    from sglang.srt.layers.attention import ada_dsa
    from sglang.srt.layers.attention.dsa import dsa_indexer_kpool, kpool_plan

    logits = dsa_indexer_kpool.deep_gemm
    assert indexer.sm_count == fake_cuda.NUM_SMS == logits.get_num_sms()
    for name in ("fp8_mqa_logits", "fp8_paged_mqa_logits", "get_paged_mqa_logits_metadata"):
        assert getattr(logits, name) is getattr(ada_dsa, name)
        assert getattr(kpool_plan._get_deep_gemm(), name) is getattr(ada_dsa, name)


@releases.only(SERVED)
def test_other_gpus_ask_deep_gemm(configs: dict[str, str]) -> None:
    import deep_gemm
    from sglang.srt.layers.attention.dsa import dsa_indexer_kpool, kpool_plan

    with fake_cuda.capability(9, 0):
        tree.publish(tree.server_args(configs["glm5_next"]))
        assert dsa_indexer_kpool.deep_gemm.fp8_mqa_logits is deep_gemm.fp8_mqa_logits
        assert kpool_plan._get_deep_gemm() is deep_gemm


@releases.only(SERVED)
def test_sm89_needs_no_deep_gemm(configs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.layers.attention import ada_dsa
    from sglang.srt.layers.attention.dsa import dsa_indexer_kpool

    missing = ModuleNotFoundError("No module named 'deep_gemm'")
    if releases.at(">=0.5.22"):
        native = dsa_indexer_kpool.deep_gemm
    else:
        from sglang.srt.layers.attention.dsa import dsa_indexer

        native = dsa_indexer.deep_gemm
    monkeypatch.setattr(native, "native", missing)
    with fake_cuda.capability(*ADA):
        tree.publish(tree.server_args(configs["glm5_next"]))
        assert dsa_indexer_kpool.deep_gemm.fp8_mqa_logits is ada_dsa.fp8_mqa_logits
    with fake_cuda.capability(9, 0):
        tree.publish(tree.server_args(configs["glm5_next"]))
        with pytest.raises(ModuleNotFoundError, match="deep_gemm"):
            dsa_indexer_kpool.deep_gemm.fp8_mqa_logits  # noqa: B018


def pooled_pool(built: Any, keys: torch.Tensor, scales: torch.Tensor, table: torch.Tensor) -> None:
    """Write pooled keys [requests, n, 128] and their scales into the index cache's pages."""
    buffer = built.token_to_kv_pool.get_index_k_with_scale_buffer(layer_id=0)
    for request, (key, scale) in enumerate(zip(keys, scales, strict=True)):
        for page in range(len(key) // PAGE):
            part = slice(page * PAGE, (page + 1) * PAGE)
            raw = torch.cat(
                [key[part].view(torch.uint8).flatten(), scale[part].view(torch.uint8).flatten()]
            )
            buffer[int(table[request, page])].view(torch.uint8).copy_(raw)


@releases.only(SERVED)
def test_decode_scores_every_closed_pool(
    in_forward: Any, indexer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sglang's own method on the CPU references: logits of each closed pool, none of the open one.

    Lengths around a pool and around a page of 64 pooled keys.
    """
    from sglang.srt.layers.attention.dsa import dsa_indexer_kpool

    torch.manual_seed(0)
    # Two pooled pages a request. Tables name pages of 64 rows, KPOOL of them for a page of pooled keys.
    pooled_table = torch.tensor([[1, 2], [2, 3], [3, 1], [2, 1]], dtype=torch.int32)
    spread = torch.arange(KPOOL, dtype=torch.int32) if GROUP > 1 else torch.zeros(KPOOL).int()
    table = (pooled_table[..., None] * GROUP + spread).flatten(1)
    lens = torch.tensor([3, 4, 259, 512], dtype=torch.int32)
    keys = torch.randn(len(lens), 2 * PAGE, 128).to(torch.float8_e4m3fn)
    scales = torch.rand(len(lens), 2 * PAGE) + 0.5
    q = torch.randn(len(lens), 32, 128).to(torch.float8_e4m3fn)
    weights = torch.rand(len(lens), 32, 1)
    seen: dict[str, Any] = {}

    def take(logits: torch.Tensor, pool_lens: torch.Tensor, **_: Any) -> torch.Tensor:
        seen.update(logits=logits, pool_lens=pool_lens)
        return torch.zeros(len(lens), WIDTH, dtype=torch.int32)

    monkeypatch.setattr(indexer, "_topk_from_kpool_logits", take)
    monkeypatch.setattr(indexer, "_kpool_fused_topk_mapping", lambda *_: (None, None, None))
    if hasattr(dsa_indexer_kpool, "_topk_v2_plan_for"):
        monkeypatch.setattr(dsa_indexer_kpool, "_topk_v2_plan_for", lambda **_: None)
    empty = dict.fromkeys(
        (
            "kpool_write_plan",
            "pooled_cache_seqlens_int32",
            "pooled_topk_v2_plan",
            "pooled_real_page_table",
            "pooled_paged_mqa_schedule_metadata",
        )
    )
    metadata = SimpleNamespace(
        get_page_table_64=lambda: table,
        get_seqlens_int32=lambda: lens,
        attn_metadata=SimpleNamespace(**empty, pooled_index_kpool=1),
    )
    # Each request alone: pages are shared here, so that a wrong table is seen.
    for row in range(len(lens)):
        pooled_pool(in_forward, keys[row : row + 1], scales[row : row + 1], pooled_table[row:])
        indexer._get_topk_paged(batch("DECODE", len(lens)), 0, q, weights, metadata)
        pools = int(lens[row]) // KPOOL
        assert int(seen["pool_lens"][row]) == pools
        dots = torch.relu(q[row].float() @ keys[row, :pools].float().T)
        expected = (dots * weights[row]).sum(0) * scales[row, :pools]
        torch.testing.assert_close(seen["logits"][row, :pools], expected, rtol=1e-4, atol=1e-3)


@releases.only(SERVED)
def test_prefill_scores_the_rows_of_its_request(in_forward: Any, indexer: Any) -> None:
    """The ragged form cleans what is outside a row's pools, as the top-k behind it expects."""
    torch.manual_seed(0)
    q = torch.randn(4, 32, 128).to(torch.float8_e4m3fn)
    weights = torch.rand(4, 32)
    keys = torch.randn(128, 128).to(torch.float8_e4m3fn)
    scales = torch.rand(128) + 0.5
    starts = torch.tensor([0, 0, 64, 64], dtype=torch.int32)
    ends = torch.tensor([0, 7, 64 + 31, 128], dtype=torch.int32)
    found = indexer._fp8_mqa_logits(q, keys, scales, weights, starts, ends, clean_logits=True)
    assert found.shape == (4, 128)
    for row in range(4):
        inside = slice(int(starts[row]), int(ends[row]))
        dots = torch.relu(q[row].float() @ keys[inside].float().T)
        expected = (dots * weights[row][:, None]).sum(0) * scales[inside]
        torch.testing.assert_close(found[row, inside], expected, rtol=1e-4, atol=1e-3)
        outside = torch.ones(128, dtype=torch.bool)
        outside[inside] = False
        assert bool((found[row, outside] == float("-inf")).all())


@releases.only(SERVED)
def test_graph_replays_refresh_the_bundles_schedule(in_forward: Any, record: Any) -> None:
    from sglang.srt.layers.attention.dsa import kpool_plan

    calls = record(
        "get_paged_mqa_logits_metadata",
        lambda *_: torch.full((fake_cuda.NUM_SMS + 1, 2), len(calls), dtype=torch.int32),
    )
    lens = torch.tensor([0, 1, 65], dtype=torch.int32)
    name = "index_page_size" if releases.at(">=0.5.22") else "slots_per_page"
    for turn in (1, 2):
        schedule = kpool_plan._compute_pool_schedule_metadata(lens, **{name: PAGE})
        assert bool((schedule == turn).all())
    for (given, block, sms), options in calls:
        assert given.tolist() == [[1], [1], [65]]  # sglang asks for at least one key
        assert (block, sms, options) == (PAGE, fake_cuda.NUM_SMS, {})
