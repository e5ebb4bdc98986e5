"""Plans of a model of eight layers: what stops a server, what its command says, and what is printed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from packaging.version import Version

from tool.cli.commands import plan as command
from tool.errors import UsageError
from tool.plan import GIB, Cards, Model, Plan, find_model, list_assumptions, make_plan, parse_gpus
from tool.plan.layouts import _list_tp, _refuse, _say_why_not, find_fewest
from tool.plan.memory import (
    GRAPHS,
    PREFILL_GRAPHS,
    Filler,
    Setting,
    Stage,
    index_key,
    latent_row,
    least_tokens,
    reserve_memory,
    state_bytes,
)
from tool.plan.plan import _compare_index, _find_obstacles, _fits_in_4bit, _row_layout
from tool.plan.routes import route
from tool.plan.weights import list_weights

NEWEST = Version("0.5.23")
GLM = replace(find_model("GLM-5.2", None), layers=8, indexed=frozenset({0, 1, 2, 6}))
FLASH = find_model("GLM-5.3-Flash", None)
FLASH = replace(
    FLASH,
    layers=8,
    indexed=frozenset({3, 7}),
    linear=frozenset({0, 1, 2, 4, 5, 6}),
)


def setting(model: Model = GLM, gpus: str = "8x RTX 4090 48GB", release: str = "0.5.23") -> Setting:
    weights = list_weights(model)[0]
    row = latent_row(model, "packed")
    return Setting(model, weights, parse_gpus(gpus), Version(release), row, 4, 32_768)


def plan(model: Model = GLM, gpus: str = "8x RTX 4090 48GB", release: str = "0.5.23") -> Plan:
    return make_plan(model, parse_gpus(gpus), Version(release), context=8192, streams=2)


# -- memory --------------------------------------------------------------------------------------------


def test_bytes_of_a_token() -> None:
    assert [latent_row(GLM, kind) for kind in ("packed", "raw", "bf16")] == [656, 576, 1152]
    assert (index_key(GLM, NEWEST), index_key(FLASH, NEWEST)) == (132, 33)
    # Before 0.5.22 a page of the index cache stands for 64 tokens, whatever is pooled.
    assert index_key(FLASH, Version("0.5.21")) == 132


def test_bytes_of_a_state() -> None:
    slot = 4 * 64 * 128**2 + 2 * 3 * 3 * 64 * 128
    assert state_bytes(setting(FLASH), 6, 1) == 6 * (3 * 4 + 1) * slot
    assert state_bytes(setting(FLASH), 6, 8) == 6 * (3 * 4 + 1) * slot // 8


def test_what_is_set_aside() -> None:
    one, two = (reserve_memory(setting(), 1, stages) for stages in (1, 2))
    assert (one.graphs, two.graphs) == (GRAPHS + PREFILL_GRAPHS, GRAPHS)
    assert one.request_table == 4 * 4 * 32_768
    small = reserve_memory(setting(gpus="8x RTX 4090 10GB"), 1, 1)
    beside = small.activations + small.graphs + small.request_table + GIB
    assert 0 < small.fraction < 0.9
    assert 0 <= small.usable * (1 - small.fraction) - beside < small.usable / 100
    assert reserve_memory(setting(gpus="8x RTX 4090 1GB"), 1, 1).fraction == 0
    assert reserve_memory(setting(gpus="8x RTX 4090 80GB"), 1, 1).fraction == 0.9


@pytest.mark.parametrize(
    ("release", "first", "keys"),
    [
        ("0.5.12", 0, 4),
        ("0.5.12", 3, 2),  # a stage's first layer gets a buffer whatever its type
        ("0.5.12", 6, 1),
        ("0.5.13", 3, 5),
        ("0.5.17", 3, 5),
        ("0.5.18", 3, 1),
    ],
)
def test_index_keys_of_a_stage(release: str, first: int, keys: int) -> None:
    filler = Filler(setting(release=release), 8, 2)
    assert filler.token(first, 8) == (8 - first) * 656 + keys * 132


@pytest.mark.parametrize("model", [GLM, FLASH], ids=["GLM", "Flash"])
def test_both_ways_to_count_the_tokens_agree(model: Model) -> None:
    filler = Filler(setting(model), 8, 2)
    for first in range(8):
        for end in range(first + 1, 9):
            stage = filler.fill(first, end)
            counted = filler.count(first, end)
            assert (stage.first, stage.layers) == (first, end - first)
            assert counted == (math.inf if stage.tokens is None else stage.tokens)
            assert (stage.tokens is None) == (stage.token == 0)  # all its layers are linear
            assert (stage.state > 0) == any(i in model.linear for i in range(first, end))


def test_a_stage_without_cache_may_still_be_too_large() -> None:
    filler = Filler(setting(FLASH, "8x RTX 4090 4GB"), 1, 2)
    tokens = filler.fill(0, 3).tokens
    assert tokens is not None and tokens < 0


def test_the_least_of_the_stages() -> None:
    stages = [Stage(0, 1, {}, 0, 1, tokens) for tokens in (None, 640, 128)]
    assert least_tokens(stages) == 128 and least_tokens(stages[:1]) == least_tokens([]) == 0


# -- layouts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "tp", "pp", "why"),
    [
        (GLM, 8, 1, ""),
        (GLM, 16, 1, "a stage would span nodes"),
        (replace(GLM, heads=12), 8, 1, "12 heads are not divisible by 8"),
        (replace(FLASH, linear_heads=12), 8, 1, "heads are not divisible by 8"),
        (GLM, 1, 8, ""),
        (GLM, 1, 9, "9 stages are too many; 8 at most"),
        (replace(GLM, layers=40), 1, 16, ""),
        (replace(GLM, layers=40), 1, 17, "17 stages are too many; 16 at most"),
        (replace(GLM, expert=1536, format="fp8"), 8, 1, "inside a block of 128"),
        (replace(GLM, expert=1536, format="bf16"), 8, 1, ""),
        (replace(GLM, expert=1536, format="nvfp4"), 8, 1, ""),
        (replace(GLM, expert=64, format="nvfp4"), 8, 1, "inside a block of 16"),
        (replace(GLM, dense=1536, format="int4"), 8, 1, "inside a block of 128"),
    ],
)
def test_divisions_that_sglang_refuses(model: Model, tp: int, pp: int, why: str) -> None:
    refused = _refuse(setting(model), tp, pp)
    assert why in refused and bool(refused) == bool(why)


@pytest.mark.parametrize(
    ("count", "nodes", "heads", "ranks"),
    [
        (8, 1, 64, [1, 2, 4, 8]),
        (6, 1, 64, [1, 2, 3, 6]),
        (32, 4, 64, [1, 2, 4, 8, 16]),
        (24, 3, 64, [1, 2, 4, 8]),
        (32, 4, 16, [1, 2, 4, 8, 16]),
        (32, 4, 8, [1, 2, 4, 8]),
    ],
)
def test_which_ranks_are_tried(count: int, nodes: int, heads: int, ranks: list[int]) -> None:
    cards = Cards(count, "a card", 89, 48 * GIB, nodes)
    assert list(_list_tp(cards, replace(GLM, heads=heads))) == ranks


def test_why_it_does_not_fit() -> None:
    reserve = reserve_memory(setting(), 1, 1)
    light = Stage(0, 8, {"experts": GIB}, 0, 1, 640)
    heavy = replace(light, weights={"experts": reserve.budget})
    assert _say_why_not(reserve, [light], 640, 640) == ""
    assert _say_why_not(reserve, [light], 640, 641) == "holds 640 of the 641 tokens asked for"
    assert "holds 0 of" in _say_why_not(reserve, [heavy], 0, 641)
    too_heavy = replace(heavy, weights={"experts": reserve.budget + 1})
    assert _say_why_not(reserve, [light, too_heavy], 0, 641).startswith("weights take ")
    with_state = replace(heavy, state=1)
    assert "weights and linear-attention state take" in _say_why_not(reserve, [with_state], 0, 1)


def test_the_fewest_cards() -> None:
    """On one node, or on whole nodes of the same size."""
    found = find_fewest(setting(), 640)
    assert found is not None and (found[0].count, found[0].nodes) == (2, 1)
    larger = find_fewest(setting(gpus="8x RTX 4090 10GB"), 640)
    assert larger is not None and (larger[0].count, larger[0].nodes) == (16, 2)
    many = find_fewest(setting(gpus="16x RTX 4090 10GB"), 640)
    assert many is not None and (many[0].count, many[0].per_node) == (16, 8)
    assert find_fewest(setting(gpus="8x RTX 4090 1GB"), 640) is None


# -- what stops a server -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "sm", "release", "says"),
    [
        (GLM, 89, "0.5.9", []),
        (GLM, 75, "0.5.23", ["ada_dsa needs capability 8.0"]),
        (GLM, 80, "0.5.23", ["no fp8 MoE kernel for sm_80"]),
        (GLM, 86, "0.5.23", ["no fp8 MoE kernel for sm_86"]),
        (replace(GLM, format="int4"), 80, "0.5.23", []),
        (FLASH, 90, "0.5.19", ["0.5.20 is the first that has"]),
        (FLASH, 90, "0.5.20", []),
        (FLASH, 100, "0.5.20", []),
        (FLASH, 89, "0.5.20", ["from sglang 0.5.21 on"]),
        (FLASH, 120, "0.5.20", ["from sglang 0.5.21 on"]),
        (FLASH, 89, "0.5.21", []),
        (FLASH, 121, "0.5.23", []),
        (replace(FLASH, format="int4"), 86, "0.5.23", ["pooled index keys"]),
        (replace(GLM, format="nvfp4"), 89, "0.5.12", ["runs NVFP4 on sm_100 only"]),
        (replace(GLM, format="nvfp4"), 89, "0.5.13", []),
        (replace(GLM, format="nvfp4"), 100, "0.5.12", []),
    ],
)
def test_obstacles(model: Model, sm: int, release: str, says: list[str]) -> None:
    version = Version(release)
    found = list(_find_obstacles(model, sm, version, route(sm, version, fork=True)))
    assert len(found) == len(says)
    assert all(text in one for text, one in zip(says, found, strict=True))


@pytest.mark.parametrize(
    ("sm", "layout"),
    [(80, "packed"), (89, "packed"), (90, "bf16"), (100, "raw"), (110, "raw"), (120, "packed")],
)
def test_rows_of_a_card(sm: int, layout: str) -> None:
    assert _row_layout(sm) == layout


def test_what_may_be_asked_for() -> None:
    longest = GLM.max_context
    for context, streams in ((longest, 1), (1, 4096)):
        assert make_plan(GLM, parse_gpus("1x H200"), NEWEST, context=context, streams=streams)
    for context, streams in ((longest + 1, 1), (0, 1), (1, 4097), (1, 0)):
        with pytest.raises(UsageError, match="is not between 1 and"):
            make_plan(GLM, parse_gpus("1x H200"), NEWEST, context=context, streams=streams)
    with pytest.raises(UsageError, match=r"no fork of sglang 0\.5\.8"):
        make_plan(GLM, parse_gpus("1x H200"), Version("0.5.8"))


def test_what_is_planned_if_nothing_is_asked() -> None:
    found = make_plan(GLM, parse_gpus("8x H200"), NEWEST)
    assert (found.context, found.streams, found.needed, found.running) == (32_768, 1, 32_768, 64)
    short = make_plan(replace(GLM, max_context=4096), parse_gpus("8x H200"), NEWEST)
    assert (short.context, short.needed) == (4096, 4096)
    assert "--context-length" not in found.commands[0]
    assert make_plan(FLASH, parse_gpus("8x H200"), NEWEST).running == 16


@pytest.mark.parametrize(
    ("stated", "warned"), [(10_000, 0), (9901, 0), (9900, 1), (10_101, 0), (10_102, 1)]
)
def test_an_index_that_says_otherwise(stated: int, warned: int) -> None:
    assert len(list(_compare_index(stated, 10_000))) == warned
    assert list(_compare_index(None, 1)) == []


def test_whether_4_bits_would_do() -> None:
    tight = setting(gpus="8x RTX 4090 10GB")
    assert _fits_in_4bit(tight, 640)
    assert not _fits_in_4bit(replace(tight, model=replace(GLM, format="int4")), 640)
    assert not _fits_in_4bit(setting(gpus="8x RTX 4090 4GB"), 640)
    assert not plan(gpus="8x RTX 4090 48GB").fits_in_4bit and plan(gpus="8x A100 10GB").fits_in_4bit


# -- the command ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "gpus", "release", "kernels", "on_request"),
    [
        (GLM, "8x RTX 4090 48GB", "0.5.23", "ada_dsa by default", False),
        (GLM, "8x H200", "0.5.23", "on request", True),
        (GLM, "8x RTX 5090", "0.5.23", "for GLM over an FP8 KV cache", True),
        (replace(GLM, architecture="Other"), "8x RTX 5090", "0.5.23", "ada_dsa by default", False),
        (replace(GLM, architecture="Other"), "8x RTX 5090", "0.5.16", "ada_dsa by default", False),
        (replace(GLM, architecture="Other"), "8x B200", "0.5.23", "on request", True),
        (FLASH, "8x H200", "0.5.23", "on request", True),
        (FLASH, "8x H200", "0.5.20", "on request", False),
        (FLASH, "8x RTX 4090 48GB", "0.5.23", "ada_dsa by default", False),
        (FLASH, "8x RTX 5090", "0.5.23", "ada_dsa by default", False),
    ],
)  # fmt: skip
def test_who_serves(model: Model, gpus: str, release: str, kernels: str, on_request: bool) -> None:
    found = plan(model, gpus, release)
    assert kernels in found.kernels and bool(found.on_request) is on_request
    asked = "ada_dsa" in found.commands[0]
    assert asked is ("the command asks" in found.kernels)


def words(found: Plan, rank: int = 0) -> list[str]:
    return found.commands[rank].split()


def test_a_command_on_one_node() -> None:
    found = words(plan(gpus="8x H200"))
    for option, value in (
        ("--tp-size", "8"), ("--mem-fraction-static", "0.90"), ("--context-length", "8192"),
        ("--max-running-requests", "2"), ("--chunked-prefill-size", "4096"), ("--port", "30000"),
    ):  # fmt: skip
        assert found[found.index(option) + 1] == value
    assert found[0] == "python" and "--pp-size" not in found and "--nnodes" not in found
    assert "--max-mamba-cache-size" not in found
    assert "--disable-shared-experts-fusion" not in found
    assert "--tool-call-parser" in found


def test_a_command_of_each_node() -> None:
    found = plan(gpus="16x RTX 4090 10GB")
    assert len(found.commands) == 2
    for rank in range(2):
        text = found.commands[rank]
        assert f"--pp-size 2 --nnodes 2 --node-rank {rank} --dist-init-addr NODE0" in text
    best = found.layouts[0]
    named = f"SGLANG_PP_LAYER_PARTITION={','.join(map(str, best.partition))} "
    assert found.commands[0].startswith(named) is not best.own_division


@pytest.mark.parametrize(("form", "off"), [("nvfp4", True), ("int4", True), ("fp8", False)])
def test_shared_experts_of_4_bit_checkpoints(form: str, off: bool) -> None:
    found = words(plan(replace(GLM, format=form), "8x H200"))
    assert ("--disable-shared-experts-fusion" in found) is off


def test_slots_of_linear_attention() -> None:
    found = words(plan(FLASH, "8x H200"))
    assert found[found.index("--max-mamba-cache-size") + 1] == "6"


# -- what is printed -----------------------------------------------------------------------------------


def text(found: Plan) -> str:
    return "\n".join(command._write(found))


def test_a_plan_that_fits() -> None:
    found = plan(gpus="8x RTX 4090 48GB")
    shown = text(found)
    assert "8 x RTX 4090, 48 GiB, sm_89\n" in shown and "2 request(s) of 8,192 tokens" in shown
    assert "The fewest such cards that hold 16,384 tokens: 2, as TP2.\n" in shown
    assert "4 servers of 2 cards side by side serve more requests at once.\n" in shown
    assert "Start:\n" in shown and "NCCL_IB_DISABLE" not in shown
    assert "For ada_dsa in place of" not in shown and "kernels  " in shown
    layouts = [line for line in shown.splitlines() if line.startswith("TP")]
    assert layouts[0].split()[0] == "TP8" and layouts[0].endswith("yes")
    assert any(line.startswith("TP4 x PP2  ") for line in layouts)
    enough = text(plan(gpus="2x RTX 4090 48GB"))
    assert "The fewest" not in enough and "side by side" not in enough
    assert "side by side" not in text(replace(found, cards=replace(found.cards, count=3)))


def test_a_plan_of_several_nodes() -> None:
    shown = text(plan(gpus="16x RTX 4090 10GB"))
    assert "sm_89, 2 nodes of 8\n" in shown
    assert "Start these on nodes 0, 1, ...; NODE0 is an address of node 0:\n" in shown
    assert "Without InfiniBand: NCCL_IB_DISABLE=1" in shown
    assert "no: a stage would span nodes" in shown


def test_what_can_be_added_to_the_command() -> None:
    assert "For ada_dsa in place of sglang's kernels, add: --dsa" in text(plan(gpus="8x H200"))


def test_linear_attention_in_a_plan() -> None:
    shown = text(plan(FLASH, "8x H200"))
    assert "state" in shown and "linear attention  3 state slots for each request" in shown
    assert "state  " not in text(plan(gpus="8x H200"))
    stages = list(command._stage_rows(plan(FLASH, "8x H200").layouts[0]))
    assert [len(row) for row in stages] == [len(stages[0])] * len(stages)


def test_a_plan_that_fits_nowhere() -> None:
    found = plan(gpus="8x RTX 4090 1GB")
    assert "No number of such cards holds 16,384 tokens." in text(found)
    assert "Nothing fits. What would: cards with more memory." in text(found)
    tight = text(plan(gpus="8x A100 10GB"))
    assert "a 4-bit checkpoint" in tight
    long = make_plan(GLM, parse_gpus("8x RTX 4090 24GB"), NEWEST, context=2**20, streams=64)
    assert "What would: a smaller --context or --streams." in text(long)


def test_a_plan_of_a_server_that_would_not_start() -> None:
    large, small = (text(plan(gpus=f"8x A100 {size}GB")) for size in (80, 4))
    assert "not served" in large and "kernels  " not in large
    assert "the server would not start: see above.\n" in f"{large}\n"
    assert "It would not fit on these cards either." in small
    assert "either" not in large


def test_assumptions_without_a_layout() -> None:
    found = plan(replace(GLM, heads=63), "8x H200")
    names = dict(list_assumptions(found))
    assert ("margin" in names) is (found.layouts[0].reserve is not None)
    nothing = replace(found, layouts=(replace(found.layouts[0], reserve=None),))
    assert set(dict(list_assumptions(nothing))) == {"card", "requests", "latent row", "speculation"}


@pytest.mark.parametrize(
    ("given", "tokens"), [("5", 5), ("128K", 131_072), ("128k", 131_072), (" 1M ", 1_048_576)]
)
def test_numbers_of_tokens(given: str, tokens: int) -> None:
    assert command._parse_tokens(given) == tokens
