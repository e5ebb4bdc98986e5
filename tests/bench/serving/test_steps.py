"""What times steps, and what starts it, without a GPU or a model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from bench.serving import steps


@pytest.mark.parametrize(
    ("script", "rows", "error"),
    [
        ("import json, sys; json.dump({'rows': [1]}, open(sys.argv[1], 'w'))", [1], None),
        ("raise SystemExit('broken')", [], "exit code 1\nbroken"),
        (
            "import json, sys, time; json.dump({'rows': [1]}, open(sys.argv[1], 'w'));"
            "print('late', flush=True); time.sleep(60)",
            [1],
            "over 2 s\nlate",
        ),
    ],
)
def test_a_child_that_ends_in_any_way_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, rows: list[int], error: str | None
) -> None:
    monkeypatch.setattr(steps, "LIMIT", 2.0)
    found = steps.run("one", [sys.executable, "-c", script], {}, tmp_path)
    assert found["rows"] == rows
    assert found.get("error") == error
    assert found["flavour"] == "one"


def test_every_point_fits_the_pool_that_is_asked_for() -> None:
    pool = steps.changes()["max_total_tokens"]
    assert pool >= max(steps.STREAMS) * (max(steps.CONTEXTS) + 64)
    assert steps.changes()["context_length"] > max(steps.CONTEXTS)


class SmallHarness:
    """Steps of 3 ms, of which the graph takes 2; it counts what it has run."""

    capacity = 10_000

    def __init__(self, graphs: int) -> None:
        self.graphs, self.ran = graphs, 0

    def clear(self) -> None:
        pass

    def streams(self, count: int, tokens: int, rows: list[torch.Tensor]) -> tuple[int, int]:
        return count, tokens

    def decode(self, batch: tuple[int, int], steps: int) -> tuple[list[float], list[float]]:
        self.ran += 1
        assert batch == (2, 2048 - steps)
        return [0.003] * steps, [0.002] * min(steps, self.graphs)


def test_a_step_has_its_times_or_the_reason_why_not() -> None:
    harness = SmallHarness(graphs=1000)
    timed = steps.decode(harness, 2, 2048, [])
    assert timed == {"ms": 3.0, "least_ms": 3.0, "most_ms": 3.0, "gpu_ms": 2.0}
    assert steps.decode(harness, 8, 2048, []) == {"reason": "the pool holds 10000 tokens"}
    assert harness.ran == 1
    without = steps.decode(SmallHarness(graphs=33), 2, 2048, [])
    assert without == {"reason": "2 steps ran without a CUDA graph"}


def test_the_spread_is_in_milliseconds() -> None:
    assert steps.spread([0.003, 0.001, 0.002]) == {"ms": 2.0, "least_ms": 1.0, "most_ms": 3.0}
