"""Which layers of a DSA model compute a top-k of their own, and which launches this allows.

In GLM-5.2 only some layers ("full") have an indexer. Each other layer ("shared") attends to the tokens that
the last full layer before it selected. The model's config gives the rule in one of three forms:
`indexer_types` ("full" or "shared" for each layer, `GlmMoeDsaConfig` of transformers), `index_topk_pattern`
(one letter per layer, "S" for shared), or `index_topk_freq` with `index_skip_topk_offset`. Precedence and
defaults are those of sglang 0.5.23 (`sglang.srt.configs.model_config.dsa_layer_skips_topk`).

This module imports neither torch nor sglang, so that the launcher can call it before it starts a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

# sglang's rule for a config with a frequency and without an offset: layers 0 and 1 are full.
_DEFAULT_OFFSET = 2


def is_shared_layer(config: Any, layer_id: int) -> bool:
    """Whether layer `layer_id` reuses the top-k of the last full layer before it.

    Raises:
        ValueError: the config's rule has an unknown layer type, or a frequency or offset below 1.
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
    """Return the ids of those of the `config.num_hidden_layers` layers that have an indexer."""
    return [i for i in range(config.num_hidden_layers) if not is_shared_layer(config, i)]


def has_shared_layers(config: Any) -> bool:
    """Whether a layer reuses the top-k of another layer, as in GLM-5.2 and not in DeepSeek-V3.2."""
    return bool(len(full_layers(config)) < config.num_hidden_layers)


def index_k_slots(config: Any, start_layer: int, num_layers: int) -> list[int]:
    """Return the index-key buffer that each of `num_layers` layers from `start_layer` on uses.

    A full layer uses the next buffer, and a shared layer uses that of the full layer before it. Therefore
    `max(slots) + 1` buffers must be allocated. The first layer uses buffer 0, whatever its type.
    """
    slots: list[int] = []
    for layer_id in range(start_layer, start_layer + num_layers):
        if not slots:
            slots.append(0)
        else:
            slots.append(slots[-1] + (not is_shared_layer(config, layer_id)))
    return slots


def pipeline_partition(starts: Sequence[int], num_layers: int, pp_size: int) -> list[int] | None:
    """Return the layers per pipeline stage, as even as possible, with every stage starting at a `starts`.

    `starts` ascends. The result has the least sum of squared stage sizes. Of equal partitions it is the
    one whose earlier stages are shorter, because the first stage also holds the embedding. The result is
    None if there is no such partition.
    """
    if not starts or starts[0] != 0 or pp_size > len(starts):
        return None
    # best[b]: the sum of squared sizes and the boundaries of the stages that cover layers [0, b).
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
    """Refuse a launch in which a shared layer would have no top-k to reuse, before anything is loaded.

    A model without shared layers passes.

    Args:
        config: the model's config.
        stage_starts: first layer id of each pipeline stage.
        two_batch_overlap: whether sglang's `--enable-two-batch-overlap` is set.

    Raises:
        ValueError: the launch is refused; the message says what to change.
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
