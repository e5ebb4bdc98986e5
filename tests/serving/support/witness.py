"""The witness: a plain torch forward of a tiny model. Stock and fork are measured against it.

It follows the references of GLM-MoE-DSA and DeepSeek-V3.2: MLA with keys and values expanded per head, an
indexer on full layers whose top-k the shared layers reuse, sigmoid routing with a correction bias. No cache,
no fp8 activations, no kernel: weights are dequantised, queries go in chunks so that 16K tokens of 64 heads
fit one GPU. Checked against transformers' own GlmMoeDsaForCausalLM and DeepseekV32ForCausalLM, which cannot
do that length (they build ``[heads, tokens, tokens]``) and before 5.17 turn the indexer's rope the other way.

Every RMSNorm uses ``rms_norm_eps``, as sglang's do. sglang's Hadamard rotation of index queries and
keys is orthogonal and changes no score, so there is none here.

``python -m tests.serving.support.witness MODEL PROMPTS.json OUT.npz`` takes ``{name: [token, ...]}`` and
writes, per name, the logprob of each token given those before it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.serving.support.tiny_model import read_dequantised, rope_order

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Choose = Callable[[int, Tensor, int], Tensor]
"""``(layer, scores [rows, keys] with -inf at keys not seen, top-k) -> bool [rows, keys]``."""


def top_keys(layer: int, scores: Tensor, topk: int) -> Tensor:
    """The model's own choice: the ``topk`` best-scored keys."""
    best = scores.topk(topk, dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)


@dataclass(frozen=True)
class Answer:
    """``logprobs`` [positions, vocab] fp32 of the last positions; ``keys`` per full layer, if asked for,
    [tokens, top-k] int32 with -1 where fewer are seen."""

    logprobs: Tensor
    keys: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """Configuration and dequantised weights, one dtype, on one device."""

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]

    @property
    def device(self) -> torch.device:
        return self.weights["lm_head.weight"].device

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(
            wide.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]
        )
        return self.weights[f"{name}.weight"] * wide.to(x.dtype)


def load(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Model:
    """Read a model folder, block-quantised or bf16. The prediction layer is left out.

    Raises:
        FileNotFoundError: no model there.
    """
    config = json.loads((folder / "config.json").read_text())
    found: dict[str, Tensor] = {}
    after = f"model.layers.{config['num_hidden_layers']}."
    for name, weight in read_dequantised(folder, without=after, device=device):
        keep = torch.float32 if name.endswith("e_score_correction_bias") else dtype
        found[name] = weight.to(keep)
    if not found:
        raise FileNotFoundError(
            f"{folder}: no *.safetensors. Make one: "
            f"python -m tests.serving.support.tiny_model {folder}"
        )
    return Model(config, found)


@torch.no_grad()
def forward(
    model: Model,
    tokens: Tensor | Sequence[int],
    *,
    choose: Choose = top_keys,
    last: int | None = None,
    chunk: int = 256,
    with_keys: bool = False,
) -> Answer:
    """Run one prompt ``[tokens]``; logprobs of the ``last`` positions (all by default).

    ``choose`` replaces the indexer's choice where a query sees more than top-k keys.
    Products are exact fp32 only while torch's TF32 stays off, as it is by default.
    """
    ids = torch.as_tensor(tokens, dtype=torch.int64, device=model.device)
    x = model.weights["model.embed_tokens.weight"][ids]
    rope = rope_table(model, len(ids))
    chosen: list[Tensor] = []
    keys: dict[int, Tensor] = {}
    layers = model.config["num_hidden_layers"]
    for layer, kind in enumerate(model.config.get("indexer_types", ["full"] * layers)):
        name = f"model.layers.{layer}"
        inner = model.norm(x, f"{name}.input_layernorm")
        q_latent = model.linear(inner, f"{name}.self_attn.q_a_proj")
        q_latent = model.norm(q_latent, f"{name}.self_attn.q_a_layernorm")
        if kind == "full":
            chosen = _select(model, layer, inner, q_latent, rope, choose, chunk)
            if with_keys:
                keys[layer] = _as_indices(chosen, model.config["index_topk"])
        x = x + _attend(model, layer, inner, q_latent, rope, chosen)
        x = x + _mlp(model, layer, model.norm(x, f"{name}.post_attention_layernorm"))
    x = model.norm(x[-last:] if last else x, "model.norm")
    return Answer(F.log_softmax(model.linear(x, "lm_head").float(), dim=-1), keys)


def token_logprobs(answer: Answer, tokens: Tensor | Sequence[int]) -> Tensor:
    """fp32 ``[positions - 1]``: the logprob of each token that follows a position of ``answer``."""
    positions = len(answer.logprobs)
    following = torch.as_tensor(tokens, device=answer.logprobs.device)[-positions:][1:]
    return answer.logprobs[:-1].gather(-1, following[:, None]).squeeze(-1)


# -- one layer ------------------------------------------------------------------------------------


def rope_table(model: Model, length: int) -> Tensor:
    """Complex fp32 ``[length, rope / 2]``: a unit vector per position and frequency."""
    width = model.config["qk_rope_head_dim"]
    theta = model.config["rope_parameters"]["rope_theta"]
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=model.device) / width
    positions = torch.arange(length, dtype=torch.float32, device=model.device)
    angles = positions[:, None] * (1.0 / theta**steps)
    return torch.polar(torch.ones_like(angles), angles)


def _turn(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate neighbouring pairs of ``[tokens, ..., rope]``, in fp32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    rope = rope.view(len(rope), *[1] * (x.ndim - 2), -1)
    return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)


def _causal(start: int, end: int, device: torch.device) -> Tensor:
    """bool ``[end - start, end]``: the keys that queries ``start`` to ``end`` see."""
    rows = torch.arange(start, end, device=device)
    return torch.arange(end, device=device) <= rows[:, None]


def _select(
    model: Model,
    layer: int,
    inner: Tensor,
    q_latent: Tensor,
    rope: Tensor,
    choose: Choose,
    chunk: int,
) -> list[Tensor]:
    """The keys of each chunk of queries: bool ``[rows, keys up to the chunk's end]``."""
    heads, width = model.config["index_n_heads"], model.config["index_head_dim"]
    topk, turned = model.config["index_topk"], model.config["qk_rope_head_dim"]
    name = f"model.layers.{layer}.self_attn.indexer"
    length = len(inner)
    if length > topk:
        q = model.linear(q_latent, f"{name}.wq_b").unflatten(-1, (heads, width))
        k = model.linear(inner, f"{name}.wk")
        norm = (model.weights[f"{name}.k_norm.{part}"].float() for part in ("weight", "bias"))
        k = F.layer_norm(k.float(), (width,), *norm, eps=1e-6).to(k.dtype)
        # Reordered alike, queries and keys keep their products.
        order = rope_order(model.config.get("indexer_rope_interleave", False)).to(q.device)
        q = torch.cat([_turn(q[..., order], rope), q[..., turned:]], dim=-1).float()
        k = torch.cat([_turn(k[..., order], rope), k[..., turned:]], dim=-1).float()
        weights = model.linear(inner, f"{name}.weights_proj").float() * (heads * width) ** -0.5
    found = []
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        mask = _causal(start, end, inner.device)
        if end > topk:
            dots = torch.einsum("qhd,kd->qhk", q[start:end], k[:end]).relu_()
            scores = torch.einsum("qhk,qh->qk", dots, weights[start:end])
            best = choose(layer, scores.masked_fill(~mask, -torch.inf), topk)
            sees_all = torch.arange(start, end, device=inner.device) < topk
            mask &= best | sees_all[:, None]
        found.append(mask)
    return found


def _attend(
    model: Model, layer: int, inner: Tensor, q_latent: Tensor, rope: Tensor, chosen: list[Tensor]
) -> Tensor:
    config, name = model.config, f"model.layers.{layer}.self_attn"
    heads, latent = config["num_attention_heads"], config["kv_lora_rank"]
    nope, turned, value = (config[f"{w}_head_dim"] for w in ("qk_nope", "qk_rope", "v"))
    q = model.linear(q_latent, f"{name}.q_b_proj").unflatten(-1, (heads, nope + turned))
    q = torch.cat([q[..., :nope], _turn(q[..., nope:], rope)], dim=-1).transpose(0, 1)
    row = model.linear(inner, f"{name}.kv_a_proj_with_mqa")
    kv = model.linear(model.norm(row[:, :latent], f"{name}.kv_a_layernorm"), f"{name}.kv_b_proj")
    k, v = kv.unflatten(-1, (heads, nope + value)).transpose(0, 1).split([nope, value], dim=-1)
    k = torch.cat([k, _turn(row[:, latent:], rope).expand(heads, -1, -1)], dim=-1)
    out, start = [], 0
    for mask in chosen:
        rows, end = mask.shape
        logits = (q[:, start : start + rows] @ k[:, :end].mT).float() * (nope + turned) ** -0.5
        shares = logits.masked_fill_(~mask, -torch.inf).softmax(dim=-1).to(v.dtype)
        out.append((shares @ v[:, :end]).transpose(0, 1).flatten(1))
        start += rows
    return model.linear(torch.cat(out), f"{name}.o_proj")


def _mlp(model: Model, layer: int, x: Tensor) -> Tensor:
    name = f"model.layers.{layer}.mlp"
    if layer < model.config["first_k_dense_replace"]:
        return _swiglu(model, name, x)
    out = _swiglu(model, f"{name}.shared_experts", x)
    weights, experts = _route(model, name, x)
    for expert in range(model.config["n_routed_experts"]):
        rows, slots = (experts == expert).nonzero(as_tuple=True)
        if len(rows):
            part = _swiglu(model, f"{name}.experts.{expert}", x[rows])
            out.index_add_(0, rows, (part * weights[rows, slots, None]).to(out.dtype))
    return out


def _swiglu(model: Model, name: str, x: Tensor) -> Tensor:
    gate, up = (model.linear(x, f"{name}.{part}_proj") for part in ("gate", "up"))
    return model.linear(F.silu(gate) * up, f"{name}.down_proj")


def _route(model: Model, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 weights and int64 experts, ``[tokens, experts per token]``, of a single expert group."""
    scores = F.linear(x.float(), model.weights[f"{name}.gate.weight"].float()).sigmoid()
    biased = scores + model.weights[f"{name}.gate.e_score_correction_bias"]
    experts = biased.topk(model.config["num_experts_per_tok"], dim=-1).indices
    weights = scores.gather(-1, experts)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * model.config["routed_scaling_factor"], experts


def _as_indices(chosen: list[Tensor], topk: int) -> Tensor:
    """int32 ``[tokens, topk]`` of the chunks' masks: ascending, then -1."""
    tokens = sum(len(mask) for mask in chosen)
    found = torch.full((tokens, topk), -1, dtype=torch.int32)
    start = 0
    for mask in chosen:
        row, key = (part.cpu() for part in mask.nonzero(as_tuple=True))
        column = torch.cat([torch.arange(int(n)) for n in mask.sum(-1).cpu()])
        found[row + start, column] = key.int()
        start += len(mask)
    return found


# -- command line ---------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("prompts", type=Path, help="JSON: name to token ids")
    parser.add_argument("out", type=Path, help="npz: name to logprobs of tokens 1 and later, fp32")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)
    model = load(given.model, dtype=DTYPES[given.dtype], device=given.device)
    prompts = json.loads(given.prompts.read_text())
    found = {
        name: token_logprobs(forward(model, tokens), tokens).cpu().numpy()
        for name, tokens in prompts.items()
    }
    np.savez(given.out, **found)
    for name, logprobs in found.items():
        print(f"{name}: {len(prompts[name])} tokens, mean logprob {logprobs.mean():.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
