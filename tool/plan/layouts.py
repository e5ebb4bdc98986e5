"""Ways to divide a model among cards: tensor-parallel ranks and pipeline stages, best first."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Final

from packaging.version import Version

from tool.plan.cards import GIB, NODE, Cards
from tool.plan.memory import Filler, Reserve, Setting, Stage, least_tokens
from tool.plan.model import Model
from tool.plan.weights import PREDICTION

SENDS_SELECTION: Final = Version("0.5.14")
"""The first release that sends the selected keys to a stage that starts at a layer without an indexer."""
NEARLY: Final = 0.9
"""A more even division may hold a tenth fewer tokens: the slowest stage sets the pace."""
MOST_STAGES: Final = 16
"""A token passes through every stage: longer pipelines are not planned."""
MOST_NODES: Final = 32
"""Where the search for the fewest cards ends."""


@dataclass(frozen=True)
class Layout:
    """``tp`` ranks times ``pp`` stages. ``reason`` says why it does not fit; empty if it fits.

    ``own_division``: sglang divides the layers like this without ``SGLANG_PP_LAYER_PARTITION``.
    """

    tp: int
    pp: int
    partition: tuple[int, ...]
    own_division: bool
    stages: tuple[Stage, ...]
    reserve: Reserve | None
    tokens: int
    reason: str = ""

    @property
    def fits(self) -> bool:
        return not self.reason

    @property
    def title(self) -> str:
        return f"TP{self.tp} x PP{self.pp}" if self.pp > 1 else f"TP{self.tp}"


def rank_layouts(setting: Setting, needed: int) -> list[Layout]:
    """Every layout of all cards, best first: those that hold ``needed`` tokens, then the larger TP.

    A decode step passes through all stages, and the cards of a stage share its work. So more ranks make a
    step shorter, and more stages make room for tokens, because ranks do not divide the cache.
    """
    found = [_make_layout(setting, tp, needed) for tp in _list_tp(setting.cards, setting.model)]
    return sorted(found, key=lambda one: (not one.fits, not one.stages, -one.tp))


def find_fewest(setting: Setting, needed: int) -> tuple[Cards, Layout] | None:
    """The smallest number of such cards that holds ``needed`` tokens: on one node, or on nodes of the same
    size (of ``NODE`` cards, if there is one node now)."""
    each = setting.cards.per_node if setting.cards.nodes > 1 else max(setting.cards.per_node, NODE)
    counts = [(2**n, 1) for n in range(10) if 2**n < each]
    counts += [(each * nodes, nodes) for nodes in range(1, MOST_NODES + 1)]
    held = sum(one.size for one in setting.weights if one.place != PREDICTION)
    for count, nodes in counts:
        if count * setting.cards.memory < held:
            continue
        cards = replace(setting.cards, count=count, nodes=nodes)
        best = rank_layouts(replace(setting, cards=cards), needed)[0]
        if best.fits:
            return cards, best
    return None


def divide_evenly(layers: int, stages: int) -> tuple[int, ...]:
    """sglang's own division (``get_pp_indices``): the last stages have one layer more."""
    each, more = divmod(layers, stages)
    return tuple(each + (stage >= stages - more) for stage in range(stages))


def divide_best(
    count: Callable[[int, int], float], starts: Sequence[int], layers: int, stages: int
) -> tuple[int, ...] | None:
    """The most even division that holds nearly (``NEARLY``) as many tokens as the best one.

    ``count(first, end)``: tokens that fit beside layers ``first`` to ``end`` - 1. Every stage starts at one
    of ``starts``. None: there is no such division.
    """
    ends = sorted({*starts, layers})

    @functools.cache
    def most(first: int, left: int) -> float:
        """Tokens of the fullest of ``left`` stages from layer ``first`` on, at best."""
        if left == 0 or first == layers:
            return math.inf if left == 0 and first == layers else -math.inf
        return max(
            (min(count(first, end), most(end, left - 1)) for end in ends if end > first),
            default=-math.inf,
        )

    if 0 not in starts or most(0, stages) == -math.inf:
        return None
    least = most(0, stages) * (NEARLY if most(0, stages) > 0 else 1)

    @functools.cache
    def evenest(first: int, left: int) -> tuple[int, tuple[int, ...]]:
        """Sum of squares and lengths; of equally even divisions the one with shorter first stages."""
        found = [
            (evenest(end, left - 1), end - first)
            for end in ends
            if end > first and count(first, end) >= least and most(end, left - 1) >= least
        ]
        return min(
            ((length**2 + sq, (length, *rest)) for (sq, rest), length in found), default=(0, ())
        )

    return evenest(0, stages)[1]


def _list_tp(cards: Cards, model: Model) -> Iterator[int]:
    """Ranks that fill nodes evenly. Beyond one node they are listed only to say why not."""
    each = cards.per_node
    yield from (tp for tp in range(1, each + 1) if each % tp == 0)
    if cards.nodes > 1 and each * 2 <= model.heads and cards.nodes % 2 == 0:
        yield each * 2


def _make_layout(setting: Setting, tp: int, needed: int) -> Layout:
    pp = setting.cards.count // tp
    refused = _refuse(setting, tp, pp)
    if refused:
        return Layout(tp, pp, (), True, (), None, 0, refused)
    filler = Filler(setting, tp, pp)
    partition = _choose_partition(setting, pp, needed, filler)
    if partition is None:
        most = len(setting.model.indexed)
        reason = f"only {most} layers have an indexer, and every stage must start at one"
        return Layout(tp, pp, (), True, (), None, 0, reason)
    stages = tuple(filler.fill(first, end) for first, end in _span(partition))
    tokens = least_tokens(stages)
    reason = _say_why_not(filler.reserve, stages, tokens, needed)
    own = partition == divide_evenly(setting.model.layers, pp)
    return Layout(tp, pp, partition, own, stages, filler.reserve, max(tokens, 0), reason)


def _refuse(setting: Setting, tp: int, pp: int) -> str:
    """Why sglang cannot divide the model so, whatever the memory."""
    model = setting.model
    block = {"fp8": 128, "int4": 128, "nvfp4": 16}.get(model.format, 1)
    if tp > setting.cards.per_node:
        return "a stage would span nodes: every layer would add up over the network"
    if model.heads % tp or model.linear_heads % tp:
        return f"{model.heads} heads are not divisible by {tp}"
    if model.expert % (tp * block) or model.dense % (tp * block):
        return f"{tp} ranks would cut the experts ({model.expert} wide) inside a block of {block}"
    if pp > min(MOST_STAGES, model.layers):
        return f"{pp} stages are too many; {min(MOST_STAGES, model.layers)} at most are planned"
    return ""


def _choose_partition(
    setting: Setting, pp: int, needed: int, filler: Filler
) -> tuple[int, ...] | None:
    """Stages start at layers with an indexer if the model shares indexers: older releases must, and
    newer ones then send no list of selected keys between stages. Newer ones may start anywhere if that
    is what makes the tokens fit."""
    model = setting.model

    def least(partition: tuple[int, ...]) -> float:
        return min(filler.count(first, end) for first, end in _span(partition))

    if model.shares_indexers:
        aligned = divide_best(filler.count, sorted(model.indexed), model.layers, pp)
        if setting.release < SENDS_SELECTION or (aligned and least(aligned) >= needed):
            return aligned
    best = divide_best(filler.count, range(model.layers), model.layers, pp)
    own = divide_evenly(model.layers, pp)
    if best is None or least(best) <= 0:
        return own
    return own if least(own) >= max(needed, NEARLY * least(best)) else best


def _span(partition: Sequence[int]) -> list[tuple[int, int]]:
    """First layer and end of each stage."""
    return list(pairwise([0, *accumulate(partition)]))


def _say_why_not(reserve: Reserve, stages: Sequence[Stage], tokens: int, needed: int) -> str:
    if tokens >= needed:
        return ""
    taken = max(one.weight + one.state for one in stages)
    if taken > reserve.budget:
        what = "weights and linear-attention state" if stages[0].state else "weights"
        return f"{what} take {taken / GIB:.1f} GiB of a card, and {reserve.budget / GIB:.1f} GiB are there"
    return f"holds {tokens:,} of the {needed:,} tokens asked for"
