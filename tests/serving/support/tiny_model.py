"""A tiny GLM-5.2: its structure, its checkpoint format, and weights on which the selected keys matter.

``python -m tests.serving.support.tiny_model OUT [--seed 0] [--layers 8] [--heads 8] [--bf16]`` writes
``config.json`` and ``model.safetensors``. What a DSA kernel sees has GLM-5.2's sizes: latent 512 + rope
64, 192 + 64 per query head, 256 per value head, 32 index heads of 128, top-k 2048, indexers on layers 0,
1, 2 and every fourth after, three dense layers, one shared expert, a prediction (MTP) layer at the end.
Hidden size, ranks, experts and vocabulary are small. ``--heads 8`` is what one of eight ranks holds of
64. ``--deepseek`` writes DeepSeek-V3.2's structure instead: 128 + 64 per query head, 128 per value head, 64
index heads, an indexer on every layer, whose rope turns channels half its width apart.

Names, dtypes and quantised modules are those of GLM-5.2-FP8: e4m3 with one fp32 scale per block of
128 x 128, but for embeddings, head, norms, router, index weights and the prediction layer's ``eh_proj``.
Layers that share an indexer have none of its tensors. Scales are powers of two: a weight is then the
same number in e4m3 times scale, in bf16 (``--bf16`` writes that twin) and in fp32.

Random weights alone are not enough: their attention is nearly uniform, and their indexer scores are
unrelated to it. Here, as in a trained model, a head looks for what an index head scores. ``_Layer`` says
how. On the CPU, at 2600 tokens, the default model's logprobs move by 0.02 nats on average when all is
rounded to bf16, by 0.04 when one selected key in twenty is missing, by 0.09 when the last 2048 keys are
selected, by 0.08 without the shared expert.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

LATENT: Final = 512
ROPE: Final = 64
INDEX_DIM: Final = 128
BLOCK: Final = 128
E4M3_MAX: Final = 448.0

LOUD: Final = 2
"""Index heads that attention heads follow; the others score with a third of their weight."""
FOLLOW: Final = 1.7
OWN: Final = 0.2
"""Gains of a query's channels: those of the index head it follows, and its own."""
ATTENTION: Final = 0.6
DENSE: Final = 0.03
SHARED: Final = 0.025
ROUTED: Final = 0.01
"""Gains of what is added to the residual stream. Rounding a layer's input to e4m3 turns a
difference in the last bit into one of some percent. With gains near 1 this difference grows from layer to
layer, until two orders of summing are as far apart as two models. With these gains it stays below the effect
of a wrong key."""
LINKED: Final = INDEX_DIM - ROPE
"""Latent channels that are index-key channels: those without rope."""
CONSTANT: Final = 4.0
"""What channel 0 of the residual stream always holds; only index weights read it."""


@dataclass(frozen=True)
class Architecture:
    """What differs between the models with DSA.

    ``nope`` and ``value`` are channels of a head, without rope and of its values. ``shares`` says whether
    only some layers have an indexer, and whether the indexer's rope turns neighbouring channels.
    """

    name: str
    model_type: str
    nope: int
    value: int
    index_heads: int
    shares: bool


GLM: Final = Architecture("GlmMoeDsaForCausalLM", "glm_moe_dsa", 192, 256, 32, shares=True)
DEEPSEEK: Final = Architecture("DeepseekV32ForCausalLM", "deepseek_v32", 128, 128, 64, shares=False)


def rope_order(interleaved: bool) -> torch.Tensor:
    """The channels of an indexer's rope, int64 ``[ROPE]``, as neighbouring pairs that turn together."""
    channels = torch.arange(ROPE)
    return channels if interleaved else channels.view(2, -1).T.flatten()


@dataclass(frozen=True)
class Spec:
    """What to make. Sizes in channels; ``topk`` in keys.

    Raises:
        ValueError: a size the block format or the model's structure does not allow.
    """

    seed: int = 0
    layers: int = 8
    heads: int = 8
    hidden: int = 1024
    q_lora: int = 512
    dense: int = 1024
    expert: int = 256
    experts: int = 8
    experts_per_token: int = 2
    vocab: int = 4096
    topk: int = 2048
    positions: int = 262_144
    architecture: Architecture = GLM

    def __post_init__(self) -> None:
        for name in ("hidden", "q_lora", "dense", "expert"):
            if getattr(self, name) % BLOCK:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: not a multiple of {BLOCK}, the block of the "
                    f"quantisation. Give a multiple of {BLOCK}."
                )
        if self.layers < 4:
            raise ValueError(
                f"{self.layers} layers: three are dense, so there would be no expert and no shared "
                "indexer. Give 4 or more."
            )
        if self.heads < 1 or self.experts_per_token > self.experts:
            raise ValueError(
                f"{self.heads} heads, {self.experts_per_token} of {self.experts} experts per token: "
                "there must be a head, and no more experts per token than experts."
            )

    def indexed_by(self, layer: int) -> int:
        """The layer whose indexer selects the keys of ``layer``; the prediction layer has its own."""
        if layer == self.layers or not self.architecture.shares:
            return layer
        return layer - max(layer - 2, 0) % 4

    def is_full(self, layer: int) -> bool:
        return self.indexed_by(layer) == layer

    def is_dense(self, layer: int) -> bool:
        return layer < 3


def config(spec: Spec) -> dict[str, Any]:
    """``config.json`` with the fields of GLM-5.2-FP8's, or of DeepSeek-V3.2's."""
    made = spec.architecture
    layers = range(spec.layers)
    sharing = {
        "index_share_for_mtp_iteration": True,
        "index_skip_topk_offset": 3,
        "index_topk_freq": 4,
        "index_topk_pattern": None,
        "indexer_rope_interleave": True,
        "indexer_types": ["full" if spec.is_full(layer) else "shared" for layer in layers],
        "mlp_layer_types": ["dense" if spec.is_dense(layer) else "sparse" for layer in layers],
        "moe_router_dtype": "float32",
    }
    return {
        **(sharing if made.shares else {}),
        "architectures": [made.name],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "eos_token_id": [spec.vocab - 3, spec.vocab - 2, spec.vocab - 1],
        "ep_size": 1,
        "first_k_dense_replace": 3,
        "head_dim": made.nope,
        "hidden_act": "silu",
        "hidden_size": spec.hidden,
        "index_head_dim": INDEX_DIM,
        "index_n_heads": made.index_heads,
        "index_topk": spec.topk,
        "initializer_range": 0.02,
        "intermediate_size": spec.dense,
        "kv_lora_rank": LATENT,
        "max_position_embeddings": spec.positions,
        "model_type": made.model_type,
        "moe_intermediate_size": spec.expert,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": spec.experts,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": spec.heads,
        "num_experts_per_tok": spec.experts_per_token,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.heads,
        "num_nextn_predict_layers": 1,
        "pad_token_id": spec.vocab - 3,
        "pretraining_tp": 1,
        "q_lora_rank": spec.q_lora,
        "qk_head_dim": made.nope + ROPE,
        "qk_nope_head_dim": made.nope,
        "qk_rope_head_dim": ROPE,
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": _unquantised(spec),
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
        },
        "rms_norm_eps": 1e-05,
        "rope_interleave": True,
        "rope_parameters": {"rope_theta": 8_000_000, "rope_type": "default"},
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "transformers_version": "5.12.0",
        "use_cache": True,
        "v_head_dim": made.value,
        "vocab_size": spec.vocab,
    }


def _unquantised(spec: Spec) -> list[str]:
    """The modules named as the checkpoint names them, ``indexers_proj`` for the index weights too."""
    found = ["lm_head", "model.embed_tokens", "model.norm"]
    for layer in range(spec.layers + 1):
        names = ["input_layernorm", "post_attention_layernorm"]
        names += ["self_attn.q_a_layernorm", "self_attn.kv_a_layernorm"]
        if not spec.is_dense(layer):
            names += ["mlp.gate", "mlp.gate.e_score_correction_bias"]
        if spec.is_full(layer):
            names += [f"self_attn.{name}" for name in ("indexers_proj", "indexer.k_norm")]
            names += ["self_attn.indexer.k_norm.bias"]
        if layer == spec.layers:
            names += ["enorm", "hnorm", "eh_proj", "shared_head.norm"]
        found += [f"model.layers.{layer}.{name}" for name in names]
    return found


# -- weights --------------------------------------------------------------------------------------


def normal(seed: int, name: str, *shape: int) -> torch.Tensor:
    """fp32, nearly normal: mean 0, variance 1, at most 3.5; the same bits on every machine.

    Each value is the sum of four bytes of Philox's raw output, which numpy promises to keep, unlike
    what its own and torch's normal distributions return; nothing here rounds differently anywhere.
    """
    count = int(np.prod(shape))
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    words = philox.random_raw(2 * -(-count // 4)).reshape(2, -1)
    bytes_of = np.uint64(0x00FF00FF00FF00FF)
    pairs = (words & bytes_of) + ((words >> np.uint64(8)) & bytes_of)
    sums = (pairs[0] + pairs[1]).astype("<u8").view("<u2")[:count]
    values = (sums.astype(np.float32) - np.float32(510)) * np.float32(1 / 147.8)
    return torch.from_numpy(values.reshape(shape))


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``[out, in]`` fp32 to e4m3 of the same shape and fp32 ``[ceil(out/128), ceil(in/128)]``.

    A scale is the least power of two at which its block fits.
    """
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    padded = weight.new_zeros(rows * BLOCK, columns * BLOCK)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    blocks = padded.view(rows, BLOCK, columns, BLOCK)
    amax = blocks.abs().amax(dim=(1, 3)).clamp(min=1e-12)
    mantissa, exponent = torch.frexp(amax / E4M3_MAX)
    scale = torch.ldexp(torch.ones_like(amax), exponent - (mantissa == 0.5).int())
    small = (blocks / scale[:, None, :, None]).view_as(padded)
    return small[: weight.shape[0], : weight.shape[1]].to(torch.float8_e4m3fn), scale


def dequantise(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """fp32 ``[out, in]`` of a block-quantised weight and its ``weight_scale_inv``."""
    full = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return weight.float() * full[: weight.shape[0], : weight.shape[1]]


@dataclass(frozen=True)
class _Layer:
    """The tensors of one layer, fp32, by their names within it.

    An index head scores a key by the dot product of 64 channels with rope and 64 without. Attention
    head n has the same 128 channels as index head ``n % LOUD`` of the layer that selects its keys (the
    rope part as its own rope part, the rest as its first ``nope`` channels) and 128 of its own. Its
    logits have a standard deviation of 1.2, so that of thousands of keys some hundreds carry its output,
    and most of those are among the keys that its indexer likes. Index weights are positive by the constant
    channel, which nothing else reads or writes.
    """

    spec: Spec
    layer: int

    def draw(self, name: str, *shape: int, of: int | None = None) -> torch.Tensor:
        return normal(self.spec.seed, f"{self.layer if of is None else of}.{name}", *shape)

    def norm(self, name: str, size: int) -> torch.Tensor:
        weight = 1 + 0.1 * self.draw(name, size)
        weight[0] = 1
        return weight

    def reads(self, name: str, out: int, gain: float = 1.0, of: int | None = None) -> torch.Tensor:
        """``[out, hidden]``: of unit input, an output of size ``gain``."""
        weight = self.draw(name, out, self.spec.hidden, of=of) * (
            gain / math.sqrt(self.spec.hidden)
        )
        weight[:, 0] = 0
        return weight

    def writes(self, name: str, width: int, gain: float) -> torch.Tensor:
        """``[hidden, width]``: of unit input, an addition of size ``gain`` to the residual stream."""
        weight = self.draw(name, self.spec.hidden, width) * (gain / math.sqrt(width))
        weight[0] = 0
        return weight

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{name}.weight", self.norm(name, self.spec.hidden)
        for name, tensor in self._attention():
            yield f"self_attn.{name}", tensor
        yield from self._dense() if self.spec.is_dense(self.layer) else self._experts()
        if self.layer == self.spec.layers:
            for name in ("enorm", "hnorm", "shared_head.norm"):
                yield f"{name}.weight", self.norm(name, self.spec.hidden)
            both = (
                self.reads("eh_proj.e", self.spec.hidden),
                self.reads("eh_proj.h", self.spec.hidden),
            )
            yield "eh_proj.weight", torch.cat(both, dim=1) / math.sqrt(2)

    def _attention(self) -> Iterator[tuple[str, torch.Tensor]]:
        spec, full = self.spec, self.spec.indexed_by(self.layer)
        made = spec.architecture
        rope = rope_order(interleaved=made.shares)
        index_q = self.draw("wq_b", made.index_heads * INDEX_DIM, spec.q_lora, of=full) / math.sqrt(
            spec.q_lora
        )
        index_k = self.reads("wk", INDEX_DIM, of=full)

        yield "q_a_proj.weight", self.reads("q_a", spec.q_lora, of=full)
        yield "q_a_layernorm.weight", self.norm("q_a_norm", spec.q_lora)
        q = self.draw("q_b", spec.heads, made.nope + ROPE, spec.q_lora) * (
            OWN / math.sqrt(spec.q_lora)
        )
        followed = (
            index_q.view(made.index_heads, INDEX_DIM, -1)[torch.arange(spec.heads) % LOUD] * FOLLOW
        )
        q[:, :LINKED] = followed[:, ROPE:]
        q[:, made.nope :] = followed[:, :ROPE][:, rope]
        yield "q_b_proj.weight", q.view(-1, spec.q_lora)

        latent = self.reads("kv_a", LATENT)
        latent[:LINKED] = index_k[ROPE:]
        yield "kv_a_proj_with_mqa.weight", torch.cat([latent, index_k[:ROPE][rope]])
        yield "kv_a_layernorm.weight", self.norm("kv_a_norm", LATENT)
        kv = self.draw("kv_b", spec.heads, made.nope + made.value, LATENT) / math.sqrt(LATENT)
        kv[:, :LINKED] = torch.eye(LINKED, LATENT)
        yield "kv_b_proj.weight", kv.view(-1, LATENT)
        yield "o_proj.weight", self.writes("o", spec.heads * made.value, ATTENTION)

        if spec.is_full(self.layer):
            yield "indexer.wq_b.weight", index_q
            yield "indexer.wk.weight", index_k
            yield "indexer.k_norm.weight", self.norm("k_norm", INDEX_DIM)
            yield "indexer.k_norm.bias", 0.1 * self.draw("k_norm.bias", INDEX_DIM)
            loudness = torch.where(torch.arange(made.index_heads) < LOUD, 1.0, 1 / 3)
            weights = self.reads("weights_proj", made.index_heads, 0.2)
            weights[:, 0] = 1 / CONSTANT
            yield "indexer.weights_proj.weight", weights * loudness[:, None]

    def _dense(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._mlp("mlp", self.spec.dense, DENSE)

    def _experts(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "mlp.gate.weight", self.reads("gate", self.spec.experts, 1.5)
        yield "mlp.gate.e_score_correction_bias", 0.1 * self.draw("gate.bias", self.spec.experts)
        yield from self._mlp("mlp.shared_experts", self.spec.expert, SHARED)
        for expert in range(self.spec.experts):
            yield from self._mlp(f"mlp.experts.{expert}", self.spec.expert, ROUTED)

    def _mlp(self, name: str, width: int, gain: float) -> Iterator[tuple[str, torch.Tensor]]:
        yield f"{name}.gate_proj.weight", self.reads(f"{name}.gate_proj", width)
        yield f"{name}.up_proj.weight", self.reads(f"{name}.up_proj", width)
        yield f"{name}.down_proj.weight", self.writes(f"{name}.down_proj", width, gain)


Tensors = Callable[[Spec], Iterator[tuple[str, torch.Tensor]]]
"""Every tensor of a model by its checkpoint name, fp32."""


def named_tensors(spec: Spec) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the model that this module describes."""
    embedding = normal(spec.seed, "embed_tokens", spec.vocab, spec.hidden)
    embedding[:, 0] = CONSTANT
    yield "model.embed_tokens.weight", embedding
    top = _Layer(spec, -1)
    yield "model.norm.weight", top.norm("norm", spec.hidden)
    yield "lm_head.weight", top.reads("lm_head", spec.vocab, 3.0)
    for layer in range(spec.layers + 1):
        for name, tensor in _Layer(spec, layer).tensors():
            yield f"model.layers.{layer}.{name}", tensor


def _is_quantised(name: str) -> bool:
    return (
        name.endswith("_proj.weight")
        and not name.endswith(("weights_proj.weight", "eh_proj.weight"))
        or (
            name.endswith(
                (".kv_a_proj_with_mqa.weight", ".indexer.wq_b.weight", ".indexer.wk.weight")
            )
        )
    )


def encode(
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    quantised: Callable[[str], bool],
    floats: tuple[str, ...],
    bf16: bool,
) -> Iterator[tuple[str, torch.Tensor]]:
    """fp32 tensors as a checkpoint has them.

    Args:
        quantised: whether the tensor of this name is e4m3 with ``weight_scale_inv``.
        floats: endings of the names of those that stay fp32. The rest is bf16.
        bf16: write the quantised ones in bf16, with the same values.
    """
    for name, tensor in tensors:
        if quantised(name):
            small, scale = quantise(tensor)
            if bf16:
                yield name, dequantise(small, scale).to(torch.bfloat16)
            else:
                yield name, small
                yield f"{name}_scale_inv", scale
        elif name.endswith(floats):
            yield name, tensor
        else:
            yield name, tensor.to(torch.bfloat16)


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    bf16: bool,
) -> Path:
    """Write ``config.json``, without its quantisation if ``bf16``, and ``model.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {k: v for k, v in config.items() if not (bf16 and k == "quantization_config")}
    (folder / "config.json").write_text(json.dumps(given, indent=2) + "\n")
    half = folder / "model.safetensors.part"
    save_file(dict(tensors), half, {"format": "pt"})
    half.replace(folder / "model.safetensors")  # so a model file is always complete
    return folder


def read_dequantised(
    folder: Path, *, without: str, device: torch.device | str = "cpu"
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a model folder by name, quantised ones dequantised to fp32.

    ``without``: names that begin like this are left out, as the prediction layer's.
    """
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt", device=str(device)) as tensors:
            names = set(tensors.keys())
            for name in sorted(names):
                if name.startswith(without) or name.endswith("_scale_inv"):
                    continue
                weight = tensors.get_tensor(name)
                if f"{name}_scale_inv" in names:
                    weight = dequantise(weight, tensors.get_tensor(f"{name}_scale_inv"))
                yield name, weight


def weights(
    spec: Spec, *, bf16: bool = False, tensors: Tensors = named_tensors
) -> Iterator[tuple[str, torch.Tensor]]:
    """The checkpoint's tensors: e4m3 with ``weight_scale_inv``, or all in bf16 with the same values."""
    floats = ("e_score_correction_bias",)
    return encode(tensors(spec), quantised=_is_quantised, floats=floats, bf16=bf16)


def write(
    folder: Path, spec: Spec, *, bf16: bool = False, tensors: Tensors = named_tensors
) -> Path:
    """Write the model folder; the same bytes for the same spec. Returns the folder."""
    return write_folder(folder, config(spec), weights(spec, bf16=bf16, tensors=tensors), bf16=bf16)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write; made if it is not there")
    for name, default in (("seed", 0), ("layers", 8), ("heads", 8), ("hidden", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--bf16", action="store_true", help="the same values, unquantised, in bf16")
    parser.add_argument("--deepseek", action="store_true", help="DeepSeek-V3.2's structure")
    given = parser.parse_args(arguments)
    sizes = {name: getattr(given, name) for name in ("seed", "layers", "heads", "hidden")}
    try:
        spec = Spec(**sizes, architecture=DEEPSEEK if given.deepseek else GLM)
    except ValueError as err:
        parser.error(str(err))
    written = write(given.out, spec, bf16=given.bf16) / "model.safetensors"
    print(
        f"{given.out}: {spec.layers} layers, {spec.heads} heads, {written.stat().st_size >> 20} MiB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
