"""DeepSeek-V3.2's shape: 128 heads, 64 index heads, an indexer on every layer. Stock against fork.

All heads are on one GPU, as with data-parallel attention. The defaults that a user gets, CUDA graphs on.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.serving.support import engines, short
from tests.serving.support.engines import Job
from tests.serving.support.flavours import FLAVOURS, MAIN
from tests.serving.support.short import Runs

FORKS = [name for name in MAIN if FLAVOURS[name].site == "fork"]
OPTIONS = ("--deepseek", "--heads", "128", "--layers", "5")


def jobs(model: Path) -> list[Job]:
    return [
        Job(name, FLAVOURS[name], engines.arguments(FLAVOURS[name], model), short.steps())
        for name in MAIN
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    if missing := engines.missing_sites():
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("deepseek")
    model = engines.make_model(folder / "model", *OPTIONS)
    return short.run(jobs(model), model, folder, "deepseek", at_once=3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MAIN)
def test_every_request_is_answered_as_meant(runs: Runs, name: str) -> None:
    assert not runs.served[name].problems(), runs.served[name].why()
    resolved = runs.served[name].result["resolved"]
    assert resolved["dsa_decode_backend"] == ("flashmla_kv" if name == "stock" else "ada_dsa")


@pytest.mark.gpu
@pytest.mark.parametrize("fork", FORKS)
def test_no_further_from_the_witness_than_stock(runs: Runs, fork: str) -> None:
    assert not runs.further(fork, "stock")


@pytest.mark.gpu
@pytest.mark.parametrize("fork", FORKS)
def test_a_crowd_is_answered_as_its_prompts_are_alone(runs: Runs, fork: str) -> None:
    assert len(runs.alike(fork)) >= 3
    assert not runs.crowd_further(fork, "stock")


@pytest.mark.gpu
def test_the_figures(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    engines.show_figures(runs.report("flavour"), "deepseek", capsys)


# -- without a GPU --------------------------------------------------------------------------------


def test_the_model_has_the_shape(tmp_path: Path) -> None:
    engines.make_model(tmp_path / "model", *OPTIONS[:2], "8", "--layers", "4", "--hidden", "128")
    made = json.loads((tmp_path / "model" / "config.json").read_text())
    assert made["architectures"] == ["DeepseekV32ForCausalLM"]
    assert (made["index_n_heads"], made["qk_nope_head_dim"], made["v_head_dim"]) == (64, 128, 128)
    assert "indexer_types" not in made and "indexer_rope_interleave" not in made
    assert {job.arguments["model_path"] for job in jobs(tmp_path)} == {str(tmp_path)}
