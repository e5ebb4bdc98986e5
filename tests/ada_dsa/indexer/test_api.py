"""Indexer logits: the oracle against the definition, argument errors, and the kernels on a GPU.

The GPU tests hold for whatever ``TRITON_OVERRIDE_ARCH`` makes Triton compile for.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ada_dsa
from ada_dsa import arch, configs
from ada_dsa.indexer import api, reference
from tests.support.indexer_cases import (
    FP8,
    PAGE,
    ROW,
    Paged,
    Ragged,
    assert_close,
    causal_windows,
    make_paged,
    make_ragged,
)

# -- oracles --------------------------------------------------------------------------------------


def key_and_scale(pool: torch.Tensor, page: int, row: int) -> tuple[torch.Tensor, float]:
    """Straight from the layout: 64 x 128 bytes of keys, then 64 floats."""
    flat = pool[page].flatten()
    key = flat[row * 128 : row * 128 + 128].view(FP8).double()
    scale = flat[8192 + 4 * row : 8192 + 4 * row + 4].view(torch.float32)
    return key, float(scale)


def naive_logit(q: torch.Tensor, w: torch.Tensor, key: torch.Tensor, scale: float) -> float:
    total = 0.0
    for h in range(q.shape[0]):
        total += float(w[h]) * max(0.0, float(q[h].double() @ key))
    return total * scale


@settings(max_examples=15, deadline=None)
@given(
    lens=st.lists(st.sampled_from([0, 1, 2, 63, 64, 65, 130]), min_size=1, max_size=3),
    next_n=st.integers(1, 3),
    two_d=st.booleans(),
    extra=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_paged_oracle_is_the_definition(
    lens: list[int], next_n: int, two_d: bool, extra: int, seed: int
) -> None:
    given_lens: list[int] | list[list[int]] = lens
    if two_d:
        given_lens = [[max(0, n - j) for j in range(next_n)] for n in lens]
    width = max(1, -(-max(lens) // PAGE)) + extra
    case = make_paged(given_lens, next_n=next_n, heads=3, width=width, table_stride=2, seed=seed)
    got = reference.fp8_paged_mqa_logits(
        case.q, case.kv_cache, case.weights, case.context_lens, case.block_tables,
        case.max_context_len, dtype=torch.float64,
    )  # fmt: skip
    for b, j in itertools.product(range(len(lens)), range(next_n)):
        n = given_lens[b][j] if two_d else lens[b] - (next_n - 1 - j)
        row = b * next_n + j
        for position in sorted({0, 1, n // 2, n - 2, n - 1}):
            if not 0 <= position < n:
                continue
            page = int(case.block_tables[b, position // PAGE])
            key, scale = key_and_scale(case.kv_cache, page, position % PAGE)
            want = naive_logit(case.q[b, j], case.weights[row], key, scale)
            assert got[row, position].item() == pytest.approx(want, rel=1e-12, abs=1e-12)
        assert (got[row, max(0, n) :] == 0).all()


@settings(max_examples=20, deadline=None)
@given(
    windows=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=6),
    compressed=st.sampled_from([0, 1, 16, 40]),
    clean=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_ragged_oracle_is_the_definition(
    windows: list[tuple[int, int]], compressed: int, clean: bool, seed: int
) -> None:
    case = make_ragged(windows, 40, heads=3, seed=seed)
    got = reference.fp8_mqa_logits(
        case.q, case.kv, case.weights, case.ks, case.ke, clean, compressed, dtype=torch.float64
    )
    outside = float("-inf") if clean else 0.0
    for i, (lo, hi) in enumerate(windows):
        for column in range(compressed or 40):
            j = lo + column if compressed else column
            if lo <= j < hi:
                key = case.kv[0][j].double()
                want = naive_logit(case.q[i], case.weights[i], key, float(case.kv[1][j]))
                assert got[i, column].item() == pytest.approx(want, rel=1e-12, abs=1e-12)
            else:
                assert got[i, column].item() == outside


@settings(max_examples=50, deadline=None)
@given(lens=st.lists(st.integers(0, 10_000), min_size=1, max_size=20), shares=st.integers(1, 140))
def test_schedule_divides_all_pages_evenly(lens: list[int], shares: int) -> None:
    got = ada_dsa.get_paged_mqa_logits_metadata(torch.tensor(lens, dtype=torch.int32), 64, shares)
    assert got.dtype == torch.int32
    assert tuple(got.shape) == (shares + 1, 2)
    pages = [-(-n // PAGE) for n in lens]
    before = [0, *itertools.accumulate(pages)]
    starts = [before[row] + page for row, page in got.tolist()]
    assert starts[0] == 0
    assert starts[-1] == sum(pages)
    sizes = [b - a for a, b in itertools.pairwise(starts)]
    assert min(sizes) >= 0
    assert max(sizes) - min(sizes) <= 1
    assert got[-1].tolist() == [len(lens), 0]
    two_d = torch.tensor([[max(0, n - 1), n] for n in lens], dtype=torch.int32)
    assert torch.equal(ada_dsa.get_paged_mqa_logits_metadata(two_d, 64, shares), got)


def test_public_functions_run_the_oracle_on_cpu() -> None:
    case = make_paged([[70], [3]], heads=4, width=3)
    out = ada_dsa.fp8_paged_mqa_logits(
        case.q, case.kv_cache, case.weights, case.context_lens, case.block_tables, None, 190,
        clean_logits=True,
    )  # fmt: skip
    assert tuple(out.shape) == (2, 190)
    assert torch.isinf(out[0, 70:]).all()
    assert torch.isfinite(out[0, :70]).all()
    ragged = make_ragged([(0, 5), (5, 9)], 9, heads=4)
    assert tuple(
        ada_dsa.fp8_mqa_logits(ragged.q, ragged.kv, ragged.weights, ragged.ks, ragged.ke).shape
    ) == (2, 9)


# -- arguments ------------------------------------------------------------------------------------


def call_paged(case: Paged, **change: object) -> torch.Tensor:
    arguments = {**vars(case), "schedule_metadata": None, **change}
    return ada_dsa.fp8_paged_mqa_logits(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"q": torch.zeros(2, 1, 4, 128)}, TypeError, "q: expected dtype float8_e4m3fn, got a fl"),
        ({"q": torch.zeros(2, 4, 128).to(FP8)}, ValueError, r"q: expected 4 dimension"),
        ({"q": torch.zeros(2, 5, 4, 128).to(FP8)}, ValueError, "1 to 4 queries per request, got 5"),
        ({"q": torch.zeros(2, 1, 4, 64).to(FP8)}, ValueError, "head dimension 128, got 64"),
        ({"q": torch.zeros(2, 1, 129, 128).to(FP8)}, ValueError, "1 to 128 index heads, got 129"),
        ({"kv_cache": torch.zeros(3, 32, 1, 132, dtype=torch.uint8)}, ValueError,
         r"kv_cache: expected shape \(any, 64, 1, 132\)"),
        ({"kv_cache": torch.zeros(3, 64, 1, 132)}, TypeError, "kv_cache: expected dtype uint8"),
        ({"kv_cache": torch.zeros(3, 64, 1, 264, dtype=torch.uint8)[..., :132]}, ValueError,
         "kv_cache: expected pages of 8448 contiguous bytes"),
        ({"weights": torch.zeros(2, 4).double()}, TypeError, "weights: expected dtype float32"),
        ({"weights": torch.zeros(1, 4)}, ValueError, r"weights: expected shape \(2, 4\)"),
        ({"context_lens": torch.zeros(2, dtype=torch.int64)}, TypeError, "context_lens.*int32"),
        ({"context_lens": torch.zeros(3, dtype=torch.int32)}, ValueError,
         r"context_lens: expected shape \(2,\) or \(2, 1\)"),
        ({"block_tables": torch.zeros(2, 6, dtype=torch.int32)[:, ::2]}, ValueError,
         "block_tables: expected a last stride of 1"),
        ({"max_context_len": -1}, ValueError, "max_context_len"),
        ({"max_context_len": 64.0}, TypeError, "max_context_len: expected an int"),
        ({"indices": torch.zeros(1)}, ValueError, "indices: expected None"),
        ({"block_tables": [[0]]}, TypeError, "block_tables: expected a tensor"),
    ],
)  # fmt: skip
def test_paged_arguments(change: dict[str, object], error: type[Exception], says: str) -> None:
    case = make_paged([[70], [3]], heads=4)
    call_paged(case)
    with pytest.raises(error, match=says):
        call_paged(case, **change)


def call_ragged(case: Ragged, **change: object) -> torch.Tensor:
    return ada_dsa.fp8_mqa_logits(**{**vars(case), **change})


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"q": torch.zeros(2, 4, 64).to(FP8)}, ValueError, "head dimension 128"),
        ({"kv": torch.zeros(9, 128)}, TypeError, r"kv: expected a pair \(keys, scales\)"),
        ({"kv": (torch.zeros(9, 128), torch.zeros(9))}, TypeError, r"kv\[0\]: expected dtype"),
        ({"kv": (torch.zeros(9, 128).to(FP8), torch.zeros(8))}, ValueError, r"kv\[1\]: expected c"),
        ({"ks": torch.zeros(2)}, TypeError, "ks: expected dtype int32"),
        ({"ke": torch.zeros(3, dtype=torch.int32)}, ValueError, r"ke: expected shape \(2\)"),
        ({"weights": torch.zeros(2, 5)}, ValueError, r"weights: expected shape \(2, 4\)"),
        ({"max_seqlen_k": -1}, ValueError, "max_seqlen_k"),
    ],
)
def test_ragged_arguments(change: dict[str, object], error: type[Exception], says: str) -> None:
    case = make_ragged([(0, 5), (5, 9)], 9, heads=4)
    call_ragged(case)
    with pytest.raises(error, match=says):
        call_ragged(case, **change)


def test_metadata_arguments() -> None:
    lens = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match="block_kv: expected one of 64; got 32"):
        ada_dsa.get_paged_mqa_logits_metadata(lens, 32, 8)
    with pytest.raises(ValueError, match="num_sms"):
        ada_dsa.get_paged_mqa_logits_metadata(lens, 64, 0)


def test_debug_variable_checks_device_values(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_paged([[70], [3]], heads=4)
    case.block_tables[1, 1] = 10**6  # past the request's only page: never used
    monkeypatch.setenv("ADA_DSA_DEBUG", "1")
    call_paged(case)
    case.block_tables[0, 1] = 10**6
    with pytest.raises(ValueError, match=r"block_tables\[1\].*got 1000000"):
        call_paged(case)
    case.context_lens[1] = 500
    with pytest.raises(ValueError, match=r"context_lens\[1\].*\[0, 128\], got 500"):
        call_paged(case)


@pytest.mark.parametrize(("num_q", "tiles"), [(1, 1), (2048, 16), (4096, 256), (100_000, 1024)])
def test_ragged_chunk_covers_the_machine(num_q: int, tiles: int) -> None:
    chunk = api.choose_ragged_chunk(num_q, tiles, 400)
    assert chunk in api.RAGGED_CHUNKS
    assert chunk == 32 or tiles * -(-num_q // chunk) >= 1600


# -- on a GPU -------------------------------------------------------------------------------------


def tolerance() -> float:
    """fp16 operands are exact; e4m3 tensor cores before Blackwell sum with ~13 bits of mantissa."""
    return 5e-4 if arch.has_native_fp8(arch.target_arch()) else 1e-5


def check_paged_gpu(case: Paged, out: torch.Tensor) -> None:
    next_n = case.q.shape[1]
    want = reference.fp8_paged_mqa_logits(
        case.q, case.kv_cache, case.weights, case.context_lens, case.block_tables,
        case.max_context_len,
    )  # fmt: skip
    assert tuple(out.shape) == (case.q.shape[0] * next_n, case.max_context_len)
    assert out.stride(0) % 4 == 0
    assert out.stride(1) == 1
    lens = reference.expand_query_lengths(case.context_lens, next_n).flatten().tolist()
    # A row of a few keys has no norm of its own to speak of: its heads may cancel.
    rms = torch.cat([want[row, :n] for row, n in enumerate(lens)]).double().square().mean().sqrt()
    for row, n in enumerate(lens):
        if n > 0:
            what = f"row {row} of length {n}"
            assert_close(out[row, :n], want[row, :n], tolerance(), what, rms.item())


PAGED_SHAPES = {
    "one long": ([[131_072]], 1, 32),
    "past 2048": ([[2049], [5000], [64], [63], [1]], 1, 32),
    "padded rows": ([[0], [4000], [0], [1]], 1, 32),
    "ragged batch": ([[n * 517 % 9000] for n in range(64)], 1, 32),
    "n=2": ([[n, n + 1] for n in (0, 63, 64, 3000, 70_000)], 2, 32),
    "n=3": ([[n, n + 1, n + 2] for n in (62, 2047, 9999)], 3, 32),
    "n=4": ([[n, n + 1, n + 2, n + 3] for n in (1, 2045, 33_000)], 4, 32),
    "64 heads": ([[10_000], [129]], 1, 64),
    "64 heads n=4": ([[5000, 5001, 5002, 5003]], 4, 64),
    "16 heads": ([[3000]], 1, 16),
    "20 heads": ([[3000]], 1, 20),
    "128 heads": ([[3000]], 1, 128),
}


@pytest.mark.gpu
@pytest.mark.parametrize("shape", PAGED_SHAPES)
def test_gpu_paged(shape: str) -> None:
    lens, next_n, heads = PAGED_SHAPES[shape]
    case = make_paged(lens, next_n=next_n, heads=heads, table_stride=next_n, device="cuda")
    schedule = ada_dsa.get_paged_mqa_logits_metadata(case.context_lens, PAGE, 132)
    check_paged_gpu(case, call_paged(case, schedule_metadata=schedule))


@pytest.mark.gpu
def test_gpu_paged_one_dimensional_lengths_and_capture_width() -> None:
    check_case = make_paged([5000, 0, 1, 64], width=2048, device="cuda")
    check_paged_gpu(check_case, call_paged(check_case))
    several = make_paged([5000, 3, 64], next_n=3, device="cuda")
    check_paged_gpu(several, call_paged(several))


@pytest.mark.gpu
def test_gpu_paged_more_requests_than_are_balanced() -> None:
    case = make_paged([[n % 300] for n in range(1100)], device="cuda")
    check_paged_gpu(case, call_paged(case))


@pytest.mark.gpu
def test_gpu_paged_clean_logits() -> None:
    case = make_paged([[100], [0]], width=4, device="cuda")
    out = call_paged(case, clean_logits=True)
    assert (out[0, 100:] == float("-inf")).all()
    assert (out[1] == float("-inf")).all()
    assert torch.isfinite(out[0, :100]).all()


@pytest.mark.gpu
def test_gpu_paged_is_bitwise_the_same_for_every_split() -> None:
    case = make_paged([[30_000], [777], [2500]], device="cuda")
    target = arch.target_arch(case.q.device)
    config = configs.pick("paged_logits", target, heads=32, next_n=1)
    first: torch.Tensor | None = None
    for programs in (1, 7, 132, 528, 4000):
        out = torch.zeros((3, case.max_context_len), device="cuda")
        api.launch_paged(
            case.q, case.kv_cache, case.weights, case.context_lens, case.block_tables, out,
            case.max_context_len, target=target, config=config, programs=programs,
        )  # fmt: skip
        first = out if first is None else first
        assert torch.equal(first, out), f"{programs} programs differ from 1"


@pytest.mark.gpu
def test_gpu_paged_hundred_runs_agree() -> None:
    case = make_paged([[9000], [2500], [1]], device="cuda")
    first = call_paged(case, clean_logits=True)
    for run in range(100):
        assert torch.equal(first, call_paged(case, clean_logits=True)), f"run {run}"


@pytest.mark.gpu
def test_gpu_paged_pages_past_two_gigabytes() -> None:
    pages = 2**31 // 8448 + 200
    if torch.cuda.mem_get_info()[0] < 3 * pages * 8448:
        pytest.skip("needs 6.5 GB of free GPU memory")
    case = make_paged([[700]], device="cuda")
    pool = torch.full((pages, PAGE, 1, ROW), 0xFF, dtype=torch.uint8, device="cuda")
    pool[-case.kv_cache.shape[0] :] = case.kv_cache
    far = Paged(
        case.q, pool, case.weights, case.context_lens,
        case.block_tables + (pages - case.kv_cache.shape[0]), case.max_context_len,
    )  # fmt: skip
    assert int(far.block_tables.max()) * 8448 > 2**31
    n = 700
    assert torch.equal(call_paged(far)[:, :n], call_paged(case)[:, :n])


@pytest.mark.gpu
def test_gpu_paged_graph_replay_with_changed_lengths_and_tables() -> None:
    wide = make_paged([[4000], [4000], [4000]], width=80, device="cuda")
    call_paged(wide)  # compile before capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call_paged(wide)
    everything = wide.block_tables.clone()
    for lens, order in (([4000, 4000, 4000], [0, 1, 2]), ([1, 0, 3999], [2, 1, 0]),
                        ([64, 2049, 65], [1, 0, 2])):  # fmt: skip
        wide.context_lens.copy_(torch.tensor(lens, dtype=torch.int32)[:, None])
        wide.block_tables.copy_(everything[order])
        graph.replay()
        check_paged_gpu(wide, out)


@pytest.mark.gpu
def test_gpu_schedule_matches_the_oracle() -> None:
    for lens in ([0], [5000, 0, 1], [n * 37 for n in range(3000)]):
        tensor = torch.tensor(lens, dtype=torch.int32, device="cuda")
        got = ada_dsa.get_paged_mqa_logits_metadata(tensor, PAGE, 132)
        want = reference.get_paged_mqa_logits_metadata(tensor, PAGE, 132)
        assert torch.equal(got, want)


def check_ragged_gpu(case: Ragged, *, max_seqlen_k: int = 0) -> None:
    out = call_ragged(case, max_seqlen_k=max_seqlen_k)
    want = reference.fp8_mqa_logits(
        case.q, case.kv, case.weights, case.ks, case.ke, True, max_seqlen_k
    )
    assert out.shape == want.shape
    assert out.stride(0) % 4 == 0
    assert out.stride(1) == 1
    visible = want != float("-inf")
    assert_close(out[visible], want[visible], tolerance(), "ragged logits")


RAGGED_SHAPES = {
    "one request": [(0, 300)],
    "past 2048": [(2000, 200)],
    "several requests": [(0, 100), (3000, 77), (0, 1), (129, 64), (4000, 500)],
    "long prefix": [(30_000, 40)],
}


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [32, 64, 20])
@pytest.mark.parametrize("shape", RAGGED_SHAPES)
def test_gpu_ragged(shape: str, heads: int) -> None:
    windows, num_kv = causal_windows(RAGGED_SHAPES[shape])
    check_ragged_gpu(make_ragged(windows, num_kv, heads=heads, device="cuda"))


@pytest.mark.gpu
def test_gpu_ragged_windows_in_any_order() -> None:
    g = torch.Generator().manual_seed(1)
    ks = torch.randint(0, 3000, (500,), generator=g)
    ke = (ks + torch.randint(-50, 900, (500,), generator=g)).clamp(0, 3333)
    windows = list(zip(ks.tolist(), ke.tolist(), strict=True))
    check_ragged_gpu(make_ragged(windows, 3333, device="cuda"))
    check_ragged_gpu(make_ragged(windows, 3333, device="cuda"), max_seqlen_k=900)


@pytest.mark.gpu
def test_gpu_ragged_clean_logits_and_writability() -> None:
    case = make_ragged([(10, 200), (50, 50)], 333, device="cuda")
    out = call_ragged(case, clean_logits=True)
    assert (out[0, :10] == float("-inf")).all()
    assert (out[0, 200:] == float("-inf")).all()
    assert (out[1] == float("-inf")).all()
    before = out[1].clone()
    out[0] = float("inf")  # sglang scatters into the logits
    assert torch.equal(out[1], before)


@pytest.mark.gpu
def test_gpu_ragged_hundred_runs_agree() -> None:
    windows, num_kv = causal_windows([(500, 60), (2100, 30)])
    case = make_ragged(windows, num_kv, device="cuda")
    first = call_ragged(case, clean_logits=True)
    for run in range(100):
        assert torch.equal(first, call_ragged(case, clean_logits=True)), f"run {run}"


@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
def test_act_quant_has_sglangs_contract(scale_fmt: str | None) -> None:
    x = torch.randn(3, 2, 256, dtype=torch.bfloat16)
    codes, scales = ada_dsa.act_quant(x, 128, scale_fmt)
    assert (codes.shape, codes.dtype) == ((3, 2, 256), torch.float8_e4m3fn)
    assert (scales.shape, scales.dtype) == ((3, 2, 2), torch.float32)
    back = codes.float().view(3, 2, 2, 128) * scales[..., None]
    torch.testing.assert_close(back.view(x.shape), x.float(), rtol=2.0**-4, atol=1e-2)
    empty = ada_dsa.act_quant(x[:0])
    assert (empty[0].shape, empty[1].shape) == ((0, 2, 256), (0, 2, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x, 64), "block_size"),
        (lambda x: (x.half(),), "x"),
        (lambda x: (x.t(),), "x"),
        (lambda x: (x[:, :100].contiguous(),), "divisible by 128"),
    ],
)
def test_act_quant_refuses(change: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ada_dsa.act_quant(*change(torch.zeros(128, 256, dtype=torch.bfloat16)))
