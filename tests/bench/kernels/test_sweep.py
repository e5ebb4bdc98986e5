"""The sweep's order, outcomes, checks and workers, without a GPU."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from bench.kernels import operations, sweep
from bench.kernels.candidates import BOTH, GROUPS, LOWERED, NATIVE, Candidate, Group
from bench.kernels.sweep import PEERS, TABLE, Timed


def test_the_most_valuable_shapes_come_first() -> None:
    order = list(dict.fromkeys((t.group, t.shape) for t in sweep.trials(NATIVE, "")))
    first = [(number, group.shapes[0]) for number, group in enumerate(GROUPS)]
    assert order[: len(first)] == first
    assert len(order) == sum(len(group.shapes) for group in GROUPS)
    of_shape = [t.way for t in sweep.trials(LOWERED, "B=64 H=8") if t.shape == "B=64 H=8"]
    assert of_shape[:2] == [TABLE, PEERS]
    assert len(of_shape) == 2 + len(GROUPS[0].tried(LOWERED))


def test_verdicts_compare_the_best_with_the_fastest_peer() -> None:
    us = {TABLE: 10.0, "a": 8.0, "b": 9.0}
    timed = Timed("mla", "B=1 H=8", us, {"X": 10.0, "Y": 16.0}, {}, 0.8)
    assert timed.best == "a"
    assert timed.line() == "mla B=1 H=8: table 10.0, best a 8.0 (0.80), X 10.0: 0.80, bar 0.8 met"
    slower = Timed("mla", "B=1 H=8", {TABLE: 10.0}, {"X": 10.0}, {}, 0.8)
    assert slower.line().endswith("X 10.0: 1.00, bar 0.8 missed")
    failed = Timed("mla", "B=1 H=8", {"a": 1.0}, {}, {TABLE: "wrong: differs"}, 0.8)
    assert failed.line().endswith("failed: wrong: differs")


def test_the_check_names_what_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate squeezed into 40 registers spills; one that is known to is let through."""
    squeezed = {"BLOCK_H": 8, "BLOCK_N": 16, "SWAP": 1, "MAXNREG": 40}
    tried = (
        Candidate("squeezed", 8, 1, 1, squeezed, "spills"),
        Candidate("known", 8, 1, 1, squeezed, "spills, and says so", spills=BOTH),
    )
    group = Group("mla", ("B=1 H=8",), {NATIVE: 1.0, LOWERED: 1.0}, tried)
    monkeypatch.setattr(sweep, "GROUPS", (group,))
    (row,) = sweep.check_candidate(LOWERED, 0, "squeezed", group.shapes)
    assert row["registers"] == 40 and str(row["wrong"]).endswith("spills")
    (row,) = sweep.check_candidate(LOWERED, 0, "known", group.shapes)
    assert row["spills"] and not row["wrong"]


def test_workers_report_what_they_launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares are disjoint and cover all; an error is a line, not the end."""

    def fail(*_: object, **__: object) -> object:
        raise RuntimeError("no memory\nsecond line")

    monkeypatch.setattr(sweep, "target_arch", lambda: NATIVE)
    monkeypatch.setattr(sweep, "_sms", lambda: 132)
    monkeypatch.setattr(operations.TopK, "work", fail)
    seen = []
    for part in range(3):
        out = tmp_path / str(part)
        assert sweep.compile_share(part, 3, "topk 1x8192", out) == 0
        seen += [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["error"] for row in seen} == {"RuntimeError: no memory"}
    wanted = {t.way for t in sweep.trials(NATIVE, "topk 1x8192")}
    assert sorted(row["way"] for row in seen) == sorted(wanted)


@pytest.mark.skipif(torch.cuda.is_available(), reason="would compile on the GPU")
def test_workers_that_cannot_start_leave_nothing_ready() -> None:
    """Without a GPU every worker says so and ends; nobody waits for the deadline."""
    begin = time.monotonic()
    assert sweep.compile_all(1, "", begin + 120) == {}
    assert time.monotonic() - begin < 100
