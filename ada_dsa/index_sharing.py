"""Which layers of a DSA model compute a top-k of their own, and what follows from it.

GLM-5.2 gives only some layers ("full") an indexer; a layer in between ("shared") attends to the
tokens that the last full layer before it selected. The rule is read from the model's config:
`indexer_types` (one of "full" and "shared" a layer, `GlmMoeDsaConfig` of transformers), or
`index_topk_pattern` (one letter a layer, "S" for shared), or `index_topk_freq` with
`index_skip_topk_offset`. Precedence and defaults are those of sglang 0.5.23
(`sglang.srt.configs.model_config.dsa_layer_skips_topk`).

Plain Python: neither torch nor sglang is imported, so that the launcher can ask before any process
is spawned.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

# sglang's rule for a config that names a frequency and no offset: layers 0 and 1 are full.
_DEFAULT_OFFSET = 2


def is_shared_layer(config: Any, layer_id: int) -> bool:
    """Whether layer `layer_id` reuses the top-k of the last full layer before it.

    Raises ValueError for a config whose rule cannot be followed (an unknown layer type, a frequency
    or offset below 1).
    """
    types = getattr(config, "indexer_types", None)
    if types is not None:
        kind = types[layer_id] if layer_id < len(types) else "full"
        if kind not in ("full", "shared"):
            raise ValueError(
                f"indexer_types[{layer_id}] of the model config is {kind!r}; "
                "'full' and 'shared' are known."
            )
        return bool(kind == "shared")
    pattern = getattr(config, "index_topk_pattern", None)
    if pattern is not None:
        return layer_id < len(pattern) and bool(pattern[layer_id] == "S")
    freq = getattr(config, "index_topk_freq", None)
    freq = 1 if freq is None else freq
    offset = getattr(config, "index_skip_topk_offset", None)
    offset = _DEFAULT_OFFSET if offset is None else offset
    if freq < 1 or offset < 1:
        raise ValueError(
            f"The model config has index_topk_freq={freq} and index_skip_topk_offset={offset}; "
            "both must be at least 1."
        )
    return bool(max(layer_id - offset + 1, 0) % freq != 0)


def full_layers(config: Any) -> list[int]:
    """Ids of the layers that have an indexer, of the `config.num_hidden_layers` layers."""
    return [i for i in range(config.num_hidden_layers) if not is_shared_layer(config, i)]


def has_shared_layers(config: Any) -> bool:
    """Whether any layer reuses another's top-k (GLM-5.2: yes; DeepSeek-V3.2: no)."""
    return len(full_layers(config)) < config.num_hidden_layers


def index_k_slots(config: Any, start_layer: int, num_layers: int) -> list[int]:
    """For each of `num_layers` layers from `start_layer`, which index-key buffer it uses.

    A full layer opens the next buffer, a shared layer names that of the full layer before it, so
    that `max(slots) + 1` buffers are to be allocated. The first layer opens a buffer in any case.
    """
    slots: list[int] = []
    for layer_id in range(start_layer, start_layer + num_layers):
        if not slots:
            slots.append(0)
        else:
            slots.append(slots[-1] + (not is_shared_layer(config, layer_id)))
    return slots


def pipeline_partition(starts: Sequence[int], num_layers: int, pp_size: int) -> list[int] | None:
    """Layers per pipeline stage, as even as possible, every stage starting at one of `starts`.

    `starts` is ascending. Least sum of squared stage sizes; of equals the one whose earlier stages
    are shorter (the first stage also holds the embedding). None if there is no such partition.
    """
    if not starts or starts[0] != 0 or pp_size > len(starts):
        return None
    # best[b]: (sum of squared sizes, boundaries) of the stages that cover layers [0, b).
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, (0,))}
    for stage in range(pp_size):
        ends = [num_layers] if stage == pp_size - 1 else [s for s in starts if s > 0]
        longer: dict[int, tuple[int, tuple[int, ...]]] = {}
        for end in ends:
            reach = [
                (cost + (end - begin) ** 2, (*bounds, end))
                for begin, (cost, bounds) in best.items()
                if begin < end
            ]
            if reach:
                longer[end] = min(reach)
        best = longer
    if num_layers not in best:
        return None
    return [end - begin for begin, end in pairwise(best[num_layers][1])]


def check_layout(config: Any, stage_starts: Sequence[int], two_batch_overlap: bool) -> None:
    """Refuse, before anything is loaded, a launch whose shared layers would have no top-k to reuse.

    `stage_starts`: first layer id of each pipeline stage. `two_batch_overlap`: sglang's
    `--enable-two-batch-overlap`. Raises ValueError that says what to change. A model without shared
    layers passes.
    """
    types = getattr(config, "indexer_types", None)
    num_layers: int = config.num_hidden_layers
    if types is not None and len(types) < num_layers:
        raise ValueError(
            f"indexer_types of the model config names {len(types)} layers, "
            f"num_hidden_layers is {num_layers}."
        )
    full = full_layers(config)
    if len(full) == num_layers:
        return
    if not full or full[0] != 0:
        raise ValueError(
            "The model config makes layer 0 reuse a top-k that no layer before it has computed: "
            "check indexer_types, index_topk_pattern, index_topk_freq and index_skip_topk_offset."
        )
    if two_batch_overlap:
        raise ValueError(
            "--enable-two-batch-overlap cannot serve a model whose layers share the indexer's "
            "top-k: the halves of a batch are split after the first layers, and the top-k of the "
            "whole batch is not carried into them. Remove --enable-two-batch-overlap."
        )
    shared = [start for start in stage_starts if start not in set(full)]
    if not shared:
        return
    pp_size = len(stage_starts)
    partition = pipeline_partition(full, num_layers, pp_size)
    if partition is None:
        advice = (
            f"No partition into {pp_size} stages does: only {len(full)} layers compute a top-k. "
            f"Use --pp-size {len(full)} or less."
        )
    else:
        advice = f"Set SGLANG_PP_LAYER_PARTITION={','.join(map(str, partition))}."
    raise ValueError(
        f"With --pp-size {pp_size} a pipeline stage starts at layer "
        f"{', '.join(map(str, shared))}, which reuses the top-k of an earlier layer, and top-k "
        f"indices are not sent between stages. Every stage must start at a layer that computes "
        f"its own. {advice}"
    )
