"""Sparse MLA kernels in Triton's interpreter, launched by the code that launches them on a GPU."""

from __future__ import annotations

import itertools

import pytest
import torch

from ada_dsa.configs import ROWS, Config
from ada_dsa.kv_cache.layout import KvLayout
from ada_dsa.sparse_mla import reference
from ada_dsa.sparse_mla.plan import plan_launch
from tests.support.mla_data import (
    FORMATS,
    SM_SCALE,
    Problem,
    assert_close,
    launch_kernels,
    make_problem,
    uneven_problem,
)

CONFIGS = {f"{row.arch} {row.bucket}": row for row in ROWS if row.op == "sparse_mla"}
BUCKETS = {
    "fp8, heads<=8": ((KvLayout.PACKED_FP8, KvLayout.RAW_FP8), (6,)),
    "fp8, heads<=16": ((KvLayout.PACKED_FP8, KvLayout.RAW_FP8), (12,)),
    "fp8, heads>16": ((KvLayout.PACKED_FP8, KvLayout.RAW_FP8), (40,)),
    "bf16": ((KvLayout.BF16,), (12, 40)),
}
"""Formats and numbers of heads that a bucket is tried with."""


# numpy reports the infinities that the kernels make on purpose and then select away.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


def run(
    problem: Problem, config: Config | None = None, splits: int | None = None, arch: int = 89
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, heads, _ = problem.q.shape
    plan = plan_launch(
        arch=arch,
        num_sms=4,
        layout=problem.layout,
        num_tokens=tokens,
        num_heads=heads,
        topk=problem.indices.shape[1],
        config=config,
        num_splits=splits,
    )
    out, lse = launch_kernels(problem, plan, True)
    assert lse is not None
    return out, lse


def check(problem: Problem, out: torch.Tensor, lse: torch.Tensor, what: str) -> None:
    want, want_lse = reference.sparse_mla(
        problem.q, problem.kv[:, 0], problem.layout, problem.indices, SM_SCALE, torch.float64
    )
    empty = (problem.indices < 0).all(dim=1)
    assert not out[empty].any() and torch.equal(lse[empty], want_lse[empty].float())
    if (~empty).any():
        assert_close(out[~empty], want[~empty], 4e-3, what)
        # Codes of a packed row are rounded to float16 when multiplied by their share of its scale: a score
        # of a single key is off by 3e-4 (one sigma); to bfloat16 it would be 2.5e-3.
        limit = 2e-3 if problem.layout is KvLayout.PACKED_FP8 else 1e-4
        assert (lse[~empty] - want_lse[~empty]).abs().max() < limit, f"{what}: lse"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_table_row(name: str) -> None:
    config = CONFIGS[name]
    for layout, heads in itertools.product(*BUCKETS[config.bucket]):
        problem = make_problem(2, heads, 75, layout, absent=0.3, slots=200)
        out, lse = run(problem, config, splits=1, arch=config.arch)
        check(problem, out, lse, f"{name} {layout.name} {heads}")


@pytest.mark.parametrize("layout", [KvLayout.PACKED_FP8, KvLayout.BF16])
@pytest.mark.parametrize("heads", [16, 40])
def test_rows_without_rope(layout: KvLayout, heads: int) -> None:
    """As the pooled index leaves lists: a prefix of an odd number of keys, rows of lists not aligned."""
    problem = make_problem(2, heads, 75, layout, absent=0.0, slots=200, rope=0)
    problem.indices[1, 41:] = -1
    out, lse = run(problem, splits=1)
    check(problem, out, lse, layout.name)


@pytest.mark.parametrize("splits", [2, 3])
@pytest.mark.parametrize("arch", [86, 89])
def test_splits_and_their_combination(splits: int, arch: int) -> None:
    """130 indices in tiles of 32: the last tile is ragged, and one token's later splits empty."""
    problem = make_problem(3, 8, 130, KvLayout.PACKED_FP8, absent=0.2, slots=200)
    problem.indices[1, 40:] = -1
    problem.indices[2] = -1
    out, lse = run(problem, splits=splits, arch=arch)
    check(problem, out, lse, f"{splits} splits")


@pytest.mark.parametrize(("layout", "rope"), FORMATS)
def test_absent_entries_anywhere(layout: KvLayout, rope: int) -> None:
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(1, 90, (5, 70), generator=generator, dtype=torch.int32)
    indices[0, ::2] = -1
    indices[1, :65] = -1  # two whole tiles before the first entry
    indices[2] = -(2**31)
    indices[3] = 17
    indices[4, 1:] = -1
    problem = make_problem(5, 8, 70, layout, slots=90, indices=indices, rope=rope)
    out, lse = run(problem, splits=1)
    check(problem, out, lse, layout.name)


@pytest.mark.parametrize("arch", [86, 89])
@pytest.mark.parametrize(("layout", "rope"), FORMATS)
def test_numbers_of_every_size(layout: KvLayout, rope: int, arch: int) -> None:
    """Chunk by chunk, so that the large ones do not hide the small ones."""
    problem = uneven_problem(8, 70, layout, rope=rope)
    out, lse = run(problem, splits=2, arch=arch)
    want, want_lse = reference.sparse_mla(
        problem.q, problem.kv[:, 0], layout, problem.indices, SM_SCALE, torch.float64
    )
    for chunk in range(3):
        part = slice(chunk * 128, chunk * 128 + 128)
        assert_close(out[..., part], want[..., part], 4e-3, f"{layout.name} chunk {chunk}")
    assert not out[..., 384:].any()
    assert ((lse - want_lse).abs() / want_lse.abs()).max() < 1e-4


def test_strided_query_and_indices() -> None:
    problem = make_problem(2, 8, 40, KvLayout.PACKED_FP8)
    want, want_lse = run(problem, splits=1)
    q = torch.zeros(8, 2, 640, dtype=torch.bfloat16).transpose(0, 1)
    q[..., 32:608] = problem.q
    lists = torch.full((2, 64), 9, dtype=torch.int32)
    lists[:, :40] = problem.indices
    moved = Problem(q[..., 32:608], problem.kv, problem.layout, lists[:, :40])
    out, lse = run(moved, splits=1)
    assert torch.equal(out, want) and torch.equal(lse, want_lse)
