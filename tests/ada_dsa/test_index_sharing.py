"""Which layers compute a top-k, and how a pipeline may be cut: plain decisions, no GPU, no sglang."""

from __future__ import annotations

import itertools
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ada_dsa import index_sharing as sharing

# GLM-5.2's published configuration: https://huggingface.co/zai-org/GLM-5.2-FP8 (config.json).
GLM_FULL = [0, 1, *range(2, 78, 4)]


def config(num_layers: int = 78, **fields: Any) -> SimpleNamespace:
    return SimpleNamespace(num_hidden_layers=num_layers, **fields)


GLM = config(index_topk_freq=4, index_skip_topk_offset=3)


def test_glm_has_21_full_layers_of_78() -> None:
    assert sharing.full_layers(GLM) == GLM_FULL
    assert len(GLM_FULL) == 21
    assert sharing.has_shared_layers(GLM)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"index_topk_freq": 1},
        {"index_topk_freq": None, "index_skip_topk_offset": None},
        {"index_topk_freq": 1, "index_skip_topk_offset": 3},
        {"indexer_types": ["full"] * 78},
        {"index_topk_pattern": "F" * 78},
    ],
)
def test_all_full(fields: dict[str, Any]) -> None:
    model = config(**fields)
    assert sharing.full_layers(model) == list(range(78))
    assert not sharing.has_shared_layers(model)
    assert sharing.index_k_slots(model, 20, 5) == [0, 1, 2, 3, 4]
    sharing.check_layout(model, [0, 19, 39, 58], two_batch_overlap=True)


@pytest.mark.parametrize(
    ("fields", "full"),
    [
        ({"index_topk_freq": 3}, [0, 1, 4, 7]),
        ({"index_topk_freq": 2, "index_skip_topk_offset": 1}, [0, 2, 4, 6]),
        ({"index_topk_pattern": "FSSFSSFS"}, [0, 3, 6]),
        ({"index_topk_pattern": "FS"}, [0, 2, 3, 4, 5, 6, 7]),
        ({"indexer_types": ["full", "shared"] * 4}, [0, 2, 4, 6]),
        # indexer_types outranks the pattern, which outranks the frequency.
        (
            {
                "indexer_types": ["full", "shared"] * 4,
                "index_topk_pattern": "F" * 8,
                "index_topk_freq": 4,
            },
            [0, 2, 4, 6],
        ),
        ({"index_topk_pattern": "FFFFSSSS", "index_topk_freq": 1}, [0, 1, 2, 3]),
    ],
)
def test_forms_of_the_rule(fields: dict[str, Any], full: list[int]) -> None:
    assert sharing.full_layers(config(8, **fields)) == full


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"indexer_types": ["full", "sparse"]}, "sparse"),
        ({"index_topk_freq": 0}, "index_topk_freq=0"),
        ({"index_topk_freq": 2, "index_skip_topk_offset": 0}, "index_skip_topk_offset=0"),
    ],
)
def test_a_rule_that_cannot_be_followed(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        sharing.full_layers(config(2, **fields))


def test_index_key_buffers() -> None:
    slots = sharing.index_k_slots(GLM, 0, 11)
    assert slots == [0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4]
    assert sharing.index_k_slots(GLM, 58, 20) == [i // 4 for i in range(20)]
    assert len(set(sharing.index_k_slots(GLM, 0, 78))) == 21
    assert sharing.index_k_slots(GLM, 0, 1) == [0]
    assert sharing.index_k_slots(GLM, 0, 0) == []


@pytest.mark.parametrize(
    ("pp_size", "partition"),
    [
        (1, [78]),
        (2, [38, 40]),
        (3, [26, 24, 28]),
        (4, [18, 20, 20, 20]),
        (6, [14, 12, 12, 12, 12, 16]),
        (21, [1, 1, *[4] * 19]),
    ],
)
def test_partitions_of_glm(pp_size: int, partition: list[int]) -> None:
    found = sharing.pipeline_partition(GLM_FULL, 78, pp_size)
    assert found is not None
    assert sum(n * n for n in found) == sum(n * n for n in partition)
    starts = [0, *itertools.accumulate(found)]
    assert starts.pop() == 78
    assert set(starts) <= set(GLM_FULL)


def test_the_partition_of_four_stages() -> None:
    assert sharing.pipeline_partition(GLM_FULL, 78, 4) == [18, 20, 20, 20]


@given(st.data())
def test_partition_is_the_most_even_there_is(data: st.DataObject) -> None:
    num_layers = data.draw(st.integers(1, 12))
    others = data.draw(st.sets(st.integers(1, 12)))
    starts = sorted({0} | {s for s in others if s < num_layers})
    pp_size = data.draw(st.integers(1, 6))
    every = [
        [b - a for a, b in itertools.pairwise((0, *cuts, num_layers))]
        for cuts in itertools.combinations(starts[1:], pp_size - 1)
    ]
    found = sharing.pipeline_partition(starts, num_layers, pp_size)
    if not every:
        assert found is None
    else:
        assert found in every
        assert sum(n * n for n in found) == min(sum(n * n for n in one) for one in every)


def test_no_partition_without_a_first_layer() -> None:
    assert sharing.pipeline_partition([], 4, 1) is None
    assert sharing.pipeline_partition([1, 2], 4, 2) is None


def test_stages_on_full_layers_pass() -> None:
    sharing.check_layout(GLM, [0, 18, 38, 58], two_batch_overlap=False)
    sharing.check_layout(GLM, [0], two_batch_overlap=False)


def test_a_stage_on_a_shared_layer_is_told_what_to_set() -> None:
    with pytest.raises(ValueError) as refusal:
        sharing.check_layout(GLM, [0, 19, 38, 58], two_batch_overlap=False)
    text = str(refusal.value)
    assert "layer 19," in text
    assert "SGLANG_PP_LAYER_PARTITION=18,20,20,20." in text
    assert "--pp-size 4" in text


def test_too_many_stages_are_told_the_most_there_can_be() -> None:
    model = config(8, index_topk_freq=4, index_skip_topk_offset=3)
    with pytest.raises(ValueError, match="only 4 layers compute a top-k. Use --pp-size 4 or less"):
        sharing.check_layout(model, list(range(8)), two_batch_overlap=False)


def test_two_batch_overlap_is_refused() -> None:
    with pytest.raises(ValueError, match="Remove --enable-two-batch-overlap"):
        sharing.check_layout(GLM, [0], two_batch_overlap=True)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (config(4, indexer_types=["full", "shared"]), "names 2 layers, num_hidden_layers is 4"),
        (config(2, indexer_types=["shared", "full"]), "layer 0"),
        (config(2, indexer_types=["shared", "shared"]), "layer 0"),
    ],
)
def test_a_config_that_contradicts_itself(model: SimpleNamespace, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        sharing.check_layout(model, [0], two_batch_overlap=False)


def test_importing_it_loads_no_kernels() -> None:
    code = "import sys, ada_dsa.index_sharing; print('triton' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
