"""The sweep's inputs, launches and oracles together, on CPU tensors in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from bench.kernels import candidates, operations, sparse_mla, sweep, timing
from bench.kernels.candidates import LOWERED, NATIVE, Group
from bench.kernels.sweep import TABLE, Trial

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
BARS = {NATIVE: 1.0, LOWERED: 1.0}


@pytest.fixture(autouse=True)
def _no_gpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(operations, "DEVICE", "cpu")
    monkeypatch.setattr(operations, "PREFILL_SLOTS", 4096)
    monkeypatch.setattr(sparse_mla, "TOPK", 96)
    monkeypatch.setattr(sweep, "_sms", lambda: 4)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=1 << 16)
    )
    for op in operations.OPS.values():
        monkeypatch.setattr(op, "peers", lambda *_: {}, raising=False)

    def called_once(ways: dict[str, Callable[[], object]], _: float) -> tuple[dict, dict]:
        for work in ways.values():
            work()
        return dict.fromkeys(ways, 1.0), {}

    monkeypatch.setattr(timing, "measure", called_once)
    yield


@pytest.mark.parametrize(
    ("op", "shape", "tried"),
    [
        ("mla", "S=2 H=8", candidates._MLA_8[:1]),
        ("mla", "S=2 H=16", candidates._MLA_16[:1]),
        ("paged", "B=2 ctx=256", candidates._PAGED_32[1:2]),
        ("ragged", "40x300 H=32", (candidates._RAGGED_32[-3], candidates._RAGGED_32[-1])),
        ("topk", "1x8192", candidates._DIRECT[:1]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_candidates_equal_the_oracle(
    op: str, shape: str, tried: tuple[candidates.Candidate, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group(op, (shape,), BARS, tried)
    monkeypatch.setattr(sweep, "GROUPS", (group,))
    ready = {Trial(0, shape, way): "" for way in (TABLE, *(one.name for one in tried))}
    timed = sweep.time_shape(0, shape, ready, LOWERED)
    assert not timed.left_out
    assert set(timed.us) == {TABLE, *(one.name for one in tried)}


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, tried = "B=2 ctx=256", candidates._PAGED_32[1:2]
    monkeypatch.setattr(sweep, "GROUPS", (Group("paged", (shape,), BARS, tried),))
    monkeypatch.setattr(operations.Paged, "error", lambda *_: 0.1)
    ready = {Trial(0, shape, TABLE): "", Trial(0, shape, tried[0].name): "RuntimeError: gone"}
    timed = sweep.time_shape(0, shape, ready, LOWERED)
    assert not timed.us
    assert timed.left_out[tried[0].name] == "RuntimeError: gone"
    assert timed.left_out[TABLE].startswith("wrong: differs from the oracle")
