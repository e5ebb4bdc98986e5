"""Several GPUs: TP=2, and PP=2 with a second stage that starts on a full layer, and on a shared one.

Against one GPU: the same prompts must be answered no further from the witness. A stage that starts on a
shared layer must be handed the keys that the stage before selected, or the server must refuse to start
with an error that names the partition. Real NCCL, CUDA graphs on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tests.serving.support import comparison, engines, metrics, prompts
from tests.serving.support.engines import Job, Served
from tests.serving.support.flavours import FLAVOURS

LENGTHS: Final = (64, 2049, 3000, 6000)
PARTITION: Final = "SGLANG_PP_LAYER_PARTITION"
REFUSAL: Final = re.compile(r"(Error|error|refus).*(partition|PARTITION|pipeline|stage|index)")


@dataclass(frozen=True)
class Layout:
    """How the layers and heads lie on GPUs. ``partition`` counts the layers of each stage."""

    name: str
    sizes: dict[str, int]
    partition: tuple[int, ...] = ()

    def environment(self) -> dict[str, str]:
        found = {"SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "0"}  # another engine may run meanwhile
        if self.partition:
            found[PARTITION] = ",".join(map(str, self.partition))
        return found


LAYOUTS: Final = (
    Layout("one", {}),
    Layout("tp2", {"tp_size": 2}),
    Layout("pp2-full", {"pp_size": 2}, (6, 2)),
    Layout("pp2-shared", {"pp_size": 2}, (4, 4)),
)
SEVERAL: Final = [layout.name for layout in LAYOUTS if layout.sizes]


def jobs(model: Path) -> list[Job]:
    steps = [
        engines.warm_up(),
        *engines.single_steps(LENGTHS),
        engines.Step("crowd", prompts.crowd(8), new_tokens=16),
    ]
    fork = FLAVOURS["fork"]
    return [
        Job(
            layout.name,
            fork,
            engines.arguments(fork, model, **engines.PARALLEL, **layout.sizes),
            steps,
            layout.environment(),
        )
        for layout in LAYOUTS
    ]


@dataclass(frozen=True)
class Runs:
    served: Mapping[str, Served]
    witness: engines.Witness

    def answers(self, layout: str) -> dict[int, dict[str, Any]]:
        return {n: self.served[layout].answer(f"single-{n}") for n in LENGTHS}

    def away(self, layout: str) -> dict[str, comparison.Logprobs]:
        return comparison.against_witness(self.answers(layout), self.witness.exact)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    import torch

    if (count := torch.cuda.device_count()) < 2:
        pytest.skip(f"{count} GPU: tensor and pipeline parallel need 2")
    if missing := engines.missing_sites():
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("parallel")
    model = engines.make_model(folder / "model", "--heads", "16")
    served = engines.serve(jobs(model), folder, "parallel", at_once=2)
    seen = sequences(served.values())
    return Runs(served, engines.witness_of(model, seen, folder / "witness"))


def sequences(served: Iterable[Served]) -> dict[str, list[int]]:
    """What the witness must see."""
    seen = {}
    for one in served:
        for length in LENGTHS:
            for answer in one.answers.get(f"single-{length}", []):
                tokens = comparison.sequence(prompts.single(length), answer)
                seen[comparison.name_of(tokens)] = tokens
    return seen


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
    ours, one = runs.away(layout), runs.away("one")
    found = {
        group: why
        for group in one
        if (why := metrics.no_further(ours[group].distance, one[group].distance))
    }
    assert not found


@pytest.mark.gpu
@pytest.mark.parametrize("layout", SEVERAL)
def test_a_crowd_is_answered_as_its_prompts_are_alone(runs: Runs, layout: str) -> None:
    apart_by = {}
    for name in ("one", layout):
        served = carried(runs, name)
        pairs = [
            (served.answer("crowd", index), served.answer(f"single-{len(prompt)}"))
            for index, prompt in enumerate(prompts.crowd(8))
            if len(prompt) in LENGTHS and prompt == prompts.single(len(prompt))
        ]
        assert len(pairs) >= 3
        apart_by[name] = comparison.tails_apart(pairs)
    slack = runs.witness.rounding.mean
    assert not metrics.no_further(apart_by[layout], apart_by["one"], slack=slack)


@pytest.mark.gpu
def test_the_figures(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    engines.show_figures(report(runs), "parallel", capsys)


def report(runs: Runs) -> str:
    rows = [
        [name, group, *asdict(logprobs.distance).values()]
        for name in ("one", *SEVERAL)
        if not runs.served[name].problems()
        for group, logprobs in runs.away(name).items()
    ]
    return metrics.table(["layout", "tokens of", "tokens", "mean", "p99", "max"], rows)


# -- the parts, anywhere --------------------------------------------------------------------------


def test_the_partitions_start_where_their_names_say(tmp_path: Path) -> None:
    """The layouts fit the configuration of the model that is served."""
    from tests.serving.support import tiny_model

    (tmp_path / "config.json").write_text(json.dumps(tiny_model.config(tiny_model.Spec(heads=16))))
    kinds = json.loads((tmp_path / "config.json").read_text())["indexer_types"]
    starts = {}
    for layout in LAYOUTS:
        if layout.partition:
            assert sum(layout.partition) == len(kinds)
            starts[layout.name] = kinds[layout.partition[0]]
    assert starts == {"pp2-full": "full", "pp2-shared": "shared"}


def test_each_layout_is_asked_for(tmp_path: Path) -> None:
    found = {job.name: (job.arguments, job.environ()) for job in jobs(tmp_path)}
    assert found["tp2"][0]["tp_size"] == 2 and PARTITION not in found["tp2"][1]
    assert found["pp2-full"][0]["pp_size"] == 2 and found["pp2-full"][1][PARTITION] == "6,2"
    assert found["pp2-shared"][1][PARTITION] == "4,4"
    assert not {"tp_size", "pp_size"} & set(found["one"][0])


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
