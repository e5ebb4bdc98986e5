"""The block-fp8 matrices of a model on one rank, as sglang splits them over ``--tp-size``.

Source of the split: ``models/deepseek_v2.py`` and ``layers/attention/dsa/dsa_indexer.py`` of sglang.
``q_a`` and ``kv_a`` are one matrix there, which is not split; nor are the indexer's two. ``kv_b_proj`` is
absorbed into the attention, and the router, embedding and head are not fp8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from tool.errors import UsageError
from tool.plan import Model

BLOCK: Final = 128
"""Edge of the square of weights that shares a scale."""
TOKENS: Final = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096)
"""M of the rows that are tuned. sglang uses the row whose M is nearest."""


@dataclass(frozen=True)
class Shape:
    """One file of configurations.

    ``kind`` is ``gemm``: ``sizes`` are N, K of a weight [N, K], in channels. Or ``moe``: ``sizes`` are the
    experts on a rank, the intermediate size N of each, the hidden size, experts per token, and how many
    of these every token takes (shared experts that are fused).
    """

    kind: str
    sizes: tuple[int, ...]
    layers: str

    @property
    def title(self) -> str:
        """The part of the name of sglang's file that tells the shape."""
        names = ("N", "K") if self.kind == "gemm" else ("E", "N")
        return ",".join(f"{name}={size}" for name, size in zip(names, self.sizes, strict=False))

    def as_request(self) -> dict[str, Any]:
        """What the worker takes."""
        return {"kind": self.kind, "sizes": list(self.sizes)}


def list_gemms(model: Model, tp: int) -> tuple[Shape, ...]:
    """The dense GEMMs of a rank, each (N, K) once, ordered by it.

    Raises:
        UsageError: the model is not in block fp8, or a size cannot be split over ``tp`` ranks.
    """
    _check_format(model)
    heads = _divide(model.heads, tp, "attention heads", 1)
    found: dict[tuple[int, int], list[str]] = {}
    for layer, n, k in (
        ("q_a and kv_a", model.q_lora + model.kv_lora + model.rope, model.hidden),
        ("q_b", heads * (model.nope + model.rope), model.q_lora),
        ("attention output", model.hidden, heads * model.value),
        ("indexer queries", model.index_heads * model.index_dim, model.q_lora),
        ("indexer keys", model.index_dim, model.hidden),
        *_list_mlp(model, model.dense if model.dense_layers else 0, tp, "dense MLP"),
        *_list_mlp(model, model.shared_experts * model.expert, tp, "shared expert"),
    ):
        found.setdefault((n, k), []).append(layer)
    return tuple(Shape("gemm", sizes, ", ".join(found[sizes])) for sizes in sorted(found))


def list_moes(model: Model, tp: int, *, fused: bool) -> tuple[Shape, ...]:
    """The fused MoE of a rank; ``fused``: the shared experts are experts of it.

    Raises:
        UsageError: as ``list_gemms``.
    """
    _check_format(model)
    width = _divide(model.expert, tp, "channels of an expert", BLOCK)
    shared = model.shared_experts if fused else 0
    sizes = (
        model.experts + shared,
        width,
        model.hidden,
        model.experts_per_token + shared,
        shared,
    )
    return (Shape("moe", sizes, "routed and shared experts" if shared else "routed experts"),)


def _list_mlp(model: Model, width: int, tp: int, layer: str) -> Iterator[tuple[str, int, int]]:
    if width:
        part = _divide(width, tp, f"channels of the {layer}", BLOCK)
        yield f"{layer}, gate and up", 2 * part, model.hidden
        yield f"{layer}, down", model.hidden, part


def _divide(size: int, tp: int, what: str, unit: int) -> int:
    if size % (tp * unit):
        blocks = f" in blocks of {unit}" if unit > 1 else ""
        raise UsageError(
            f"{size} {what} cannot be split{blocks} over {tp} ranks",
            next_step="give the --tp that the model is served with",
        )
    return size // tp


def _check_format(model: Model) -> None:
    if model.format != "fp8":
        raise UsageError(
            f"{model.name} is in {model.format}: it has no block-fp8 GEMMs to tune",
            next_step="name the fp8 checkpoint with --model",
        )
