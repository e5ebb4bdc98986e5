"""The witness for GLM-5.3-Flash: transformers' torch implementation, behind the functions of ``witness``.

Weights are dequantised. The vision tower is loaded and not run; the prediction layer is left out. A prompt
goes through in chunks over transformers' own cache, because one forward of 16K tokens takes some tens of GB.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tests.serving.support.flash_model import PREFIX
from tests.serving.support.tiny_model import read_dequantised
from tests.serving.support.witness import Answer

CHUNK: Final = 512

Choose = Callable[[int, int, Tensor], Tensor]
"""``(layer, position of the first query, keys [queries, topk + kpool - 1])`` to keys of the same shape."""


@dataclass(frozen=True)
class Model:
    """Transformers' model; ``config`` is that of its text part."""

    config: Any
    module: Any

    @property
    def device(self) -> torch.device:
        device: torch.device = self.module.device
        return device


def load(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Model:
    """Read a model folder of ``flash_model``, block-quantised or bf16.

    Raises:
        FileNotFoundError: no model there.
        ValueError: transformers found a tensor missing, or one that it does not know.
    """
    from transformers import Glm5NextConfig, Glm5NextForConditionalGeneration

    given = json.loads((folder / "config.json").read_text())
    given.pop("quantization_config", None)
    config = Glm5NextConfig(**given)
    prediction = f"{PREFIX}.layers.{config.text_config.num_hidden_layers}."
    found = dict(read_dequantised(folder, without=prediction))
    if not found:
        raise FileNotFoundError(
            f"{folder}: no *.safetensors. Make one: "
            f"python -m tests.serving.support.flash_model {folder}"
        )
    module, told = Glm5NextForConditionalGeneration.from_pretrained(
        None,
        config=config,
        state_dict=found,
        dtype=dtype,
        attn_implementation="eager",
        output_loading_info=True,
    )
    if wrong := {kind: names for kind, names in told.items() if names}:
        raise ValueError(f"{folder}: transformers loads this model only in part: {wrong}")
    return Model(config.text_config, module.eval().to(device))


@torch.no_grad()
def forward(
    model: Model,
    tokens: Tensor | Sequence[int],
    *,
    choose: Choose | None = None,
    last: int | None = None,
    chunk: int | None = CHUNK,
    with_keys: bool = False,
) -> Answer:
    """Run one prompt ``[tokens]``; logprobs of the ``last`` positions (all by default).

    ``choose`` replaces the keys that a layer's indexer selects. ``chunk`` tokens go through at a time, all
    at once and without a cache if it is None. Keys come back per DSA layer, int32
    ``[tokens, topk + kpool - 1]`` in the indexer's order, -1 where there is none.
    """
    from transformers import DynamicCache

    ids = torch.as_tensor(tokens, dtype=torch.int64, device=model.device)[None]
    length = ids.shape[1]
    cache = DynamicCache(config=model.module.config) if chunk else None
    logprobs: list[Tensor] = []
    keys: dict[int, list[Tensor]] = {}
    first = length - last if last else 0
    for start in range(0, length, chunk or length):
        part = ids[:, start : start + (chunk or length)]
        with _indexers(model, start, choose, keys if with_keys else None):
            states = model.module.model(
                input_ids=part, past_key_values=cache, use_cache=cache is not None
            ).last_hidden_state[0]
        logits = model.module.lm_head(states[max(first - start, 0) :])
        logprobs.append(torch.log_softmax(logits.float(), dim=-1))
    return Answer(torch.cat(logprobs), {layer: torch.cat(found) for layer, found in keys.items()})


@contextmanager
def _indexers(
    model: Model, start: int, choose: Choose | None, keys: dict[int, list[Tensor]] | None
) -> Iterator[None]:
    """Let ``choose`` replace what the indexers return, and ``keys`` keep it."""

    def after(module: Any, _: Any, selected: Tensor) -> Tensor:
        if choose:
            selected = choose(module.layer_idx, start, selected[0])[None]
        if keys is not None:
            keys.setdefault(module.layer_idx, []).append(selected[0])
        return selected

    hooks = [
        layer.self_attn.indexer.register_forward_hook(after)
        for layer in model.module.model.language_model.layers
        if hasattr(layer.self_attn, "indexer")
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
