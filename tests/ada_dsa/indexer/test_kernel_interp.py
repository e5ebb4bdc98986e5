"""Arithmetic and index logic of the indexer kernels, run by Triton's interpreter on CPU tensors."""

from __future__ import annotations

import pytest
import torch

from ada_dsa import configs
from ada_dsa.indexer import api, reference
from tests.support.indexer_cases import Paged, assert_close, causal_windows, make_paged, make_ragged

ARCHS = (86, 89)  # bytes decoded to fp16, and e4m3 operands
TOLERANCE = 2e-6


def run_paged(case: Paged, arch: int, programs: int) -> torch.Tensor:
    """The kernel's logits; columns it did not write keep a sentinel."""
    batch, next_n, heads, _ = case.q.shape
    out = torch.full((batch * next_n, case.max_context_len), 12345.0)
    config = configs.pick("paged_logits", arch, heads=heads, next_n=next_n)
    limit = min(case.max_context_len, case.block_tables.shape[1] * 64)
    api.launch_paged(
        case.q, case.kv_cache, case.weights, case.context_lens, case.block_tables, out, limit,
        target=arch, config=config, programs=programs,
    )  # fmt: skip
    return out


def check_paged(case: Paged, arch: int, programs: int) -> None:
    next_n = case.q.shape[1]
    got = run_paged(case, arch, programs)
    want = reference.fp8_paged_mqa_logits(
        case.q, case.kv_cache, case.weights, case.context_lens, case.block_tables,
        case.max_context_len, dtype=torch.float64,
    )  # fmt: skip
    lens = reference.expand_query_lengths(case.context_lens, next_n).flatten().tolist()
    for row, length in enumerate(lens):
        length = max(0, length)
        assert_close(got[row, :length], want[row, :length], TOLERANCE, f"row {row}")
        assert (got[row, length:] == 12345.0).all(), f"row {row}: wrote past its {length} keys"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("programs", [1, 3, 40])
def test_paged_any_number_of_programs(arch: int, programs: int) -> None:
    check_paged(make_paged([130, 0, 64, 1, 300], width=6), arch, programs)


@pytest.mark.parametrize("next_n", [2, 3, 4])
@pytest.mark.parametrize("two_d", [True, False])
def test_paged_several_queries(next_n: int, two_d: bool) -> None:
    lens: list[list[int]] | list[int] = [70, 2, 128]
    if two_d:
        lens = [[70 + j for j in range(next_n)], [0] * next_n, [130 - j for j in range(next_n)]]
    check_paged(make_paged(lens, next_n=next_n, table_stride=next_n), 89, 5)


@pytest.mark.parametrize("heads", [8, 24, 64])
def test_paged_heads(heads: int) -> None:
    check_paged(make_paged([65, 10], heads=heads), 89, 2)
    check_paged(make_paged([65, 10], heads=heads), 86, 2)


def test_paged_without_balancing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BALANCED_BATCHES", ())
    check_paged(make_paged([200, 0, 64, 1], next_n=1), 89, 8)
    check_paged(make_paged([[64, 65], [3, 0]], next_n=2), 89, 2)


def test_paged_result_is_bitwise_the_same_for_every_split() -> None:
    case = make_paged([300, 77], seed=3)
    first = run_paged(case, 89, 1)
    for programs in (2, 3, 7):
        assert torch.equal(first, run_paged(case, 89, programs))


def test_paged_page_ids_outside_the_pool_are_clamped() -> None:
    case = make_paged([128], width=4)
    case.block_tables[0, 1] = 1 << 30
    run_paged(case, 89, 2)
    case.block_tables[0, 1] = -5
    run_paged(case, 89, 2)


def check_ragged(
    windows: list[tuple[int, int]],
    num_kv: int,
    arch: int,
    *,
    heads: int = 32,
    chunk: int = 32,
    max_seqlen_k: int = 0,
    config: configs.Config | None = None,
) -> None:
    case = make_ragged(windows, num_kv, heads=heads)
    config = config or configs.pick("ragged_logits", arch, heads=heads)
    out = torch.full((len(windows), max_seqlen_k or num_kv), 12345.0)
    api.launch_ragged(
        case.q, *case.kv, case.weights, case.ks, case.ke, out, max_seqlen_k,
        target=arch, config=config, chunk=chunk,
    )  # fmt: skip
    want = reference.fp8_mqa_logits(
        case.q, case.kv, case.weights, case.ks, case.ke, max_seqlen_k=max_seqlen_k,
        clean_logits=True, dtype=torch.float64,
    )  # fmt: skip
    visible = want != float("-inf")
    assert (out[~visible] == 12345.0).all(), "wrote outside a window"
    assert_close(out[visible], want[visible], TOLERANCE, "ragged")


@pytest.mark.parametrize("arch", ARCHS)
def test_ragged_concatenated_requests(arch: int) -> None:
    windows, num_kv = causal_windows([(0, 5), (130, 4), (7, 3)])
    check_ragged(windows, num_kv, arch)


def test_ragged_windows_in_any_order_and_empty() -> None:
    check_ragged([(140, 150), (0, 0), (3, 2), (0, 9), (100, 160), (5, 6)], 170, 89, heads=24)


def test_ragged_compressed() -> None:
    check_ragged([(0, 4), (100, 160), (20, 140)], 170, 89, max_seqlen_k=64)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("queries", "heads"), [(2, 32), (4, 24)])
def test_ragged_several_queries_in_a_dot(queries: int, heads: int, arch: int) -> None:
    """Odd numbers of queries, windows that begin and end inside a group, and empty ones."""
    params = {"BLOCK_KV": 64, "QUERIES": queries}
    config = configs.Config("ragged_logits", 80, "test", 4, 3, 1, "interpreter", params)
    windows, num_kv = causal_windows([(0, 5), (130, 4), (7, 6)])
    check_ragged(windows, num_kv, arch, heads=heads, config=config)
    mixed = [(140, 150), (0, 0), (3, 2), (0, 9), (100, 160), (5, 6), (20, 140)]
    check_ragged(mixed, 170, arch, heads=heads, config=config)
    check_ragged(mixed, 170, arch, heads=heads, config=config, max_seqlen_k=64)


def test_schedule() -> None:
    from ada_dsa.indexer.kernel import paged_schedule_kernel

    for lens in ([130, 0, 64, 1, 300], [0, 0], [1], [5000] * 40):
        tensor = torch.tensor(lens, dtype=torch.int32)
        out = torch.empty((8, 2), dtype=torch.int32)
        two_d = tensor[:, None]
        paged_schedule_kernel[(8,)](two_d, out, len(lens), 1, 1, NEXT_N=1, PAGE=64, BLOCK=16)
        assert torch.equal(out, reference.get_paged_mqa_logits_metadata(tensor, 64, 7)), lens


def quantised(blocks: torch.Tensor, rounded: bool, bytes_only: bool) -> tuple[torch.Tensor, ...]:
    from ada_dsa.indexer import quantize

    codes = torch.zeros(blocks.shape, dtype=torch.float8_e4m3fn)
    scales = torch.zeros(len(blocks))
    quantize.launch(blocks, codes, scales, rounded, bytes_only)
    return codes.view(torch.uint8), scales


@pytest.mark.parametrize("bytes_only", [False, True])
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_quantised_blocks_equal_the_oracle(
    dtype: torch.dtype, rounded: bool, bytes_only: bool
) -> None:
    torch.manual_seed(0)
    blocks = (torch.randn(11, 128) * 10.0 ** torch.randint(-6, 4, (11, 1))).to(dtype)
    blocks[3] = 0
    blocks[4] = 448 * 2.0 ** torch.randint(-8, 8, (128,))  # scales that are powers of two
    want, want_scales = reference.quantize_blocks(blocks, rounded)
    got, scales = quantised(blocks, rounded, bytes_only)
    assert torch.equal(scales, want_scales)
    assert torch.equal(got, want.view(torch.uint8))
    if rounded:
        assert bool((torch.frexp(scales).mantissa == 0.5).all())
