"""Sparse attention of the patched 0.5.9 tree, end to end on the CPU, against a dense reference.

Two requests of more than 2048 tokens go through a chunk of prefill, a decode step and a speculative
verification. The indexer, the batch metadata, the paged pools, the top-k transform and the backend
are sglang's own, and the bundled functions are the real ones (their CPU references). The dense
reference has no pages, chunks or batches: it keeps every request's keys and latent rows in a plain
array, scores them with an einsum, takes torch.topk of the scores and attends densely.

Only functions without a CPU form are replaced: Triton and JIT helpers of sglang that quantise and scatter.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cpu_forms
import fake_cuda
import nsa_tree
import pytest
import releases
import torch
from nsa_recorder import TOPK_FUNCTIONS
from tiny_models import SPECULATIVE

TOPK = 2048
HEADS = 16
LENGTHS = [2300, 2150]  # tokens before the batches below
ROOM = 2560
LAYER = SimpleNamespace(
    is_cross_attention=False,
    layer_id=0,
    tp_q_head_num=HEADS,
    tp_k_head_num=1,
    v_head_dim=512,
    head_dim=576,
    scaling=1 / math.sqrt(192),
    logit_cap=0.0,
)


def act_quant(x: torch.Tensor, block_size: int, scale_fmt: str) -> tuple[torch.Tensor, Any]:
    """sglang's act_quant on the CPU: one power-of-two scale for each 128 values."""
    amax = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-4)
    scale = torch.exp2(torch.ceil(torch.log2(amax / 448.0)))
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


@pytest.fixture
def cpu_helpers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from sglang.srt.layers.attention import ada_dsa, nsa_backend
    from sglang.srt.layers.attention.nsa import index_buf_accessor as access
    from sglang.srt.layers.attention.nsa import nsa_indexer, transform_index, triton_kernel
    from sglang.srt.mem_cache import memory_pool

    def scatter(pool: Any, buf: Any, loc: Any, index_k: Any, index_k_scale: Any) -> None:
        access.SetK.slow(pool, buf, loc, index_k)
        access.SetS.slow(pool, buf, loc, index_k_scale)

    def write(buffer: Any, loc: Any, nope: Any, rope: Any) -> None:
        buffer[loc] = torch.cat([nope.view(torch.uint8), rope.view(torch.uint8)], dim=-1)

    # The Hadamard rotation changes neither the length of a vector nor a dot product.
    monkeypatch.setattr(nsa_indexer, "rotate_activation", lambda x: x.contiguous())
    monkeypatch.setattr(triton_kernel, "act_quant", act_quant)
    monkeypatch.setattr(access.GetKAndS, "execute", nsa_tree.gather_index_keys)
    monkeypatch.setattr(access.SetKAndS, "execute", scatter)
    for name in ("transform_index_page_table_prefill", "transform_index_page_table_decode"):
        monkeypatch.setattr(nsa_backend, name, getattr(transform_index, f"{name}_ref"))
    quantize = ada_dsa.quantize_k_cache_separate
    monkeypatch.setattr(memory_pool, "quantize_k_cache_separate", quantize)
    monkeypatch.setattr(memory_pool, "set_mla_kv_buffer_triton", write)
    if releases.at(">=0.5.12"):
        monkeypatch.setattr(nsa_indexer, "can_use_nsa_fused_store", lambda *_: False)
    if releases.at(">=0.5.10"):
        import sgl_kernel

        for name in TOPK_FUNCTIONS:
            monkeypatch.setattr(sgl_kernel, name, getattr(ada_dsa, name))
        monkeypatch.setattr(nsa_backend, "seqlens_expand_triton", cpu_forms.seqlens_expand)
    with torch.compiler.set_stance("force_eager"):
        yield


class Dense:
    """The reference: two requests, all tokens in order, no paging."""

    def __init__(self, index: Any) -> None:
        self.index = index
        self.keys: list[torch.Tensor] = [torch.empty(0, 128)] * 2  # float32, dequantised
        self.rows: list[torch.Tensor] = [torch.empty(0, 576)] * 2  # float32, as the cache holds

    def append(self, request: int, key: torch.Tensor, nope: Any, rope: Any) -> None:
        """Keep new tokens: bf16 index keys [n, 128], latent parts [n, 1, 512] and [n, 1, 64]."""
        codes, scale = act_quant(key, 128, "ue8m0")
        self.keys[request] = torch.cat([self.keys[request], codes.float() * scale])
        tiles = nope.float().view(-1, 4, 128)
        tile_scale = tiles.abs().amax(-1, keepdim=True) / 448.0
        latent = (tiles / tile_scale).to(torch.float8_e4m3fn).float() * tile_scale
        row = torch.cat([latent.reshape(-1, 512), rope.float().view(-1, 64)], dim=-1)
        self.rows[request] = torch.cat([self.rows[request], row])

    def scores(self, request: int, length: int, query: Any, gate: Any) -> torch.Tensor:
        """Index scores of one query over the request's first `length` tokens."""
        dots = torch.einsum("hd,nd->hn", query, self.keys[request][:length])
        return torch.einsum("h,hn->n", gate, dots.relu())

    def attend(self, request: int, chosen: torch.Tensor, nope: Any, rope: Any) -> torch.Tensor:
        rows = self.rows[request][chosen]
        query = torch.cat([nope.float(), rope.float()], dim=-1)
        weights = torch.softmax(query @ rows.T * LAYER.scaling, dim=-1)
        return weights @ rows[:, :512]


def make(model: str, **options: Any) -> tuple[Any, Any, Any, Dense]:
    args = nsa_tree.server_args(model, **SPECULATIVE, **options)
    face = nsa_tree.runner(args)
    index = nsa_tree.indexer(args)
    torch.manual_seed(7)
    for linear in (index.wq_b, index.wk, index.weights_proj):
        torch.nn.init.normal_(linear.weight, std=0.05)
    index.k_norm._forward_method = index.k_norm.forward_native
    index.rotary_emb.forward = index.rotary_emb.forward_native
    if releases.at(">=0.5.12"):  # a product with another output type is CUDA's alone
        index._weights_proj_bf16_in_fp32_out = lambda x: (
            x.float() @ index.weights_proj.weight.float().T
        )
    return face, nsa_tree.backend(args, face), index, Dense(index)


def tokens(count: int) -> tuple[torch.Tensor, ...]:
    """Hidden states, query latents, KV latents and their rotary parts of new tokens."""
    sizes = ((256,), (128,), (1, 512), (1, 64))
    return tuple(torch.randn(count, *size, dtype=torch.bfloat16) for size in sizes)


def fill(face: Any, index: Any, dense: Dense) -> None:
    """Put the tokens before the test's batches into the pools, as earlier chunks would have."""
    pool = face.token_to_kv_pool
    batch = nsa_tree.batch(face, "EXTEND", LENGTHS, LENGTHS, ROOM)
    first = 0
    for request, length in enumerate(LENGTHS):
        part = slice(first, first + length)
        first += length
        hidden, _, nope, rope = tokens(length)
        key = index._get_k_bf16(hidden, batch.positions[part], False)
        codes, scale = act_quant(key, 128, "ue8m0")
        loc = batch.out_cache_loc[part]
        pool.set_index_k_scale_buffer(layer_id=0, loc=loc, index_k=codes, index_k_scale=scale)
        pool.set_mla_kv_buffer(LAYER, loc, nope, rope)
        dense.append(request, key, nope, rope)


def run(face: Any, built: Any, index: Any, dense: Dense, mode: str, added: list[int]) -> None:
    """Send one batch through indexer and backend, and compare every token with the reference."""
    fused = os.environ.get("SGLANG_NSA_FUSE_TOPK") != "0"
    before = [len(keys) for keys in dense.keys]
    lengths = [n + a for n, a in zip(before, added, strict=True)]
    # A verification is told the length without its draft tokens.
    told = before if mode == "TARGET_VERIFY" else lengths
    batch = nsa_tree.batch(face, mode, told, added if mode == "EXTEND" else None, ROOM)
    position = [torch.arange(b, n) for b, n in zip(before, lengths, strict=True)]
    table = face.req_to_token_pool.req_to_token
    batch.positions = torch.cat(position)
    batch.out_cache_loc = torch.cat([table[r, p].long() for r, p in enumerate(position)])
    count = sum(added)
    hidden, latent, nope, rope = tokens(count)
    built.init_forward_metadata(batch)
    batch.attn_backend = built
    topk = index(
        x=hidden,
        q_lora=latent,
        positions=batch.positions,
        forward_batch=batch,
        layer_id=0,
    )
    q_nope = torch.randn(HEADS, count, 512, dtype=torch.bfloat16).transpose(0, 1)
    q_rope = torch.randn(count, HEADS, 64, dtype=torch.bfloat16)
    forward = built.forward_decode if mode == "DECODE" else built.forward_extend
    out = forward(q_nope, nope, nope, LAYER, batch, q_rope=q_rope, k_rope=rope, topk_indices=topk)
    assert (out.shape, out.dtype) == ((count, HEADS, 512), torch.bfloat16)

    query, key = index._get_q_k_bf16(latent, hidden, batch.positions, False, batch)
    codes, scale = act_quant(query, 128, "ue8m0")
    gates = index._get_logits_head_gate(hidden, scale).squeeze(-1)
    token = 0
    for request, n in enumerate(added):
        part = slice(token, token + n)
        dense.append(request, key[part], nope[part], rope[part])
        slots = table[request, : lengths[request]].tolist()
        # Fused, the top-k are slots of the pool; unfused, positions in the request.
        place = {slot: i for i, slot in enumerate(slots if fused else range(len(slots)))}
        for row in range(token, token + n):
            length = before[request] + row - token + 1
            scores = dense.scores(request, length, codes[row].float(), gates[row])
            chosen = torch.tensor(sorted(place[one] for one in topk[row].tolist()))
            assert len(set(chosen.tolist())) == TOPK
            assert int(chosen[-1]) < length
            expected = torch.topk(scores, TOPK)
            threshold = expected.values[-1]
            assert bool((scores[chosen] >= threshold - 1e-4 * threshold.abs()).all())
            reference = dense.attend(request, chosen, q_nope[row], q_rope[row])
            likeness = torch.cosine_similarity(out[row].float(), reference, dim=-1)
            assert float(likeness.min()) > 0.9995  # bf16 weights and output, per head
        token += n


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("model")
    path = nsa_tree.write_configs(folder)["glm"]
    with fake_cuda.capability(8, 9):
        nsa_tree.start_one_rank(nsa_tree.server_args(path), folder)
    return path


def test_prefill_decode_and_verify_agree_with_a_dense_reference(
    model: str, cpu_helpers: None
) -> None:
    with fake_cuda.capability(8, 9):
        face, built, index, dense = make(model)
        assert face.token_to_kv_pool.kv_buffer[0].shape[1:] == (1, 656)
        fill(face, index, dense)
        batches = (("EXTEND", [5, 3]), ("DECODE", [1, 1]), ("TARGET_VERIFY", [4, 4]))
        for mode, added in batches:
            run(face, built, index, dense, mode, added)


def test_chunked_scoring_selects_the_same_tokens(
    model: str, cpu_helpers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If little memory is free, sglang scores a prefill a few rows at a time."""
    with fake_cuda.capability(8, 9):
        face, built, index, dense = make(model)
        fill(face, index, dense)
        row = 4 * (sum(LENGTHS) + 8)
        monkeypatch.setattr(index, "_should_chunk_mqa_logits", lambda *_: (True, 2 * 3 * row))
        run(face, built, index, dense, "EXTEND", [5, 3])


def test_unfused_topk_attends_to_the_same_tokens(
    model: str, cpu_helpers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SGLANG_NSA_FUSE_TOPK=0 the page table is applied after the top-k, by sglang."""
    monkeypatch.setenv("SGLANG_NSA_FUSE_TOPK", "0")
    with fake_cuda.capability(8, 9):
        face, built, index, dense = make(model)
        fill(face, index, dense)
        for mode, added in (("EXTEND", [5, 3]), ("DECODE", [1, 1])):
            run(face, built, index, dense, mode, added)
