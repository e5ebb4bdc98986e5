"""The prompts of the serving tests: token ids that follow from a seed alone, the same everywhere."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

VOCAB: Final = 4096
RESERVED: Final = 8
"""The last ids are never in a prompt: the end tokens, and the id that sglang reports as 0 in logprobs."""

SINGLES: Final = (16, 64, 512, 2000, 2047, 2048, 2049, 2112, 2600, 3000, 4096, 6000, 8191, 16_000)
"""Lengths served one at a time: about and far past 2048 keys, chunks of 4096, and pages of 64."""
EAGER: Final = (64, 2049, 3000, 6000)
"""Those served again without CUDA graphs. Each of them is in SINGLES."""
SELECTED: Final = 2600
"""The one whose selected keys are recorded."""
PREFIXED: Final = 6000
"""The one whose first part is served before, so that the rest finds it in the cache."""


def ids(length: int, *, seed: int, vocab: int = VOCAB) -> list[int]:
    """``length`` token ids in ``[0, vocab - RESERVED)``.

    >>> ids(3, seed=1) == ids(5, seed=1)[:3]
    True
    """
    draw = random.Random(f"{seed}/{vocab}")  # of a str: the same on every platform and Python
    return [draw.randrange(vocab - RESERVED) for _ in range(length)]


def single(length: int) -> list[int]:
    """The prompt of this length, in whichever scenario it is served."""
    return ids(length, seed=length)


def crowd(count: int) -> list[list[int]]:
    """``count`` prompts for one call: some of SINGLES among others of 16 … 3500 tokens.

    A prefill of 4096 tokens holds several of them; about half need more than 2048 keys.
    """
    known = [single(length) for length in (64, 2049, 512, 3000)][: max(count // 2, 1)]
    draw = random.Random(f"crowd of {count}")
    lengths = [draw.choice((16, 100, 700, 1900, 2100, 2500, 3500)) for _ in range(count)]
    return known + [ids(lengths[i], seed=10_000 + i) for i in range(count - len(known))]


def lengths(prompts: Sequence[Sequence[int]]) -> str:
    """For a message: how many, and how long."""
    sizes = sorted(len(prompt) for prompt in prompts)
    return f"{len(sizes)} of {sizes[0]}" + (f" … {sizes[-1]}" if len(sizes) > 1 else "") + " tokens"
