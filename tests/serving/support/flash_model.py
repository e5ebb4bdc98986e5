"""A tiny GLM-5.3-Flash: its structure, its checkpoint format, and weights on which the selected keys matter.

``python -m tests.serving.support.flash_model OUT [--kpool 4] [--topk 2048] [--bf16]`` writes ``config.json``
and ``model.safetensors``. What sglang's kernels see has GLM-5.3-Flash's sizes: three linear attention (KDA)
layers and one DSA layer in turn, linear heads of 128 with a convolution of 4, latent rows of 512 without a
rotary part, 256 + 256 per attention head, 32 index heads of 128 that score one key for ``kpool`` tokens, four
residual streams (mHC), three dense layers, one shared expert, a prediction (MTP) layer at the end. The hidden
size is 4096, the smallest that sglang's TileLang kernels for mHC take. Ranks, heads, experts and vocabulary
are small, and the vision tower has one layer.

Names, dtypes and quantised modules are those of GLM-5.3-Flash: experts, dense layers and four projections of
DSA attention in e4m3 with one fp32 scale per block of 128 x 128, the rest in bf16 but for the small tensors
of FLOATS. Scales are powers of two, as in ``tiny_model``. ``--bf16`` writes the same values unquantised.

With random weights the selection would not matter, and a pool's key would say little of its tokens. Here a
head looks for what an index head scores, as in ``tiny_model``. In addition some tokens are salient: attention
heads prefer them, and the gate of the pooled keys gives them most of their pool's weight. See ``_Layer``.
On the CPU, at 1500 tokens, top-k 512 and hidden size 256, logprobs move by 0.025 nats on average when all is
rounded to bf16, by 0.05 when the inputs of quantised products are rounded to e4m3, by 0.08 when one pool in
twenty is missing, by 0.11 without the tokens of the open pool, by 0.28 when the last keys are selected.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from tests.serving.support import tiny_model
from tests.serving.support.tiny_model import (
    BLOCK,
    CONSTANT,
    INDEX_DIM,
    LATENT,
    LOUD,
    encode,
    normal,
    write_folder,
)

ARCHITECTURE: Final = "Glm5NextForConditionalGeneration"
PREFIX: Final = "model.language_model"
VISION: Final = "model.visual"
NOPE: Final = 256
VALUE: Final = 256
INDEX_HEADS: Final = 32
LINEAR_DIM: Final = 128
TAPS: Final = 4
"""Of the convolution before linear attention."""
STREAMS: Final = 4
LOWER_BOUND: Final = -5.0
"""Nats by which one step of linear attention forgets at most."""
DENSE_LAYERS: Final = 3
GROUPS: Final = (128, 160, 192, 224, 256, 512, 2048)
"""Numbers of pools that sglang's top-k kernel selects."""
VISION_DIM: Final = 128

FOLLOW: Final = 1.7
OWN: Final = 0.2
SALIENT: Final = 24.0
ITSELF: Final = 2.0
"""Gains of a query's channels: those of the index head it follows, its own, the one that finds salient
tokens, and those that find the token itself."""
SAME: Final = 32
"""Channels by which a token finds itself."""
GATE: Final = 4.0
"""Gain of salience in the gate of the pooled keys."""
ATTENTION: Final = 0.6
LINEAR: Final = 0.4
"""Gains of what DSA and linear attention add to the residual streams."""
FORGET: Final = -5.0
"""Mean of the forget gate before its sigmoid: a step then forgets a thirtieth."""
QUANTISED: Final = tuple(
    f"self_attn.{name}.weight" for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj")
)
"""Of DSA attention. Its indexer, ``kv_b_proj`` and linear attention are in bf16."""
FLOATS: Final = (
    "A_log",
    "dt_bias",
    "e_score_correction_bias",
    "index_kpool_compress_ape",
    "_base",
    "_fn",
    "_scale",
)
"""Endings of the names of what the checkpoint has in fp32."""


@dataclass(frozen=True)
class Spec:
    """What to make. Sizes in channels; ``topk`` in keys, ``kpool`` in keys that share one of the indexer.

    Raises:
        ValueError: a size that the block format or the model's structure does not allow.
    """

    seed: int = 0
    layers: int = 8
    heads: int = 16
    linear_heads: int = 8
    hidden: int = 4096
    q_lora: int = 512
    dense: int = 512
    expert: int = 128
    experts: int = 8
    experts_per_token: int = 2
    vocab: int = 4096
    topk: int = 2048
    kpool: int = 4
    positions: int = 262_144

    def __post_init__(self) -> None:
        for name in ("hidden", "q_lora", "dense", "expert"):
            if getattr(self, name) % BLOCK:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: not a multiple of {BLOCK}, the block of the "
                    f"quantisation. Give a multiple of {BLOCK}."
                )
        if self.layers < 4:
            raise ValueError(
                f"{self.layers} layers: the first three have linear attention, so there would be no "
                "layer with DSA. Give 4 or more."
            )
        if 64 % self.kpool or self.topk % self.kpool:
            raise ValueError(
                f"kpool is {self.kpool} and topk {self.topk}: kpool must divide a page of 64 keys, and topk."
            )

    def is_linear(self, layer: int) -> bool:
        return layer < self.layers and layer % 4 != 3

    def is_dense(self, layer: int) -> bool:
        return layer < DENSE_LAYERS


def config(spec: Spec) -> dict[str, Any]:
    """``config.json`` with the fields of GLM-5.3-Flash's."""
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "eos_token_id": [spec.vocab - 3, spec.vocab - 2, spec.vocab - 1],
        "first_k_dense_replace": DENSE_LAYERS,
        "hc_eps": 1e-06,
        "hc_mult": STREAMS,
        "hc_sinkhorn_iters": 20,
        "hidden_act": "silu",
        "hidden_size": spec.hidden,
        "index_head_dim": INDEX_DIM,
        "index_kpool": spec.kpool,
        "index_kpool_always_select_tail": True,
        "index_kpool_compress": True,
        "index_n_heads": INDEX_HEADS,
        "index_topk": spec.topk,
        "index_topk_freq": 1,
        "intermediate_size": spec.dense,
        "kv_lora_rank": LATENT,
        "linear_conv_kernel_dim": TAPS,
        "linear_head_dim": LINEAR_DIM,
        "linear_lower_bound": LOWER_BOUND,
        "linear_num_heads": spec.linear_heads,
        "max_position_embeddings": spec.positions,
        "mhc": True,
        "model_type": "glm5_next_text",
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
        "q_lora_rank": spec.q_lora,
        "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": 0,
        "rms_norm_eps": 1e-05,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "swiglu_limit": 10.0,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "use_cache": True,
        "v_head_dim": VALUE,
        "vocab_size": spec.vocab,
    }
    vision = {
        "attention_bias": True,
        "depth": 1,
        "hidden_act": "silu",
        "hidden_size": VISION_DIM,
        "in_channels": 3,
        "intermediate_size": VISION_DIM,
        "model_type": "glm5_next_vision",
        "num_heads": 2,
        "out_hidden_size": spec.hidden,
        "patch_size": 14,
        "projection_intermediate_size": VISION_DIM,
        "rms_norm_eps": 1e-05,
        "spatial_merge_size": 2,
        "swiglu_limit": 10.0,
        "temporal_patch_size": 2,
    }
    return {
        "architectures": [ARCHITECTURE],
        "dtype": "bfloat16",
        "model_type": "glm5_next",
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": _unquantised(spec),
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
        },
        "text_config": text,
        "tie_word_embeddings": False,
        "transformers_version": "5.19.0",
        "vision_config": vision,
    }


def _unquantised(spec: Spec) -> list[str]:
    """The modules named as the checkpoint names them."""
    names = {
        name.removesuffix(".weight")
        for name in names_of(spec)
        if name.endswith(".weight")
        and not _is_quantised(spec, name)
        and not name.startswith(VISION)
    }
    return [*sorted(names), VISION]


# -- weights --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer(tiny_model._Layer):
    """The tensors of one layer, fp32, by their names within it.

    An attention head has the 128 channels of index head ``n % LOUD`` as the first channels of its query, and
    the index key's as the first of its latent row, as in ``tiny_model``. Latent channel SALIENCE holds how
    salient a token is: a random function of the residual stream. Query channel 0 before ``q_b_proj`` is a
    constant, by the channel of the residual stream that nothing writes to. With it a head prefers salient
    tokens by 1.5 nats a standard deviation. The gate of the pooled keys has the same random function in each
    of its channels. By the next SAME channels of query and key a token finds itself, by 4 nats, so that a
    list without the tokens of the open pool shows too.
    """

    spec: Spec  # type: ignore[assignment]  # the fields that the base class reads are the same

    SALIENCE = INDEX_DIM

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        spec = self.spec
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{name}.weight", self.norm(name, spec.hidden)
        made = self._linear() if spec.is_linear(self.layer) else self._sparse()
        for name, tensor in made:
            yield f"self_attn.{name}", tensor
        yield from self._dense() if spec.is_dense(self.layer) else self._experts()
        if self.layer == spec.layers:
            yield from self._prediction()
        else:
            for name in ("attn", "ffn"):
                yield from self._streams(name)

    def _linear(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each head remembers for some tens to hundreds of tokens."""
        spec = self.spec
        width = spec.linear_heads * LINEAR_DIM
        for name in "qkv":
            yield f"{name}_proj.weight", self.reads(name, width)
            taps = 0.3 * self.draw(f"{name}_conv", width, 1, TAPS)
            taps[..., -1] += 1
            yield f"{name}_conv1d.weight", taps
        yield "b_proj.weight", self.reads("b", spec.linear_heads)
        for name in "fg":
            yield f"{name}_a_proj.weight", self.reads(f"{name}_a", LINEAR_DIM)
            second = self.draw(f"{name}_b", width, LINEAR_DIM) / math.sqrt(LINEAR_DIM)
            yield f"{name}_b_proj.weight", second
        yield "A_log", 0.2 * self.draw("A_log", spec.linear_heads)
        yield "dt_bias", FORGET + self.draw("dt_bias", width)
        yield "o_norm.weight", self.norm("o_norm", LINEAR_DIM)
        yield "o_proj.weight", self.writes("o", width, LINEAR)

    def _sparse(self) -> Iterator[tuple[str, torch.Tensor]]:
        spec = self.spec
        index_q = self.draw("wq_b", INDEX_HEADS * INDEX_DIM, spec.q_lora) / math.sqrt(spec.q_lora)
        index_q[:, 0] = 0
        index_k = self.reads("wk", INDEX_DIM)
        salience = self.reads("salience", 1)

        q_latent = self.reads("q_a", spec.q_lora)
        q_latent[0] = 0
        q_latent[0, 0] = 1 / CONSTANT
        same = slice(self.SALIENCE + 1, self.SALIENCE + 1 + SAME)
        yield "q_a_proj.weight", q_latent
        yield "q_a_layernorm.weight", self.norm("q_a_norm", spec.q_lora)
        q = self.draw("q_b", spec.heads, NOPE, spec.q_lora) * (OWN / math.sqrt(spec.q_lora))
        q[:, :INDEX_DIM] = (
            FOLLOW * (index_q.view(INDEX_HEADS, INDEX_DIM, -1)[torch.arange(spec.heads) % LOUD])
        )
        q[:, self.SALIENCE] = 0
        q[:, self.SALIENCE, 0] = SALIENT
        q[:, same] = 0
        q[:, same, 1 : 1 + SAME] = ITSELF * torch.eye(SAME)
        yield "q_b_proj.weight", q.view(-1, spec.q_lora)

        latent = self.reads("kv_a", LATENT)
        latent[:INDEX_DIM] = index_k
        latent[self.SALIENCE] = salience
        latent[same] = q_latent[1 : 1 + SAME]
        yield "kv_a_proj_with_mqa.weight", latent
        yield "kv_a_layernorm.weight", self.norm("kv_a_norm", LATENT)
        kv = self.draw("kv_b", spec.heads, NOPE + VALUE, LATENT) / math.sqrt(LATENT)
        kv[:, : same.stop] = torch.eye(same.stop, LATENT)
        yield "kv_b_proj.weight", kv.view(-1, LATENT)
        yield "o_proj.weight", self.writes("o", spec.heads * VALUE, ATTENTION)

        yield "indexer.wq_b.weight", index_q
        yield "indexer.wk.weight", index_k
        yield "indexer.k_norm.weight", self.norm("k_norm", INDEX_DIM)
        yield "indexer.k_norm.bias", 0.1 * self.draw("k_norm.bias", INDEX_DIM)
        loudness = torch.where(torch.arange(INDEX_HEADS) < LOUD, 1.0, 1 / 3)
        weights = self.reads("weights_proj", INDEX_HEADS, 0.2)
        weights[:, 0] = 1 / CONSTANT
        yield "indexer.weights_proj.weight", weights * loudness[:, None]
        gate = GATE * salience + self.reads("gate", INDEX_DIM, 0.5)
        yield "indexer.index_kpool_compress_gate", gate
        yield "indexer.index_kpool_compress_ape", 0.5 * self.draw("ape", spec.kpool, INDEX_DIM)

    def _streams(self, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        """How the residual streams are read, written and mixed: near to each for itself, by the token."""
        outputs = (2 + STREAMS) * STREAMS
        width = STREAMS * self.spec.hidden
        base = 0.3 * self.draw(f"{name}.base", outputs)
        base[2 * STREAMS :] += 3 * torch.eye(STREAMS).flatten()
        fn = self.draw(f"{name}.fn", outputs, width) / math.sqrt(width)
        fn.view(outputs, STREAMS, -1)[..., 0] = 0
        yield f"hc_{name}_base", base
        yield f"hc_{name}_fn", fn
        yield f"hc_{name}_scale", torch.full((3,), 0.5)

    def _prediction(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Its input is the token's embedding and a little of the target's output, so that some drafts are
        right: what the target says is mostly the token's own doing.
        """
        hidden = self.spec.hidden
        for name in ("enorm", "hnorm", "shared_head.norm"):
            yield f"{name}.weight", self.norm(name, hidden)
        before = self.reads("eh_proj.h", hidden, 0.3)
        before[0] = 0
        yield "eh_proj.weight", torch.cat([torch.eye(hidden), before], dim=1)


def _vision(spec: Spec) -> Iterator[tuple[str, torch.Tensor]]:
    """The tower that no test sends an image to: ones for norms, small random weights for the rest."""
    inner, out = VISION_DIM, spec.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (inner, 3, 2, 14, 14),
        "patch_embed.proj.bias": (inner,),
        "blocks.0.norm1.weight": (inner,),
        "blocks.0.norm2.weight": (inner,),
        "blocks.0.attn.qkv.weight": (3 * inner, inner),
        "blocks.0.attn.qkv.bias": (3 * inner,),
        "blocks.0.attn.proj.weight": (inner, inner),
        "blocks.0.attn.proj.bias": (inner,),
        "blocks.0.attn.q_norm.weight": (inner // 2,),
        "blocks.0.attn.k_norm.weight": (inner // 2,),
        **{f"blocks.0.mlp.{n}_proj.weight": (inner, inner) for n in ("gate", "up", "down")},
        **{f"blocks.0.mlp.{n}_proj.bias": (inner,) for n in ("gate", "up", "down")},
        "post_layernorm.weight": (inner,),
        "downsample.weight": (out, inner, 2, 2),
        "downsample.bias": (out,),
        "merger.proj.weight": (out, out),
        "merger.post_projection_norm.weight": (out,),
        "merger.post_projection_norm.bias": (out,),
        "merger.gate_proj.weight": (inner, out),
        "merger.up_proj.weight": (inner, out),
        "merger.down_proj.weight": (out, inner),
    }
    for name, shape in shapes.items():
        if "norm" in name and name.endswith(".weight"):
            yield name, torch.ones(shape)
        else:
            yield name, 0.02 * normal(spec.seed, f"visual.{name}", *shape)


def named_tensors(spec: Spec) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the model by its checkpoint name, fp32."""
    embedding = normal(spec.seed, "embed_tokens", spec.vocab, spec.hidden)
    embedding[:, 0] = CONSTANT
    yield f"{PREFIX}.embed_tokens.weight", embedding
    top = _Layer(spec, -1)
    yield f"{PREFIX}.norm.weight", top.norm("norm", spec.hidden)
    yield "lm_head.weight", top.reads("lm_head", spec.vocab, 3.0)
    for layer in range(spec.layers + 1):
        for name, tensor in _Layer(spec, layer).tensors():
            yield f"{PREFIX}.layers.{layer}.{name}", tensor
    for name, tensor in _vision(spec):
        yield f"{VISION}.{name}", tensor


def names_of(spec: Spec) -> list[str]:
    """The names of the checkpoint's tensors, without their scales."""
    small = Spec(
        layers=spec.layers,
        heads=1,
        linear_heads=1,
        hidden=BLOCK,
        q_lora=BLOCK,
        dense=BLOCK,
        expert=BLOCK,
        experts=spec.experts,
        vocab=1,
    )
    return [name for name, _ in named_tensors(small)]


def _is_quantised(spec: Spec, name: str) -> bool:
    if not name.startswith(f"{PREFIX}.layers."):
        return False
    layer, module = name.removeprefix(f"{PREFIX}.layers.").split(".", 1)
    if module.startswith("mlp."):
        return module.endswith("_proj.weight")
    return not spec.is_linear(int(layer)) and module in QUANTISED


def weights(spec: Spec, *, bf16: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """The checkpoint's tensors: e4m3 with ``weight_scale_inv``, or unquantised with the same values."""
    quantised = partial(_is_quantised, spec)
    return encode(named_tensors(spec), quantised=quantised, floats=FLOATS, bf16=bf16)


def write(folder: Path, spec: Spec, *, bf16: bool = False) -> Path:
    """Write the model folder; the same bytes for the same spec. Returns the folder."""
    return write_folder(folder, config(spec), weights(spec, bf16=bf16), bf16=bf16)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write; made if it is not there")
    sizes = ("seed", "layers", "heads", "linear_heads", "hidden", "topk", "kpool")
    for name in sizes:
        default = getattr(Spec, name)
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=int, default=default, help=f"default {default}")
    parser.add_argument("--bf16", action="store_true", help="the same values, unquantised, in bf16")
    given = parser.parse_args(arguments)
    try:
        spec = Spec(**{name: getattr(given, name) for name in sizes})
    except ValueError as err:
        parser.error(str(err))
    written = write(given.out, spec, bf16=given.bf16) / "model.safetensors"
    print(
        f"{given.out}: {spec.layers} layers, {spec.heads} heads, kpool {spec.kpool}, "
        f"{written.stat().st_size >> 20} MiB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
