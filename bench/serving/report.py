"""Write a page and its plot from the results of ``bench.serving.steps``.

python -m bench.serving.report RESULTS.json docs/serving-8-heads.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

STREAMS: Final = (1, 8, 64)
CONTEXTS: Final = (2048, 32_768, 131_072)
"""Streams and contexts in tokens at which decoding is timed."""

NEAR: Final = 1.1
"""The fork's decode step, natively, takes at most so many times as long as stock's, at every point."""
AHEAD: Final = 5.0
"""Stock's fallback takes at least so many times as long as the fork's kernels, for contexts from LONG on."""
LONG: Final = 32_768
INDEXERS: Final = 21
LAYERS: Final = 78
"""GLM-5.2 attends on all of its 78 layers and computes index logits on 21 of them."""

NAMES: Final = {"stock": "stock", "fork": "fork", "fork-sm89": "fork, sm_89 lowering"}
NARROW: Final = "their logits, context's width"

HEAD: Final = """# Speed of serving, {heads} heads on a GPU

The model is a tiny GLM-MoE-DSA model (`tests/serving/support/tiny_model.py`), so that attention
dominates. The sizes of a head, the index heads and top-k are those of GLM-5.2. GLM-5.2 has 64
attention heads, and a rank has 8 of them at TP=8. A decode step is the whole step of sglang's model
runner with CUDA graphs, from the token ids in to the next ids out. Times are medians. "On the GPU" is
the captured graph alone, without what the CPU does between two graphs. "sm_89 lowering" is the fork
on its path for an RTX 4090: Triton's sm_89 lowering compiles it, and it runs on this Hopper GPU. It
is not a measurement of an RTX 4090.

Made by `python -m bench.serving.steps --heads {heads} --docs FILE`.
"""

Point = tuple[str, int, int]
"""Kind, streams, context in tokens."""


@dataclass(frozen=True)
class Bar:
    """One ratio that has a limit, and whether it is within the limit."""

    what: str
    streams: int
    context: int
    value: float
    met: bool


def times(run: Mapping[str, Any]) -> dict[Point, Mapping[str, Any]]:
    """The rows of one flavour that have times, by point."""
    return {(r["kind"], r["streams"], r["context"]): r for r in run["rows"] if "ms" in r}


def by_flavour(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {run["flavour"]: run for run in result["runs"]}


def step_functions(row: Mapping[str, Any], theirs: str = "their logits") -> float | None:
    """The time of stock's functions in one step of GLM-5.2 over that of ours; None where one failed.

    Args:
        row: of the fallback.
        theirs: which of stock's logits to take, by the width of their page table.
    """
    parts = (("our logits", "our attention"), (theirs, "their attention"))
    us = row["us"]
    if any(us.get(call) is None for calls in parts for call in calls):
        return None
    ours, stock = (INDEXERS * us[logits] + LAYERS * us[attention] for logits, attention in parts)
    return float(stock / ours)


def bars(result: Mapping[str, Any]) -> list[Bar]:
    """Every ratio that the results allow."""
    runs = by_flavour(result)
    found = []
    if {"stock", "fork"} <= set(runs):
        stock, fork = times(runs["stock"]), times(runs["fork"])
        for point in sorted(set(stock) & set(fork)):
            kind, streams, context = point
            if kind == "decode":
                ratio = fork[point]["ms"] / stock[point]["ms"]
                found.append(Bar("fork over stock", streams, context, ratio, ratio <= NEAR))
    for row in runs.get("fallback", {"rows": []})["rows"]:
        if row["context"] >= LONG and (ratio := step_functions(row)):
            found.append(
                Bar(
                    "stock's fallback over fork",
                    row["streams"],
                    row["context"],
                    ratio,
                    ratio >= AHEAD,
                )
            )
    return found


def _context(tokens: int) -> str:
    return f"{tokens // 1024}K"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        "|" + "---:|" * len(head),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def markdown(result: Mapping[str, Any], plot: str | None) -> str:
    """The page.

    Args:
        result: what ``bench.serving.steps --json`` writes.
        plot: the file name of the plot, if there is one.
    """
    runs = by_flavour(result)
    served = {name: times(runs[name]) for name in NAMES if name in runs}
    heads = {run["about"]["heads"] for run in result["runs"] if "heads" in run.get("about", {})}
    lines = [HEAD.format(heads=" ".join(map(str, sorted(heads))) or "N")]
    for name in (*NAMES, "fallback"):
        if about := runs.get(name, {}).get("about"):
            said = ", ".join(f"{key} {value}" for key, value in about.items() if value != "")
            lines.append(f"- {NAMES.get(name, name)}: {result['date']}, {said}")
    lines += ["", *_outcomes(bars(result)), ""]
    lines += [f"![decode step over context]({plot})", ""] if plot else []
    lines += _decode(served)
    lines += _prefill(served)
    if "fallback" in runs:
        lines += _fallback(runs["fallback"])
    missing = [
        f"- {NAMES.get(name, name)}: {str(run['error']).splitlines()[0]}"
        for name, run in runs.items()
        if "error" in run
    ]
    not_run = [
        f"- {NAMES.get(run['flavour'], run['flavour'])}, {row['streams']} streams at "
        f"{_context(row['context'])}: {row['reason']}"
        for run in result["runs"]
        for row in run["rows"]
        if "reason" in row
    ]
    if missing or not_run:
        lines += ["## Not measured", "", *missing, *not_run, ""]
    return "\n".join(lines)


def _outcomes(found: Sequence[Bar]) -> list[str]:
    lines = []
    for what, limit in (
        ("fork over stock", f"at most {NEAR} of stock's decode step"),
        (
            "stock's fallback over fork",
            f"stock's fallback at least {AHEAD:.0f} times as long from {_context(LONG)} on",
        ),
    ):
        these = [bar for bar in found if bar.what == what]
        if not these:
            lines.append(f"- {limit}: not measured")
            continue
        missed = [bar for bar in these if not bar.met]
        values = [bar.value for bar in these]
        lines.append(
            f"- {limit}: {len(these) - len(missed)} of {len(these)} points "
            f"({min(values):.2f} … {max(values):.2f})"
        )
        lines += [
            f"  - missed: {bar.streams} streams at {_context(bar.context)}, {bar.value:.2f}"
            for bar in missed
        ]
    return lines


def _ratio(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None, key: str) -> str:
    return f"{one[key] / other[key]:.2f}" if one and other else "n/a"


def _decode(served: Mapping[str, Mapping[Point, Mapping[str, Any]]]) -> list[str]:
    points = sorted(
        {p for rows in served.values() for p in rows if p[0] == "decode"}, key=lambda p: p[1:]
    )
    head = ["streams", "context", *(f"{NAMES[name]} ms" for name in served)]
    head += [f"{NAMES[name]} tokens/s" for name in served]
    head += ["fork / stock", "fork / stock on the GPU", "sm_89 lowering / stock on the GPU"]
    rows = []
    for point in points:
        at = {name: found.get(point) for name, found in served.items()}
        cells = [str(point[1]), _context(point[2])]
        cells += [f"{row['ms']:.3f}" if row else "n/a" for row in at.values()]
        cells += [f"{point[1] / row['ms'] * 1e3:,.0f}" if row else "n/a" for row in at.values()]
        cells.append(_ratio(at.get("fork"), at.get("stock"), "ms"))
        cells += [_ratio(at.get(name), at.get("stock"), "gpu_ms") for name in ("fork", "fork-sm89")]
        rows.append(cells)
    return ["## Decode", "", *_table(head, rows), ""]


def _prefill(served: Mapping[str, Mapping[Point, Mapping[str, Any]]]) -> list[str]:
    points = sorted(
        {p for rows in served.values() for p in rows if p[0] == "prefill"}, key=lambda p: p[1:]
    )
    head = ["tokens", *(f"{NAMES[name]} ms" for name in served)]
    head += [f"{NAMES[name]} tokens/s" for name in served]
    rows = []
    for point in points:
        at = {name: found.get(point) for name, found in served.items()}
        cells = [_context(point[2])]
        cells += [f"{row['ms']:.1f}" if row else "n/a" for row in at.values()]
        cells += [f"{point[2] / row['ms'] * 1e3:,.0f}" if row else "n/a" for row in at.values()]
        rows.append(cells)
    return ["## Prefill of one prompt, in chunks of 8K", "", *_table(head, rows), ""]


def _fallback(run: Mapping[str, Any]) -> list[str]:
    calls = ("our logits", "their logits", NARROW, "our attention", "their attention")
    head = ["streams", "context", *(f"{call} us" for call in calls)]
    head += ["logits ratio", "attention ratio", "a step's functions, ratio"]
    head += ["the same at the context's width"]
    rows = []
    for row in run["rows"]:
        us = row["us"]
        cells = [str(row["streams"]), _context(row["context"])]
        cells += [f"{us[call]:.1f}" if us.get(call) else "n/a" for call in calls]
        ratios = [
            us[f"their {what}"] / us[f"our {what}"]
            if us.get(f"our {what}") and us.get(f"their {what}")
            else None
            for what in ("logits", "attention")
        ]
        ratios += [step_functions(row), step_functions(row, NARROW)]
        rows.append([*cells, *(f"{ratio:.1f}" if ratio else "n/a" for ratio in ratios)])
    failed = [
        f"- {row['streams']} streams at {_context(row['context'])}, {call}: {error}"
        for row in run["rows"]
        for call, error in row["errors"].items()
    ]
    longest = run.get("about", {}).get("context_length")
    return [
        "## Stock's sm_89 fallback, by functions",
        "",
        "The table compares stock's functions with the fork's kernels under the sm_89 lowering, for one",
        "layer each (`bench/serving/fallback.py`). Stock's functions come from the released wheel. They are",
        f"the logits in torch and TileLang's attention. In GLM-5.2 a step computes logits on {INDEXERS}",
        f"layers and attention on {LAYERS}. In a captured step the page tables are as wide as the server's",
        f"`--context-length`, here {longest} tokens, and stock's logits compute all of this width.",
        "The columns that name the context's width have page tables as wide as the context.",
        "",
        *_table(head, rows),
        "",
        *([*failed, ""] if failed else []),
    ]


def write(result: Mapping[str, Any], page: Path) -> None:
    """Write the page, and beside it the plot as ``.svg`` if there is a decode step to plot."""
    runs = by_flavour(result)
    lines = {
        NAMES[name]: {
            (streams, context): row["ms"]
            for (kind, streams, context), row in times(runs[name]).items()
            if kind == "decode"
        }
        for name in NAMES
        if name in runs
    }
    plot = page.with_suffix(".svg") if any(lines.values()) else None
    if plot is not None:
        from bench.serving.plot import draw_steps  # the machine that measures may lack matplotlib

        draw_steps(lines, plot)
    page.write_text(markdown(result, plot.name if plot else None))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("page", type=Path, metavar="PAGE.md")
    options = parser.parse_args()
    write(json.loads(options.results.read_text()), options.page)


if __name__ == "__main__":
    main()
