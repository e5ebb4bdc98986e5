"""The cases of quantisation: index queries and keys (``act_quant``), and packed KV rows.

    python -m bench.kernels.run --group quantise

The peers are sglang's own Triton kernels. They do not compile below sm_89, where Triton has no e4m3 type.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator

import torch

from ada_dsa import act_quant, quantize_k_cache
from ada_dsa.indexer.reference import DIM
from ada_dsa.kv_cache.layout import PACKED_BYTES, ROW_DIM
from bench.kernels import peers
from bench.kernels.case import Case

HEADS = 32
TOKENS = (1, 64, 8192)
L2 = 1 << 26
"""Bytes that the rotated inputs of a case together exceed."""
MODULES = {
    "act_quant": ("sglang.kernels.ops.quantization.act_quant_triton", "act_quant"),
    "rows": ("sglang.kernels.ops.quantization.dsa_quant_k_cache", "quantize_k_cache"),
}
"""Where sglang 0.5.23 has the same functions."""


def missing() -> dict[str, str]:
    """The peers that cannot take part in this environment, and why."""
    for module, _ in MODULES.values():
        if failure := peers.import_failure(module):
            return {"sglang's quantisation": failure}
    return {}


def rotating(
    call: Callable[[torch.Tensor], object], inputs: list[torch.Tensor]
) -> Callable[[], object]:
    following = itertools.cycle(inputs)
    return lambda: call(next(following))


def peer(kind: str) -> Callable[[torch.Tensor], object]:
    module, name = MODULES[kind]
    found: Callable[[torch.Tensor], object] = getattr(importlib.import_module(module), name)
    return found


def cases(device: torch.device) -> Iterator[Case]:
    g = torch.Generator(device).manual_seed(0)
    kinds: tuple[tuple[str, str, Callable[[torch.Tensor], object], tuple[int, ...], int], ...] = (
        ("act_quant", f"queries, {HEADS} heads", act_quant, (HEADS * DIM,), HEADS * (DIM + 4)),
        ("rows", "KV rows", quantize_k_cache, (1, 1, ROW_DIM), PACKED_BYTES),
    )
    lacks = missing()
    for kind, what, ours, shape, written in kinds:
        for tokens in TOKENS:
            size = tokens * (2 * torch.Size(shape).numel() + written)
            inputs = [
                torch.randn(tokens, *shape, generator=g, device=device).bfloat16()
                for _ in range(max(1, min(64, 2 * L2 // size)))
            ]
            others = {} if lacks else {"sglang": rotating(peer(kind), inputs)}
            yield Case("quantise", f"{what} T={tokens}", rotating(ours, inputs), others, size)
