"""One small launch of every kernel, for compute-sanitizer (``bench/kernels/gpu.sh sanitize``).

Inputs and oracles are made on the CPU, so that hardly anything but the kernels runs under the checker,
which slows a launch down a hundred times.
"""

from __future__ import annotations

import pytest
import torch

from ada_dsa import (
    act_quant,
    configs,
    dequantize_k_cache,
    fast_topk_transform_fused,
    fp8_mqa_logits,
    fp8_paged_mqa_logits,
    get_paged_mqa_logits_metadata,
    quantize_k_cache,
    sparse_mla_fwd,
)
from ada_dsa.arch import target_arch
from ada_dsa.indexer import api as indexer
from ada_dsa.indexer import reference as indexer_reference
from ada_dsa.kv_cache.layout import KvLayout
from ada_dsa.sparse_mla import reference as mla_reference
from ada_dsa.sparse_mla.api import launch
from ada_dsa.sparse_mla.plan import plan_launch
from ada_dsa.topk import reference as topk_reference
from tests.support.indexer_cases import assert_close as assert_logits_close
from tests.support.indexer_cases import make_paged, make_ragged
from tests.support.mla_data import SM_SCALE, assert_close, make_problem, make_rows

pytestmark = pytest.mark.gpu
I32 = torch.int32
# fp8 tensor cores of some architectures add with fewer bits than float32 has.
LOGIT_TOLERANCE = 2e-3


def test_paged_logits_and_schedule() -> None:
    case = make_paged([100, 0, 70])
    lens = case.context_lens.cuda()
    got = fp8_paged_mqa_logits(
        case.q.cuda(), case.kv_cache.cuda(), case.weights.cuda(), lens, case.block_tables.cuda(),
        get_paged_mqa_logits_metadata(lens, 64, 3), case.max_context_len,
    ).cpu()  # fmt: skip
    want = indexer_reference.fp8_paged_mqa_logits(
        case.q, case.kv_cache, case.weights, case.context_lens, case.block_tables,
        case.max_context_len, dtype=torch.float64,
    )  # fmt: skip
    for row, length in enumerate((100, 0, 70)):
        assert_logits_close(got[row, :length], want[row, :length], LOGIT_TOLERANCE, f"row {row}")


@pytest.mark.parametrize("queries", [0, 2])
def test_ragged_logits(queries: int) -> None:
    """The table's kernel, and the one that takes several queries in a dot."""
    case = make_ragged([(10, 200), (50, 50), (0, 130)], 333)
    q, weights, ks, ke = (x.cuda() for x in (case.q, case.weights, case.ks, case.ke))
    keys, scales = (x.cuda() for x in case.kv)
    if queries:
        params = {"BLOCK_KV": 128, "QUERIES": queries}
        config = configs.Config("ragged_logits", 80, "test", 4, 3, 1, "sanitizer", params)
        out = torch.zeros(3, 384, device="cuda")[:, :333]
        indexer.launch_ragged(
            q, keys, scales, weights, ks, ke, out, 0,
            target=target_arch(), config=config, chunk=32,
        )  # fmt: skip
    else:
        out = fp8_mqa_logits(q, (keys, scales), weights, ks, ke)
    want = indexer_reference.fp8_mqa_logits(
        case.q, case.kv, case.weights, case.ks, case.ke, clean_logits=True, dtype=torch.float64
    )
    seen = want > float("-inf")
    assert_logits_close(out.cpu()[seen], want[seen], LOGIT_TOLERANCE, "ragged")


def test_topk_of_long_and_short_rows() -> None:
    """Rows that are prefiltered, that are selected from directly, and that are taken whole."""
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(3, 9008, generator=generator)
    lengths = torch.tensor([9000, 3000, 70], dtype=I32)
    table = torch.randperm(9008, generator=generator).to(I32).expand(3, 9008).contiguous()
    starts = torch.arange(4, dtype=I32)
    arguments = (score, lengths, table, starts)
    got = fast_topk_transform_fused(*(x.cuda() for x in arguments), 2048)
    want = topk_reference.fast_topk_transform_fused(*arguments, 2048)
    assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize(
    ("layout", "heads"),
    [
        (KvLayout.PACKED_FP8, 8),
        (KvLayout.PACKED_FP8, 40),
        (KvLayout.RAW_FP8, 8),
        (KvLayout.BF16, 8),
    ],
)
def test_sparse_mla(layout: KvLayout, heads: int) -> None:
    """Split and combined, and by the public function."""
    problem = make_problem(2, heads, 96, layout, absent=0.3, slots=150)
    plan = plan_launch(
        arch=target_arch(), num_sms=4, layout=layout, num_tokens=2, num_heads=heads, topk=96,
        num_splits=2,
    )  # fmt: skip
    q, kv, index = (x.cuda() for x in (problem.q, problem.kv, problem.indices))
    out, lse = launch(q[..., :512], q[..., 512:], kv[:, 0], layout, index, SM_SCALE, plan, True)
    want, want_lse = mla_reference.sparse_mla(
        problem.q, problem.kv[:, 0], layout, problem.indices, SM_SCALE, torch.float64
    )
    assert lse is not None
    assert_close(out.cpu(), want, 4e-3, f"{layout.name} {heads}")
    assert (lse.cpu() - want_lse).abs().max() < 5e-3
    whole = sparse_mla_fwd(q, kv, index, SM_SCALE)
    assert_close(whole.cpu(), want, 4e-3, f"{layout.name} {heads}, by the public function")


def test_kv_rows() -> None:
    rows = make_rows(10, KvLayout.BF16, torch.Generator().manual_seed(1)).view(10, 1, 576)
    packed = quantize_k_cache(rows.cuda())
    back = dequantize_k_cache(packed)
    assert torch.equal(back.cpu(), dequantize_k_cache(packed.cpu()))
    assert_close(back.cpu(), rows, 5e-2, "packed and unpacked")  # e4m3 has three bits of fraction


def test_keys_and_queries() -> None:
    x = torch.randn(7, 3, 256, dtype=torch.bfloat16)
    codes, scales = act_quant(x.cuda(), scale_fmt="ue8m0")
    want, want_scales = act_quant(x, scale_fmt="ue8m0")
    assert torch.equal(scales.cpu(), want_scales)
    assert torch.equal(codes.cpu().view(torch.uint8), want.view(torch.uint8))
