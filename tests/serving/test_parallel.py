"""Several GPUs: TP=2, data-parallel attention, PP=2 with a second stage that starts on a full layer, and on a
shared one, and drafts on two stages.

Against one GPU: the same prompts must be answered no further from the witness. A stage that starts on a
shared layer must be handed the keys that the stage before selected, or the server must refuse to start
with an error that names the partition. Real NCCL, CUDA graphs on.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tests.serving.support import (
    comparison,
    engines,
    metrics,
    recall_model,
    short,
    speculation,
    tiny_model,
)
from tests.serving.support.engines import Job, Served
from tests.serving.support.flavours import FLAVOURS, MAIN
from tests.serving.support.short import Runs

PARTITION: Final = "SGLANG_PP_LAYER_PARTITION"
REFUSAL: Final = re.compile(r"(Error|error|refus).*(partition|PARTITION|pipeline|stage|index)")


@dataclass(frozen=True)
class Layout:
    """How the layers and heads lie on GPUs. ``partition`` counts the layers of each stage."""

    name: str
    sizes: dict[str, Any]
    partition: tuple[int, ...] = ()

    def environment(self) -> dict[str, str]:
        found = {"SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "0"}  # another engine may run meanwhile
        if self.partition:
            found[PARTITION] = ",".join(map(str, self.partition))
        return found


LAYOUTS: Final = (
    Layout("one", {}),
    Layout("tp2", {"tp_size": 2}),
    Layout("dp2", {"tp_size": 2, "dp_size": 2, "enable_dp_attention": True}),
    Layout("pp2-full", {"pp_size": 2}, (6, 2)),
    Layout("pp2-shared", {"pp_size": 2}, (4, 4)),
)
SEVERAL: Final = [layout.name for layout in LAYOUTS if layout.sizes]
STAGES: Final = Layout("pp2", {"pp_size": 2}, (recall_model.COPYING, 8 - recall_model.COPYING))
"""The layer that copies the answer begins the second stage; the first one selects its keys."""
CROWD: Final = 8
"""Prompts at once for two stages with drafts: as many as run at once. A crowd of 33 needs over a minute."""


def jobs(model: Path) -> list[Job]:
    fork = FLAVOURS["fork"]
    return [
        Job(
            layout.name,
            fork,
            engines.arguments(fork, model, **engines.PARALLEL, **layout.sizes),
            short.steps(),
            layout.environment(),
        )
        for layout in LAYOUTS
    ]


def drafting_jobs(model: Path) -> list[Job]:
    """Two stages with drafts, each of MAIN."""
    return [
        Job(
            f"{name}-eagle",
            FLAVOURS[name],
            engines.arguments(
                FLAVOURS[name], model, **engines.PARALLEL, **STAGES.sizes, **speculation.EAGLE
            ),
            speculation.steps(crowds=[CROWD]),
            {**STAGES.environment(), "SGLANG_ENABLE_PP_SPEC": "1"},
        )
        for name in MAIN
    ]


def need_two_gpus() -> None:
    import torch

    if (count := torch.cuda.device_count()) < 2:
        pytest.skip(f"{count} GPU: tensor and pipeline parallel need 2")
    if missing := engines.missing_sites():
        pytest.skip(missing)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    need_two_gpus()
    folder = tmp_path_factory.mktemp("parallel")
    model = engines.make_model(folder / "model", "--heads", "16")
    return short.run(jobs(model), model, folder, "parallel", at_once=2)


@pytest.fixture(scope="module")
def drafting(tmp_path_factory: pytest.TempPathFactory) -> speculation.Runs:
    need_two_gpus()
    folder = tmp_path_factory.mktemp("drafting")
    model = recall_model.write(folder / "model", recall_model.spec(heads=16))
    return speculation.Runs(engines.serve(drafting_jobs(model), folder, "drafting"))


def refused(served: Served) -> str:
    """The line by which a server that did not start says why it would not, or nothing."""
    if served.code == 0 or served.answers:
        return ""
    log = (served.folder / "log.txt").read_text(errors="replace").splitlines()
    return next((line for line in log if REFUSAL.search(line)), "")


def carried(runs: Runs, layout: str) -> Served:
    """The layout's run. Skips if the server refused the layout, because a refusal is not a wrong answer."""
    served = runs.served[layout]
    if layout == "pp2-shared" and (why := refused(served)):
        pytest.skip(f"refused: {why}")
    assert not served.problems(), served.why()
    return served


@pytest.mark.gpu
def test_one_gpu_answers(runs: Runs) -> None:
    assert not runs.served["one"].problems(), runs.served["one"].why()


@pytest.mark.gpu
@pytest.mark.parametrize("layout", SEVERAL)
def test_no_further_from_the_witness_than_one_gpu(runs: Runs, layout: str) -> None:
    carried(runs, layout)
    assert not runs.further(layout, "one")


@pytest.mark.gpu
@pytest.mark.parametrize("layout", SEVERAL)
def test_a_crowd_is_answered_as_its_prompts_are_alone(runs: Runs, layout: str) -> None:
    carried(runs, layout)
    assert len(runs.alike(layout)) >= 3
    assert not runs.crowd_further(layout, "one")


@pytest.mark.gpu
def test_the_figures(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    engines.show_figures(runs.report("layout"), "parallel", capsys)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MAIN)
def test_two_stages_with_drafts_answer_right_to_the_word(
    drafting: speculation.Runs, name: str
) -> None:
    served = drafting.served[f"{name}-eagle"]
    assert not served.problems(), served.why()
    assert served.result["resolved"]["speculative_algorithm"] == "EAGLE"
    assert served.result["resolved"]["pp_size"] == 2
    assert not drafting.wrong(f"{name}-eagle")


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in MAIN if name != "stock"])
def test_two_stages_accept_as_many_drafts_as_stock(drafting: speculation.Runs, name: str) -> None:
    ours, stock = (drafting.mean_accepted(one) for one in (name, "stock"))
    assert stock > 1.5
    assert abs(ours - stock) <= speculation.NOISE


@pytest.mark.gpu
def test_the_figures_of_two_stages(
    drafting: speculation.Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        [name, length, drafting.accepted(name, length)]
        for name in MAIN
        if not drafting.served[f"{name}-eagle"].problems()
        for length in speculation.LENGTHS
    ]
    tables = [
        metrics.table(["flavour", "prompt", "tokens a step"], rows),
        drafting.report_answers(),
    ]
    engines.show_figures("\n".join(tables), "drafting", capsys)


# -- the parts, anywhere --------------------------------------------------------------------------


def test_the_partitions_start_where_their_names_say(tmp_path: Path) -> None:
    """The layouts fit the configuration of the model that is served."""
    (tmp_path / "config.json").write_text(json.dumps(tiny_model.config(tiny_model.Spec(heads=16))))
    kinds = json.loads((tmp_path / "config.json").read_text())["indexer_types"]
    starts = {}
    for layout in LAYOUTS:
        if layout.partition:
            assert sum(layout.partition) == len(kinds)
            starts[layout.name] = kinds[layout.partition[0]]
    assert starts == {"pp2-full": "full", "pp2-shared": "shared"}
    assert sum(STAGES.partition) == len(kinds)
    assert kinds[STAGES.partition[0]] == "shared"
    assert recall_model.INDEXED < STAGES.partition[0] == recall_model.COPYING


def test_each_layout_is_asked_for(tmp_path: Path) -> None:
    found = {job.name: (job.arguments, job.environ()) for job in jobs(tmp_path)}
    assert found["tp2"][0]["tp_size"] == 2 and PARTITION not in found["tp2"][1]
    assert found["pp2-full"][0]["pp_size"] == 2 and found["pp2-full"][1][PARTITION] == "6,2"
    assert found["pp2-shared"][1][PARTITION] == "4,4"
    assert not {"tp_size", "pp_size"} & set(found["one"][0])
    assert found["dp2"][0]["enable_dp_attention"] and found["dp2"][0]["dp_size"] == 2
    for job in drafting_jobs(tmp_path):
        assert job.arguments["speculative_algorithm"] == "EAGLE" and job.arguments["pp_size"] == 2
        assert (job.environ()[PARTITION], job.environ()["SGLANG_ENABLE_PP_SPEC"]) == ("3,5", "1")


@pytest.mark.parametrize(
    ("log", "code", "found"),
    [
        ("ValueError: the partition 4,4 starts stage 1 on shared layer 4: set 6,2", 1, True),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", 1, False),
        ("ValueError: the partition 4,4 starts stage 1 on shared layer 4: set 6,2", 0, False),
    ],
)
def test_only_a_clear_error_is_a_refusal(tmp_path: Path, log: str, code: int, found: bool) -> None:
    (tmp_path / "log.txt").write_text(f"loading\n{log}\nbye\n")
    served = Served(Job("pp2-shared", FLAVOURS["fork"], {}, []), tmp_path, code, 1.0)
    assert bool(refused(served)) == found


def test_a_wrong_key_set_would_show() -> None:
    """A logprob that is off by a nat on one token in ten is further away than any slack allows."""
    witness = np.zeros(500)
    near, wrong = witness + 0.02, witness + np.where(np.arange(500) % 10, 0.02, 1.0)
    one, other = comparison.Logprobs(near, witness), comparison.Logprobs(wrong, witness)
    assert not metrics.no_further(one.distance, one.distance)
    assert len(metrics.no_further(other.distance, one.distance)) == 2
