"""On the patched 0.5.9 tree, sglang's own methods reach ada_dsa with the arguments it expects.

The bundled functions are replaced by recorders; metadata, pools, indexer and backend are sglang's
own, on CPU tensors. What the functions compute is tested elsewhere.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cpu_forms
import fake_cuda
import nsa_tree
import pytest
import releases
import tiny_models
import torch
from nsa_recorder import BUNDLED_TOPK, RECORDED, TOPK_FUNCTIONS, Recorder
from tiny_models import SPECULATIVE

FP8 = torch.float8_e4m3fn
TOPK = 2048
ADA = {"nsa_prefill_backend": "ada_dsa", "nsa_decode_backend": "ada_dsa"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    path = nsa_tree.write_configs(folder)["glm"]
    with fake_cuda.capability(8, 9):
        nsa_tree.start_one_rank(nsa_tree.server_args(path), folder)
    return path


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each call of check_config. The real check still runs."""
    from sglang.srt.layers.attention import ada_dsa

    kept: list[dict[str, Any]] = []
    answer = ada_dsa.check_config

    def check_config(**settings: Any) -> None:
        kept.append(settings)
        answer(**settings)

    monkeypatch.setattr(ada_dsa, "check_config", check_config)
    return kept


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """On sm_89 with recorders. No call may reach a function that cannot run there."""
    import deep_gemm
    import sgl_kernel

    natives = {
        (module, name): getattr(module, name)
        for module, names in (
            (deep_gemm, ("get_num_sms", "fp8_mqa_logits", "fp8_paged_mqa_logits")),
            (sgl_kernel, TOPK_FUNCTIONS if BUNDLED_TOPK else ()),
        )
        for name in names
    }
    for mock in natives.values():
        mock.reset_mock()
    if releases.at(">=0.5.10"):
        expand = "sglang.srt.layers.attention.nsa_backend.seqlens_expand_triton"
        monkeypatch.setattr(expand, cpu_forms.seqlens_expand)
    with fake_cuda.capability(8, 9):
        yield Recorder(monkeypatch)
    assert not [name for (_, name), mock in natives.items() if mock.call_count]


def layer() -> SimpleNamespace:
    return SimpleNamespace(
        is_cross_attention=False,
        layer_id=0,
        tp_q_head_num=16,
        tp_k_head_num=1,
        v_head_dim=512,
        head_dim=576,
        scaling=0.125,
        logit_cap=0.0,
    )


def queries(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries as the absorbed projection leaves them: not contiguous, with heads outermost in memory."""
    nope = torch.randn(16, rows, 512, dtype=torch.bfloat16).transpose(0, 1)
    rope = torch.randn(rows, 16, 192, dtype=torch.bfloat16)[..., 128:]
    return nope, rope


@pytest.mark.parametrize("name", (*RECORDED, *TOPK_FUNCTIONS))
def test_recorders_take_what_the_functions_take(name: str) -> None:
    from sglang.srt.layers.attention import ada_dsa

    def shape(function: Any) -> list[tuple[str, Any]]:
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]

    ours = shape(getattr(Recorder, name))[1:]
    found = shape(getattr(ada_dsa, name))
    assert found[: len(ours)] == ours
    # What the patches never give has a default.
    assert all(default is not inspect.Parameter.empty for _, default in found[len(ours) :])


# --- metadata ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["DECODE", "TARGET_VERIFY", "DRAFT_EXTEND"])
def test_schedule_of_a_batch(model: str, recorder: Recorder, mode: str) -> None:
    args = nsa_tree.server_args(model, **(SPECULATIVE if mode != "DECODE" else {}))
    face = nsa_tree.runner(args)
    built = nsa_tree.backend(args, face)
    extends = [3, 2] if mode == "DRAFT_EXTEND" else None
    batch = nsa_tree.batch(face, mode, [70, 30], extends)
    built.init_forward_metadata(batch)
    (call,) = recorder.of("get_paged_mqa_logits_metadata")
    expected = {
        "DECODE": [70, 30],
        "TARGET_VERIFY": [71, 72, 73, 74, 31, 32, 33, 34],
        "DRAFT_EXTEND": [68, 69, 70, 29, 30],
    }[mode]
    assert call.context_lens.flatten().tolist() == expected
    assert call.context_lens.dtype == torch.int32
    assert (call.block_kv, call.num_sms) == (64, fake_cuda.NUM_SMS)
    schedule = built.get_indexer_metadata(0, batch).paged_mqa_schedule_metadata
    assert schedule.shape == (fake_cuda.NUM_SMS + 1, 2)
    assert int(schedule[0, 0]) == sum(expected)


def test_a_prefill_batch_has_no_schedule(model: str, recorder: Recorder) -> None:
    args = nsa_tree.server_args(model)
    face = nsa_tree.runner(args)
    built = nsa_tree.backend(args, face)
    built.init_forward_metadata(nsa_tree.batch(face, "EXTEND", [70, 30], [70, 30]))
    assert recorder.names() == []
    assert built.use_mha is False
    assert built.get_topk_transform_method().name == "PAGED"


@pytest.mark.parametrize("mode", ["DECODE", "TARGET_VERIFY"])
def test_replay_refreshes_the_captured_schedule_in_place(
    model: str, recorder: Recorder, mode: str
) -> None:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    args = nsa_tree.server_args(model, **SPECULATIVE)
    face = nsa_tree.runner(args)
    built = nsa_tree.backend(args, face)
    built.init_cuda_graph_state(max_bs=2, max_num_tokens=8)
    common = {"bs": 2, "req_pool_indices": torch.arange(2), "encoder_lens": None}
    built.init_forward_metadata_capture_cuda_graph(
        num_tokens=2,
        seq_lens=torch.ones(2, dtype=torch.int64),
        forward_mode=ForwardMode[mode],
        spec_info=None,
        **common,
    )
    captured = built.forward_metadata.paged_mqa_schedule_metadata
    address = captured.data_ptr()
    before = int(captured[0, 0])
    nsa_tree.batch(face, "DECODE", [70, 30])
    lengths = torch.tensor([70, 30])
    built.init_forward_metadata_replay_cuda_graph(
        seq_lens=lengths,
        seq_lens_sum=100,
        forward_mode=ForwardMode[mode],
        spec_info=None,
        seq_lens_cpu=lengths,
        **common,
    )
    replayed = built.forward_metadata.paged_mqa_schedule_metadata
    assert replayed is captured and replayed.data_ptr() == address
    assert int(replayed[0, 0]) == {"DECODE": 100, "TARGET_VERIFY": 420}[mode]
    assert before == {"DECODE": 2, "TARGET_VERIFY": 28}[mode]


def test_draft_steps_of_eagle_each_get_a_backend(model: str, recorder: Recorder) -> None:
    from sglang.srt.layers.attention.nsa_backend import NativeSparseAttnMultiStepBackend

    args = nsa_tree.server_args(model, **SPECULATIVE)
    face = nsa_tree.runner(args)
    steps = NativeSparseAttnMultiStepBackend(face, topk=1, speculative_num_steps=3)
    steps.init_forward_metadata(nsa_tree.batch(face, "DECODE", [70, 30]))
    assert recorder.names() == ["get_paged_mqa_logits_metadata"] * 2
    assert {step.nsa_decode_impl for step in steps.attn_backends} == {"ada_dsa"}


# --- logits and top-k -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["DECODE", "TARGET_VERIFY"])
def test_paged_logits_and_topk(model: str, recorder: Recorder, mode: str) -> None:
    args = nsa_tree.server_args(model, **SPECULATIVE)
    face = nsa_tree.runner(args)
    built = nsa_tree.backend(args, face)
    index = nsa_tree.indexer(args)
    assert index.sm_count == fake_cuda.NUM_SMS
    batch = nsa_tree.batch(face, mode, [70, 30])
    built.init_forward_metadata(batch)
    metadata = built.get_indexer_metadata(0, batch)
    rows = {"DECODE": 2, "TARGET_VERIFY": 8}[mode]
    padded = rows + 3  # data-parallel padding: rows past the batch come back as -1
    q = torch.randn(padded, 32, 128).to(FP8)
    weights = torch.randn(padded, 32, 1)
    topk = index._get_topk_paged(batch, 0, q, weights, metadata)
    (logits,) = recorder.of("fp8_paged_mqa_logits")
    assert (logits.q.shape, logits.q.dtype) == ((rows, 1, 32, 128), FP8)
    assert torch.equal(logits.q.view(torch.uint8), q[:rows, None].view(torch.uint8))
    pool = face.token_to_kv_pool.index_k_with_scale_buffer[0]
    assert logits.kv_cache.shape == (pool.shape[0], 64, 1, 132)
    assert (logits.kv_cache.dtype, logits.kv_cache.data_ptr()) == (torch.uint8, pool.data_ptr())
    assert torch.equal(logits.weights, weights[:rows, :, 0])
    lens = logits.context_lens
    assert lens.shape == ((rows,) if releases.at("<0.5.12") else (rows, 1))
    assert lens.dtype == torch.int32
    assert (logits.block_tables.shape[0], logits.block_tables.dtype) == (rows, torch.int32)
    assert logits.schedule_metadata is metadata.paged_mqa_schedule_metadata
    assert logits.max_context_len == logits.block_tables.shape[1] * 64
    assert logits.clean_logits is False
    (chosen,) = recorder.of("fast_topk_transform_fused")
    assert chosen.score.shape == (rows, logits.max_context_len)
    assert torch.equal(chosen.lengths, lens.flatten())
    assert chosen.page_table_size_1.shape[0] == rows
    assert chosen.cu_seqlens_q.tolist() == list(range(rows + 1))
    assert (chosen.topk, chosen.row_starts) == (TOPK, None)
    assert topk.shape == (padded, TOPK)
    assert bool((topk[rows:] == -1).all())


@pytest.fixture
def gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    """sglang's gather of index keys is Triton; use its own slow form."""
    from sglang.srt.layers.attention.nsa import index_buf_accessor as access

    monkeypatch.setattr(access.GetKAndS, "execute", nsa_tree.gather_index_keys)


@pytest.mark.parametrize("chunk", [None, 3])
def test_ragged_logits_and_topk(
    model: str,
    recorder: Recorder,
    gathering: None,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int | None,
) -> None:
    """Two requests in one prefill, the second with a cached prefix; whole and in chunks."""
    args = nsa_tree.server_args(model)
    face = nsa_tree.runner(args)
    built = nsa_tree.backend(args, face)
    index = nsa_tree.indexer(args)
    batch = nsa_tree.batch(face, "EXTEND", [70, 30], [5, 4])
    built.init_forward_metadata(batch)
    if chunk is not None:
        free = 2 * 4 * 100 * chunk  # half of it is `chunk` rows of 100 float32 scores
        monkeypatch.setattr(index, "_should_chunk_mqa_logits", lambda *_: (True, free))
    q = torch.randn(9, 32, 128).to(FP8)
    weights = torch.randn(9, 32, 1)
    metadata = built.get_indexer_metadata(0, batch)
    topk = nsa_tree.topk_ragged(index, batch, 0, q, weights, metadata)
    assert topk.shape == (9, TOPK)
    logits = recorder.of("fp8_mqa_logits")
    chosen = recorder.of("fast_topk_transform_fused")
    assert len(logits) == len(chosen) == (1 if chunk is None else 3)
    for call in logits:
        assert call.q.dtype == FP8 and call.q.shape[1:] == (32, 128)
        keys, scales = call.kv
        assert (keys.shape, keys.dtype) == ((100, 128), FP8)
        assert (scales.shape, scales.dtype) == ((100,), torch.float32)
        assert call.weights.shape == (call.q.shape[0], 32)
        assert call.clean_logits is False
    starts = [0] * 5 + [70] * 4
    lengths = [66, 67, 68, 69, 70, 27, 28, 29, 30]
    assert torch.cat([call.ks for call in logits]).tolist() == starts
    ends = torch.cat([call.ke for call in logits]).tolist()
    assert ends == [s + n for s, n in zip(starts, lengths, strict=True)]
    assert torch.cat([call.row_starts for call in chosen]).tolist() == starts
    assert torch.cat([call.lengths for call in chosen]).tolist() == lengths
    # Every row is paired with its own request's page table.
    table = face.req_to_token_pool.req_to_token
    for call in chosen:
        of_row = torch.repeat_interleave(
            torch.arange(len(call.cu_seqlens_q) - 1), call.cu_seqlens_q.diff()
        )
        request = [int(s > 0) for s in call.row_starts.tolist()]
        first = call.page_table_size_1[of_row[: len(request)], 0]
        assert first.tolist() == table[request, 0].tolist()


def test_short_prefill_scores_nothing(model: str, recorder: Recorder) -> None:
    """Up to 2048 tokens every key is selected, and sglang calls the top-k without scores for 0..n-1."""
    args = nsa_tree.server_args(model)
    face = nsa_tree.runner(args)
    built = nsa_tree.backend(args, face)
    batch = nsa_tree.batch(face, "EXTEND", [70, 30], [70, 30])
    built.init_forward_metadata(batch)
    metadata = built.get_indexer_metadata(0, batch)
    metadata.topk_transform(torch.zeros(100, TOPK), TOPK)
    (call,) = recorder.of("fast_topk_transform_fused")
    assert call.score.shape == (100, TOPK)
    assert call.lengths.tolist() == [*range(1, 71), *range(1, 31)]
    assert call.cu_seqlens_q.tolist() == [0, 70, 100]
    assert recorder.names() == ["fast_topk_transform_fused"]


def test_unfused_and_ragged_topk(
    model: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.layers.attention.nsa_backend import NSAIndexerMetadata, TopkTransformMethod

    args = nsa_tree.server_args(model)
    face = nsa_tree.runner(args)
    built = nsa_tree.backend(args, face)
    batch = nsa_tree.batch(face, "DECODE", [70, 30])
    built.init_forward_metadata(batch)
    recorder.calls.clear()
    score, offsets = torch.zeros(2, 128), torch.tensor([5, 9], dtype=torch.int32)
    ragged = NSAIndexerMetadata(built.forward_metadata, TopkTransformMethod.RAGGED)
    ragged.topk_transform(score, TOPK, topk_indices_offset_override=offsets)
    monkeypatch.setenv("SGLANG_NSA_FUSE_TOPK", "0")
    starts = torch.tensor([0, 70], dtype=torch.int32)
    built.get_indexer_metadata(0, batch).topk_transform(score, TOPK, ks=starts)
    assert recorder.names() == ["fast_topk_transform_ragged_fused", "fast_topk_v2"]
    (fused,) = recorder.of("fast_topk_transform_ragged_fused")
    assert fused.topk_indices_offset is offsets
    (plain,) = recorder.of("fast_topk_v2")
    assert plain.row_starts is starts
    assert plain.lengths.tolist() == [70, 30]


# --- attention --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "rows", "extends"),
    [
        ("EXTEND", 9, [5, 4]),
        ("DECODE", 2, None),
        ("TARGET_VERIFY", 8, None),
        ("DRAFT_EXTEND", 9, [5, 4]),
    ],
)
@pytest.mark.parametrize("dtype", ["fp8_e4m3", "bfloat16"])
def test_attention(
    model: str,
    recorder: Recorder,
    mode: str,
    rows: int,
    extends: list[int] | None,
    dtype: str,
) -> None:
    args = nsa_tree.server_args(model, kv_cache_dtype=dtype, **SPECULATIVE)
    face = nsa_tree.runner(args)
    built = nsa_tree.backend(args, face)
    batch = nsa_tree.batch(face, mode, [70, 30], extends)
    built.init_forward_metadata(batch)
    nope, rope = queries(rows)
    indices = torch.randint(0, 64, (rows - 1, TOPK), dtype=torch.int32)
    forward = built.forward_decode if mode == "DECODE" else built.forward_extend
    out = forward(nope, None, None, layer(), batch, q_rope=rope, topk_indices=indices)
    assert out.shape == (rows, 16, 512)
    (call,) = recorder.of("sparse_mla_fwd")
    assert torch.equal(call.q, nope) and torch.equal(call.q_rope, rope)
    assert call.q.data_ptr() == nope.data_ptr()  # no copy, no concatenation
    pool = face.token_to_kv_pool.kv_buffer[0]
    width, kind = {"fp8_e4m3": (656, FP8), "bfloat16": (576, torch.bfloat16)}[dtype]
    assert (call.kv.shape[1:], call.kv.dtype) == ((1, width), kind)
    assert call.kv.data_ptr() == pool.data_ptr()
    # A padded query row selects nothing.
    assert torch.equal(call.indices[:-1], indices)
    assert call.indices.shape == (rows, TOPK) and bool((call.indices[-1] == -1).all())
    assert (call.sm_scale, call.d_v, call.return_lse) == (0.125, 512, False)


def test_each_phase_follows_its_own_choice(
    model: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_ADA_DSA_OVERRIDE_ARCH", "sm89")  # no dense prefill
    with fake_cuda.capability(9, 0):  # where TileLang is accepted
        args = nsa_tree.server_args(
            model, nsa_prefill_backend="ada_dsa", nsa_decode_backend="tilelang", **SPECULATIVE
        )
        face = nsa_tree.runner(args)
        built = nsa_tree.backend(args, face)
        other: list[str] = []
        monkeypatch.setattr(built, "_forward_tilelang", lambda **_: other.append("tilelang"))
        for mode, rows, extends in (
            ("EXTEND", 9, [5, 4]),
            ("DECODE", 2, None),
            ("TARGET_VERIFY", 8, None),
            ("DRAFT_EXTEND", 9, [5, 4]),
        ):
            batch = nsa_tree.batch(face, mode, [70, 30], extends)
            built.init_forward_metadata(batch)
            nope, rope = queries(rows)
            forward = built.forward_decode if mode == "DECODE" else built.forward_extend
            indices = torch.zeros(rows, TOPK, dtype=torch.int32)
            forward(nope, None, None, layer(), batch, q_rope=rope, topk_indices=indices)
    assert len(recorder.of("sparse_mla_fwd")) == 1
    assert other == ["tilelang"] * 3


# --- start-up ---------------------------------------------------------------------------------


def test_start_up_asks_whether_the_model_is_supported(
    model: str, recorder: Recorder, asked: list[dict[str, Any]]
) -> None:
    nsa_tree.backend(nsa_tree.server_args(model))
    assert asked == [
        {
            "kv_cache_dtype": FP8,
            "page_size": 64,
            "num_heads": 16,
            "index_heads": 32,
            "index_head_dim": 128,
            "index_topk": 2048,
            "kv_lora_rank": 512,
            "rope_dim": 64,
        }
    ]


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
    model: str, recorder: Recorder, change: Callable[[Any], None], advice: str, tmp_path: Path
) -> None:
    # A folder of its own: sglang keeps one configuration object for a path.
    args = nsa_tree.server_args(tiny_models.write(tmp_path, nsa_tree.GLM))
    face = nsa_tree.runner(args)
    change(face)
    with pytest.raises(ValueError, match=advice):
        nsa_tree.backend(args, face)


def test_an_untried_triton_stops_the_start(
    model: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "3.4.0")
    with pytest.raises(ValueError, match="Triton .*got 3.4.0"):
        nsa_tree.backend(nsa_tree.server_args(model))


def test_other_backends_are_not_asked(model: str, asked: list[dict[str, Any]]) -> None:
    with fake_cuda.capability(9, 0):
        nsa_tree.backend(nsa_tree.server_args(model))
    assert asked == []


@pytest.mark.parametrize("phase", ["nsa_prefill_backend", "nsa_decode_backend"])
def test_trtllm_cannot_be_mixed_in(model: str, recorder: Recorder, phase: str) -> None:
    backends = {"nsa_prefill_backend": "ada_dsa", "nsa_decode_backend": "ada_dsa", phase: "trtllm"}
    with fake_cuda.capability(10, 0):  # where trtllm has a kernel
        args = nsa_tree.server_args(model, **backends)
        with pytest.raises(ValueError, match="Set both of them to ada_dsa"):
            nsa_tree.backend(args)


@pytest.mark.parametrize("phase", ["nsa_prefill_backend", "nsa_decode_backend"])
def test_trtllm_is_refused_where_it_has_no_kernel(model: str, phase: str) -> None:
    with pytest.raises(ValueError, match=f"--{phase.replace('_', '-')} trtllm has no kernel"):
        nsa_tree.server_args(model, **{phase: "trtllm"})


def test_override_leaves_out_the_dense_prefill_of_hopper(
    model: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_cuda.capability(9, 0):
        for override, dense in (("", True), ("sm89", False)):
            monkeypatch.setenv("SGLANG_ADA_DSA_OVERRIDE_ARCH", override)
            args = nsa_tree.server_args(model, **ADA)
            face = nsa_tree.runner(args)
            built = nsa_tree.backend(args, face)
            built.init_forward_metadata(nsa_tree.batch(face, "EXTEND", [70, 30], [70, 30]))
            assert built.use_mha is dense


def test_deep_gemm_need_not_be_installed(
    model: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.layers.attention.nsa import nsa_indexer

    missing = ModuleNotFoundError("No module named 'deep_gemm'")
    monkeypatch.setattr(nsa_indexer, "deep_gemm", nsa_indexer._IndexKernels(missing))
    args = nsa_tree.server_args(model)
    face = nsa_tree.runner(args)
    assert nsa_tree.indexer(args).sm_count == fake_cuda.NUM_SMS
    nsa_tree.backend(args, face).init_forward_metadata(nsa_tree.batch(face, "DECODE", [70, 30]))
    assert recorder.names() == ["get_paged_mqa_logits_metadata"]
    with fake_cuda.capability(9, 0):
        args = nsa_tree.server_args(model)
        with pytest.raises(ModuleNotFoundError, match="deep_gemm"):
            nsa_tree.indexer(args)
        built = nsa_tree.backend(args, face)
        batch = nsa_tree.batch(face, "DECODE", [70, 30])
        built.init_forward_metadata(batch)
        assert built.forward_metadata.paged_mqa_schedule_metadata is None


def test_no_deep_gemm_call_while_its_sm_count_is_configured(
    model: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline stage lowers DeepGEMM's SM count around the logits, also on a GPU where DeepGEMM cannot
    run.
    """
    import deep_gemm
    from sglang.srt.layers.deep_gemm_wrapper import entrypoint

    monkeypatch.setattr(entrypoint, "deep_gemm", deep_gemm, raising=False)
    deep_gemm.set_num_sms.reset_mock()
    index = nsa_tree.indexer(nsa_tree.server_args(model))
    index.logits_with_pp_recv = True
    monkeypatch.setattr(entrypoint, "ENABLE_JIT_DEEPGEMM", False)
    with index._with_real_sm_count():
        pass
    assert deep_gemm.set_num_sms.call_count == 0
    monkeypatch.setattr(entrypoint, "ENABLE_JIT_DEEPGEMM", True)
    with index._with_real_sm_count():
        deep_gemm.set_num_sms.assert_called_once_with(fake_cuda.NUM_SMS - 1)
    assert deep_gemm.set_num_sms.call_count == 2
    deep_gemm.get_num_sms.reset_mock()
