"""Sparse MLA: the torch oracle against a naive one, argument errors, and the kernels on a GPU."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ada_dsa import sparse_mla_fwd
from ada_dsa.kv_cache.layout import NOPE_DIM, ROW_DIM, KvLayout
from ada_dsa.kv_cache.reference import dequantize_rows
from ada_dsa.sparse_mla import reference
from ada_dsa.sparse_mla.plan import choose_splits, plan_launch
from tests.support.mla_data import (
    FORMATS,
    SM_SCALE,
    Problem,
    assert_close,
    launch_kernels,
    make_problem,
    make_rows,
    poison,
    uneven_problem,
)

LAYOUTS = list(KvLayout)
# bfloat16 results and probabilities: 2^-9 relative rounding each.
KERNEL_LIMIT = 4e-3


def naive(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """float64, one token, head and key at a time, straight from the definition."""
    tokens, heads, _ = problem.q.shape
    rows = problem.kv[:, 0]
    out = torch.zeros(tokens, heads, NOPE_DIM, dtype=torch.float64)
    lse = torch.full((tokens, heads), -math.inf, dtype=torch.float64)
    for t in range(tokens):
        named = [int(i) for i in problem.indices[t] if i >= 0]
        if not named:
            continue
        named_rows = [rows[i : i + 1] for i in named]
        keys = [dequantize_rows(row, problem.layout, torch.float64)[0] for row in named_rows]
        for h in range(heads):
            scores = [float(problem.q[t, h].double() @ key) * SM_SCALE for key in keys]
            top = max(scores)
            total = sum(math.exp(s - top) for s in scores)
            lse[t, h] = top + math.log(total)
            for score, key in zip(scores, keys, strict=True):
                out[t, h] += math.exp(score - top) / total * key[:NOPE_DIM]
    return out, lse


def oracle(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.sparse_mla(
        problem.q, problem.kv[:, 0], problem.layout, problem.indices, SM_SCALE, torch.float64
    )


# --------------------------------------------------------------------------------------- on the CPU


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 3),
    heads=st.integers(1, 3),
    topk=st.integers(1, 12),
    form=st.sampled_from(FORMATS),
    absent=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_oracle_equals_the_definition(
    tokens: int, heads: int, topk: int, form: tuple[KvLayout, int], absent: float, seed: int
) -> None:
    layout, rope = form
    problem = make_problem(
        tokens, heads, topk, layout, slots=6, absent=absent, seed=seed, rope=rope
    )
    want, want_lse = naive(problem)
    got, got_lse = oracle(problem)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-12)
    assert torch.allclose(got_lse, want_lse, rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), layout=st.sampled_from(LAYOUTS))
def test_order_and_absent_entries_do_not_matter(seed: int, layout: KvLayout) -> None:
    problem = make_problem(2, 2, 9, layout, slots=20, absent=0.4, seed=seed)
    want, want_lse = oracle(problem)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(9, generator=generator)
    padded = torch.full((2, 13), -7, dtype=torch.int32)
    padded[:, 2:11] = problem.indices[:, order]
    got, got_lse = oracle(Problem(problem.q, problem.kv, layout, padded))
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-12)
    assert torch.allclose(got_lse, want_lse, rtol=1e-9)


def test_public_function_on_the_cpu() -> None:
    problem = make_problem(3, 4, 17, KvLayout.PACKED_FP8)
    want, want_lse = oracle(problem)
    out, lse = sparse_mla_fwd(
        problem.q, problem.kv, problem.indices[:, None], SM_SCALE, return_lse=True
    )
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    assert_close(out, want, KERNEL_LIMIT, "cpu path")
    assert torch.allclose(lse.double(), want_lse, rtol=1e-5)
    apart = sparse_mla_fwd(
        problem.q[..., :512],
        problem.kv.view(torch.uint8),
        problem.indices,
        SM_SCALE,
        q_rope=problem.q[..., 512:],
    )
    assert torch.equal(apart, out)


@pytest.mark.parametrize("layout", [KvLayout.PACKED_FP8, KvLayout.BF16])
def test_public_function_without_rope(layout: KvLayout) -> None:
    problem = make_problem(3, 4, 17, layout, rope=0)
    want, want_lse = oracle(problem)
    arguments = problem.q, problem.kv, problem.indices, SM_SCALE
    out, lse = sparse_mla_fwd(*arguments, return_lse=True)
    assert_close(out, want, KERNEL_LIMIT, "cpu path")
    assert torch.allclose(lse.double(), want_lse, rtol=1e-5)
    assert torch.equal(sparse_mla_fwd(*arguments, q_rope=problem.q[..., 512:]), out)
    with pytest.raises(ValueError, match=r"q_rope: expected shape \(3, 4, 0\)"):
        sparse_mla_fwd(*arguments, q_rope=torch.zeros(3, 4, 64).bfloat16())
    with pytest.raises(ValueError, match=r"q: expected shape"):
        sparse_mla_fwd(torch.zeros(3, 4, 576).bfloat16(), *arguments[1:])


def test_the_tilelang_kernel_refuses_rows_without_rope() -> None:
    problem = make_problem(1, 4, 17, KvLayout.PACKED_FP8, rope=0)
    with pytest.raises(ValueError, match="656 bytes, got PACKED_FP8 rows without a rotary part"):
        sparse_mla_fwd(problem.q, problem.kv, problem.indices, SM_SCALE, backend="tilelang")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.zeros(2, 4, 576)}, TypeError, r"q: expected dtype bfloat16"),
        ({"q": torch.zeros(2, 4, 512, dtype=torch.bfloat16)}, ValueError, r"q: expected shape"),
        ({"kv": torch.zeros(8, 1, 600, dtype=torch.uint8)}, ValueError, r"656 x float8_e4m3fn"),
        ({"kv": torch.zeros(8, 1, 576)}, TypeError, r"kv: expected dtype"),
        ({"kv": torch.zeros(8, 2, 576).bfloat16()[:, :1]}, ValueError, r"kv: .*contiguous"),
        ({"indices": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, r"indices: .*int32"),
        ({"indices": torch.zeros(3, 4, dtype=torch.int32)}, ValueError, r"indices: expected shape"),
        ({"indices": torch.zeros(2, 2, 4, dtype=torch.int32)}, ValueError, r"indices: expected"),
        ({"d_v": 256}, ValueError, r"d_v: expected a value in \[512, 512\], got 256"),
        ({"q_rope": torch.zeros(2, 4, 64).bfloat16()}, ValueError, r"q: expected shape"),
        (
            {"indices": torch.zeros(2, 8, dtype=torch.int32)[:, ::2]},
            ValueError,
            r"last stride of 1",
        ),
    ],
)
def test_bad_arguments_are_named(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments: dict[str, object] = {
        "q": torch.zeros(2, 4, ROW_DIM, dtype=torch.bfloat16),
        "kv": torch.zeros(8, 1, 656, dtype=torch.uint8),
        "indices": torch.zeros(2, 4, dtype=torch.int32),
        "sm_scale": SM_SCALE,
    }
    with pytest.raises(error, match=message):
        sparse_mla_fwd(**{**arguments, **change})  # type: ignore[arg-type]


def test_debug_variable_checks_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(2, 2, 4, KvLayout.BF16, slots=8, absent=0.0)
    problem.indices[1, 2] = 8
    monkeypatch.setenv("ADA_DSA_DEBUG", "1")
    with pytest.raises(ValueError, match=r"indices\[6\].*got 8"):
        sparse_mla_fwd(problem.q, problem.kv, problem.indices, SM_SCALE)


@given(
    tokens=st.integers(1, 10_000),
    heads=st.sampled_from([1, 4, 8, 16, 32, 64, 128]),
    topk=st.integers(1, 4096),
    num_sms=st.sampled_from([82, 128, 132, 170]),
    arch=st.sampled_from([80, 86, 89, 90, 120]),
    layout=st.sampled_from(LAYOUTS),
)
def test_plan_covers_every_index_once(
    tokens: int, heads: int, topk: int, num_sms: int, arch: int, layout: KvLayout
) -> None:
    plan = plan_launch(
        arch=arch, num_sms=num_sms, layout=layout, num_tokens=tokens, num_heads=heads, topk=topk
    )
    assert plan.split_len % plan.config.params["BLOCK_N"] == 0
    assert plan.num_splits * plan.split_len >= topk > (plan.num_splits - 1) * plan.split_len
    assert plan.span >= min(plan.split_len, topk) and plan.span & (plan.span - 1) == 0
    assert plan.head_blocks * plan.config.params["BLOCK_H"] >= heads
    assert tokens * heads * (plan.num_splits - 1) * 2048 <= 128 << 20


def test_splits_fill_an_idle_device_and_leave_a_full_one_alone() -> None:
    assert choose_splits(blocks=1, tiles=64, slots=256) >= 16
    assert choose_splits(blocks=128, tiles=64, slots=256) == 2
    assert choose_splits(blocks=8192, tiles=64, slots=256) == 1


# --------------------------------------------------------------------------------------- on the GPU

gpu = pytest.mark.gpu
CUDA = "cuda"


def run(problem: Problem, return_lse: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    return sparse_mla_fwd(  # type: ignore[return-value]
        problem.q, problem.kv, problem.indices, SM_SCALE, return_lse=return_lse
    )


def check(problem: Problem, what: str) -> None:
    want, want_lse = oracle(problem)
    out, lse = run(problem)
    empty = (problem.indices < 0).all(dim=1)
    assert torch.equal(out[empty], torch.zeros_like(out[empty])), f"{what}: empty rows not zero"
    assert torch.equal(lse[empty], want_lse[empty].float()), f"{what}: lse of empty rows not -inf"
    if (~empty).any():
        assert_close(out[~empty], want[~empty], KERNEL_LIMIT, f"{what}: output")
        # float16 rounds the terms of a score by up to 2^-11 of each, and most scores are sums of many.
        difference = (lse[~empty] - want_lse[~empty]).abs() - want_lse[~empty].abs() * 2**-12
        assert difference.max() < 5e-3, f"{what}: lse differs by {float(difference.max()):.2e} more"


@gpu
@pytest.mark.parametrize(("layout", "rope"), FORMATS)
@pytest.mark.parametrize("heads", [1, 8, 12, 16, 32, 64, 128])
@pytest.mark.parametrize("tokens", [1, 7, 200])
def test_kernel_all_heads_and_layouts(layout: KvLayout, rope: int, heads: int, tokens: int) -> None:
    problem = make_problem(tokens, heads, 2048, layout, slots=20_000, device=CUDA, rope=rope)
    check(problem, f"{layout.name} H={heads} T={tokens}")


@gpu
@pytest.mark.parametrize(("layout", "rope"), FORMATS)
@pytest.mark.parametrize("topk", [1, 31, 32, 33, 64, 100, 2047, 2051, 2112, 4096])
def test_kernel_any_list_length(layout: KvLayout, rope: int, topk: int) -> None:
    check(make_problem(3, 8, topk, layout, device=CUDA, rope=rope), f"topk={topk}")


@gpu
@pytest.mark.parametrize(("layout", "rope"), FORMATS)
@pytest.mark.parametrize("heads", [8, 64])
def test_kernel_sentinel_patterns(layout: KvLayout, rope: int, heads: int) -> None:
    topk, slots = 512, 4000
    generator = torch.Generator().manual_seed(5)
    base = torch.randint(1, slots, (9, topk), generator=generator, dtype=torch.int32)
    base[0] = -1  # nothing at all
    base[1, ::2] = -1  # interleaved
    base[2, 1:] = -1  # only the first
    base[3, :-1] = -1  # only the last
    base[4, 100:300] = -1  # a hole of whole tiles
    base[5, 37:] = -1  # a tail, as top-k leaves it
    base[6] = 77  # one row, 512 times
    base[7, :] = -(2**31)  # any negative number is absent
    base[7, 9] = 5
    check(
        make_problem(
            9, heads, topk, layout, slots=slots, device=CUDA, rope=rope, indices=base.to(CUDA)
        ),
        f"sentinels {layout.name}",
    )


@gpu
def test_kernel_never_reads_slot_zero_for_an_absent_entry() -> None:
    """Slot 0 is NaN throughout; an absent entry must not be read as slot 0 and then masked."""
    for layout in LAYOUTS:
        problem = make_problem(4, 8, 64, layout, absent=0.5, device=CUDA)
        assert problem.kv[0].view(torch.uint8).eq(0xFF).all()
        check(problem, layout.name)


@gpu
@pytest.mark.parametrize("return_lse", [False, True])
def test_kernel_strided_query(return_lse: bool) -> None:
    problem = make_problem(5, 8, 256, KvLayout.PACKED_FP8, device=CUDA)
    want = run(problem, return_lse)
    nope = torch.empty(8, 5, 700, dtype=torch.bfloat16, device=CUDA).transpose(0, 1)[..., :512]
    nope.copy_(problem.q[..., :512])
    rope = torch.empty(5, 8, 200, dtype=torch.bfloat16, device=CUDA)[..., 64:128]
    rope.copy_(problem.q[..., 512:])
    got = sparse_mla_fwd(
        nope, problem.kv, problem.indices, SM_SCALE, q_rope=rope, return_lse=return_lse
    )
    if return_lse:
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    else:
        assert torch.equal(got, want)


@gpu
def test_kernel_rows_past_two_gigabytes() -> None:
    """Row 3.4 million of a packed pool starts past 2^31 bytes."""
    slots = 3_400_000
    free, _ = torch.cuda.mem_get_info()
    if free < 4 * slots * 656:
        pytest.skip(f"needs {4 * slots * 656 >> 30} GiB of free GPU memory")
    small = make_problem(2, 8, 64, KvLayout.PACKED_FP8, slots=100, device=CUDA)
    kv = torch.full((slots, 1, 656), 0xFF, dtype=torch.uint8, device=CUDA)
    kv[-100:] = small.kv.view(torch.uint8)
    moved = torch.where(small.indices >= 0, small.indices + slots - 100, small.indices)
    far = Problem(small.q, kv.view(torch.float8_e4m3fn), small.layout, moved.to(torch.int32))
    assert torch.equal(run(far)[0], run(small)[0])


@gpu
@pytest.mark.parametrize(("layout", "rope"), FORMATS)
def test_kernel_extreme_scores(layout: KvLayout, rope: int) -> None:
    """Scores far apart: one key takes all the weight, and no exponential overflows."""
    problem = make_problem(4, 8, 128, layout, absent=0.0, device=CUDA, rope=rope)
    problem.q.mul_(50)
    check(problem, f"extreme scores {layout.name}")


@gpu
@pytest.mark.parametrize("heads", [8, 16, 64])
@pytest.mark.parametrize(("layout", "rope"), FORMATS)
def test_kernel_numbers_of_every_size(layout: KvLayout, rope: int, heads: int) -> None:
    problem = uneven_problem(heads, 2048, layout, device=CUDA, rope=rope)
    want, _ = oracle(problem)
    out, _ = run(problem)
    for chunk in range(3):
        part = slice(chunk * 128, chunk * 128 + 128)
        assert_close(out[..., part], want[..., part], KERNEL_LIMIT, f"{layout.name} chunk {chunk}")
    assert not out[..., 384:].any()


@gpu
@pytest.mark.parametrize("tokens", [1, 8, 64])
def test_kernel_splits_agree(tokens: int) -> None:
    from ada_dsa.arch import target_arch

    problem = make_problem(tokens, 8, 2048, KvLayout.PACKED_FP8, slots=9000, device=CUDA)
    want, _ = oracle(problem)
    for splits in (1, 2, 3, 8, 31, 64):
        plan = plan_launch(
            arch=target_arch(problem.q.device),
            num_sms=132,
            layout=problem.layout,
            num_tokens=tokens,
            num_heads=8,
            topk=2048,
            num_splits=splits,
        )
        out, _ = launch_kernels(problem, plan, False)
        assert_close(out, want, KERNEL_LIMIT, f"{splits} splits")


@gpu
@pytest.mark.parametrize("heads", [8, 64])
@pytest.mark.parametrize("tokens", [1, 32])
def test_kernel_repeats_bit_for_bit(heads: int, tokens: int) -> None:
    problem = make_problem(tokens, heads, 2048, KvLayout.PACKED_FP8, slots=9000, device=CUDA)
    out, lse = run(problem)
    for repeat in range(100):
        again, again_lse = run(problem)
        assert torch.equal(again, out) and torch.equal(again_lse, lse), f"run {repeat} differs"


@gpu
@pytest.mark.parametrize("heads", [8, 64])
def test_kernel_in_a_cuda_graph(heads: int) -> None:
    """Replays follow indices, queries and pool rows that changed in place after the capture."""
    problem = make_problem(4, heads, 512, KvLayout.PACKED_FP8, slots=3000, device=CUDA)
    run(problem)  # compiles before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = run(problem)
    for seed in range(1, 4):
        other = make_problem(
            4, heads, 512, KvLayout.PACKED_FP8, slots=3000, absent=0.5, seed=seed, device=CUDA
        )
        other.indices[seed] = -1
        problem.q.copy_(other.q)
        problem.indices.copy_(other.indices)
        problem.kv.view(torch.uint8).copy_(other.kv.view(torch.uint8))
        graph.replay()
        torch.cuda.synchronize()
        want, want_lse = run(other)
        assert torch.equal(out, want), f"replay {seed}: output differs from an eager run"
        assert torch.equal(lse, want_lse), f"replay {seed}: lse differs from an eager run"


@gpu
def test_kernel_empty_launches() -> None:
    problem = make_problem(2, 8, 16, KvLayout.PACKED_FP8, device=CUDA)
    nothing = Problem(problem.q[:0], problem.kv, problem.layout, problem.indices[:0])
    assert run(nothing)[0].shape == (0, 8, 512)
    no_keys = Problem(problem.q, problem.kv, problem.layout, problem.indices[:, :0])
    assert not run(no_keys)[0].any()


@gpu
def test_kernel_raw_fp8_nan_reaches_only_who_selects_it() -> None:
    """A NaN in a selected row is not hidden: that token's result is NaN, no other's is."""
    for layout in LAYOUTS:
        rows = make_rows(50, layout, torch.Generator(CUDA).manual_seed(1))
        indices = torch.arange(1, 33, dtype=torch.int32, device=CUDA).repeat(2, 1)
        indices[1, 3] = 40
        rows = poison(rows, indices)
        rows.view(torch.uint8)[40] = 0xFF
        q = torch.randn(2, 8, ROW_DIM, device=CUDA).bfloat16()
        out = sparse_mla_fwd(q, rows[:, None], indices, SM_SCALE)
        assert out[0].isfinite().all(), layout.name
        assert out[1].isnan().any(), layout.name
