"""The model that recalls, on the CPU: right answers, and wrong ones where the keys are wrong.

The sizes are small: 128 keys are selected, and the answers lie further back.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.serving.support import recall_model, witness

TOPK = 128
VOCAB = 1024
LENGTH = 400
COUNT = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> witness.Model:
    spec = replace(recall_model.spec(heads=2, layers=4, vocab=VOCAB), topk=TOPK)
    return witness.load(recall_model.write(tmp_path_factory.mktemp("recall"), spec))


def said(model: witness.Model, prompt: list[int], choose: witness.Choose) -> list[int]:
    """The likeliest token at each place of the answer, given the right ones before it."""
    tokens = prompt + recall_model.answer(prompt, COUNT)
    found = witness.forward(model, tokens, choose=choose, last=COUNT + 1)
    return found.logprobs.argmax(-1)[:COUNT].tolist()


def prompt_of(seed: int) -> list[int]:
    return recall_model.question(LENGTH, seed=seed, vocab=VOCAB, back=300)


@pytest.mark.parametrize("seed", [1, 2])
def test_it_continues_what_it_read_far_back(model: witness.Model, seed: int) -> None:
    prompt = prompt_of(seed)
    assert said(model, prompt, witness.top_keys) == recall_model.answer(prompt, COUNT)


def test_the_nearest_keys_instead_of_the_selected_ones_give_wrong_words(
    model: witness.Model,
) -> None:
    def nearest(layer: int, scores: torch.Tensor, topk: int) -> torch.Tensor:
        seen = scores > -torch.inf
        return seen & (seen.flip(-1).cumsum(-1).flip(-1) <= topk)

    prompt = prompt_of(1)
    found = said(model, prompt, nearest)
    assert not set(found) & set(recall_model.answer(prompt, COUNT))


def test_a_prompt_has_its_last_token_where_asked() -> None:
    prompt = prompt_of(5)
    assert prompt[-1] == prompt[LENGTH - 1 - 300] and len(set(prompt)) == LENGTH - 1
    assert recall_model.answer(prompt, 3) == prompt[LENGTH - 300 : LENGTH - 297]


def test_the_same_seed_writes_the_same_model(tmp_path: Path) -> None:
    spec = recall_model.spec(heads=1, layers=4, vocab=256)
    one, two = (recall_model.write(tmp_path / name, spec) for name in ("one", "two"))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
