"""A card's memory: what sglang sets aside, what a token and a request take, how many tokens fit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from packaging.version import Version

from tool.plan.cards import GIB, Cards
from tool.plan.model import Model
from tool.plan.weights import Weight, share_weights

PAGE: Final = 64
"""Tokens of a KV page."""
POOLED_PAGES: Final = Version("0.5.22")
"""The first release that has a page of the index cache for ``64 * index_kpool`` tokens, its page of KV rows.
Before, every page of 64 tokens has one, and a pooled indexer uses a share of them."""

# -- assumptions; every plan prints them ---------------------------------------------------------------

VISIBLE: Final = 0.98
"""CUDA reports 23.5 of a card's 24 GiB, 31.4 of 32, 47.4 of 48."""
CONTEXT: Final = GIB
"""CUDA context, libraries and NCCL buffers, which a process takes before sglang measures free memory."""
CHUNK: Final = 4096
"""Tokens of a prefill chunk: sglang's default on cards below 60 GiB (``memory_hook.py``)."""
GRAPHS: Final = GIB // 2
"""Decode graphs. sglang reserves 2 MB for a request of the largest batch (``memory_hook.py``), and captures
batches of up to 160 on cards below 60 GiB."""
PREFILL_GRAPHS: Final = 3 * GIB // 2
"""Prefill graphs of a server with one stage: sglang's figure for MLA (``reserve_for_graph_mb``). Servers with
pipeline stages have none by default."""
MARGIN: Final = GIB
"""Fragmentation, logits of the indexer and of the head, workspaces of kernels."""
LARGEST_FRACTION: Final = 0.90
"""Largest ``--mem-fraction-static`` that is known to have served GLM-5.2 on such cards."""
RUNNING: Final = 64
RUNNING_LINEAR: Final = 16
"""Requests at once if ``--streams`` is not given, and for a model with linear attention: there each takes
state of a fixed size, 143 MB for GLM-5.3-Flash before it is divided among ranks."""
STATES: Final = 3
"""Slots of linear-attention state for a request (``MAMBA_CACHE_SIZE_MAX_RUNNING_REQUESTS_RATIO``)."""

EVERY_LAYER_KEEPS_KEYS: Final = (Version("0.5.13"), Version("0.5.18"))
"""From the first release to before the second, layers that share an indexer have index keys too. Before,
the series leaves them out (``glm-index-sharing``); after, sglang does (``_should_elide_dsa_index_k``)."""


@dataclass(frozen=True)
class Setting:
    """What the memory of a layout depends on besides the weights. ``row``: bytes of a latent row."""

    model: Model
    weights: tuple[Weight, ...]
    cards: Cards
    release: Version
    row: int
    running: int
    context: int


@dataclass(frozen=True)
class Reserve:
    """Bytes on each card that are neither weights nor cache, and the fraction that leaves them free."""

    usable: int
    activations: int
    graphs: int
    request_table: int
    fraction: float

    @property
    def budget(self) -> int:
        """Bytes for weights and cache."""
        return int(self.usable * self.fraction)


@dataclass(frozen=True)
class Stage:
    """One pipeline stage; sizes are bytes on each of its cards.

    ``tokens`` that fit: below 0, the weights do not; None, no layer of the stage has a KV cache.
    """

    first: int
    layers: int
    weights: dict[str, int]
    state: int
    token: int
    tokens: int | None

    @property
    def weight(self) -> int:
        return sum(self.weights.values())


def latent_row(model: Model, layout: str) -> int:
    """Bytes of a token's latent row in one layer (``calculate_mla_kv_cache_dim``, docs/kernels.md).

    ``packed``: 512 codes, one fp32 scale per 128 of them, and the rotary part in bf16. ``raw``: fp8 without
    scales (trtllm). ``bf16``.
    """
    if layout == "packed":
        return model.kv_lora + model.kv_lora // 128 * 4 + 2 * model.rope
    return (model.kv_lora + model.rope) * (2 if layout == "bf16" else 1)


def index_key(model: Model, release: Version) -> int:
    """Bytes of a token's index key in one layer: fp8 codes and an fp32 scale per 128, of a pooled key a
    share (``_compute_dsa_indexer_cell_size``)."""
    return -(-(model.index_dim + model.index_dim // 128 * 4) // _pool(model, release))


def _pool(model: Model, release: Version) -> int:
    """Tokens for which the index cache has room for one key."""
    return model.index_kpool if release >= POOLED_PAGES else 1


def state_bytes(setting: Setting, layers: int, tp: int) -> int:
    """Linear-attention state on each card of a stage with so many such layers.

    A slot: fp32 ``[heads, dim, dim]`` and bf16 convolution windows of q, k and v, divided among ranks
    (``KimiLinearStateShape``); one slot more is padding.
    """
    model = setting.model
    matrix = 4 * model.linear_heads * model.linear_dim**2
    window = 2 * 3 * (model.linear_conv - 1) * model.linear_heads * model.linear_dim
    slots = STATES * setting.running + 1
    return layers * slots * -(-(matrix + window) // tp)


def reserve_memory(setting: Setting, tp: int, stages: int) -> Reserve:
    """What stays free of weights and cache. sglang measures the fraction of the memory that is free when it
    starts (``_profile_available_bytes``)."""
    usable = int(setting.cards.memory * VISIBLE) - CONTEXT
    activations = CHUNK * activation_bytes(setting.model, tp)
    graphs = GRAPHS + (PREFILL_GRAPHS if stages == 1 else 0)
    # ReqToTokenPool: an int32 for each token of each request.
    table = 4 * setting.running * setting.context
    needed = activations + graphs + table + MARGIN
    fraction = math.floor(100 * (1 - needed / usable)) / 100 if usable > needed else 0.0
    return Reserve(usable, activations, graphs, table, min(LARGEST_FRACTION, fraction))


def activation_bytes(model: Model, tp: int) -> int:
    """Bytes that a token of a prefill chunk takes in the largest layer.

    Residual streams and inputs in bf16; the MoE's three intermediate tensors for each chosen expert
    (``fused_moe_triton``); query, absorbed query and output of attention; two lists of selected keys.
    """
    expert = model.experts_per_token * (2 * model.hidden + 2 * 3 * model.expert // tp)
    head = 2 * (2 * (model.nope + model.rope) + 2 * model.kv_lora + model.rope + model.value)
    lists = 2 * 4 * model.index_topk
    residual = 2 * model.hidden * (4 + 2 * model.streams)
    return expert + model.heads // tp * head + lists + residual


class Filler:
    """Fills stages of a layout. What a stage takes is a difference of sums over the layers before it."""

    def __init__(self, setting: Setting, tp: int, stages: int) -> None:
        self.reserve = reserve_memory(setting, tp, stages)
        self._setting = setting
        self._tp = tp
        layers = range(setting.model.layers)
        self._shares = share_weights(setting.weights, setting.model.layers, tp)
        totals = [sum(share.values()) for share in self._shares.layers]
        self._weights = [0, *accumulate(totals)]
        model = setting.model
        self._cached = [0, *accumulate(layer not in model.linear for layer in layers)]
        self._keyed = [0, *accumulate(layer in model.indexed for layer in layers)]

    def fill(self, first: int, end: int) -> Stage:
        """A stage of layers ``first`` to ``end`` - 1."""
        held = self._shares.hold(first, end)
        state, token = self._state(first, end), self.token(first, end)
        return Stage(
            first, end - first, held, state, token, self._fit(sum(held.values()), state, token)
        )

    def count(self, first: int, end: int) -> float:
        """Tokens that fit on the stage's cards; below 0, its weights do not fit."""
        shares = self._shares
        weight = self._weights[end] - self._weights[first]
        weight += sum(shares.first.values()) if first == 0 else 0
        weight += sum(shares.last.values()) if end == self._setting.model.layers else 0
        found = self._fit(weight, self._state(first, end), self.token(first, end))
        return math.inf if found is None else found

    def token(self, first: int, end: int) -> int:
        """KV and index bytes of a token on each card of the stage. Ranks do not divide them."""
        setting = self._setting
        cached = self._cached[end] - self._cached[first]
        keyed = self._keyed[end] - self._keyed[first]
        start, stop = EVERY_LAYER_KEEPS_KEYS
        if start <= setting.release < stop:
            keyed = cached
        elif setting.release < start and first not in setting.model.indexed:
            keyed += 1  # the series gives a stage's first layer a buffer whatever its type
        return cached * setting.row + keyed * index_key(setting.model, setting.release)

    def _state(self, first: int, end: int) -> int:
        linear = end - first - self._cached[end] + self._cached[first]
        return state_bytes(self._setting, linear, self._tp)

    def _fit(self, weight: int, state: int, token: int) -> int | None:
        room = self.reserve.budget - weight - state
        if token:
            page = PAGE * _pool(self._setting.model, self._setting.release)
            return room // token // page * page
        return None if room >= 0 else room


def least_tokens(stages: Iterable[Stage]) -> int:
    """Tokens that the whole pipeline holds: its stages agree on the least (``_apply_token_constraints``)."""
    return min((one.tokens for one in stages if one.tokens is not None), default=0)
