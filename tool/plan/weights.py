"""Bytes of a checkpoint by layer and part, and what of them each card holds."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tool.errors import UsageError
from tool.plan.model import Model

FIRST: Final = -1
LAST: Final = -2
PREDICTION: Final = -3
"""Places outside the layers: with the first stage, with the last one, the prediction (MTP) layer."""

FP8_BLOCK: Final = 128
"""A block-fp8 weight has one fp32 scale per 128 x 128 block (``weight_block_size`` of the checkpoint)."""
NVFP4_GROUP: Final = 16
"""NVFP4 has one e4m3 scale per 16 weights and one fp32 scale a tensor."""
INT4_GROUP: Final = 128
"""AWQ and GPTQ have one bf16 scale and one 4-bit zero point per 128 weights."""


@dataclass(frozen=True)
class Weight:
    """``size`` bytes of ``part`` at ``place``, a layer or one of the places above.

    ``divided``: tensor-parallel ranks hold a share each; else every rank holds all of it. ``stored``: it is
    in the checkpoint; else sglang makes it when it loads.
    """

    part: str
    place: int
    size: int
    divided: bool
    stored: bool = True


def list_weights(model: Model) -> tuple[tuple[Weight, ...], str, int | None]:
    """The weights, what they were read from (the files of the checkpoint, or its config), and the bytes of
    all tensors if the checkpoint has an index that states them.

    Raises:
        UsageError: a file of the checkpoint is damaged.
    """
    files, stated = _find_files(model.folder) if model.folder else ([], None)
    stored = tuple(_read_weights(model, files) if files else _compute_weights(model))
    source = f"the {len(files)} safetensors file(s)" if files else "the sizes in its config"
    return (*stored, *_list_made(model)), source, stated


def sum_stored(weights: Iterable[Weight]) -> int:
    """Bytes of the checkpoint."""
    return sum(one.size for one in weights if one.stored)


@dataclass(frozen=True)
class Shares:
    """Bytes by part on one card: of each layer, with the first stage, and with the last stage."""

    layers: tuple[dict[str, int], ...]
    first: dict[str, int]
    last: dict[str, int]

    def hold(self, first: int, end: int) -> dict[str, int]:
        """Bytes by part on each card of a stage of layers ``first`` to ``end`` - 1."""
        shares = [self.first] if first == 0 else []
        shares += self.layers[first:end]
        shares += [self.last] if end == len(self.layers) else []
        held: Counter[str] = Counter()
        for share in shares:
            held.update(share)
        return dict(held)


def share_weights(weights: Iterable[Weight], layers: int, tp: int) -> Shares:
    """What each of ``tp`` ranks holds. The prediction layer is left out: only speculation loads it."""
    found: dict[int, dict[str, int]] = {place: {} for place in (*range(layers), FIRST, LAST)}
    for one in weights:
        if one.place in found:
            size = -(-one.size // tp) if one.divided else one.size
            found[one.place][one.part] = found[one.place].get(one.part, 0) + size
    return Shares(tuple(found[layer] for layer in range(layers)), found[FIRST], found[LAST])


# -- from sizes --------------------------------------------------------------------------------------

_Shape = tuple[str, int, int, str, bool]
"""Part, rows, columns, kind, divided. Kinds: ``expert`` (quantised in every format), ``linear`` (quantised in
fp8 alone), ``bf16`` and ``fp32`` (never quantised)."""


def _compute_weights(model: Model) -> Iterator[Weight]:
    for layer in range(model.layers):
        yield from _compute(model, layer, _layer(model, layer))
    embedding = ("embedding", model.vocab, model.hidden, "bf16", True)
    yield from _compute(model, FIRST, [embedding, ("vision", model.vision, 1, "bf16", True)])
    yield from _compute(model, LAST, [("head", model.vocab, model.hidden, "bf16", True)])
    # The MTP layer: a layer with experts and an indexer, eh_proj, and in DeepSeek's checkpoints copies of
    # embedding and head. 4-bit checkpoints keep it in bf16.
    mtp = [*_layer(model, model.layers), ("eh_proj", model.hidden, 2 * model.hidden, "bf16", False)]
    mtp += [embedding, embedding] if model.own_embedding else []
    kept = replace(model, format="bf16") if model.format in ("nvfp4", "int4") else model
    for _ in range(model.prediction_layers):
        for one in _compute(kept, PREDICTION, mtp):
            yield replace(one, part="MTP")


def _compute(model: Model, place: int, shapes: Iterable[_Shape]) -> Iterator[Weight]:
    for part, rows, columns, kind, divided in shapes:
        size = _tensor_bytes(rows, columns, kind, model.format)
        if size:
            yield Weight(part, place, size, divided)


def _tensor_bytes(rows: int, columns: int, kind: str, form: str) -> int:
    count = rows * columns
    if kind == "expert" and form == "nvfp4":
        return count // 2 + count // NVFP4_GROUP
    if kind == "expert" and form == "int4":
        return count // 2 + count // INT4_GROUP * 5 // 2
    if kind in ("expert", "linear") and form == "fp8":
        return count + 4 * -(-rows // FP8_BLOCK) * -(-columns // FP8_BLOCK)
    return (4 if kind == "fp32" else 2) * count


def _layer(model: Model, layer: int) -> Iterator[_Shape]:
    """Shapes as in sglang's ``models/deepseek_v2.py`` and ``models/glm5_next.py``; ``layer`` number
    ``model.layers`` is the MTP layer."""
    hidden, width = model.hidden, model.linear_heads * model.linear_dim
    if layer in model.linear:
        yield "linear attention", 4 * width + model.linear_heads, hidden, "bf16", True
        yield "linear attention", 2 * width, model.linear_dim, "bf16", True
        yield "linear attention", 3 * width, model.linear_conv, "fp32", True
        yield "linear attention", 2 * model.linear_dim, hidden, "bf16", False
    else:
        yield "attention", model.q_lora + model.kv_lora + model.rope, hidden, "linear", False
        yield "attention", model.heads * (model.nope + model.rope), model.q_lora, "linear", True
        yield "attention", model.heads * (model.nope + model.value), model.kv_lora, "linear", True
        yield "attention", hidden, model.heads * model.value, "linear", True
    if layer in model.indexed or layer == model.layers:
        yield "indexer", model.index_heads * model.index_dim, model.q_lora, "linear", False
        yield "indexer", model.index_dim, hidden, "linear", False
        pooled = model.index_dim if model.index_kpool > 1 else 0
        yield "indexer", model.index_heads + pooled, hidden, "bf16", False
    if layer < model.dense_layers:
        yield "dense MLP", 3 * model.dense, hidden, "linear", True
    else:
        yield "experts", model.experts * 3 * model.expert, hidden, "expert", True
        yield "shared expert", model.shared_experts * 3 * model.expert, hidden, "linear", True
        yield "router", model.experts, hidden, "bf16", False
    yield "norms", 2, hidden, "bf16", False
    if model.streams > 1 and layer < model.layers:  # hyper-connections
        mixed = model.streams * (model.streams + 2)
        yield "norms", 2 * mixed, model.streams * hidden, "fp32", False


def _list_made(model: Model) -> Iterator[Weight]:
    """bf16 copies of kv_b that sglang absorbs into query and output (``w_kc`` and ``w_vc`` in
    ``deepseek_weight_loader.py``); kv_b itself stays."""
    size = 2 * model.heads * (model.nope + model.value) * model.kv_lora
    for layer in model.attention:
        yield Weight("absorbed kv_b", layer, size, True, stored=False)


# -- from files --------------------------------------------------------------------------------------

_LAYER: Final = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)")
_PARTS: Final = (
    # pattern, part, divided
    (r"mlp\.experts\.", "experts", True),
    (r"mlp\.shared_experts?\.", "shared expert", True),
    (r"mlp\.gate\.", "router", False),
    (r"mlp\.", "dense MLP", True),
    (r".*indexers?[._]", "indexer", False),
    (r"self_attn\.(q_a|kv_a|.*layernorm|.*_norm)", "attention", False),
    (r"self_attn\..*(f_a_proj|g_a_proj)", "attention", False),
    (r"self_attn\.", "attention", True),
    (r"", "norms", False),
)


def _find_files(folder: Path) -> tuple[list[Path], int | None]:
    """The safetensors files, or none when one that the index names is not there; the index's total size."""
    stated = None
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        files = [folder / name for name in sorted(set(index["weight_map"].values()))]
        if (total := (index.get("metadata") or {}).get("total_size")) is not None:
            stated = int(total)
    except FileNotFoundError:
        files = sorted(folder.glob("*.safetensors"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            "is damaged", where=str(folder / "model.safetensors.index.json"), why=repr(error)
        ) from error
    return files if all(file.is_file() for file in files) else [], stated


def _read_weights(model: Model, files: Iterable[Path]) -> Iterator[Weight]:
    for file in files:
        for name, size in _read_header(file):
            yield _place(model, name, size)


def _read_header(file: Path) -> Iterator[tuple[str, int]]:
    """Name and bytes of each tensor. A safetensors file begins with the header's length (8 bytes, little
    endian) and the header, a JSON object."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= file.stat().st_size:
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(stream.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                yield name, end - start
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            "is no whole safetensors file",
            where=str(file),
            why=str(error),
            next_step="download this file again",
        ) from error


def _place(model: Model, name: str, size: int) -> Weight:
    if "visual." in name:
        return Weight("vision", FIRST, size, True)
    found = _LAYER.search(name)
    if not found:
        if "embed_tokens" in name:
            return Weight("embedding", FIRST, size, True)
        return Weight("head", LAST, size, "lm_head" in name)
    layer, rest = int(found[1]), found[2]
    part, divided = next((p, d) for pattern, p, d in _PARTS if re.match(pattern, rest))
    if layer >= model.layers:
        return Weight("MTP", PREDICTION, size, divided)
    if part == "attention" and layer in model.linear:
        part = "linear attention"
    return Weight(part, layer, size, divided)
