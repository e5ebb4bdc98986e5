"""Tokens a second with drafts and without, one engine at a time on an idle GPU.

    python -m bench.serving.drafts [--flavours LIST] [--json FILE]

The model is the one that recalls (tests/serving/support/recall_model.py), so drafts are accepted as often as
they match. It has eight small layers, so launches take most of a step, as they do on a rank of a large model
with few requests. A ratio compares two engines of one flavour. Rows of different flavours are not comparable.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from tests.serving.support import engines, metrics, recall_model, speculation
from tests.serving.support.engines import Job, Step
from tests.serving.support.flavours import FLAVOURS, HOME

NEW_TOKENS: Final = 512
LENGTHS: Final = (1000, 6000)
STREAMS: Final = (1, 8)
REPEATS: Final = 3


def steps() -> list[Step]:
    """The first call of each kind warms up. Prompts of one call and their answers are all different."""
    found = []
    for length in LENGTHS:
        for streams in STREAMS:
            for repeat in range(1 + REPEATS):
                seeds = range(1000 * repeat, 1000 * repeat + streams)
                asked = [recall_model.question(length, seed=seed) for seed in seeds]
                name = f"{length}x{streams}-{repeat}"
                found.append(Step(name, asked, NEW_TOKENS, tail=1, limit=engines.START - 40))
    return found


def jobs(model: Path, names: list[str]) -> list[Job]:
    return [
        Job(f"{name}{kind}", flavour, engines.arguments(flavour, model, **changes), steps())
        for name, flavour in ((name, FLAVOURS[name]) for name in names)
        for kind, changes in (("", {}), ("-eagle", speculation.EAGLE))
    ]


def report(runs: speculation.Runs, names: list[str]) -> list[dict[str, Any]]:
    """A row for each engine, prompt length and number of streams; the best of REPEATS calls each."""
    rows = []
    for name in runs.answered(tuple(names)):
        for length in LENGTHS:
            for streams in STREAMS:
                calls = [f"{length}x{streams}-{repeat}" for repeat in range(1, 1 + REPEATS)]
                plain, drafting = (
                    min(runs.seconds(f"{name}{kind}", call) for call in calls)
                    for kind in ("", "-eagle")
                )
                answers = [
                    runs.served[f"{name}-eagle"].answer(call, index)
                    for call in calls
                    for index in range(streams)
                ]
                verified = sum(one["verified"] for one in answers)
                rows.append(
                    {
                        "flavour": name,
                        "prompt": length,
                        "streams": streams,
                        "tokens a step": len(answers) * NEW_TOKENS / verified,
                        "tokens/s plainly": streams * NEW_TOKENS / plain,
                        "tokens/s with drafts": streams * NEW_TOKENS / drafting,
                        "ratio": plain / drafting,
                    }
                )
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flavours", default="stock,fork-sm89", help="default %(default)s")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(arguments)
    names = options.flavours.split(",")
    if missing := engines.missing_sites():
        parser.error(f"{missing} in {HOME}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = recall_model.write(folder / "model", recall_model.spec())
        served = engines.serve(jobs(model, names), folder, "drafts", at_once=1)
        rows = report(speculation.Runs(served), names)
        print(metrics.table(list(rows[0]), [list(row.values()) for row in rows]) if rows else "")
        for one in served.values():
            if one.problems():
                print(one.why())
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if len(rows) == len(names) * len(LENGTHS) * len(STREAMS) else 1


if __name__ == "__main__":
    sys.exit(main())
