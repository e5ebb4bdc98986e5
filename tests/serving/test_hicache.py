"""HiCache: rows and index keys that left the GPU's pool come back from the host's memory.

The pool holds two of the prompts. The first is served, pushed out by others, and served again with more
tokens after it: its part must come from the host, and be answered as if it had been computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.serving.support import comparison, engines, metrics, prompts
from tests.serving.support.engines import Job, Served, Step
from tests.serving.support.flavours import FLAVOURS, MAIN

HICACHE: Final[dict[str, Any]] = {
    "enable_hierarchical_cache": True,
    "hicache_ratio": 4.0,
    "max_total_tokens": 16_384,
    "max_running_requests": 8,
    "cuda_graph_bs_decode": [1, 8],
}
FIRST: Final = 5000
WHOLE: Final = prompts.PREFIXED
OTHERS: Final = (6001, 6002, 6003)


def steps() -> list[Step]:
    whole = prompts.single(WHOLE)
    return [
        engines.warm_up(),
        Step("alone", [whole]),
        Step("first", [whole[:FIRST]], new_tokens=1),
        *(Step(f"other-{n}", [prompts.single(n)], new_tokens=1, flush=False) for n in OTHERS),
        Step("again", [whole], flush=False),
    ]


def jobs(model: Path) -> list[Job]:
    return [
        Job(name, FLAVOURS[name], engines.arguments(FLAVOURS[name], model, **HICACHE), steps())
        for name in MAIN
    ]


@dataclass(frozen=True)
class Runs:
    served: Mapping[str, Served]

    def apart(self, name: str) -> metrics.Distance:
        """Of the end of the same prompt, served alone and from the host."""
        one, other = (self.served[name].answer(step) for step in ("alone", "again"))
        return comparison.tails_apart([(one, other)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    if missing := engines.missing_sites():
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("hicache")
    model = engines.make_model(folder / "model", "--heads", "16")
    served = engines.serve(jobs(model), folder, "hicache")
    return Runs(served)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MAIN)
def test_the_prefix_comes_back_from_the_host(runs: Runs, name: str) -> None:
    served = runs.served[name]
    assert not served.problems(), served.why()
    assert served.answer("alone")["cached"] == 0
    assert served.answer("again")["cached"] >= FIRST - 64
    pool = served.result["max_total_num_tokens"]
    assert pool < FIRST + sum(OTHERS), "the pool held everything, so nothing had to come back"


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in MAIN if name != "stock"])
def test_it_is_answered_as_if_it_had_been_computed(runs: Runs, name: str) -> None:
    ours, stock = runs.apart(name), runs.apart("stock")
    print(f"{name}: {ours}, stock: {stock}")
    assert not metrics.no_further(ours, stock, slack=0.02)


# -- without a GPU --------------------------------------------------------------------------------


def test_the_pool_cannot_hold_all_prompts(tmp_path: Path) -> None:
    for job in jobs(tmp_path):
        pool = job.arguments["max_total_tokens"]
        assert WHOLE + 64 < pool < FIRST + sum(OTHERS)
        assert [step.name for step in job.steps][-1] == "again"
        assert not job.steps[-1].flush
