"""The tests of serving, tested without a GPU.

They run here over made-up answers, good ones and ones with a fault that each of them must find:
a mistake in a test should not cost minutes of a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving import test_flash as flash
from tests.serving import test_parallel as parallel
from tests.serving import test_serve as whole
from tests.serving.support import comparison, engine_runner, engines, prompts, short
from tests.serving.support.engines import Job, Served
from tests.serving.support.flavours import FLAVOURS, MAIN

# -- made-up answers ------------------------------------------------------------------------------

TRUTH = np.random.default_rng(0).normal(-6, 2, size=20_000)
"""What the witness says of a token, by its place in any sequence."""


def made_up(
    job: Job, folder: Path, noise: float, seed: int, layers: int = 8, topk: int = 2048
) -> Served:
    """A job whose every step was answered, ``noise`` nats from the truth."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    steps = []
    for step in job.steps:
        answers = []
        for prompt in step.prompts:
            n, count = len(prompt), step.new_tokens
            said = TRUTH[n - 1 : n - 1 + count] + noise * draw.normal(size=count)
            tail = TRUTH[max(n - 1 - step.tail, 0) : n - 1]
            ids = prompts.ids(count, seed=7)
            answers.append(
                {
                    "ids": ids,
                    "logprobs": said.tolist(),
                    "best": [[[t, v], [t + 1, v - 0.1]] for t, v in zip(ids, said, strict=True)],
                    "tail": (tail + noise * draw.normal(size=len(tail))).tolist(),
                    "cached": 0 if step.flush else 4992,
                    "verified": count // 2 + 1,
                }
            )
        steps.append({"name": step.name, "seconds": 0.1, "answers": answers})
        if step.selected:
            rows = np.arange(topk, n + count - 1, engine_runner.SELECTED_EVERY)
            keys = np.stack([chosen(row, topk) for row in rows])
            keys = np.repeat(keys[:, None], layers, axis=1)
            np.savez(folder / f"{step.name}.npz", rows=rows, keys=keys)
    result = {"steps": steps, "error": None, "start_seconds": 1.0, "device": "none"}
    backend = job.flavour.arguments.get("dsa_decode_backend", "ada_dsa")
    resolved = {"dsa_prefill_backend": backend, "dsa_decode_backend": backend}
    served = Served(job, folder, 0, 2.0)
    resolved["kv_cache_dtype"] = job.arguments.get("kv_cache_dtype", "fp8_e4m3")
    resolved["speculative_algorithm"] = job.arguments.get("speculative_algorithm", "")
    served.__dict__["result"] = {**result, "resolved": resolved}
    return served


def chosen(row: int, topk: int) -> np.ndarray:
    """Keys that query ``row`` selects, in any order."""
    order = np.random.default_rng(1).permutation(row + 1)[:topk]
    return order.astype(np.int32)


def said_of(sequences: dict[str, list[int]]) -> engines.Witness:
    exact = {
        name: TRUTH[: len(tokens) - 1].astype(np.float32) for name, tokens in sequences.items()
    }
    rounded = {name: said + np.float32(0.01) for name, said in exact.items()}
    table = np.full((prompts.SELECTED, 2048), -1, dtype=np.int32)
    for row in range(2048, prompts.SELECTED):
        table[row] = chosen(row, 2048)
    return engines.Witness(exact, rounded, {0: table, 1: table, 2: table, 6: table})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the configuration of the model that is served, without its weights."""
    from tests.serving.support import tiny_model

    (tmp_path / "config.json").write_text(json.dumps(tiny_model.config(tiny_model.Spec(heads=16))))
    return tmp_path


NOISE = dict.fromkeys(FLAVOURS, 0.1)


def all_runs(model: Path, folder: Path, noise: dict[str, float] = NOISE) -> whole.Runs:
    served = {
        job.name: made_up(job, folder / job.name, noise[job.flavour.name], number)
        for number, job in enumerate(whole.jobs(model))
    }
    return whole.Runs(model, served, said_of(whole.sequences(served)))


def judge(runs: whole.Runs) -> list[str]:
    """Run every GPU test over the answers. Returns the names of those that fail."""
    cases: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
    for name in FLAVOURS:
        names = (name, f"{name}-eager") if name in MAIN else (name,)
        cases += [(whole.test_every_request_is_answered, (job,)) for job in names]
        cases += [(whole.test_each_flavour_is_served_as_meant, (name,))]
        cases += [(whole.test_the_prefix_comes_from_the_cache, (name,))]
    for name in MAIN:
        cases += [(whole.test_shared_layers_use_the_keys_of_the_full_layer_before, (name,))]
    for fork in whole.FORKS:
        for group in whole.GROUPS:
            cases.append((whole.test_no_further_from_the_witness_than_stock, (fork, group)))
        for scenario in whole.scenarios(fork):
            cases.append(
                (whole.test_a_prompt_is_answered_alike_however_it_is_served, (fork, scenario))
            )
        cases += [(whole.test_greedy_answers_part_only_where_two_tokens_are_as_good, (fork,))]
    for fork in whole.SELECTING:
        cases += [(whole.test_the_first_layer_selects_the_keys_that_stock_selects, (fork,))]
        cases += [(whole.test_each_layer_selects_as_the_witness_does_no_worse_than_stock, (fork,))]
    failed = []
    for test, given in cases:
        try:
            test(runs, *given)
        except (AssertionError, LookupError):
            failed.append(f"{test.__name__.removeprefix('test_')} {' '.join(given)}")
    return failed


def test_good_answers_pass_every_test(model: Path, tmp_path: Path) -> None:
    runs = all_runs(model, tmp_path / "runs")
    assert judge(runs) == []
    text = whole.report(runs)
    assert text.count("| fork-sm89") >= 4 + 2 * len(prompts.SINGLES) + 8
    assert "| bf16 witness" in text and "64/64" in text


def test_a_fork_that_is_further_away_fails(model: Path, tmp_path: Path) -> None:
    failed = judge(all_runs(model, tmp_path / "runs", {**NOISE, "fork-sm89": 0.25}))
    away = [f"no_further_from_the_witness_than_stock fork-sm89 {group}" for group in whole.GROUPS]
    alike = [
        f"a_prompt_is_answered_alike_however_it_is_served fork-sm89 {scenario}"
        for scenario in whole.SCENARIOS
    ]
    assert failed == [*away, *alike]


def spoil(runs: whole.Runs, job: str, step: str, change: Callable[[dict[str, Any]], None]) -> None:
    for one in runs.served[job].answers[step]:
        change(one)


def other_token(at: int) -> Callable[[dict[str, Any]], None]:
    def change(one: dict[str, Any]) -> None:
        one["ids"][at] = 1

    return change


def test_each_fault_fails_its_test(model: Path, tmp_path: Path) -> None:
    runs = all_runs(model, tmp_path / "runs")
    spoil(runs, "fork", "prefix-hit", lambda one: one.update(cached=0))
    spoil(runs, "stock", "single-3000", lambda one: one["best"].__setitem__(9, [[5, -1], [6, -9]]))
    spoil(runs, "fork-sm89", "single-3000", other_token(9))
    runs.served["fork"].result["resolved"]["dsa_decode_backend"] = "tilelang"
    runs.served["fork-eager"].result["steps"].pop()
    for name, change in (("fork-sm89", 0), ("stock", 3)):
        file = runs.served[f"{name}-eager"].folder / f"selected-{prompts.SELECTED}.npz"
        rows, keys = runs.served[f"{name}-eager"].keys(f"selected-{prompts.SELECTED}")
        keys[:, change] = np.arange(2048)
        np.savez(file, rows=rows, keys=keys)
    for name in FLAVOURS:  # the witness sees what is answered now
        now = comparison.name_of(
            comparison.sequence(prompts.single(3000), runs.singles(name)[3000])
        )
        for kind in (runs.witness.exact, runs.witness.rounded):
            kind[now] = TRUTH[:3063].astype(np.float32)
    found = set(judge(runs))
    assert found == {
        "the_prefix_comes_from_the_cache fork",
        "greedy_answers_part_only_where_two_tokens_are_as_good fork-sm89",
        "each_flavour_is_served_as_meant fork",
        "every_request_is_answered fork-eager",
        "the_first_layer_selects_the_keys_that_stock_selects fork-sm89",
        "each_layer_selects_as_the_witness_does_no_worse_than_stock fork-sm89",
        "shared_layers_use_the_keys_of_the_full_layer_before stock",
    }


def test_what_was_answered_is_reported_though_a_flavour_was_not(
    model: Path, tmp_path: Path
) -> None:
    runs = all_runs(model, tmp_path / "runs")
    runs.served["fork"].result["steps"].clear()
    text = whole.report(runs)
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in text.splitlines()]
    assert ["fork-sm89", "generated past 2048"] in cells
    assert ["fork", "generated past 2048"] not in cells
    assert "single-16 was not reached" in text


def test_layouts_are_judged_alike(model: Path, tmp_path: Path) -> None:
    """Made-up answers of every layout; one whose keys were not handed on is further away."""
    jobs = parallel.jobs(model)
    served = {job.name: made_up(job, tmp_path / job.name, 0.1, i) for i, job in enumerate(jobs)}
    seen = short.sequences(served.values())
    runs = short.Runs(served, said_of(seen))
    for layout in parallel.SEVERAL:
        parallel.test_no_further_from_the_witness_than_one_gpu(runs, layout)
        parallel.test_a_crowd_is_answered_as_its_prompts_are_alone(runs, layout)
    job = next(job for job in jobs if job.name == "pp2-shared")
    runs.served["pp2-shared"] = made_up(job, tmp_path / "wrong", 0.6, 9)  # type: ignore[index]
    with pytest.raises(AssertionError):
        parallel.test_no_further_from_the_witness_than_one_gpu(runs, "pp2-shared")
    with pytest.raises(AssertionError):
        parallel.test_a_crowd_is_answered_as_its_prompts_are_alone(runs, "pp2-shared")
    assert "| pp2-shared | generated past 2048" in runs.report("layout")


def flash_runs(folder: Path) -> flash.Runs:
    jobs = flash.jobs(folder)
    served = {job.name: made_up(job, folder / job.name, 0.1, i) for i, job in enumerate(jobs)}
    seen = short.sequences(served.values(), flash.LENGTHS)
    return flash.Runs(served, said_of(seen), flash.LENGTHS)


def judge_flash(runs: flash.Runs) -> set[str]:
    """Run every GPU test over the answers. Returns the names of those that fail."""
    cases: list[tuple[Callable[..., None], tuple[str, ...]]] = [
        (flash.test_every_request_is_answered_as_meant, (name,)) for name in flash.NAMES
    ]
    for pair in flash.PAIRS:
        cases += [
            (flash.test_no_further_from_the_witness_than_stock, pair),
            (flash.test_a_crowd_is_answered_as_its_prompts_are_alone, pair),
            (flash.test_a_prompt_is_answered_alike_over_a_cached_prefix, pair),
        ]
    cases += [(flash.test_drafts_are_accepted_and_refused, (name,)) for name in flash.DRAFTING]
    failed = set()
    for test, given in cases:
        try:
            test(runs, *given)
        except (AssertionError, LookupError):
            failed.add(f"{test.__name__.removeprefix('test_')} {given[0]}")
    return failed


def test_good_answers_of_flash_pass(tmp_path: Path) -> None:
    runs = flash_runs(tmp_path)
    assert judge_flash(runs) == set()
    assert runs.report("flavour").count("| fork-sm89-eagle |") == 4


def test_each_fault_of_flash_fails_its_test(tmp_path: Path) -> None:
    runs = flash_runs(tmp_path)
    served = dict(runs.served)
    served["fork-bf16"] = made_up(served["fork-bf16"].job, tmp_path / "further", 0.4, 20)
    for one in served["fork-eagle"].answers.values():
        for answer in one:
            answer["verified"] = len(answer["ids"])  # no draft was accepted
    served["fork"].answer("prefix-hit")["cached"] = 0
    served["stock-fp8"].result["resolved"]["dsa_prefill_backend"] = "flashmla_kv"
    served["fork-sm89-eagle"].result["steps"].pop()
    assert judge_flash(flash.Runs(served, runs.witness, runs.lengths)) == {
        "no_further_from_the_witness_than_stock fork-bf16",
        "a_crowd_is_answered_as_its_prompts_are_alone fork-bf16",
        "a_prompt_is_answered_alike_over_a_cached_prefix fork-bf16",
        "drafts_are_accepted_and_refused fork",
        "a_prompt_is_answered_alike_over_a_cached_prefix fork",
        "every_request_is_answered_as_meant stock-fp8",
        "every_request_is_answered_as_meant fork-sm89-eagle",
    }
