"""Top-k: the oracle against the definition, argument errors, and the kernels on a GPU."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ada_dsa
from ada_dsa import arch
from ada_dsa.topk import api, reference
from ada_dsa.topk.plan import LaunchPlan
from tests.support.topk_cases import hostile_rows, normal

I32 = torch.int32


def ints(*values: int, device: str = "cpu") -> torch.Tensor:
    return torch.tensor(values, dtype=I32, device=device)


# -- oracle ---------------------------------------------------------------------------------------


def rank(score: float, index: int) -> tuple[int, float, int]:
    """Sorts first what is selected first: numbers above NaN, high before low, low index first."""
    return (1, 0.0, index) if math.isnan(score) else (0, -score, index)


SCORES = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1.0, float("inf"), float("-inf"), float("nan"), 1e-45, -1e-45]),
    st.integers(-3, 3).map(float),
)


@settings(max_examples=200, deadline=None)
@given(row=st.lists(SCORES, min_size=1, max_size=40), topk=st.integers(1, 40), data=st.data())
def test_oracle_is_the_definition(row: list[float], topk: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(row)))
    length = data.draw(st.integers(0, len(row) - start))
    got = ada_dsa.fast_topk_v2(torch.tensor([row]), ints(length), topk, ints(start))[0].tolist()
    window = row[start : start + length]
    best = sorted(range(length), key=lambda i: rank(window[i], i))[:topk]
    assert got == sorted(best) + [-1] * (topk - len(best))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), topk=st.integers(1, 30), rows=st.integers(1, 6))
def test_transforms_are_the_local_result_looked_up(seed: int, topk: int, rows: int) -> None:
    g = torch.Generator().manual_seed(seed)
    score = torch.randint(-4, 4, (rows, 50), generator=g).float()
    starts = torch.randint(0, 20, (rows,), generator=g).to(I32)
    lengths = torch.randint(0, 30, (rows,), generator=g).to(I32)
    local = ada_dsa.fast_topk_v2(score, lengths, topk, starts)
    offset = torch.randint(0, 1000, (rows,), generator=g).to(I32)
    ragged = ada_dsa.fast_topk_transform_ragged_fused(score, lengths, offset, topk, starts)
    assert torch.equal(ragged, torch.where(local >= 0, local + offset[:, None], -1))
    split = int(torch.randint(0, rows + 1, (1,), generator=g))
    table = torch.randint(0, 10_000, (2, 30), generator=g).to(I32)
    paged = ada_dsa.fast_topk_transform_fused(
        score, lengths, table, ints(0, split, rows), topk, starts
    )
    for r in range(rows):
        request = r if rows == 2 else int(r >= split)
        want = [int(table[request, i]) if i >= 0 else -1 for i in local[r].tolist()]
        assert paged[r].tolist() == want


def test_indices_are_local_to_the_row_start() -> None:
    """Two requests in one prefill: the second's indices count from its own first key."""
    score = torch.arange(10.0)[None, :].repeat(2, 1)
    got = ada_dsa.fast_topk_v2(score, ints(4, 6), 2, ints(0, 4))
    assert got.tolist() == [[2, 3], [4, 5]]


# -- arguments ------------------------------------------------------------------------------------

SCORE = torch.zeros(2, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((SCORE.double(), ints(1, 1), 2), TypeError, "score: expected dtype float32, got a float6"),
        ((SCORE[0], ints(1), 2), ValueError, "score: expected 2 dimension"),
        ((SCORE.t(), ints(*range(8)), 2), ValueError, "score: expected a last stride of 1"),
        ((SCORE, ints(1), 2), ValueError, r"lengths: expected shape \(2\)"),
        ((SCORE, torch.zeros(2), 2), TypeError, "lengths: expected dtype int32"),
        ((SCORE, ints(1, 1), 0), ValueError, r"topk: expected a value in \[1, 4096\], got 0"),
        ((SCORE, ints(1, 1), 4097), ValueError, "topk.*got 4097"),
        ((SCORE, ints(1, 1), 2.0), TypeError, "topk: expected an int"),
        ((SCORE, ints(1, 1), 2, ints(0)), ValueError, "row_starts: expected shape"),
    ],
)
def test_arguments(arguments: tuple[object, ...], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ada_dsa.fast_topk_v2(*arguments)


def test_transform_arguments() -> None:
    lengths, table = ints(1, 1), torch.zeros(2, 8, dtype=I32)
    with pytest.raises(ValueError, match="cu_seqlens_q: expected at least 2 entries, got 1"):
        ada_dsa.fast_topk_transform_fused(SCORE, lengths, table, ints(0), 2)
    with pytest.raises(ValueError, match="page_table_size_1: expected at least 3 rows"):
        ada_dsa.fast_topk_transform_fused(SCORE, lengths, table, ints(0, 1, 2, 2), 2)
    with pytest.raises(ValueError, match="page_table_size_1: expected a last stride of 1"):
        ada_dsa.fast_topk_transform_fused(
            SCORE, lengths, torch.zeros(8, 2, dtype=I32).t(), ints(0, 1, 2), 2
        )
    with pytest.raises(ValueError, match=r"topk_indices_offset: expected shape \(2\)"):
        ada_dsa.fast_topk_transform_ragged_fused(SCORE, lengths, ints(1), 2)


def test_debug_variable_checks_device_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADA_DSA_DEBUG", "1")
    ada_dsa.fast_topk_v2(SCORE, ints(9, 1), 9)  # not longer than topk: never read
    with pytest.raises(ValueError, match=r"row_starts \+ lengths\[0\].*got 9"):
        ada_dsa.fast_topk_v2(SCORE, ints(9, 1), 2)
    with pytest.raises(ValueError, match=r"lengths\[1\].*got -1"):
        ada_dsa.fast_topk_v2(SCORE, ints(9, -1), 9)


# -- on a GPU -------------------------------------------------------------------------------------


def check(
    score: torch.Tensor,
    lengths: torch.Tensor,
    topk: int,
    starts: torch.Tensor | None = None,
    what: str = "",
) -> None:
    got = ada_dsa.fast_topk_v2(score, lengths, topk, starts)
    want = reference.fast_topk_v2(score, lengths, topk, starts)
    for row in range(score.shape[0]):
        if not torch.equal(got[row], want[row]):
            missing = set(want[row].tolist()) - set(got[row].tolist())
            extra = set(got[row].tolist()) - set(want[row].tolist())
            order = "" if missing or extra else " (same set, other order)"
            pytest.fail(
                f"{what} row {row}, length {int(lengths[row])}, topk {topk}: "
                f"{len(missing)} missing {sorted(missing)[:5]}, "
                f"{len(extra)} extra {sorted(extra)[:5]}{order}"
            )


@pytest.mark.gpu
@pytest.mark.parametrize("topk", [1, 7, 512, 1024, 2047, 2048, 4096])
def test_gpu_lengths_around_every_boundary(topk: int) -> None:
    edges = [
        0,
        1,
        topk - 1,
        topk,
        topk + 1,
        2047,
        2048,
        2049,
        4095,
        4096,
        4097,
        8191,
        8192,
        8193,
        20_000,
        50_001,
        131_072,
    ]
    score = normal(len(edges), max(edges), topk).cuda()
    check(score, ints(*edges, device="cuda"), topk)
    check(score[:, :8192], ints(*[min(n, 8192) for n in edges], device="cuda"), topk)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rows", "width"),
    [(1, 8192), (1, 131_072), (8, 32_768), (33, 32_768), (64, 131_072), (300, 32_768),
     (1500, 9000), (1, 1 << 20)],
)  # fmt: skip
def test_gpu_shapes(rows: int, width: int) -> None:
    g = torch.Generator(device="cuda").manual_seed(0)
    score = torch.randn((rows, width), generator=g, device="cuda")
    lengths = torch.randint(0, width + 1, (rows,), generator=g, device="cuda", dtype=I32)
    lengths[0] = width
    check(score, lengths, 2048)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [5000, 8192, 30_000, 131_072, 300_000])
def test_gpu_hostile_rows(width: int) -> None:
    rows = hostile_rows(width)
    score = torch.stack(list(rows.values())).cuda()
    lengths = torch.full((len(rows),), width, dtype=I32, device="cuda")
    for topk in (2048, 4096, 100):
        check(score, lengths, topk, what=", ".join(rows))


@pytest.mark.gpu
def test_gpu_all_equal_selects_the_first() -> None:
    score = torch.full((2, 200_000), 3.25, device="cuda")
    got = ada_dsa.fast_topk_v2(score, ints(200_000, 150_001, device="cuda"), 2048)
    assert torch.equal(got, torch.arange(2048, dtype=I32, device="cuda").expand(2, 2048))


@pytest.mark.gpu
@pytest.mark.parametrize("stride", [40_000, 40_003, 40_004])
def test_gpu_prefill_of_several_requests_with_row_starts(stride: int) -> None:
    storage = torch.full((200, stride), float("nan"), device="cuda")
    score = storage[:, :40_000]
    starts, lengths = [], []
    base = 0
    for prefix, new in ((0, 50), (2500, 70), (9001, 30), (20_003, 50)):
        for i in range(new):
            starts.append(base)
            lengths.append(prefix + i + 1)
            score[len(starts) - 1, base : base + prefix + i + 1] = torch.randn(
                prefix + i + 1, device="cuda"
            )
        base += prefix + new
    check(score, ints(*lengths, device="cuda"), 2048, ints(*starts, device="cuda"))


@pytest.mark.gpu
def test_gpu_page_tables_and_offsets() -> None:
    g = torch.Generator(device="cuda").manual_seed(3)
    score = torch.randn((96, 20_000), generator=g, device="cuda")
    lengths = torch.randint(0, 20_001, (96,), generator=g, device="cuda", dtype=I32)
    wide = torch.randint(0, 1 << 30, (192, 20_480), generator=g, device="cuda", dtype=I32)
    for table, cu in (
        (wide[:96, :20_000], list(range(97))),  # decode
        (wide[::2, :20_000], list(range(97))),  # decode, strided rows
        (wide[:3, :20_000], [0, 40, 41, 96]),
        (wide[:4, :15_000], [0, 0, 50, 96, 96]),  # empty requests; narrower than the rows
    ):
        cu_seqlens = ints(*cu, device="cuda")
        got = ada_dsa.fast_topk_transform_fused(score, lengths, table, cu_seqlens, 2048)
        want = reference.fast_topk_transform_fused(score, lengths, table, cu_seqlens, 2048)
        assert torch.equal(got, want)
    offset = torch.randint(0, 1 << 20, (96,), generator=g, device="cuda", dtype=I32)
    got = ada_dsa.fast_topk_transform_ragged_fused(score, lengths, offset, 2048)
    want = reference.fast_topk_transform_ragged_fused(score, lengths, offset, 2048)
    assert torch.equal(got, want)


@pytest.mark.gpu
def test_gpu_identity_reads_no_score() -> None:
    dummy = torch.zeros((3, 2048), device="cuda")
    got = ada_dsa.fast_topk_v2(dummy, ints(2048, 5, 0, device="cuda"), 2048)
    assert got[0].tolist() == list(range(2048))
    assert got[1].tolist() == [*range(5), *[-1] * 2043]
    assert (got[2] == -1).all()


@pytest.mark.gpu
def test_gpu_same_result_for_every_split_count_and_run() -> None:
    score = normal(3, 100_000, 9).cuda()
    score[1] = score[1].round()  # ties at the threshold
    lengths = ints(100_000, 99_999, 12_345, device="cuda")
    want = reference.fast_topk_v2(score, lengths, 2048)
    target = arch.target_arch()
    for splits in (1, 2, 3, 17, 64):
        for samples in (512, 2048, 8192):
            for compact in (False, True):
                plan = LaunchPlan(splits, samples, compact)
                got = api.launch(
                    score, lengths, None, api.Transform(), 2048, target=target, plan=plan
                )
                assert torch.equal(got, want), plan
    for run in range(100):
        assert torch.equal(ada_dsa.fast_topk_v2(score, lengths, 2048), want), f"run {run}"


@pytest.mark.gpu
def test_gpu_rows_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "SCRATCH_BYTES", 1 << 20)
    score = normal(70, 20_000, 4).cuda()
    check(score, torch.arange(70, device="cuda", dtype=I32) * 285, 2048)


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "width"), [(4, 8192), (4, 60_000), (600, 12_000)])
def test_gpu_graph_replay_with_changed_inputs(rows: int, width: int) -> None:
    score = torch.zeros((rows, width), device="cuda")
    lengths = torch.zeros(rows, dtype=I32, device="cuda")
    table = torch.zeros((rows, width), dtype=I32, device="cuda")
    cu = torch.arange(rows + 1, dtype=I32, device="cuda")

    def run() -> torch.Tensor:
        return ada_dsa.fast_topk_transform_fused(score, lengths, table, cu, 2048)

    run()  # compile before capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for seed in range(3):
        g = torch.Generator(device="cuda").manual_seed(seed)
        score.copy_(torch.randn((rows, width), generator=g, device="cuda"))
        lengths.copy_(torch.randint(0, width + 1, (rows,), generator=g, device="cuda"))
        table.copy_(torch.randint(0, 1 << 30, (rows, width), generator=g, device="cuda"))
        graph.replay()
        want = reference.fast_topk_transform_fused(score, lengths, table, cu, 2048)
        assert torch.equal(out, want), f"replay {seed}"
