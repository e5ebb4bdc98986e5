"""A DSA model as its ``config.json`` describes it: sizes, and what each layer has.

``models.json`` holds the configurations that the tool knows without a download.
"""

from __future__ import annotations

import functools
import json
import os
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar

from tool.errors import EnvironmentFault, UsageError

FORMATS: Final = ("fp8", "nvfp4", "int4", "bf16")
"""Formats of the weights. Both 4-bit formats hold the routed experts in 4 bits and the rest in bf16."""
HUB: Final = "https://huggingface.co"
_LARGEST_CONFIG: Final = 2**22
_MOST_LAYERS: Final = 500
_T = TypeVar("_T")
_SUFFIXES: Final = {
    "fp8": ("fp8",),
    "nvfp4": ("nvfp4",),
    "fp4": ("nvfp4",),
    "4-bit": ("nvfp4", "int4"),
    "4bit": ("nvfp4", "int4"),
    "int4": ("int4",),
    "w4a16": ("int4",),
    "awq": ("int4",),
    "gptq": ("int4",),
    "bf16": ("bf16",),
}
"""What the end of a checkpoint's name says about its format."""
_SUFFIX: Final = re.compile(rf"[-_ .]({'|'.join(_SUFFIXES)})\b.*", re.IGNORECASE)


@dataclass(frozen=True)
class Model:
    """Sizes in channels, ``vision`` in parameters, ``max_context`` in tokens.

    ``path``: what ``--model-path`` takes. ``folder``: where the checkpoint's files are, if here.
    ``options``: what the launch command of this model adds. ``indexed``: layers with attention and an
    indexer of their own. ``linear``: layers of linear attention, which have no KV cache.
    ``own_embedding``: the prediction (MTP) layer has its own copy of embedding and head in the checkpoint.
    """

    name: str
    path: str
    options: str
    architecture: str
    format: str
    layers: int
    hidden: int
    vocab: int
    heads: int
    q_lora: int
    kv_lora: int
    nope: int
    rope: int
    value: int
    index_heads: int
    index_dim: int
    index_topk: int
    index_kpool: int
    dense: int
    expert: int
    experts: int
    shared_experts: int
    experts_per_token: int
    dense_layers: int
    prediction_layers: int
    max_context: int
    indexed: frozenset[int]
    linear: frozenset[int] = frozenset()
    linear_heads: int = 0
    linear_dim: int = 0
    linear_conv: int = 0
    streams: int = 1
    vision: int = 0
    own_embedding: bool = False
    folder: Path | None = field(default=None, compare=False)

    @property
    def attention(self) -> tuple[int, ...]:
        """Layers with a KV cache."""
        return tuple(i for i in range(self.layers) if i not in self.linear)

    @property
    def shares_indexers(self) -> bool:
        return len(self.indexed) < len(self.attention)


def find_model(given: str, weights: str | None, *, fetch: bool = False) -> Model:
    """The model that ``--model`` names: a folder or ``config.json``, a name of the table, or a hub's id.

    Raises:
        UsageError: it is unknown, is no DSA model, or does not come in the format ``weights``.
        EnvironmentFault: ``fetch`` was asked for and the hub did not give ``config.json``.
    """
    path = Path(given)
    if path.exists():
        folder = path if path.is_dir() else path.parent
        config = _load(folder / "config.json" if path.is_dir() else path)
        # ModelOpt's checkpoints may state their format in a file of its own.
        beside = folder / "hf_quant_config.json"
        if isinstance(config, dict) and not config.get("quantization_config") and beside.is_file():
            config["quantization_config"] = {"quant_method": "modelopt", "beside": _load(beside)}
        model = _read_config(config, str(folder))
        model = replace(model, name=folder.resolve().name, folder=folder)
    elif fetch:
        model = _read_config(_fetch_config(given), given)
    else:
        return _find_known(given, weights)
    _check_format(model, weights)
    return model


@functools.cache
def _load_table() -> dict[str, Any]:
    file = resources.files("tool.plan").joinpath("models.json")
    table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return table


def _find_known(given: str, weights: str | None) -> Model:
    table = _load_table()
    short = given.rsplit("/", 1)[-1]
    name, suffix = _SUFFIX.sub("", short).lower(), _SUFFIX.search(short)
    formats = _SUFFIXES[suffix[1].lower()] if suffix else FORMATS
    if weights and weights not in formats:
        raise UsageError(
            f"--model {given} is a checkpoint in {formats[0]}, --weights says {weights}"
        )
    for known, entry in table.items():
        if known.lower() == name:
            form = weights or formats[0]
            path = entry["checkpoints"].get(form, f"PATH-OF-{known}-IN-{form.upper()}")
            model = _read_config(entry["config"], given if "/" in given else path)
            return replace(model, name=known, format=form)
    raise UsageError(
        f"--model {given!r} is neither a folder with config.json nor in the tool's table",
        why=f"the table has {', '.join(table)}",
        next_step="give the folder of the checkpoint, or add --fetch-config for a model of the hub",
    )


def _check_format(model: Model, weights: str | None) -> None:
    if weights and weights != model.format:
        raise UsageError(
            f"the checkpoint is in {model.format}, --weights says {weights}",
            where=model.name,
            why="its config.json says so (quantization_config)",
            next_step="leave out --weights",
        )


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            "there is no config.json", where=str(file.parent), next_step="give the model's folder"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError("is not JSON", where=str(file), why=str(error)) from error


def _fetch_config(given: str) -> Any:
    """config.json of a model id from the hub that HF_ENDPOINT names."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", given):
        raise UsageError(f"--fetch-config needs an id like zai-org/GLM-5.2-FP8, not {given!r}")
    url = f"{os.environ.get('HF_ENDPOINT', HUB).rstrip('/')}/{given}/resolve/main/config.json"
    try:
        if not url.startswith(("https://", "http://")):
            raise ValueError("HF_ENDPOINT is no address of http or https")
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.loads(answer.read(_LARGEST_CONFIG))
    except (OSError, ValueError) as error:
        raise EnvironmentFault(
            "config.json could not be fetched",
            where=url,
            why=str(error),
            next_step="download the model's config.json yourself and give its path with --model",
        ) from error


class _Config:
    """Reads fields of a config and says which one is missing or wrong."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self._fields = fields
        self._where = where

    def get(self, name: str, default: Any = None) -> Any:
        found = self._fields.get(name)
        return default if found is None else found

    def size(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        found = self.get(name, default)
        if isinstance(found, bool) or not isinstance(found, int) or not least <= found < 2**32:
            raise self.fault(name, f"an integer of at least {least} is needed")
        return int(found)

    def part(self, name: str, kind: type[_T]) -> _T | None:
        found = self.get(name)
        if found is not None and not isinstance(found, kind):
            raise self.fault(name, f"a {kind.__name__} is needed")
        return found

    def fault(self, name: str, why: str) -> UsageError:
        message = f"{name} of the model's config is {self.get(name)!r}"
        return UsageError(message, where=self._where, why=why)


def _read_config(raw: Any, path: str) -> Model:
    """A model of the parsed ``config.json``.

    Field names and defaults are those of sglang (``configs/model_config.py``, ``configs/glm5_next.py``).

    Raises:
        UsageError: it describes no DSA model, or a size is missing or wrong.
    """
    if not isinstance(raw, dict):
        raise UsageError("the model's config is no JSON object", where=path)
    whole = _Config(raw, path)
    text = whole.part("text_config", dict) or {}
    config = _Config({**raw, **{k: v for k, v in text.items() if v is not None}}, path)
    architecture = str((whole.part("architectures", list) or ["the model"])[0])
    if config.get("index_topk") is None or config.get("kv_lora_rank") is None:
        raise UsageError(
            f"{architecture} is no DSA model",
            where=path,
            why="its config has no index_topk and kv_lora_rank, so it has no sparse attention to plan for",
        )
    layers = config.size("num_hidden_layers")
    if layers > _MOST_LAYERS:
        raise config.fault("num_hidden_layers", f"at most {_MOST_LAYERS} are planned")
    linear = _find_linear(config, architecture, layers)
    kda = _Config(config.part("linear_attn_config", dict) or {}, path)
    vision = config.part("vision_config", dict)
    known = [
        one for one in _load_table().values() if architecture in one["config"]["architectures"]
    ]
    return Model(
        name=path,
        path=path,
        options=known[0]["options"] if known else "",
        architecture=architecture,
        format=_find_format(config, path),
        layers=layers,
        hidden=config.size("hidden_size"),
        vocab=config.size("vocab_size"),
        heads=config.size("num_attention_heads"),
        q_lora=config.size("q_lora_rank"),
        kv_lora=config.size("kv_lora_rank"),
        nope=config.size("qk_nope_head_dim"),
        rope=config.size("qk_rope_head_dim", least=0),
        value=config.size("v_head_dim"),
        index_heads=config.size("index_n_heads"),
        index_dim=config.size("index_head_dim"),
        index_topk=config.size("index_topk"),
        index_kpool=config.size("index_kpool", 1),
        dense=config.size("intermediate_size"),
        expert=config.size("moe_intermediate_size"),
        experts=config.size("n_routed_experts"),
        shared_experts=config.size("n_shared_experts", 0, least=0),
        experts_per_token=config.size("num_experts_per_tok"),
        dense_layers=min(config.size("first_k_dense_replace", 0, least=0), layers),
        prediction_layers=config.size("num_nextn_predict_layers", 0, least=0),
        max_context=config.size("max_position_embeddings"),
        indexed=frozenset(
            i for i in range(layers) if i not in linear and not _is_shared(config, i)
        ),
        linear=linear,
        linear_heads=kda.size("num_heads", config.get("linear_num_heads", 64)) if linear else 0,
        linear_dim=kda.size("head_dim", config.get("linear_head_dim", 128)),
        linear_conv=kda.size("short_conv_kernel_size", config.get("linear_conv_kernel_dim", 4)),
        streams=config.size("hc_mult", 1) if linear else 1,
        vision=_count_vision(_Config(vision, path)) if vision else 0,
        own_embedding=architecture.startswith("Deepseek"),
    )


def _find_linear(config: _Config, architecture: str, layers: int) -> frozenset[int]:
    """Layers of linear attention: every layer but each fourth, unless ``layer_types`` says otherwise."""
    if not architecture.startswith("Glm5Next"):
        return frozenset()
    types = config.part("layer_types", list)
    if types is not None:
        return frozenset(i for i, kind in enumerate(types[:layers]) if kind == "linear_attention")
    return frozenset(i for i in range(layers) if i % 4 != 3)


def _is_shared(config: _Config, layer: int) -> bool:
    """Whether the layer reuses the selection of a layer before it (``ada_dsa.index_sharing``)."""
    types = config.part("indexer_types", list)
    if types is not None:
        return bool(layer < len(types) and types[layer] == "shared")
    pattern = config.get("index_topk_pattern")
    if pattern is not None:
        if not isinstance(pattern, str | list):
            raise config.fault("index_topk_pattern", "one letter for each layer is needed")
        return bool(layer < len(pattern) and pattern[layer] == "S")
    freq = config.size("index_topk_freq", 1)
    offset = config.size("index_skip_topk_offset", 2)
    return max(layer - offset + 1, 0) % freq != 0


def _find_format(config: _Config, where: str) -> str:
    """One of FORMATS, from ``quantization_config``."""
    given = config.part("quantization_config", dict)
    if not given:
        return "bf16"
    method = str(given.get("quant_method", "")).lower()
    text = json.dumps(given).lower()
    if method == "fp8":
        return "fp8"
    if "nvfp4" in text or "modelopt_fp4" in method:
        return "nvfp4"
    four = given.get("bits") == 4 or re.search(r'"num_bits": 4\b', text)
    if four and (method in ("awq", "gptq", "auto-round") or method == "compressed-tensors"):
        return "nvfp4" if '"type": "float"' in text else "int4"
    raise UsageError(
        f"the quantisation {method or 'without a quant_method'} of the checkpoint is not known",
        where=where,
        why="known are block fp8, NVFP4, and 4-bit AWQ, GPTQ and compressed-tensors",
    )


def _count_vision(config: _Config) -> int:
    """Parameters of the vision tower (``Glm5NextVisionModel``): blocks, patch merger, convolutions."""
    width, inner = config.size("hidden_size", 1024), config.size("intermediate_size", 4096)
    out, wide = (
        config.size("out_hidden_size", 1536),
        config.size("projection_intermediate_size", 10240),
    )
    blocks = config.size("depth", 24) * (4 * width * width + 3 * width * inner)
    patch = config.size("patch_size", 14) ** 2 * 2 * 3 * width
    return blocks + patch + 4 * width * out + out * out + 3 * out * wide
