"""The patched methods, on real objects, hand the bundled kernels what these expect.

The indexer and the attention layers are those of a tiny GlmMoeDsaForCausalLM built from the tree.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cpu_forms
import fake_cuda
import pytest
import releases
import torch
import tree
from tiny_models import SPECULATIVE as SPEC

HEADS, TOPK, PAGE = 16, 2048, 64
LOGITS = (
    {"dsa_paged_mqa_logits_backend": "ada_dsa"}
    if releases.at(">=0.5.22")
    else {"dsa_prefill_backend": "ada_dsa", "dsa_decode_backend": "ada_dsa"}
)
"""The option that computes the indexer's logits with ada_dsa on every GPU."""
PAGES = 1024 // PAGE + 1
FP8 = {"kv_cache_dtype": "fp8_e4m3"}


@pytest.fixture(scope="module")
def model(configs: dict[str, str]) -> Any:
    """A GlmMoeDsaForCausalLM of three layers, built as the loader builds it on sm_89."""
    from sglang.srt.models.glm4_moe import GlmMoeDsaForCausalLM

    return tree.build_model(GlmMoeDsaForCausalLM, configs["glm"])


@pytest.fixture
def indexer(model: Any) -> Any:
    return model.model.layers[0].self_attn.indexer


@pytest.fixture
def layer(model: Any) -> Any:
    return model.model.layers[0].self_attn.attn_mqa


def test_the_model_builds_with_the_bundled_logits(model: Any, indexer: Any) -> None:
    from sglang.srt.models.deepseek_v2 import DeepseekV2AttentionMLA

    assert isinstance(model.model.layers[0].self_attn, DeepseekV2AttentionMLA)
    if releases.at(">=0.5.22"):
        assert indexer.paged_mqa_logits_backend.is_ada_dsa()
    assert indexer.sm_count == fake_cuda.NUM_SMS
    assert sum(p.numel() for p in model.parameters()) > 10_000_000


# -- sparse attention -----------------------------------------------------------------------------


def batch(mode: str, rows: int) -> SimpleNamespace:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    return SimpleNamespace(
        forward_mode=ForwardMode[mode],
        batch_size=rows,
        out_cache_loc=torch.arange(rows),
        extend_prefix_lens_cpu=[0],
    )


def attend(
    built: Any, layer: Any, mode: str, *, rows: int = 3, split: bool = True, topk_rows: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run forward_decode or forward_extend on random q; (output, q, selected slots)."""
    q = torch.randn(rows, HEADS, 576).to(torch.bfloat16)
    slots = torch.randint(0, 1024, (topk_rows, TOPK), dtype=torch.int32)
    built.forward_metadata = SimpleNamespace(dsa_cache_seqlens_int32=None)
    if split:
        given = {"q": q[..., :512].contiguous(), "q_rope": q[..., 512:].contiguous()}
    else:
        given = {"q": q.reshape(rows, -1)}
    run = built.forward_decode if mode == "DECODE" else built.forward_extend
    out = run(
        k=None,
        v=None,
        layer=layer,
        forward_batch=batch(mode, rows),
        topk_indices=slots,
        **given,
    )
    return out, q, slots


MODES = ("DECODE", "EXTEND", "TARGET_VERIFY", "DRAFT_EXTEND_V2", "MIXED")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("split", [True, False], ids=["q_and_rope", "one_q"])
@pytest.mark.parametrize("dtype", ["fp8_e4m3", "bfloat16"])
def test_attention_reaches_sparse_mla(
    configs: dict[str, str], layer: Any, record: Any, mode: str, split: bool, dtype: str
) -> None:
    if not split and mode != "DECODE" and releases.at("<0.5.22"):
        pytest.skip("prefill is always given two parts")
    answer = torch.randn(3, HEADS, 512).to(torch.bfloat16)
    calls = record("sparse_mla_fwd", answer)
    with fake_cuda.capability(8, 9):
        built = tree.backend(tree.server_args(configs["glm"], kv_cache_dtype=dtype))
        out, q, slots = attend(built, layer, mode, split=split)
    assert out is answer
    [((q_nope, kv, indices, scale), options)] = calls
    assert torch.equal(q_nope, q[..., :512])
    assert torch.equal(options.pop("q_rope"), q[..., 512:])
    assert options == {"d_v": 512}
    assert scale == layer.scaling
    assert indices.dtype == torch.int32
    assert torch.equal(indices, slots)
    pool = built.token_to_kv_pool.get_key_buffer(0)
    assert kv.data_ptr() == pool.data_ptr()
    width, kind = {
        "fp8_e4m3": (656, torch.float8_e4m3fn),
        "bfloat16": (576, torch.bfloat16),
    }[dtype]
    assert kv.shape == (1024 + PAGE, 1, width)
    assert kv.dtype == kind


@pytest.mark.parametrize("mode", ["DECODE", "EXTEND", "TARGET_VERIFY"])
def test_padded_rows_select_nothing(
    configs: dict[str, str], layer: Any, record: Any, mode: str
) -> None:
    calls = record("sparse_mla_fwd", torch.empty(0))
    with fake_cuda.capability(8, 9):
        built = tree.backend(tree.server_args(configs["glm"]))
        _, _, slots = attend(built, layer, mode, rows=5, topk_rows=3)
    [((q_nope, _, indices, _), _)] = calls
    assert q_nope.shape[0] == indices.shape[0] == 5
    assert torch.equal(indices[:3], slots)
    assert bool((indices[3:] == -1).all())


@pytest.mark.parametrize(
    ("mode", "prefill", "decode", "reaches"),
    [
        ("EXTEND", "ada_dsa", "flashmla_kv", "ada_dsa"),
        ("TARGET_VERIFY", "ada_dsa", "flashmla_kv", "flashmla_kv"),
        ("DRAFT_EXTEND_V2", "ada_dsa", "flashmla_kv", "flashmla_kv"),
        ("DECODE", "ada_dsa", "flashmla_kv", "flashmla_kv"),
        ("EXTEND", "flashmla_kv", "ada_dsa", "flashmla_kv"),
        ("TARGET_VERIFY", "flashmla_kv", "ada_dsa", "ada_dsa"),
        ("DRAFT_EXTEND_V2", "flashmla_kv", "ada_dsa", "ada_dsa"),
        ("DECODE", "flashmla_kv", "ada_dsa", "ada_dsa"),
        ("TARGET_VERIFY", "flashmla_sparse", "ada_dsa", "ada_dsa"),
    ],
)
def test_each_phase_takes_its_own_backend(
    configs: dict[str, str],
    layer: Any,
    record: Any,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    prefill: str,
    decode: str,
    reaches: str,
) -> None:
    record("sparse_mla_fwd", "ada_dsa")
    with fake_cuda.capability(9, 0):
        built = tree.backend(
            tree.server_args(
                configs["glm"], **FP8, dsa_prefill_backend=prefill, dsa_decode_backend=decode
            )
        )
        monkeypatch.setattr(built, "_forward_flashmla_kv", lambda **_: "flashmla_kv")
        monkeypatch.setattr(
            "sglang.srt.layers.attention.dsa_backend.concat_mla_absorb_q_general",
            lambda nope, rope: torch.cat([nope, rope], -1),
        )
        out, _, _ = attend(built, layer, mode)
    assert out == reaches


def test_the_call_computes_attention_over_the_packed_pool(
    configs: dict[str, str], layer: Any
) -> None:
    """The kernels' CPU references on rows packed as in the pool, strided q, and indices padded with -1."""
    from sglang.srt.layers.attention import ada_dsa

    torch.manual_seed(0)
    with fake_cuda.capability(8, 9):
        built = tree.backend(tree.server_args(configs["glm"]))
        pool = built.token_to_kv_pool.get_key_buffer(0)
        rows = torch.randn(pool.shape[0], 1, 576).to(torch.bfloat16)
        pool.view(torch.uint8).copy_(ada_dsa.quantize_k_cache(rows).view(torch.uint8))
        q = torch.randn(2, HEADS, 576).to(torch.bfloat16)
        slots = torch.full((2, TOPK), -1, dtype=torch.int32)
        slots[0, :100] = torch.randperm(1024, dtype=torch.int32)[:100]
        slots[1, :7] = torch.randperm(1024, dtype=torch.int32)[:7]
        built.forward_metadata = SimpleNamespace()
        out = built.forward_decode(
            q.reshape(2, -1), None, None, layer, batch("DECODE", 2), topk_indices=slots
        )
    for row, count in ((0, 100), (1, 7)):
        keys = rows[slots[row, :count].long(), 0].float()
        weights = torch.softmax(q[row].float() @ keys.T * layer.scaling, -1)
        close = torch.nn.functional.cosine_similarity(
            out[row].float().flatten(), (weights @ keys[:, :512]).flatten(), dim=0
        )
        assert close > 0.998  # e4m3 rows against the unquantised ones


# -- choices made per batch -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "override", "expected"),
    [((9, 0), None, True), ((9, 0), "sm89", False), ((8, 9), None, False), ((12, 0), None, False)],
)
def test_short_prompts_and_dense_attention(
    configs: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    device: tuple[int, int],
    override: str | None,
    expected: bool,
) -> None:
    """sm_89 and sm_120 have no dense path. Hopper keeps it, except under the override."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    if override:
        monkeypatch.setenv("SGLANG_ADA_DSA_OVERRIDE_ARCH", override)
    with fake_cuda.capability(*device):
        built = tree.backend(
            tree.server_args(
                configs["glm"], **FP8, dsa_prefill_backend="ada_dsa", dsa_decode_backend="ada_dsa"
            )
        )
        short = SimpleNamespace(
            forward_mode=ForwardMode.EXTEND,
            seq_lens_cpu=torch.tensor([10, 20]),
            get_max_chunk_capacity=lambda: 4096,
        )
        built.set_dsa_prefill_impl(short)
    assert built.use_mha == expected
    assert built.dsa_prefill_impl == "ada_dsa"


def test_topk_is_transformed_to_physical_slots(configs: dict[str, str]) -> None:
    from sglang.srt.layers.attention.dsa.dsa_topk_backend import TopkTransformMethod
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    with fake_cuda.capability(8, 9):
        built = tree.backend(tree.server_args(configs["glm"]))
    assert built.dsa_topk_backend.is_sgl_kernel()
    for mode in (ForwardMode.EXTEND, ForwardMode.DECODE, ForwardMode.TARGET_VERIFY):
        assert built.get_topk_transform_method(mode) == TopkTransformMethod.PAGED


def without_triton(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable what fills metadata with a kernel: the plan of top-k v2 and a fused preparation."""
    expand = "sglang.srt.layers.attention.dsa_backend.seqlens_expand_triton"
    monkeypatch.setattr(expand, cpu_forms.seqlens_expand)
    if releases.at(">=0.5.15"):
        monkeypatch.setattr(built, "_build_topk_v2_plan", lambda _: None)
    if releases.at(">=0.5.20"):
        monkeypatch.setattr(built, "_fused_decode_metadata", lambda **_: None)
    elif releases.at(">=0.5.15"):
        module = (
            "sglang.srt.layers.attention.triton_ops.dsa_metadata"
            if releases.at("<0.5.16")
            else "sglang.kernels.ops.attention.dsa_metadata"
        )
        monkeypatch.setattr(f"{module}.fused_dsa_decode_metadata", lambda **_: None)


@pytest.mark.parametrize("mode", ["DECODE", "TARGET_VERIFY"])
def test_graph_metadata(
    configs: dict[str, str], record: Any, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Captured metadata holds the schedule of ada_dsa, and a replay copies into the same tensor."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    calls = record(
        "get_paged_mqa_logits_metadata",
        lambda lens, *_: torch.full((fake_cuda.NUM_SMS + 1, 2), len(calls), dtype=torch.int32),
    )
    with fake_cuda.capability(8, 9):
        built = tree.backend(tree.server_args(configs["glm"], **SPEC))
        without_triton(built, monkeypatch)
        built.init_cuda_graph_state(2, 8)
        rows = {"DECODE": 2, "TARGET_VERIFY": 8}[mode]
        built._build_forward_metadata_cuda_graph(
            bs=2,
            num_tokens=rows,
            req_pool_indices=torch.arange(2),
            seq_lens=torch.tensor([5, 9]),
            seq_lens_cpu=None,
            forward_mode=ForwardMode[mode],
            spec_info=None,
        )
        metadata = built.forward_metadata
        schedule = metadata.paged_mqa_schedule_metadata
        if releases.at(">=0.5.15"):
            built._refresh_paged_mqa_schedule_metadata(metadata, metadata.paged_mqa_ctx_lens_2d)
        else:
            lens = torch.tensor([5, 9])
            built._apply_cuda_graph_metadata(
                2, torch.arange(2), lens, lens, ForwardMode[mode], None
            )
    assert metadata.flashmla_metadata is None
    assert len(calls) == 2
    for (lens, block, sms), options in calls:
        assert (lens.shape, lens.dtype) == ((rows, 1), torch.int32)
        assert (block, sms, options) == (PAGE, fake_cuda.NUM_SMS, {})
    assert metadata.paged_mqa_schedule_metadata is schedule
    assert bool((schedule == 2).all())


def test_draft_steps(configs: dict[str, str], record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In EAGLE's draft worker each step is checked at start, and none prepares FlashMLA metadata."""
    from sglang.srt.layers.attention.dsa_backend import DeepseekSparseAttnMultiStepBackend
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    calls = record("check_config")
    record(
        "get_paged_mqa_logits_metadata",
        torch.zeros(fake_cuda.NUM_SMS + 1, 2, dtype=torch.int32),
    )
    lens = torch.tensor([5, 9])
    with fake_cuda.capability(8, 9):
        steps = DeepseekSparseAttnMultiStepBackend(
            tree.runner(tree.server_args(configs["glm"], **SPEC), is_draft_worker=True), 1, 4
        ).attn_backends
        for step in steps:
            without_triton(step, monkeypatch)
            step.init_cuda_graph_state(2, 8)
            step._build_forward_metadata_cuda_graph(
                2, 2, torch.arange(2), lens, lens, ForwardMode.DECODE, None
            )
            ready = step._precompute_decode_mode(2, torch.arange(2), lens, lens)
            assert ready.flashmla_metadata is None
    assert len(steps) == len(calls) == 3
    assert {step.dsa_decode_impl for step in steps} == {"ada_dsa"}


# -- indexer --------------------------------------------------------------------------------------


class _OnDevice(torch.Tensor):
    """A CPU tensor with an indexed device, because the prefill indexer reads the index of its queries."""

    device = SimpleNamespace(index=0)


def queries(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    q = torch.randn(rows, 32, 128).to(torch.float8_e4m3fn)
    return q, torch.rand(rows, 32, 1)


def decode_metadata(lens: torch.Tensor, rows: int, seen: list[torch.Tensor]) -> SimpleNamespace:
    def topk(logits: torch.Tensor, k: int) -> torch.Tensor:
        seen.append(logits)
        return torch.zeros(logits.shape[0], k, dtype=torch.int32)

    table = torch.arange(rows * 8, dtype=torch.int32).view(rows, 8) % PAGES
    return SimpleNamespace(
        get_page_table_64=lambda: table,
        get_seqlens_int32=lambda: lens,
        get_seqlens_expanded=lambda: lens,
        get_dsa_extend_len_cpu=lambda: [1] * rows,
        paged_mqa_schedule_metadata=torch.zeros(fake_cuda.NUM_SMS + 1, 2, dtype=torch.int32),
        paged_mqa_ctx_lens_2d=lens.view(-1, 1),
        topk_transform=topk,
    )


@pytest.fixture
def in_forward(configs: dict[str, str]) -> Any:
    """A backend inside a forward context on sm_89, as the indexer finds it, without DeepGEMM."""
    from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

    fake_cuda.forget()
    with fake_cuda.capability(8, 9):
        built = tree.backend(tree.server_args(configs["glm"]))
        with forward_context(ForwardContext(attn_backend=built)):
            yield built
    assert not [call for call in fake_cuda.calls() if call.startswith("deep_gemm.")]


def test_decode_indexer_reaches_paged_logits(in_forward: Any, indexer: Any, record: Any) -> None:
    answer = torch.zeros(3, 8 * PAGE)
    calls = record("fp8_paged_mqa_logits", answer)
    q, weights = queries(4)  # one row of padding
    lens = torch.tensor([5, 70, 500], dtype=torch.int32)
    seen: list[torch.Tensor] = []
    metadata = decode_metadata(lens, 3, seen)
    out = indexer._get_topk_paged(batch("DECODE", 4), 0, q, weights, metadata)
    [((got_q, kv, got_w, got_lens, table, schedule, max_len), options)] = calls
    assert got_q.shape == (3, 1, 32, 128)
    assert got_q.dtype == torch.float8_e4m3fn
    assert (kv.shape, kv.dtype) == ((PAGES, PAGE, 1, 132), torch.uint8)
    pool = in_forward.token_to_kv_pool
    assert kv.data_ptr() == pool.get_index_k_with_scale_buffer(layer_id=0).data_ptr()
    assert torch.equal(got_w, weights[:3, :, 0])
    assert torch.equal(got_lens, lens.view(3, 1))
    assert table is metadata.get_page_table_64()
    assert schedule is metadata.paged_mqa_schedule_metadata
    assert (max_len, options) == (8 * PAGE, {"clean_logits": False})
    assert len(seen) == 1
    assert seen[0].data_ptr() == answer.data_ptr()
    assert out.shape == (4, TOPK)
    assert bool((out[3] == -1).all())


@releases.only(">=0.5.20")
def test_a_decode_batch_past_the_sm_count_comes_in_chunks(
    in_forward: Any, indexer: Any, record: Any
) -> None:
    rows = fake_cuda.NUM_SMS + 22
    schedules = record(
        "get_paged_mqa_logits_metadata", torch.ones(fake_cuda.NUM_SMS + 1, 2, dtype=torch.int32)
    )
    calls = record("fp8_paged_mqa_logits", lambda q, *_, **__: torch.zeros(len(q), 8 * PAGE))
    q, weights = queries(rows)
    seen: list[torch.Tensor] = []
    lens = torch.arange(1, rows + 1, dtype=torch.int32)
    indexer._get_topk_paged(batch("DECODE", rows), 0, q, weights, decode_metadata(lens, rows, seen))
    assert [len(args[0]) for args, _ in calls] == [fake_cuda.NUM_SMS, 22]
    assert torch.equal(torch.cat([args[3] for args, _ in calls]), lens.view(-1, 1))
    assert [args[1:] for args, _ in schedules] == [(PAGE, fake_cuda.NUM_SMS)] * 2
    assert seen[0].shape == (rows, 8 * PAGE)


def test_verify_on_sm100_passes_several_queries_per_request(
    configs: dict[str, str], indexer: Any, record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sm_100 groups the draft tokens (next_n 4). The option can choose ada_dsa there too."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

    calls = record("fp8_paged_mqa_logits", torch.zeros(8, 8 * PAGE))
    q, weights = queries(8)
    seen: list[torch.Tensor] = []
    lens = torch.tensor([5, 70], dtype=torch.int32)
    metadata = decode_metadata(lens, 8, seen)
    with fake_cuda.capability(10, 0):
        args = tree.server_args(configs["glm"], **FP8, **SPEC, **LOGITS)
        built = tree.backend(args)
        metadata.paged_mqa_ctx_lens_2d = built._build_paged_mqa_schedule_2d_ctx_lens(
            ForwardMode.TARGET_VERIFY, lens, lens, 2
        )
        with forward_context(ForwardContext(attn_backend=built)):
            indexer._get_topk_paged(batch("TARGET_VERIFY", 8), 0, q, weights, metadata)
    [((got_q, _, got_w, got_lens, table, _, _), _)] = calls
    assert got_q.shape == (2, 4, 32, 128)
    assert got_w.shape == (8, 32)
    assert got_lens.shape == (2, 4)
    assert (table.shape, table.stride(1)) == ((2, 8), 1)


def test_prefill_indexer_reaches_ragged_logits(
    in_forward: Any, indexer: Any, record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = 90
    answer = torch.zeros(5, 92)[:, :keys]  # rows padded to a multiple of four
    calls = record("fp8_mqa_logits", answer)
    k = torch.randn(keys, 128).to(torch.float8_e4m3fn).view(torch.uint8)
    scale = torch.rand(keys)
    monkeypatch.setattr(
        in_forward.token_to_kv_pool,
        "get_index_k_scale_buffer",
        lambda *_: (k, scale.view(keys, 1).view(torch.uint8)),
    )
    starts = torch.tensor([0, 0, 40, 40, 40], dtype=torch.int32)
    ends = torch.tensor([39, 40, 88, 89, 90], dtype=torch.int32)
    seen: list[torch.Tensor] = []

    def topk(logits: torch.Tensor, topk: int, ks: torch.Tensor) -> torch.Tensor:
        assert ks is starts
        seen.append(logits)
        return torch.ones(len(logits), topk, dtype=torch.int32)

    metadata = SimpleNamespace(
        get_page_table_64=lambda: torch.zeros(2, 8, dtype=torch.int32),
        get_logical_page_table=lambda: torch.zeros(2, 8, dtype=torch.int32),
        get_indexer_kvcache_range=lambda: (starts, ends),
        get_indexer_seq_len=lambda: torch.tensor([40, 50]),
        get_indexer_seq_len_cpu=lambda: torch.tensor([40, 50]),
        get_seqlens_expanded=lambda: ends - starts,
        get_token_to_batch_idx=lambda: None,
        topk_transform=topk,
    )
    q, weights = queries(6)
    forward = batch("EXTEND", 6)
    forward.seq_lens_cpu = forward.extend_seq_lens_cpu = torch.tensor([40, 50])
    out = indexer._get_topk_ragged(
        False,
        forward,
        0,
        q.as_subclass(_OnDevice),
        weights,
        metadata,
        topk_result=torch.full((6, TOPK), -1, dtype=torch.int32),
    )
    [((got_q, (got_k, got_scale), got_w, ks, ke), options)] = calls
    assert got_q.shape == (5, 32, 128)
    assert (got_k.shape, got_k.dtype) == ((keys, 128), torch.float8_e4m3fn)
    assert torch.equal(got_k.view(torch.uint8), k)
    assert torch.equal(got_scale, scale)
    assert torch.equal(got_w, weights[:5, :, 0])
    assert ks is starts
    assert ke is ends
    assert options == {"clean_logits": False}
    assert seen[0] is answer
    assert bool((out[:5] == 1).all())
    assert bool((out[5] == -1).all())


# -- the bundle's logits against the oracle that this release ships ----------------------------------


@releases.only(">=0.5.22")
def test_bundled_ragged_logits_equal_upstreams_fallback() -> None:
    from sglang.srt.layers.attention import ada_dsa
    from sglang.srt.layers.attention.dsa import utils

    torch.manual_seed(0)
    q, weights = queries(6)
    keys = (torch.randn(91, 128).to(torch.float8_e4m3fn), torch.rand(91) + 0.5)
    starts = torch.tensor([0, 0, 40, 40, 40, 0], dtype=torch.int32)
    ends = torch.tensor([39, 40, 89, 90, 91, 0], dtype=torch.int32)
    given = (q, keys, weights[..., 0], starts, ends)
    found = ada_dsa.fp8_mqa_logits(*given, clean_logits=False)
    expected = utils._fp8_mqa_logits_torch(*given, clean_logits=False)
    assert found.shape == expected.shape == (6, 91)
    column = torch.arange(91)
    inside = (column >= starts[:, None]) & (column < ends[:, None])
    # The fallback rounds each dot product to bf16; 32 heads add up.
    torch.testing.assert_close(found[inside], expected[inside], rtol=1e-2, atol=0.5)


@releases.only(">=0.5.22")
def test_bundled_paged_logits_equal_upstreams_fallback() -> None:
    from sglang.srt.layers.attention import ada_dsa
    from sglang.srt.layers.attention.dsa import utils

    torch.manual_seed(0)
    lens = torch.tensor([[1], [64], [65], [300]], dtype=torch.int32)
    q, weights = queries(len(lens))
    pool = utils.fp8_mqa_logits_make_fused_kv(
        torch.randn(PAGES, PAGE, 128).to(torch.float8_e4m3fn),
        torch.rand(PAGES, PAGE) + 0.5,
        PAGE,
        128,
    )
    table = torch.stack([torch.randperm(PAGES)[:5] for _ in lens]).to(torch.int32)
    schedule = ada_dsa.get_paged_mqa_logits_metadata(lens, PAGE, fake_cuda.NUM_SMS)
    assert (schedule.shape, schedule.dtype) == ((fake_cuda.NUM_SMS + 1, 2), torch.int32)
    given = (q[:, None], pool, weights[..., 0], lens, table, schedule, 5 * PAGE)
    found = ada_dsa.fp8_paged_mqa_logits(*given, clean_logits=False)
    expected = utils._fp8_paged_mqa_logits_torch(*given, clean_logits=False)
    assert found.shape == expected.shape == (4, 5 * PAGE)
    inside = torch.arange(5 * PAGE) < lens
    torch.testing.assert_close(found[inside], expected[inside], rtol=1e-2, atol=0.5)
