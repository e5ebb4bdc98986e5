"""Child process: sglang's MoE layer with the shared expert fused into the grouped kernel, and without.

Fused, the shared expert is one more expert that every token selects, with a share of 1/scaling;
unfused, it is an MLP of its own whose output is added. Both see the same weights. What differs is
measured in three parts: ``gate`` (the router's choice), ``gemm`` (the grouped product alone) and ``moe``
(the whole layer), each against plain torch (`fusion_oracle`).

The tile configurations are those that a card without a tuned file takes (``default``: no release has one
for block-fp8 weights on an RTX 4090), and the small tiles of tuned files (``small``). Under
``TRITON_OVERRIDE_ARCH=sm89`` the operands are not swapped, which sglang does on sm_90 alone.

Prints JSON lines: ``begin``, then ``case`` with ``whole`` and ``worst`` (relative errors) or with
``failure``, and ``end`` at last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch

from tests.serving.support import fusion_oracle as oracle
from tests.serving.support.fusion_oracle import Weights

SCALING: Final = 2.5
"""routed_scaling_factor of GLM-5.2."""
ROUTED_PER_TOKEN: Final = 8
CONFIGS: Final = {
    "default": {
        "BLOCK_SIZE_M": 64,
        "BLOCK_SIZE_N": 128,
        "BLOCK_SIZE_K": 128,
        "GROUP_SIZE_M": 32,
        "num_warps": 4,
        "num_stages": 3,
    },
    "small": {
        "BLOCK_SIZE_M": 16,
        "BLOCK_SIZE_N": 128,
        "BLOCK_SIZE_K": 128,
        "GROUP_SIZE_M": 1,
        "num_warps": 4,
        "num_stages": 3,
    },
}


@dataclass(frozen=True)
class Shape:
    """Of a layer on one rank. ``experts`` are the routed ones."""

    name: str
    experts: int
    hidden: int
    inter: int
    tokens: tuple[int, ...]


SHAPES: Final = (
    Shape("tp8", 256, 6144, 256, (1, 33, 512)),  # GLM-5.2 on eight ranks
    Shape("tp1", 16, 6144, 2048, (7, 128)),  # its experts whole, fewer of them
)


@dataclass(frozen=True)
class Routing:
    """int32 ids and float32 shares, [M, 8] without the shared expert and [M, 9] with it."""

    ids: torch.Tensor
    shares: torch.Tensor
    fused_ids: torch.Tensor
    fused_shares: torch.Tensor


def route(experts: int, tokens: int, seed: int, device: str = "cuda") -> Routing:
    """Random distinct experts whose shares sum to one; the shared expert's is 1/scaling."""
    generator = torch.Generator(device).manual_seed(seed)
    scores = torch.rand(tokens, experts, generator=generator, device=device)
    shares, ids = scores.topk(ROUTED_PER_TOKEN, -1)
    shares = shares / shares.sum(-1, keepdim=True)
    shared_id = torch.full((tokens, 1), experts, dtype=torch.int32, device=device)
    shared_share = torch.full((tokens, 1), 1 / SCALING, device=device)
    ids = ids.int()
    return Routing(
        ids, shares, torch.cat([ids, shared_id], 1), torch.cat([shares, shared_share], 1)
    )


def check_gate(experts: int, tokens: int, device: str = "cuda") -> dict[str, float]:
    """sglang's router with a fused shared expert against itself without."""
    from sglang.srt.layers.moe.topk import biased_grouped_topk

    generator = torch.Generator(device).manual_seed(3)
    logits = torch.randn(tokens, experts, generator=generator, device=device)
    bias = torch.rand(experts, generator=generator, device=device)
    hidden = torch.zeros(tokens, 128, dtype=torch.bfloat16, device=device)

    def choose(fused: int) -> tuple[torch.Tensor, torch.Tensor]:
        shares, ids = biased_grouped_topk(
            hidden_states=hidden,
            gating_output=logits,
            correction_bias=bias,
            topk=ROUTED_PER_TOKEN + fused,
            renormalize=True,
            num_expert_group=1,
            topk_group=1,
            num_fused_shared_experts=fused,
            routed_scaling_factor=SCALING,
            apply_routed_scaling_factor_on_output=False,
        )
        return shares, ids

    def spread(shares: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Share of each expert, [M, E + 1]."""
        wide = torch.zeros(tokens, experts + 1, device=device)
        return wide.scatter_(1, ids.long(), shares.float())

    expected = spread(*choose(0))
    expected[:, experts] = 1 / SCALING
    return asdict(oracle.distance(spread(*choose(1)), expected))


def check_gemm(weights: Weights, routing: Routing, config: dict[str, int]) -> dict[str, float]:
    """The first grouped product over all experts, the shared one included."""
    import triton.language as tl
    from sglang.kernels.ops.moe.fused_moe_triton_kernels import invoke_fused_moe_kernel
    from sglang.srt.layers.moe.moe_runner.triton_utils import moe_align_block_size

    ids, device = routing.fused_ids, routing.fused_ids.device
    tokens, chosen = ids.shape
    x = _tokens(tokens, weights.w1.shape[2], device)
    experts, rows, _ = weights.w1.shape
    out = torch.full((tokens, chosen, rows), float("nan"), dtype=torch.bfloat16, device=device)
    placed = moe_align_block_size(ids, config["BLOCK_SIZE_M"], experts)
    invoke_fused_moe_kernel(
        x,
        weights.w1,
        None,
        out,
        None,
        weights.s1,
        None,
        routing.fused_shares,
        ids,
        *placed,
        False,
        chosen,
        config,
        compute_type=tl.bfloat16,
        use_fp8_w8a8=True,
        use_int8_w8a8=False,
        use_int8_w8a16=False,
        use_int4_w4a16=False,
        per_channel_quant=False,
        block_shape=[oracle.BLOCK, oracle.BLOCK],
    )
    expected = torch.empty(tokens, chosen, rows, device=device)
    for index in ids.unique().tolist():
        token, slot = (ids == index).nonzero(as_tuple=True)
        expected[token, slot] = oracle.product(x[token], weights.w1[index], weights.s1[index])
    return asdict(oracle.distance(out, expected))


def check_moe(
    weights: Weights, routing: Routing, config: dict[str, int]
) -> Iterator[tuple[str, dict[str, float]]]:
    """The whole layer both ways: against the roundings of a served layer, what the weights mean, and
    each other.
    """
    experts = weights.w1.shape[0] - 1
    x = _tokens(routing.ids.shape[0], weights.w1.shape[2], routing.ids.device)
    results = {
        "fused": _grouped(x, weights, routing.fused_ids, routing.fused_shares, config),
        "unfused": _grouped(x, weights.part(0, experts), routing.ids, routing.shares, config)
        + _shared(x, weights, experts),
    }
    for rounded, name in ((True, "rounded"), (False, "exact")):
        expected = oracle.layer(
            x, weights, routing.fused_ids, routing.fused_shares, SCALING, rounded=rounded
        )
        for way, result in results.items():
            yield f"{way}-to-{name}", asdict(oracle.distance(result, expected))
    yield "fused-to-unfused", asdict(oracle.distance(results["fused"], results["unfused"]))


def _grouped(
    x: torch.Tensor,
    weights: Weights,
    ids: torch.Tensor,
    shares: torch.Tensor,
    config: dict[str, int],
) -> torch.Tensor:
    from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
    from sglang.srt.layers.moe.moe_runner.triton_utils import fused_experts, override_config
    from sglang.srt.layers.moe.topk import StandardTopKOutput

    experts = weights.w1.shape[0]
    with override_config(dict(config)):
        # In place, as the server runs it: the other way asks for the group of ranks.
        return fused_experts(
            x.clone(),
            weights.w1,
            weights.w2,
            StandardTopKOutput(shares, ids, None),
            MoeRunnerConfig(
                num_experts=experts,
                num_local_experts=experts,
                inplace=True,
                routed_scaling_factor=SCALING,
            ),
            use_fp8_w8a8=True,
            w1_scale=weights.s1,
            w2_scale=weights.s2,
            block_shape=[oracle.BLOCK, oracle.BLOCK],
        )


def _shared(x: torch.Tensor, weights: Weights, index: int) -> torch.Tensor:
    from sglang.kernels.ops.activation.activation import silu_and_mul
    from sglang.srt.layers.quantization.fp8_utils import triton_w8a8_block_fp8_linear

    block = [oracle.BLOCK, oracle.BLOCK]
    both = triton_w8a8_block_fp8_linear(x, weights.w1[index], block, weights.s1[index])
    middle = torch.empty(x.shape[0], both.shape[1] // 2, dtype=x.dtype, device=x.device)
    silu_and_mul(both, middle)
    return triton_w8a8_block_fp8_linear(middle, weights.w2[index], block, weights.s2[index])


def _tokens(count: int, hidden: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(11)
    return torch.randn(count, hidden, generator=generator, device=device).bfloat16()


def _report(name: str, body: Callable[[], Any]) -> None:
    """Run a case; one that raises says so and does not stop the others."""
    print(json.dumps({"begin": name}), flush=True)
    try:
        result = body()
        rows = (
            [(name, result)]
            if isinstance(result, dict)
            else [(f"{name}/{n}", r) for n, r in result]
        )
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except Exception as err:
        frame = traceback.extract_tb(err.__traceback__)[-1]
        text = " ".join(f"{type(err).__name__}: {err}".split())[:600]
        row = {"case": name, "failure": f"{text} ({frame.filename}:{frame.lineno})"}
        print(json.dumps(row), flush=True)
        return
    for case, distances in rows:
        print(json.dumps({"case": case, **distances}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="shared-expert fusion against none")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()

    from sglang.kernels.ops.moe import fused_moe_triton_kernels
    from sglang.srt.runtime_context import get_context

    torch.backends.cuda.matmul.allow_tf32 = False
    if os.environ.get("TRITON_OVERRIDE_ARCH", "").startswith("sm8"):
        fused_moe_triton_kernels.should_enable_swap_ab = lambda *_: False
    done = 0
    with get_context().override_server_args(), torch.no_grad():
        for shape in SHAPES:
            weights = None
            for tokens in shape.tokens:
                for kind, config in CONFIGS.items():
                    name = f"{shape.name}/{tokens}/{kind}"
                    if options.only not in name:
                        continue
                    if weights is None:
                        weights = oracle.make_weights(
                            shape.experts + 1, shape.hidden, shape.inter, seed=5
                        )
                    routing = route(shape.experts, tokens, seed=tokens)
                    both = (weights, routing, config)
                    _report(f"gemm/{name}", lambda both=both: check_gemm(*both))
                    _report(f"moe/{name}", lambda both=both: list(check_moe(*both)))
                    done += 1
            for tokens in shape.tokens if shape.experts == SHAPES[0].experts else ():
                name = f"gate/{shape.name}/{tokens}"
                if options.only in name:
                    _report(name, lambda n=tokens, e=shape.experts: check_gate(e, n))
                    done += 1
    print(json.dumps({"end": done}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
