"""GLM-5.3-Flash's shape: linear attention, DSA with a pooled index and rows without a rotary part, drafts.

Stock against fork, with rows of the same kind, and a witness for both. CUDA graphs on. The flavours of
DRAFTING are started again with drafts of the prediction layer: their answers must be as near to the witness.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.serving.support import comparison, engines, metrics, prompts, short, tiny_model
from tests.serving.support.engines import Job, Step
from tests.serving.support.flavours import FLASH, TILELANG
from tests.serving.support.speculation import EAGLE, NOISE

POOL: Final = 4
PAGE: Final = 64 * POOL
"""Tokens of one page of pooled keys, which is one page of the server."""
LENGTHS: Final = (64, 2047, 2049, 2050, 2303, 2305, 3000, 6000, 8191, 16_000)
"""About and far past 2048 keys, ends on each place of a pool, about a page, and chunks of 4096."""
AGAINST: Final = {"fork": "stock-fp8", "fork-bf16": "stock", "fork-sm89": "stock-fp8"}
"""The flavour of stock that has the same kind of rows."""
DRAFTING: Final = ("stock-fp8", "fork", "fork-sm89")
CHANGES: Final[dict[str, Any]] = {
    "enable_multimodal": False,  # the folder has no processor
    "cuda_graph_bs_decode": [1, 8],
    "max_running_requests": 16,
}
PAIRS: Final = [
    *AGAINST.items(),
    *((f"{fork}-eagle", f"{AGAINST[fork]}-eagle") for fork in DRAFTING if fork in AGAINST),
]


def steps() -> list[Step]:
    """Prompts alone, several in a prefill, and one whose first part is in the cache."""
    whole = prompts.single(prompts.PREFIXED)
    return [
        *short.steps(LENGTHS),
        Step("prefix", [whole[: prompts.PREFIXED - 1000]], new_tokens=1),
        Step("prefix-hit", [whole], flush=False),
    ]


def jobs(model: Path) -> list[Job]:
    return [
        Job(f"{name}{kind}", one, engines.arguments(one, model, **CHANGES, **changes), steps())
        for name, one in FLASH.items()
        for kind, changes in (("", {}), ("-eagle", EAGLE))
        if not kind or name in DRAFTING
    ]


NAMES: Final = [job.name for job in jobs(Path())]


@dataclass(frozen=True)
class Runs(short.Runs):
    """With a prompt that is served in two parts, and with drafts."""

    def prefix_further(self, name: str, than: str) -> list[str]:
        """Reasons why the answer over cached tokens is further from that without, than ``than``'s is."""

        def apart(one: str) -> metrics.Distance:
            served = self.served[one]
            alone = served.answer(f"single-{prompts.PREFIXED}")
            return comparison.tails_apart([(served.answer("prefix-hit"), alone)])

        return metrics.no_further_than_either(apart(name), apart(than), self.witness.rounding)

    def accepted(self, name: str) -> float:
        """Tokens a step, over the prompts of LENGTHS."""
        answers = [self.served[name].answer(f"single-{length}") for length in self.lengths]
        return sum(len(one["ids"]) for one in answers) / sum(one["verified"] for one in answers)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    if missing := engines.missing_sites():
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("flash")
    model = engines.make_model(folder / "model", "--kpool", str(POOL), writer="flash_model")
    found = short.run(jobs(model), model, folder, "flash", at_once=3, lengths=LENGTHS)
    return Runs(found.served, found.witness, found.lengths)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_every_request_is_answered_as_meant(runs: Runs, name: str) -> None:
    assert not runs.served[name].problems(), runs.served[name].why()
    resolved = runs.served[name].result["resolved"]
    stock = name.startswith("stock")
    backend = TILELANG["dsa_decode_backend"] if stock else "ada_dsa"
    assert resolved["dsa_prefill_backend"] == resolved["dsa_decode_backend"] == backend
    rows = "bfloat16" if name in ("stock", "fork-bf16") else "fp8_e4m3"
    assert resolved["kv_cache_dtype"] == rows


@pytest.mark.gpu
@pytest.mark.parametrize(("fork", "stock"), PAIRS)
def test_no_further_from_the_witness_than_stock(runs: Runs, fork: str, stock: str) -> None:
    assert not runs.further(fork, stock)


@pytest.mark.gpu
@pytest.mark.parametrize(("fork", "stock"), PAIRS)
def test_a_crowd_is_answered_as_its_prompts_are_alone(runs: Runs, fork: str, stock: str) -> None:
    assert len(runs.alike(fork)) >= 3
    assert not runs.crowd_further(fork, stock)


@pytest.mark.gpu
@pytest.mark.parametrize(("fork", "stock"), PAIRS)
def test_a_prompt_is_answered_alike_over_a_cached_prefix(runs: Runs, fork: str, stock: str) -> None:
    """The state of linear attention is kept once a page: up to two pages are computed again."""
    cached = runs.served[fork].answer("prefix-hit")["cached"]
    assert cached >= prompts.PREFIXED - 1000 - 2 * PAGE
    assert runs.served[fork].answer(f"single-{prompts.PREFIXED}")["cached"] == 0
    assert not runs.prefix_further(fork, stock)


@pytest.mark.gpu
@pytest.mark.parametrize("name", DRAFTING)
def test_drafts_are_accepted_and_refused(runs: Runs, name: str) -> None:
    """With no draft accepted a step would make one token, with all of them four."""
    assert runs.served[f"{name}-eagle"].result["resolved"]["speculative_algorithm"] == "EAGLE"
    assert 1.03 < runs.accepted(f"{name}-eagle") < 3.5
    stock = runs.accepted(f"{AGAINST.get(name, name)}-eagle")
    assert abs(runs.accepted(f"{name}-eagle") - stock) <= NOISE


@pytest.mark.gpu
def test_the_figures(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    engines.show_figures(runs.report("flavour"), "flash", capsys)


# -- without a GPU --------------------------------------------------------------------------------


def test_the_model_has_the_shape(tmp_path: Path) -> None:
    options = ("--layers", "4", "--hidden", "128", "--heads", "1", "--linear-heads", "1")
    model = engines.make_model(tmp_path / "model", *options, writer="flash_model")
    made = json.loads((model / "config.json").read_text())["text_config"]
    assert (made["index_kpool"], made["index_topk"]) == (POOL, comparison.TOPK)
    assert made["vocab_size"] == prompts.VOCAB
    assert {job.arguments["model_path"] for job in jobs(tmp_path)} == {str(tmp_path)}


def test_the_prompts_reach_what_they_are_for() -> None:
    assert {length % POOL for length in LENGTHS} == set(range(POOL))
    assert {length // PAGE for length in (2303, 2305)} == {8, 9}
    assert prompts.PREFIXED in LENGTHS and max(LENGTHS) > 3 * 4096
    lengths = [len(prompt) for prompt in prompts.crowd(8)]
    assert len([one for one in lengths if one in LENGTHS]) >= 3


def test_the_witness_of_the_model_is_used(tmp_path: Path) -> None:
    options = ("--layers", "4", "--hidden", "128", "--heads", "1", "--linear-heads", "1")
    model = engines.make_model(tmp_path / "model", *options, "--topk", "16", writer="flash_model")
    ids = prompts.ids(50, seed=3)
    found = engines.witness_of(model, {"one": ids}, tmp_path / "witness", selecting="one")
    assert found.exact["one"].shape == found.rounded["one"].shape == (49,)
    assert 0 < found.rounding.mean < 0.2
    assert [keys.shape for keys in found.keys.values()] == [(50, 16 + POOL - 1)]
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text(json.dumps(tiny_model.config(tiny_model.Spec())))
    assert engines.witness_module(plain).__name__.endswith(".witness")
