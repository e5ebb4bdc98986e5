"""Stock against fork, end to end: the same weights, prompts and seeds, and a witness for both.

Each flavour's engine starts with CUDA graphs; those of MAIN also without them, to record the selected keys.
``ADA_GPU_JOBS`` engines run at a time (default 3). The tables go to stdout and, with the results, to the
folder ``ADA_GPU_OUT`` names, if it is set.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving.support import comparison, engines, metrics, prompts
from tests.serving.support.engines import Job, Served, Witness
from tests.serving.support.flavours import FLAVOURS, MAIN

FORKS = [name for name, flavour in FLAVOURS.items() if flavour.site == "fork"]
GROUPS = ["prompts up to 2048", "prompts past 2048", "generated up to 2048", "generated past 2048"]
SELECTING = [name for name in MAIN if name in FORKS]
SCENARIOS = ["crowd-2", "crowd-8", "crowd-33", "crowd-64", "prefix", "eager"]
HEADS = 16
SAME_KEYS = 0.98
"""Of the keys of the first layer: both flavours see the same q and k there, to the bit, and differ by
the order in which products are summed. Keys at the threshold may change places."""

pytestmark = pytest.mark.gpu


@dataclass(frozen=True)
class Runs:
    """Everything the engines and the witness said."""

    model: Path
    served: dict[str, Served]
    witness: Witness

    def singles(self, flavour: str) -> dict[int, dict[str, Any]]:
        served = self.served[flavour]
        return {length: served.answer(f"single-{length}") for length in prompts.SINGLES}

    def away(self, flavour: str) -> dict[str, comparison.Logprobs]:
        return comparison.against_witness(self.singles(flavour), self.witness.exact)

    def keys(self, flavour: str) -> dict[int, np.ndarray]:
        rows, keys = self.served[f"{flavour}-eager"].keys(f"selected-{prompts.SELECTED}")
        return comparison.keys_by_layer(rows, keys, prompts.SELECTED)


def jobs(model: Path) -> list[Job]:
    config = json.loads((model / "config.json").read_text())
    eager = engines.eager_steps(config["num_hidden_layers"], config["index_topk"])
    found = []
    for name, flavour in FLAVOURS.items():
        given = engines.arguments(flavour, twin(model) if flavour.bf16 else model)
        found.append(Job(name, flavour, given, engines.graph_steps()))
        if name not in MAIN:
            continue
        without = {**given, **engines.EAGER}
        found.append(Job(f"{name}-eager", flavour, without, eager, engines.SEPARATE_TOPK))
    return found


def twin(model: Path) -> Path:
    """The folder with the same weights in bf16."""
    return model.with_name(f"{model.name}-bf16")


def scenarios(flavour: str) -> list[str]:
    return [one for one in SCENARIOS if one != "eager" or flavour in MAIN]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    if missing := engines.missing_sites():
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("serve")
    model = engines.make_model(folder / "model", "--heads", str(HEADS))
    engines.make_model(twin(model), "--heads", str(HEADS), "--bf16")
    served = engines.serve(jobs(model), folder, "serve")
    witness = engines.witness_of(model, sequences(served), folder / "witness", selecting="selected")
    return Runs(model, served, witness)


def sequences(served: dict[str, Served]) -> dict[str, list[int]]:
    """What the witness must see: every single prompt with what each flavour generated after it."""
    found = {"selected": prompts.single(prompts.SELECTED)}
    for name in FLAVOURS:
        for length in prompts.SINGLES:
            for answer in served[name].answers.get(f"single-{length}", []):
                tokens = comparison.sequence(prompts.single(length), answer)
                found[comparison.name_of(tokens)] = tokens
    return found


@pytest.mark.parametrize("job", [*FLAVOURS, *(f"{name}-eager" for name in MAIN)])
def test_every_request_is_answered(runs: Runs, job: str) -> None:
    assert not runs.served[job].problems(), runs.served[job].why()


@pytest.mark.parametrize("name", list(FLAVOURS))
def test_each_flavour_is_served_as_meant(runs: Runs, name: str) -> None:
    resolved = runs.served[name].result["resolved"]
    backend = "flashmla_kv" if name == "stock" else "ada_dsa"
    expected = FLAVOURS[name].arguments.get("kv_cache_dtype", "fp8_e4m3")
    assert resolved["kv_cache_dtype"] == expected
    assert resolved["dsa_prefill_backend"] == resolved["dsa_decode_backend"] == backend


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("fork", FORKS)
def test_no_further_from_the_witness_than_stock(runs: Runs, fork: str, group: str) -> None:
    ours, theirs = (runs.away(name)[group].distance for name in (fork, "stock"))
    assert not metrics.no_further(ours, theirs)


@pytest.mark.parametrize("fork", FORKS)
def test_greedy_answers_part_only_where_two_tokens_are_as_good(runs: Runs, fork: str) -> None:
    """Two tokens count as equally good if their gap is within twice stock's own distance from the witness."""
    stock = runs.away("stock")
    off = 2 * max(stock[group].distance.p99 for group in GROUPS)
    ours, theirs = runs.singles(fork), runs.singles("stock")
    partings = {
        length: comparison.parting(theirs[length], ours[length]) for length in prompts.SINGLES
    }
    wrong = {length: one for length, one in partings.items() if one.gap > off}
    assert not wrong, f"stock is off by {off / 2:.3f} nats at most: {wrong}"


@pytest.mark.parametrize(
    ("fork", "scenario"), [(fork, scenario) for fork in FORKS for scenario in scenarios(fork)]
)
def test_a_prompt_is_answered_alike_however_it_is_served(
    runs: Runs, fork: str, scenario: str
) -> None:
    """In a crowd, from the prefix cache, without graphs: no further from being served alone than stock is.

    Rounding is allowed: stock may answer bit for bit the same where its products keep their order.
    """
    ours, theirs = (comparison.tails_apart(alike(runs, name, scenario)) for name in (fork, "stock"))
    assert not metrics.no_further_than_either(ours, theirs, runs.witness.rounding)


def alike(runs: Runs, flavour: str, scenario: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of answers to the same prompts: served in the scenario, and served alone."""
    if scenario == "prefix":
        pairs = {prompts.PREFIXED: runs.served[flavour].answer("prefix-hit")}
    elif scenario == "eager":
        served = runs.served[f"{flavour}-eager"]
        pairs = {length: served.answer(f"single-{length}") for length in prompts.EAGER}
    else:
        crowd = prompts.crowd(int(scenario.removeprefix("crowd-")))
        pairs = {
            len(prompt): runs.served[flavour].answer(scenario, index)
            for index, prompt in enumerate(crowd)
            if prompt == prompts.single(len(prompt))
        }
    alone = runs.singles(flavour)
    return [(answer, alone[length]) for length, answer in pairs.items()]


@pytest.mark.parametrize("name", list(FLAVOURS))
def test_the_prefix_comes_from_the_cache(runs: Runs, name: str) -> None:
    assert runs.served[name].answer("prefix-hit")["cached"] >= prompts.PREFIXED - 1000 - 64
    assert runs.served[name].answer(f"single-{prompts.PREFIXED}")["cached"] == 0


@pytest.mark.parametrize("fork", SELECTING)
def test_the_first_layer_selects_the_keys_that_stock_selects(runs: Runs, fork: str) -> None:
    found = comparison.keys_apart(runs.keys(fork), runs.keys("stock"))
    assert found[0].intersection >= SAME_KEYS, found


@pytest.mark.parametrize("fork", SELECTING)
def test_each_layer_selects_as_the_witness_does_no_worse_than_stock(runs: Runs, fork: str) -> None:
    rows, _ = runs.served[f"{fork}-eager"].keys(f"selected-{prompts.SELECTED}")
    own = {layer: keys[rows[rows < prompts.SELECTED]] for layer, keys in runs.witness.keys.items()}
    ours, theirs = (comparison.keys_apart(runs.keys(name), own) for name in (fork, "stock"))
    worse = {
        layer: (ours[layer].intersection, theirs[layer].intersection)
        for layer in ours
        if ours[layer].intersection < theirs[layer].intersection - 0.01
    }
    assert ours and not worse


@pytest.mark.parametrize("name", MAIN)
def test_shared_layers_use_the_keys_of_the_full_layer_before(runs: Runs, name: str) -> None:
    types = json.loads((runs.model / "config.json").read_text())["indexer_types"]
    keys = runs.keys(name)
    shared = [layer for layer, kind in enumerate(types) if kind == "shared"]
    assert shared
    for layer in shared:
        assert np.array_equal(keys[layer], keys[layer - 1]), f"layer {layer}"


def test_the_figures(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    """Write the tables. Fails only if a figure cannot be computed."""
    engines.show_figures(report(runs), "serve", capsys)


def report(runs: Runs) -> str:
    """The figures as Markdown, of the flavours that answered."""
    told = [name for name in FLAVOURS if not runs.served[name].problems()]
    keyed = [name for name in MAIN if not runs.served[f"{name}-eager"].problems()]
    witness = []
    for name in told:
        for group, logprobs in runs.away(name).items():
            d = logprobs.distance
            witness.append([name, group, d.tokens, d.mean, d.p99, d.max])
    witness.append(["bf16 witness", "all tokens", *asdict(runs.witness.rounding).values()])
    against, greedy = [], []
    for name in FORKS if "stock" in told else []:
        ours, stock = (runs.singles(one) if one in told else {} for one in (name, "stock"))
        for length in ours:
            d = comparison.tails_apart([(ours[length], stock[length])])
            against.append([name, length, d.tokens, d.mean, d.p99, d.max])
            found = comparison.parting(stock[length], ours[length])
            same = f"{found.agreement.length}/{found.agreement.compared}"
            greedy.append([name, length, same, found.gap])
    layers = [
        [name, layer, one.rows, one.intersection, one.worst]
        for name in FORKS
        if {name, "stock"} <= set(keyed)
        for layer, one in comparison.keys_apart(runs.keys(name), runs.keys("stock")).items()
    ]
    # The effect of another order of summing on one flavour, to compare the other tables with.
    itself = [
        [name, scenario, *asdict(comparison.tails_apart(alike(runs, name, scenario))).values()]
        for name in told
        for scenario in scenarios(name)
        if scenario != "eager" or name in keyed
    ]
    starts = [
        [
            name,
            one.result.get("start_seconds", -1.0),
            one.seconds,
            "; ".join(one.problems()) or "all",
        ]
        for name, one in runs.served.items()
    ]
    nats = ["tokens", "mean", "p99", "max"]
    by_prompt = ["flavour", "prompt", *nats]
    parts = [
        ("Distance from the fp32 witness, nats", ["flavour", "tokens of", *nats], witness),
        ("Distance from stock, last tokens of each prompt, nats", by_prompt, against),
        (
            "Distance from itself, the same prompts served alone, nats",
            ["flavour", "served", *nats],
            itself,
        ),
        ("Greedy agreement with stock", ["flavour", "prompt", "tokens", "gap"], greedy),
        (
            "Selected keys also selected by stock",
            ["flavour", "layer", "rows", "mean", "worst"],
            layers,
        ),
        ("Engines", ["engine", "start s", "all s", "answered"], starts),
    ]
    return "\n".join(f"### {title}\n\n{metrics.table(head, rows)}" for title, head, rows in parts)
