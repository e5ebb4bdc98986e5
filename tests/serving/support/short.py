"""A short scenario: four prompts alone and eight at once, for layouts and models beside the main ones.

Each engine is compared with one that stands for what is right; both are measured against the witness.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tests.serving.support import comparison, engines, metrics, prompts
from tests.serving.support.engines import Job, Served, Step, Witness

LENGTHS: Final = (64, 2049, 3000, 6000)
CROWD: Final = "crowd"


def steps(lengths: Sequence[int] = LENGTHS) -> list[Step]:
    return [
        engines.warm_up(),
        *engines.single_steps(lengths),
        Step(CROWD, prompts.crowd(8), new_tokens=16),
    ]


@dataclass(frozen=True)
class Runs:
    """Engines by name. Each answered the prompts of ``lengths`` one at a time."""

    served: Mapping[str, Served]
    witness: Witness
    lengths: Sequence[int] = LENGTHS

    def away(self, name: str) -> dict[str, comparison.Logprobs]:
        answers = {n: self.served[name].answer(f"single-{n}") for n in self.lengths}
        return comparison.against_witness(answers, self.witness.exact)

    def further(self, name: str, than: str) -> dict[str, list[str]]:
        """Reasons why ``name`` is further from the witness, by group of tokens; empty if it is not."""
        ours, theirs = self.away(name), self.away(than)
        return {
            group: why
            for group in theirs
            if (why := metrics.no_further(ours[group].distance, theirs[group].distance))
        }

    def crowd_further(self, name: str, than: str) -> list[str]:
        """Reasons why a crowd's answers of ``name`` are further from the same prompts' alone."""
        ours, theirs = (comparison.tails_apart(self.alike(one)) for one in (name, than))
        return metrics.no_further_than_either(ours, theirs, self.witness.rounding)

    def alike(self, name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Answers to the same prompts: in the crowd, and alone."""
        served = self.served[name]
        return [
            (served.answer(CROWD, index), served.answer(f"single-{len(prompt)}"))
            for index, prompt in enumerate(prompts.crowd(8))
            if len(prompt) in self.lengths and prompt == prompts.single(len(prompt))
        ]

    def report(self, what: str) -> str:
        """The distances of all engines that answered, as a table; ``what`` heads the first column."""
        rows = [
            [name, group, *asdict(logprobs.distance).values()]
            for name, one in self.served.items()
            if not one.problems()
            for group, logprobs in self.away(name).items()
        ]
        return metrics.table([what, "tokens of", "tokens", "mean", "p99", "max"], rows)


def run(
    jobs: Sequence[Job],
    model: Path,
    folder: Path,
    name: str,
    *,
    at_once: int,
    lengths: Sequence[int] = LENGTHS,
) -> Runs:
    """Serve the jobs, and let the witness see every sequence."""
    served = engines.serve(jobs, folder, name, at_once=at_once)
    seen = sequences(served.values(), lengths)
    return Runs(served, engines.witness_of(model, seen, folder / "witness"), lengths)


def sequences(served: Iterable[Served], lengths: Sequence[int] = LENGTHS) -> dict[str, list[int]]:
    """What the witness must see."""
    seen = {}
    for one in served:
        for length in lengths:
            for answer in one.answers.get(f"single-{length}", []):
                tokens = comparison.sequence(prompts.single(length), answer)
                seen[comparison.name_of(tokens)] = tokens
    return seen
