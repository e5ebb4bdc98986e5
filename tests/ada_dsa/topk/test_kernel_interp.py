"""Arithmetic and index logic of the top-k kernels, run by Triton's interpreter on CPU tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ada_dsa import configs
from ada_dsa.topk import api, reference
from ada_dsa.topk.api import Transform
from ada_dsa.topk.plan import LaunchPlan
from tests.support.topk_cases import hostile_rows, normal

# numpy reports the overflows that the interpolation makes on purpose and then clamps away.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


def split(n: int) -> LaunchPlan:
    return LaunchPlan(splits=n, samples=64)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels' own logic at sizes the interpreter can run: 64 and 128 scores a tile."""
    shrunk = {
        "topk_prefilter": {"TILE": 64, "maxnreg": 128},
        "topk_select": {"SMALL": 64, "LARGE": 128, "maxnreg": 128},
    }

    def pick(op: str, arch: int, **shape: int) -> configs.Config:
        return configs.Config(op, arch, "test", 4, 1, 1, "interpreter", shrunk[op])

    monkeypatch.setattr(configs, "pick", pick)
    yield


def run(
    score: torch.Tensor,
    lengths: list[int],
    topk: int,
    plan: LaunchPlan,
    starts: list[int] | None = None,
    transform: Transform | None = None,
) -> torch.Tensor:
    row_starts = None if starts is None else torch.tensor(starts, dtype=torch.int32)
    return api.launch(
        score, torch.tensor(lengths, dtype=torch.int32), row_starts,
        transform or Transform(), topk, target=89, plan=plan,
    )  # fmt: skip


def expected(
    score: torch.Tensor, lengths: list[int], topk: int, starts: list[int] | None = None
) -> torch.Tensor:
    row_starts = None if starts is None else torch.tensor(starts, dtype=torch.int32)
    lens = torch.tensor(lengths, dtype=torch.int32)
    return reference.fast_topk_v2(score, lens, topk, row_starts)


PLANS = [split(0), split(1), split(3), split(7)]
IDS = ["direct", "1 split", "3 splits", "7 splits"]


@pytest.mark.parametrize("plan", PLANS, ids=IDS)
def test_every_path_selects_the_same(plan: LaunchPlan) -> None:
    lengths = [0, 31, 32, 33, 64, 65, 128, 129, 333]
    if plan.splits == 0:
        lengths = [n for n in lengths if n <= 128]
    score = normal(len(lengths), max(lengths) + 3)
    assert torch.equal(run(score, lengths, 32, plan), expected(score, lengths, 32))


@pytest.mark.parametrize("plan", PLANS[1:3], ids=IDS[1:3])
def test_row_starts_and_padded_stride(plan: LaunchPlan) -> None:
    storage = torch.full((5, 352), float("nan"))
    score = storage[:, :340]
    score.copy_(normal(5, 340, 1))
    starts, lengths = [0, 7, 100, 330, 17], [340, 200, 150, 10, 128]
    want = expected(score, lengths, 32, starts)
    assert torch.equal(run(score, lengths, 32, plan, starts), want)


@pytest.mark.parametrize(("plan", "topk"), [(split(3), 32), (split(1), 90), (split(2), 1)])
def test_hostile_rows(plan: LaunchPlan, topk: int) -> None:
    rows = hostile_rows(200)
    score = torch.stack(list(rows.values()))
    lengths = [200] * len(rows)
    got, want = run(score, lengths, topk, plan), expected(score, lengths, topk)
    wrong = [name for name, g, w in zip(rows, got, want, strict=True) if not torch.equal(g, w)]
    assert not wrong


def test_page_tables() -> None:
    lengths = [5, 40, 300, 0, 129]
    score = normal(5, 300, 4)
    storage = torch.randint(0, 10_000, (6, 310), dtype=torch.int32)
    cases = [
        (storage[:5, :300], torch.arange(6, dtype=torch.int32)),  # decode: row i uses table i
        (storage[::3, :300], torch.tensor([0, 2, 5], dtype=torch.int32)),
        (storage[::2, :250], torch.tensor([0, 0, 5, 5], dtype=torch.int32)),  # empty, too narrow
    ]
    for table, cu in cases:
        got = run(score, lengths, 32, split(3), transform=Transform(api.PAGED, table, cu))
        lens = torch.tensor(lengths, dtype=torch.int32)
        want = reference.fast_topk_transform_fused(score, lens, table, cu, 32)
        assert torch.equal(got, want)


def test_ragged_offsets() -> None:
    lengths, starts = [5, 40, 200], [3, 100, 90]
    score = normal(3, 300, 6)
    offset = torch.tensor([1000, 0, 77], dtype=torch.int32)
    got = run(score, lengths, 32, split(2), starts, Transform(api.RAGGED, offset=offset))
    want = reference.fast_topk_transform_ragged_fused(
        score, torch.tensor(lengths, dtype=torch.int32), offset, 32,
        torch.tensor(starts, dtype=torch.int32),
    )  # fmt: skip
    assert torch.equal(got, want)


def test_lengths_that_lie_do_not_read_outside() -> None:
    score = normal(3, 200, 7)
    lengths, starts = [1 << 30, -5, 190], [0, 0, 150]
    got = run(score, lengths, 32, split(2), starts)
    assert torch.equal(got, expected(score, lengths, 32, starts))


def test_rows_are_taken_in_batches_that_fit_the_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "SCRATCH_BYTES", 2 * 8 * 128 * 3)
    lengths, starts = [200, 140, 20, 199, 180], [0, 3, 0, 1, 20]
    score = normal(5, 200, 8)
    got = run(score, lengths, 32, split(2), starts)
    assert torch.equal(got, expected(score, lengths, 32, starts))


def test_identity_reads_no_score() -> None:
    """Dummy logits narrower than the rows: their scores are not there to be read."""
    score = torch.full((2, 8), float("nan"))
    got = run(score, [20, 32], 32, split(0))
    assert got[0].tolist() == [*range(20), *[-1] * 12]
    assert got[1].tolist() == list(range(32))
