"""The sweep's candidates, order and verdicts, and the layer benchmark's chain, without a GPU."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))

import candidates
import layer
import sweep
import topk
import trials
from candidates import BOTH, GROUPS, LOWERED, NATIVE, Candidate, Group
from sweep import PEERS, TABLE, Timed, Trial
from trials import OPS

from ada_dsa.topk.plan import plan_launch


@pytest.mark.parametrize("arch", BOTH)
@pytest.mark.parametrize("number", range(len(GROUPS)))
def test_every_candidate_launches_on_every_shape(number: int, arch: int) -> None:
    """On meta tensors, where launches are recorded: what is compiled is what would be launched."""
    group = GROUPS[number]
    op = OPS[group.op]
    for candidate in group.tried(arch):
        if "backend" in candidate.knobs:
            continue
        for shape in group.shapes:
            with trials.recording() as launches:
                op.call(op.meta(shape), candidate, arch, 132)()
            main = launches[-1] if group.op == "topk" else launches[0]
            assert main.options["num_warps"] == candidate.warps
            taken = {name.lower(): value for name, value in main.args.items()} | main.options
            for name, value in candidate.params.items():
                if value and name not in ("MAXNREG", "SWAP"):
                    assert taken[name.lower()] == value, f"{candidate.name}: {name} was not used"


def test_the_table_takes_part_as_it_is() -> None:
    from ada_dsa import configs

    op = OPS["mla"]
    with trials.recording() as launches:
        op.call(op.meta("B=64 H=8"), None, 89, 132)()
    row = configs.pick("sparse_mla", 89, heads=8, layout=0)
    assert launches[0].args["BLOCK_N"] == row.params["BLOCK_N"]
    assert launches[0].options["num_warps"] == row.num_warps


def test_names_are_unique_and_predictions_are_made() -> None:
    for group in GROUPS:
        names = [candidate.name for candidate in group.candidates]
        assert len(set(names)) == len(names) and not {TABLE, PEERS} & set(names)
        assert all(candidate.predicted for candidate in group.candidates)
        for shape in group.shapes:
            assert all(group.bar(shape, arch) > 0 for arch in BOTH)
    bars = [group.bar(s, NATIVE) for group in GROUPS for s in group.shapes if s == "1x131072"]
    assert bars == [0.3]


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


def test_results_that_differ_from_the_oracle_are_wrong() -> None:
    nan = float(trials._relative(torch.tensor([float("nan")]), torch.ones(1)))
    assert trials.wrong("mla", nan) and trials.wrong("topk", 1.0)
    assert not trials.wrong("mla", 3e-3) and not trials.wrong("topk", 0.0)


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
    import json

    def fail(*_: object, **__: object) -> object:
        raise RuntimeError("no memory\nsecond line")

    monkeypatch.setattr(sweep, "_arch", lambda: NATIVE)
    monkeypatch.setattr(sweep, "_sms", lambda: 132)
    monkeypatch.setattr(trials.TopK, "work", fail)
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


def test_topk_launches_the_configurations_it_is_given() -> None:
    shape = "32x32768"
    op = OPS["topk"]
    trial = Trial(next(n for n, g in enumerate(GROUPS) if shape in g.shapes), shape, "thin 255")
    with trials.recording() as launches:
        op.call(op.meta(shape), trial.candidate(), NATIVE, 132)()
    thin = next(one for one in launches if one.kernel.__name__ == "prefilter_rows_kernel")
    assert thin.options["maxnreg"] == 255
    with trials.recording() as launches:
        op.call(op.meta(shape), None, NATIVE, 132)()
    thin = next(one for one in launches if one.kernel.__name__ == "prefilter_rows_kernel")
    assert thin.options["maxnreg"] == 168


def test_the_layer_step_attends_to_the_slots_its_indexer_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU: slots are page times 64 plus the place in the page, of the same rotation's pages."""
    from ada_dsa.indexer import reference

    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=1 << 16)
    )
    step = layer.make_step(2, 4096, torch.device("cpu"))
    assert len(step.tables) == len(step.paged.tables) >= 2
    work = step.paged
    for turn in (0, 1):
        logits = reference.fp8_paged_mqa_logits(
            work.q, work.pool, work.weights, work.lens, work.tables[turn], work.width
        )
        chosen = logits.topk(topk.TOPK, dim=1).indices
        pages = work.tables[turn].gather(1, (chosen // 64)).long()
        index = layer._select_ours(step, turn)
        assert torch.equal(
            index.sort(dim=1).values.long(), (pages * 64 + chosen % 64).sort(dim=1).values
        )
        assert int(index.max()) < step.rows.shape[0]
    out = layer._attend_ours(step, index)
    assert out.shape == (2, layer.HEADS, 512) and torch.isfinite(out.float()).all()

    def attend(chosen: torch.Tensor) -> torch.Tensor:
        return layer._attend_ours(step, chosen)

    layer._agree(step, (lambda turn: layer._select_ours(step, turn), attend))
    with pytest.raises(RuntimeError, match="share only"):
        layer._agree(step, (lambda _: layer._select_ours(step, 1), attend))


def test_absent_peers_are_named() -> None:
    import run

    missing = run.missing_peers()
    assert set(missing) <= {
        "DeepGEMM",
        "sgl-kernel",
        "flashinfer",
        "FlashMLA",
        "TileLang",
        layer.PEER,
    }
    assert all(missing.values())


def test_a_plan_without_splits_selects_directly() -> None:
    """What the direct candidates rely on: no split means that the row itself is selected from."""
    assert candidates._DIRECT[0].params["LARGE"] >= 8192
    with trials.recording() as launches:
        op = OPS["topk"]
        op.call(op.meta("1x8192"), candidates._DIRECT[0], NATIVE, 132)()
    assert [one.kernel.__name__ for one in launches] == ["select_rows_kernel"]
    assert (
        plan_launch(
            arch=NATIVE, num_sms=132, num_rows=1, width=8192, topk=topk.TOPK, padded=True
        ).splits
        > 0
    )
