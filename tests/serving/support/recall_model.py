"""A tiny GLM-5.2 that has something to say: it continues what it has read, from any place.

``python -m tests.serving.support.recall_model OUT [--heads 8]`` writes a model folder as ``tiny_model`` does,
of the same structure and format. Its weights are written, not trained, so that the right answer to a prompt
is known and the checkpoint follows from a seed. A prompt is a list of different tokens, and one of them again
at the end; the answer is what followed that token the first time. If that was more than 2048 tokens
ago, the attention reads it only if the indexer selected it: a wrong set of keys shows as a wrong word.

How it works. A token's code is 256 signs. The residual stream has a section for the code of the token, one
for that of the token before, and one for the answer; all other modules write to the rest of the channels.

* Layer PREVIOUS: every head attends to the position before, by rope alone, and copies the token's code.
* Layer INDEXED has the indexer that looks for positions whose token before is the present token.
* Layer COPYING shares those keys: every head attends to that position and copies its code to the answer.
* The prediction (MTP) layer has all of it at once: its input has the next token's code and the present one's.
  It compares DRAFT_SIGNS signs only, so several positions match at times and some drafts are wrong.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from tests.serving.support import tiny_model
from tests.serving.support.tiny_model import (
    CONSTANT,
    GLM,
    INDEX_DIM,
    LATENT,
    ROPE,
    Spec,
    normal,
)

NOPE: Final = GLM.nope
VALUE: Final = GLM.value
INDEX_HEADS: Final = GLM.index_heads

PREVIOUS: Final = 0
INDEXED: Final = 2
COPYING: Final = 3
CODE: Final = 256
OTHERS: Final = slice(1, CODE)
TOKEN: Final = slice(CODE, 2 * CODE)
BEFORE: Final = slice(2 * CODE, 3 * CODE)
ANSWER: Final = slice(3 * CODE, 4 * CODE)
"""Sections of the residual stream; channel 0 is the constant."""
DRAFT_SIGNS: Final = 13
SHARPNESS: Final = 40.0
"""Nats by which a full match of signs is ahead of none."""
PAIRS: Final = 8
"""Rope pairs that find the position before: the fastest ones."""
STEP: Final = 30.0
"""Nats of each of them at the position before."""
LOUDNESS: Final = 30.0
"""Logit of a token whose code is the answer."""
VOCAB: Final = 16_384


def spec(*, seed: int = 0, heads: int = 8, layers: int = 8, vocab: int = VOCAB) -> Spec:
    """Sizes for which the sections fit: hidden 1024, query rank 512."""
    return Spec(seed=seed, heads=heads, layers=layers, vocab=vocab, hidden=4 * CODE)


def codes(given: Spec) -> torch.Tensor:
    """fp32 ``[vocab, CODE]`` of 1 and -1."""
    return torch.where(normal(given.seed, "codes", given.vocab, CODE) > 0, 1.0, -1.0)


def question(length: int, *, seed: int, vocab: int = VOCAB, back: int | None = None) -> list[int]:
    """A prompt of ``length`` tokens that ends with one that it had ``back`` tokens before.

    By default ``back`` is drawn, and more than 2100 where the prompt is long enough for 64 tokens of answer.
    """
    draw = random.Random(f"{seed}/{length}")
    read = draw.sample(range(vocab - 8), length - 1)
    latest = length - 1 - 65
    if latest - 2100 > 0:
        latest -= 2100
    place = length - 1 - back if back else draw.randrange(1, max(latest, 2))
    return [*read, read[place]]


def answer(prompt: list[int], count: int) -> list[int]:
    """What a right model says after ``prompt``: what followed its last token before, again and again."""
    place = prompt.index(prompt[-1])
    read = prompt[place + 1 :]
    return (read * -(-count // len(read)))[:count]


def rope_pairs(theta: float, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key, fp32 ``[ROPE]`` each, whose product after rotation is largest one position back."""
    angles = theta ** (-torch.arange(0, ROPE, 2, dtype=torch.float64) / ROPE)
    size = torch.where(torch.arange(ROPE // 2) < PAIRS, math.sqrt(scale), 0.0)
    key = torch.stack([size, torch.zeros_like(size)], dim=-1).flatten()
    query = torch.stack([size * angles.cos(), -size * angles.sin()], dim=-1).flatten()
    return query.float(), key.float()


@dataclass(frozen=True)
class _Layer(tiny_model._Layer):
    """As in ``tiny_model``, but that nothing writes to the sections, and with the attention above."""

    def writes(self, name: str, width: int, gain: float) -> torch.Tensor:
        weight = super().writes(name, width, gain)
        weight[OTHERS.stop :] = 0
        return weight

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        made = dict(super().tensors())
        if self.layer == PREVIOUS:
            self._look_back(made)
        if self.layer in (INDEXED, self.spec.layers):
            self._index(made)
        if self.layer == COPYING:
            self._copy(made, NOPE)
        if self.layer == self.spec.layers:
            self._copy(made, DRAFT_SIGNS)
            self._join(made)
        yield from made.items()

    def _ask(self, made: dict[str, torch.Tensor]) -> None:
        """The query's latent: the constant in channel 0 and the token's code in the second half."""
        rank = self.spec.q_lora
        q_a = torch.zeros(rank, self.spec.hidden)
        q_a[0, 0] = 1.0
        q_a[rank - CODE :, TOKEN] = torch.eye(CODE)
        made["self_attn.q_a_proj.weight"] = q_a
        made["self_attn.q_a_layernorm.weight"] = torch.ones(rank)
        made["input_layernorm.weight"] = torch.ones(self.spec.hidden)

    def _attend(
        self, made: dict[str, torch.Tensor], q: torch.Tensor, kv_a: torch.Tensor, to: slice
    ) -> None:
        """All heads alike: ``q`` [NOPE + ROPE, rank]; values are the second part of the latent."""
        heads = self.spec.heads
        kv_b = torch.zeros(NOPE + VALUE, LATENT)
        kv_b[:NOPE, :NOPE] = torch.eye(NOPE)
        kv_b[NOPE:, NOPE : NOPE + CODE] = torch.eye(CODE)
        out = torch.zeros(self.spec.hidden, heads, VALUE)
        out[to] = (torch.eye(CODE) / heads)[:, None]
        made["self_attn.q_b_proj.weight"] = q.repeat(heads, 1)
        made["self_attn.kv_a_proj_with_mqa.weight"] = kv_a
        made["self_attn.kv_a_layernorm.weight"] = torch.ones(LATENT)
        made["self_attn.kv_b_proj.weight"] = kv_b.repeat(heads, 1)
        made["self_attn.o_proj.weight"] = out.flatten(1)

    def _look_back(self, made: dict[str, torch.Tensor]) -> None:
        """Attention and indexer to the position before: the nearer, the higher its score."""
        self._ask(made)
        query, key = rope_pairs(8e6, STEP * math.sqrt(NOPE + ROPE))
        q = torch.zeros(NOPE + ROPE, self.spec.q_lora)
        q[NOPE:, 0] = query / CONSTANT
        kv_a = torch.zeros(LATENT + ROPE, self.spec.hidden)
        kv_a[NOPE : NOPE + CODE, TOKEN] = torch.eye(CODE)
        kv_a[LATENT:, 0] = key / CONSTANT
        self._attend(made, q, kv_a, BEFORE)
        query, key = rope_pairs(8e6, 1.0)
        index_q = torch.zeros(INDEX_HEADS, INDEX_DIM, self.spec.q_lora)
        index_q[:, :ROPE, 0] = query
        made["self_attn.indexer.wq_b.weight"] = index_q.flatten(0, 1)
        made["self_attn.indexer.k_norm.weight"] = torch.full((INDEX_DIM,), 0.01)
        made["self_attn.indexer.k_norm.bias"] = torch.cat([key, torch.zeros(INDEX_DIM - ROPE)])

    def _index(self, made: dict[str, torch.Tensor]) -> None:
        """Index heads that compare the first signs of the token's code with those of the one before."""
        self._ask(made)
        signs = INDEX_DIM - ROPE
        index_q = torch.zeros(INDEX_HEADS, INDEX_DIM, self.spec.q_lora)
        index_q[:, ROPE:, self.spec.q_lora - CODE :] = torch.eye(signs, CODE)
        wk = torch.zeros(INDEX_DIM, self.spec.hidden)
        wk[ROPE:, BEFORE] = torch.eye(signs, CODE)
        made["self_attn.indexer.wq_b.weight"] = index_q.flatten(0, 1)
        made["self_attn.indexer.wk.weight"] = wk
        made["self_attn.indexer.k_norm.weight"] = torch.ones(INDEX_DIM)
        made["self_attn.indexer.k_norm.bias"] = torch.zeros(INDEX_DIM)

    def _copy(self, made: dict[str, torch.Tensor], signs: int) -> None:
        """Attend where the code before matches in so many signs, and copy the code that is there."""
        self._ask(made)
        gain = SHARPNESS * math.sqrt(NOPE + ROPE) / (signs * 1.3)
        q = torch.zeros(NOPE + ROPE, self.spec.q_lora)
        q[:signs, self.spec.q_lora - CODE :] = gain * torch.eye(signs, CODE)
        kv_a = torch.zeros(LATENT + ROPE, self.spec.hidden)
        kv_a[:NOPE, BEFORE] = torch.eye(NOPE, CODE)
        kv_a[NOPE : NOPE + CODE, TOKEN] = torch.eye(CODE)
        self._attend(made, q, kv_a, ANSWER)

    def _join(self, made: dict[str, torch.Tensor]) -> None:
        """The prediction layer's input: the next token as the token, the present one as the one before."""
        hidden = self.spec.hidden
        joined = torch.zeros(hidden, 2 * hidden)
        joined[0, 0] = 1.0
        joined[OTHERS, OTHERS] = torch.eye(CODE - 1)
        joined[TOKEN, TOKEN] = torch.eye(CODE)
        joined[BEFORE, hidden + TOKEN.start : hidden + TOKEN.stop] = torch.eye(CODE)
        made["eh_proj.weight"] = joined
        for name in ("enorm", "hnorm", "shared_head.norm"):
            made[f"{name}.weight"] = torch.ones(hidden)


def tensors(given: Spec) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor by its checkpoint name, fp32."""
    code = codes(given)
    embedding = normal(given.seed, "embed_tokens", given.vocab, given.hidden)
    embedding[:, 0] = CONSTANT
    embedding[:, TOKEN] = code
    embedding[:, BEFORE.start :] = 0
    head = torch.zeros(given.vocab, given.hidden)
    head[:, ANSWER] = code * (LOUDNESS / CODE)
    yield "model.embed_tokens.weight", embedding
    yield "model.norm.weight", torch.ones(given.hidden)
    yield "lm_head.weight", head
    for layer in range(given.layers + 1):
        for name, tensor in _Layer(given, layer).tensors():
            yield f"model.layers.{layer}.{name}", tensor


def write(folder: Path, given: Spec, *, bf16: bool = False) -> Path:
    """Write the model folder; the same bytes for the same spec. Returns the folder."""
    return tiny_model.write(folder, given, bf16=bf16, tensors=tensors)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write; made if it is not there")
    parser.add_argument("--heads", type=int, default=8, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    given = parser.parse_args(arguments)
    written = write(given.out, spec(seed=given.seed, heads=given.heads)) / "model.safetensors"
    print(f"{given.out}: {written.stat().st_size >> 20} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
