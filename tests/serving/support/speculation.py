"""Engines that draft with the prediction (MTP) layer, and what their answers say.

The model is ``recall_model``'s: the right answer to each prompt is known, and lies further back than the keys
that attention reads unless the indexer selects it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.serving.support import engines, metrics, recall_model
from tests.serving.support.engines import Served, Step

EAGLE: Final[dict[str, Any]] = {
    "speculative_algorithm": "EAGLE",
    "speculative_num_steps": 3,
    "speculative_eagle_topk": 1,
    "speculative_num_draft_tokens": 4,
}
LENGTHS: Final = (40, 1000, 2049, 3000, 6000, 12_000)
SEEDS: Final = (1, 2, 3)
NEW_TOKENS: Final = 64
CROWDS: Final = (8, 33)
NOISE: Final = 0.15
"""Tokens a step. Where several places match a draft's signs equally, rounding decides which is copied."""


def questions(count: int) -> list[list[int]]:
    """``count`` prompts of 40 … 6000 tokens for one call.

    The witness answers all of these right. About one prompt in a hundred has a word that the model itself,
    computed in fp32, gets wrong; seeds 103 and 214 have one.
    """
    sizes = (40, 700, 2049, 3000, 6000)
    return [recall_model.question(sizes[i % len(sizes)], seed=300 + i) for i in range(count)]


def steps(crowds: Sequence[int] = CROWDS) -> list[Step]:
    """Prompts of LENGTHS one at a time, and ``crowds`` of so many at once."""
    first = [recall_model.question(2500, seed=90), recall_model.question(40, seed=91)]
    return [
        Step("warm-up", first, new_tokens=8, limit=engines.START - 40),
        *(
            Step(f"{length}-{seed}", [recall_model.question(length, seed=seed)])
            for length in LENGTHS
            for seed in SEEDS
        ),
        *(Step(f"crowd-{count}", questions(count)) for count in crowds),
    ]


@dataclass(frozen=True)
class Runs:
    """Engines by name; ``NAME-eagle`` is that of ``NAME`` with drafts."""

    served: Mapping[str, Served]

    def wrong(self, job: str) -> list[str]:
        """Steps whose answers are not what the prompt says, with the first token that is not."""
        served = self.served[job]
        found = []
        for step in served.job.steps:
            for index, prompt in enumerate(step.prompts):
                said = served.answer(step.name, index)["ids"]
                right = metrics.greedy_agreement(said, recall_model.answer(prompt, step.new_tokens))
                if not right.whole:
                    found.append(f"{step.name}[{index}]: {right.length} of {right.compared}")
        return found

    def accepted(self, name: str, length: int) -> float:
        """Tokens a step of the engine with drafts, over the prompts of this length."""
        served = self.served[f"{name}-eagle"]
        answers = [served.answer(f"{length}-{seed}") for seed in SEEDS]
        return sum(len(one["ids"]) for one in answers) / sum(one["verified"] for one in answers)

    def mean_accepted(self, name: str) -> float:
        """Tokens a step, the mean over LENGTHS."""
        return statistics.mean(self.accepted(name, length) for length in LENGTHS)

    def seconds(self, job: str, step: str) -> float:
        """Of the call."""
        return next(
            float(one["seconds"]) for one in self.served[job].result["steps"] if one["name"] == step
        )

    def median_seconds(self, job: str, length: int) -> float:
        """Of the calls with a prompt of this length."""
        return statistics.median(self.seconds(job, f"{length}-{seed}") for seed in SEEDS)

    def answered(self, names: tuple[str, ...]) -> list[str]:
        """Those that answered every request, with drafts and without."""
        return [
            name
            for name in names
            if not any(self.served[f"{name}{kind}"].problems() for kind in ("", "-eagle"))
        ]

    def report_answers(self) -> str:
        """How many answers of each engine are not right to the word, as a table."""
        rows = [
            [job, sum(len(step.prompts) for step in one.job.steps), len(self.wrong(job))]
            for job, one in self.served.items()
            if not one.problems()
        ]
        return metrics.table(["engine", "answers", "wrong"], rows)
