"""Turn answers of engines into numbers: each flavour against the witness, against stock, against itself.

Pure functions of results; ``test_serve.py`` asserts on them and prints them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.serving.support import prompts
from tests.serving.support.metrics import (
    Agreement,
    Distance,
    KeyAgreement,
    distance,
    greedy_agreement,
    key_agreement,
)

TOPK = 2048
Answer = Mapping[str, Any]
"""As ``engine_runner.py`` writes it."""


def sequence(prompt: Sequence[int], answer: Answer) -> list[int]:
    """The tokens that the witness runs: the prompt and what was generated after it."""
    return [*prompt, *answer["ids"]]


def name_of(tokens: Sequence[int]) -> str:
    """A name that is equal for equal sequences, so that the witness runs each of them once."""
    digest = hashlib.sha256(np.asarray(tokens, dtype=np.int32).tobytes()).hexdigest()
    return f"{len(tokens)}-{digest[:16]}"


@dataclass(frozen=True)
class Logprobs:
    """What a flavour and the witness say of the same tokens."""

    served: NDArray[np.float64]
    witness: NDArray[np.float64]

    @property
    def distance(self) -> Distance:
        return distance(self.served, self.witness)


def against_witness(
    answers: Mapping[int, Answer], witness: Mapping[str, NDArray[np.float32]]
) -> dict[str, Logprobs]:
    """Group the logprobs of answers by prompt length: prompt ends and generated tokens apart.

    ``witness`` has the logprobs of tokens 1 and later by :func:`name_of` the sequence.

    Raises:
        KeyError: the witness did not see a sequence.
    """
    pairs: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
    for length, answer in answers.items():
        tokens = sequence(prompts.single(length), answer)
        said = witness[name_of(tokens)]
        reach = f"up to {TOPK}" if length <= TOPK else f"past {TOPK}"
        tail = np.asarray(answer["tail"])
        own = np.asarray(answer["logprobs"])
        # said[i] is of token i + 1.
        pairs.setdefault(f"prompts {reach}", []).append(
            (tail, said[length - 1 - len(tail) : length - 1])
        )
        pairs.setdefault(f"generated {reach}", []).append(
            (own, said[length - 1 : length - 1 + len(own)])
        )
    return {
        group: Logprobs(
            *(np.concatenate(part).astype(np.float64) for part in zip(*both, strict=True))
        )
        for group, both in pairs.items()
    }


def tails_apart(pairs: Iterable[tuple[Answer, Answer]]) -> Distance:
    """The prompt-end logprobs of the same prompts in two servings."""
    one, other = zip(*((a["tail"], b["tail"]) for a, b in pairs), strict=True)
    return distance(np.concatenate(one), np.concatenate(other))


@dataclass(frozen=True)
class Parting:
    """Where two greedy continuations part.

    ``gap`` is the number of nats by which ``one`` preferred its own token there. It is a lower bound if the
    other's token is not among ``one``'s best, and 0 if the continuations are the same.
    """

    agreement: Agreement
    gap: float


def parting(one: Answer, other: Answer) -> Parting:
    found = greedy_agreement(one["ids"], other["ids"])
    if found.whole:
        return Parting(found, 0.0)
    at = found.length
    best = {int(token): float(logprob) for token, logprob in one["best"][at]}
    behind = best.get(other["ids"][at], min(best.values()))
    return Parting(found, float(one["logprobs"][at] - behind))


def keys_by_layer(
    rows: NDArray[np.int32], keys: NDArray[np.int32], before: int
) -> dict[int, NDArray[np.int32]]:
    """``[rows, layers, topk]`` as ``[rows, topk]`` per layer, of the rows at positions < ``before``."""
    kept = keys[rows < before]
    return {layer: kept[:, layer] for layer in range(kept.shape[1])}


def keys_apart(
    one: Mapping[int, NDArray[np.int32]], other: Mapping[int, NDArray[np.int32]]
) -> dict[int, KeyAgreement]:
    """Agreement per layer that both have."""
    return {
        layer: key_agreement(one[layer], other[layer]) for layer in sorted(set(one) & set(other))
    }
