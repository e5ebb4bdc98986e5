"""Layouts: the published ones come out, no card is over its memory, no stage is empty."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from ada_dsa import index_sharing
from tool.plan import FORMATS, GIB, Layout, Plan, find_model, make_plan, parse_gpus
from tool.plan.layouts import NEARLY, divide_best, divide_evenly
from tool.plan.weights import PREDICTION, list_weights, sum_stored

QUICKSTART = (Path(__file__).parents[3] / "docs" / "quickstart.md").read_text()
NEWEST = Version("0.5.23")


def plan(
    model: str,
    gpus: str,
    release: str = "0.5.23",
    weights: str | None = None,
    context: int | None = None,
    streams: int | None = None,
) -> Plan:
    return make_plan(
        find_model(model, weights),
        parse_gpus(gpus),
        Version(release),
        context=context,
        streams=streams,
    )


# -- published layouts ------------------------------------------------------------------------------


@pytest.mark.parametrize("release", ["0.5.9", "0.5.12.post1", "0.5.13.post1", "0.5.14", "0.5.23"])
def test_the_reference_layout(release: str) -> None:
    """renning22/glm-5.2-4090 served this: 32 cards, TP8 x PP4, partition 18,20,20,20, fraction 0.90."""
    found = plan("GLM-5.2", "32x RTX 4090 48GB", release)
    best = found.layouts[0]
    assert (best.title, best.partition, best.fits) == ("TP8 x PP4", (18, 20, 20, 20), True)
    assert best.reserve is not None and best.reserve.fraction == 0.90
    assert len(found.commands) == 4
    for rank, command in enumerate(found.commands):
        assert command.startswith("SGLANG_PP_LAYER_PARTITION=18,20,20,20 python -m sglang.launch")
        assert f"--tp-size 8 --pp-size 4 --nnodes 4 --node-rank {rank} " in command
        assert "zai-org/GLM-5.2-FP8" in command and "ada_dsa" not in command  # sm_89: the default


def test_its_first_layout() -> None:
    """The same port ran on 24 such cards before."""
    found = plan("GLM-5.2", "32x RTX 4090 48GB")
    assert found.fewest is not None and found.fewest[0].count == 24
    assert found.fewest[1].title == "TP8 x PP3"


@pytest.mark.parametrize("release", ["0.5.9", "0.5.23"])
@pytest.mark.parametrize(
    ("gpus", "title"),
    [
        ("40x RTX 4090 24GB", "TP8 x PP5"),
        ("48x RTX 4090 24GB", "TP8 x PP6"),
        ("32x RTX 5090 32GB", "TP8 x PP4"),
    ],
)
def test_its_estimates(gpus: str, title: str, release: str) -> None:
    found = plan("GLM-5.2", gpus, release)
    assert (found.layouts[0].title, found.layouts[0].fits) == (title, True)
    assert found.fewest is not None
    assert found.fewest[0].count == (40 if "4090" in gpus else 32)


@pytest.mark.parametrize(
    ("model", "gpus", "weights", "title"),
    [
        ("GLM-5.2", "24x RTX 5090", "nvfp4", "TP8 x PP3"),  # published with vLLM
        ("GLM-5.2", "8x A100", "int4", "TP8"),
        ("GLM-5.2", "8x RTX PRO 6000", "nvfp4", "TP8"),
        ("GLM-5.3-Flash", "4x RTX PRO 6000", "nvfp4", "TP4"),
        ("GLM-5.3-Flash", "8x A100", "nvfp4", "TP8"),
        ("GLM-5.3-Flash", "8x RTX 4090 48GB", "nvfp4", "TP8"),
        ("GLM-5.2", "8x H200", "fp8", "TP8"),
    ],
)
def test_published_servers_fit(model: str, gpus: str, weights: str, title: str) -> None:
    best = plan(model, gpus, weights=weights).layouts[0]
    assert (best.title, best.fits) == (title, True)


@pytest.mark.parametrize(
    ("model", "gpus", "weights"),
    [
        ("GLM-5.2", "8x RTX 4090 48GB", "fp8"),
        ("GLM-5.2", "8x RTX PRO 6000", "fp8"),
        ("GLM-5.2", "32x RTX 4090 24GB", "fp8"),
        ("GLM-5.2", "4x RTX PRO 6000", "nvfp4"),
        ("GLM-5.3-Flash", "8x RTX 4090 24GB", "nvfp4"),
        ("GLM-5.2", "1x RTX 3090", "int4"),
    ],
)
def test_what_does_not_fit(model: str, gpus: str, weights: str) -> None:
    found = plan(model, gpus, weights=weights)
    assert found.chosen is None and found.commands == ()
    assert all(one.reason for one in found.layouts)
    assert found.fewest is not None and found.fewest[0].count > found.cards.count


@pytest.mark.parametrize(
    ("gpus", "free"),
    [("8x RTX PRO 6000", 93.30), ("8x H200", 137.29)],  # sglang#29562, sglang#11716
)
def test_published_free_memory(gpus: str, free: float) -> None:
    reserve = plan("GLM-5.2", gpus).layouts[0].reserve
    assert reserve is not None and reserve.usable / GIB == pytest.approx(free, rel=0.005)


def test_published_free_memory_beside_weights() -> None:
    """16.18 GB beside the weights and an MTP layer of 2.39 GB (sglang#40558)."""
    best = plan("GLM-5.3-Flash", "4x RTX PRO 6000").layouts[0]
    assert best.reserve is not None and best.title == "TP4"
    free = (best.reserve.usable - best.stages[0].weight) / GIB
    assert free == pytest.approx(16.18 + 2.39, abs=1)


# -- bytes of a token -------------------------------------------------------------------------------


def test_bytes_of_a_token_are_those_of_the_quickstart() -> None:
    (small, large) = re.findall(r"([\d.]+) KB a token", QUICKSTART)
    for release, shown in (
        ("0.5.12", small),
        ("0.5.13", large),
        ("0.5.17", large),
        ("0.5.18", small),
    ):
        stage = plan("GLM-5.2", "32x RTX 4090 48GB", release).layouts[0].stages[1]
        assert f"{stage.token / 1000:.1f}" == shown


@pytest.mark.parametrize(
    ("model", "gpus", "row", "token"),
    [
        ("GLM-5.2", "8x RTX 4090 400GB", 656, 78 * 656 + 21 * 132),
        ("GLM-5.2", "8x H200", 1152, 78 * 1152 + 21 * 132),
        ("GLM-5.2", "8x B200", 576, 78 * 576 + 21 * 132),
        ("DeepSeek-V3.2", "8x RTX 4090 400GB", 656, 61 * (656 + 132)),
        ("GLM-5.3-Flash", "8x RTX 4090 400GB", 528, 11 * (528 + 33)),
    ],
)
def test_rows(model: str, gpus: str, row: int, token: int) -> None:
    found = plan(model, gpus)
    assert (found.row, found.layouts[0].stages[0].token) == (row, token)


def test_linear_attention_keeps_a_state() -> None:
    """143 MB a request of GLM-5.3-Flash without its convolution windows, three slots a request."""
    stage = plan("GLM-5.3-Flash", "1x RTX 4090 800GB", streams=1).layouts[0].stages[0]
    matrix = 34 * 64 * 128 * 128 * 4
    assert 143e6 > matrix > 142e6
    assert stage.state == pytest.approx((3 + 1) * matrix, rel=0.04) and stage.state > 4 * matrix


# -- properties -------------------------------------------------------------------------------------

CARDS = st.tuples(
    st.sampled_from(["RTX 3090", "RTX 4090", "RTX 5090", "RTX PRO 6000", "A100", "H200"]),
    st.sampled_from([16, 24, 32, 48, 80, 96, 140]),
    st.sampled_from([1, 2, 3, 4, 6, 8]),
    st.sampled_from([1, 2, 3, 4, 5]),
)
MODELS = st.sampled_from(["GLM-5.2", "DeepSeek-V3.2", "GLM-5.3-Flash"])
RELEASES = st.sampled_from(["0.5.9", "0.5.13", "0.5.14", "0.5.17", "0.5.18", "0.5.23"])


@settings(max_examples=40)
@given(
    name=MODELS,
    weights=st.sampled_from(FORMATS),
    cards=CARDS,
    release=RELEASES,
    context=st.sampled_from([None, 1, 4096, 131_072]),
    streams=st.sampled_from([None, 1, 32]),
)
def test_no_card_is_over_its_memory_and_no_stage_is_empty(
    name: str,
    weights: str,
    cards: tuple[str, int, int, int],
    release: str,
    context: int | None,
    streams: int | None,
) -> None:
    card, memory, each, nodes = cards
    found = make_plan(
        find_model(name, weights),
        parse_gpus(f"{each * nodes}x {card} {memory}GB", nodes),
        Version(release),
        context=context,
        streams=streams,
    )
    for one in found.layouts:
        check_layout(found, one)
    fits = [one.fits for one in found.layouts]
    assert fits == sorted(fits, reverse=True)
    if found.chosen and not found.obstacles:
        assert len(found.commands) == nodes
    else:
        assert found.commands == ()
    if found.fewest:
        assert found.fewest[1].fits
        if found.chosen:
            assert found.fewest[0].count <= found.cards.count


def check_layout(found: Plan, one: Layout) -> None:
    model = found.model
    assert one.tp * one.pp == found.cards.count
    assert bool(one.reason) != one.fits
    if not one.stages:
        assert not one.fits
        return
    assert one.reserve is not None
    assert sum(one.partition) == model.layers and min(one.partition) >= 1
    assert len(one.stages) == len(one.partition) == one.pp
    firsts = [0, *itertools.accumulate(one.partition)]
    assert [stage.first for stage in one.stages] == firsts[:-1]
    if one.own_division:
        assert one.partition == divide_evenly(model.layers, one.pp)
    if model.shares_indexers and found.release < Version("0.5.14"):
        assert {stage.first for stage in one.stages} <= model.indexed
    reserve = one.reserve
    assert 0 <= reserve.fraction <= 0.90
    assert reserve.usable < found.cards.memory
    if one.fits:
        assert one.tokens >= found.needed
        beside = reserve.activations + reserve.graphs + reserve.request_table
        for stage in one.stages:
            used = stage.weight + stage.state + one.tokens * stage.token
            assert used <= reserve.budget
            assert used + beside <= reserve.usable <= found.cards.memory
    held = sum(stage.weight for stage in one.stages)
    weights, *_ = list_weights(model)
    loaded = [weight for weight in weights if weight.place != PREDICTION]
    if one.tp == 1:  # nothing is held twice
        assert held == sum(weight.size for weight in loaded)
        assert sum_stored(loaded) == found.checkpoint - found.prediction
    else:
        twice = sum(weight.size for weight in loaded if not weight.divided)
        whole = sum(weight.size for weight in loaded)
        assert one.tp * held == pytest.approx(whole + (one.tp - 1) * twice, rel=1e-6)


def test_a_pipeline_of_one_rank_each_holds_the_checkpoint() -> None:
    found = plan("DeepSeek-V3.2", "8x RTX 4090 400GB", weights="fp8")
    one = next(layout for layout in found.layouts if layout.tp == 1)
    made = sum(stage.weights["absorbed kv_b"] for stage in one.stages)
    held = sum(stage.weight for stage in one.stages)
    assert held - made == found.checkpoint - found.prediction


@settings(max_examples=80)
@given(data=st.data(), layers=st.integers(1, 9), stages=st.integers(1, 5))
def test_the_best_division_is_found(data: st.DataObject, layers: int, stages: int) -> None:
    starts = sorted({0, *data.draw(st.lists(st.integers(1, 8), max_size=8))} & set(range(layers)))
    value = st.integers(-5, 30)
    table = {(a, b): data.draw(value) for a in range(layers) for b in range(a + 1, layers + 1)}
    found = divide_best(lambda a, b: table[a, b], starts, layers, stages)
    cuts = itertools.combinations([start for start in starts if start], stages - 1)
    divisions = [tuple(b - a for a, b in itertools.pairwise([0, *cut, layers])) for cut in cuts]
    if not divisions:
        assert found is None
        return
    assert found in divisions

    def least(division: tuple[int, ...]) -> float:
        ends = [0, *itertools.accumulate(division)]
        return min(table[a, b] for a, b in itertools.pairwise(ends))

    most = max(map(least, divisions))
    near = [one for one in divisions if least(one) >= (most * NEARLY if most > 0 else most)]
    assert found == min(near, key=lambda one: (sum(n * n for n in one), one))


@given(st.integers(1, 100), st.integers(1, 100))
def test_even_division(layers: int, stages: int) -> None:
    if stages <= layers:
        parts = divide_evenly(layers, stages)
        assert sum(parts) == layers and len(parts) == stages
        assert list(parts) == sorted(parts) and max(parts) - min(parts) <= 1


@pytest.mark.parametrize("stages", [2, 4])
def test_the_fork_advises_the_same_partition(stages: int) -> None:
    glm = find_model("GLM-5.2", None)
    config = SimpleNamespace(num_hidden_layers=78, index_topk_freq=4, index_skip_topk_offset=3)
    full = index_sharing.full_layers(config)
    assert sorted(glm.indexed) == full
    found = plan("GLM-5.2", f"{8 * stages}x RTX 4090 200GB").layouts[0]
    assert list(found.partition) == index_sharing.pipeline_partition(full, 78, stages)


def test_gib() -> None:
    assert plan("GLM-5.2", "8x RTX 4090 48GB").cards.memory == 48 * GIB
