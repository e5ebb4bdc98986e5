"""docs/performance.md from two runs of bench.kernels.run: natively and under the sm_89 lowering.

python -m bench.kernels.report NATIVE.json SM89.json > docs/performance.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.kernels.case import FOR_SCALE
from bench.kernels.roofline import Card, reached, share, work_of

HEAD = """# Kernel performance

Microseconds per call, CUDA-graph replay, median; a ratio is ours over the fastest peer timed in the
same run. "sm_89" is this project's kernels compiled by Triton's sm_89 lowering and run on the same
Hopper GPU (`TRITON_OVERRIDE_ARCH=sm89`); it is no measurement of an RTX 4090. Hopper emulates the
fp8 `mma.sync` that Ada executes, so that column is pessimistic where arithmetic binds.

"share" is the least time bytes and dot products allow (`bench/kernels/roofline.py`) over ours, at rates
reached in these runs: memory at the higher of a large device copy and the fastest way of any row, bf16 dot
products at a large matmul, fp8 at twice that natively and at the same under sm_89.

Made by `bench/kernels/gpu.sh bench` and `python -m bench.kernels.report`.
"""
_CACHE = 64 << 20  # more than the L2 cache of any GPU the benchmark has run on


def main(native: Path, lowered: Path) -> str:
    ours, other = (json.loads(path.read_text()) for path in (native, lowered))
    lines = [HEAD]
    for run, label in ((ours, "native"), (other, "sm_89 lowering")):
        about = run
        versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
        lines.append(f"- {label}: {about['date']}, {about['device']}, {versions}")
    cards = measured_cards(ours, other)
    lines.append(
        f"- rates for the shares: {cards[0].memory / 1e9:,.0f} GB/s, bf16 {cards[0].bf16 / 1e12:.0f} TFLOP/s"
    )
    under = {(r["group"], r["name"]): r for r in other["rows"]}
    group = ""
    for row in ours["rows"]:
        if row["group"] != group:
            group = row["group"]
            lines += [
                "",
                f"## {group}",
                "",
                "| case | native | sm_89 | peer | native ratio | sm_89 ratio | native share | sm_89 share |",
            ]
            lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
        lines.append(_line(row, under.get((row["group"], row["name"])), cards))
    lines += _tilelang(ours["rows"])
    for name, why in ours.get("missing_peers", {}).items():
        lines += ["", f"{name} was not compared with: {why}."]
    return "\n".join(lines) + "\n"


def measured_cards(native: dict[str, Any], lowered: dict[str, Any]) -> tuple[Card, Card]:
    """The device at the rates it reached, for either run.

    A copy is no ceiling where a kernel moved its bytes faster, so the fastest way of any row counts too,
    in both runs. Hopper has no fp8 ``mma.sync``: what the sm_89 lowering asks for is done by the
    bfloat16 tensor cores.
    """
    best: dict[tuple[str, str], float] = {}
    for row in native["rows"] + lowered["rows"]:
        for us in (row["ours"], *row["peers"].values()):
            if us:
                key = row["group"], row["name"]
                best[key] = min(us, best.get(key, us))
    copy = max(native["copy_GB_s"], lowered["copy_GB_s"]) * 1e9
    memory = max(copy, reached(best, _CACHE))
    bf16 = max(native["bf16_TFLOP_s"], lowered["bf16_TFLOP_s"]) * 1e12
    return (
        Card(native["device"], memory, bf16, 2 * bf16, 0, "measured"),
        Card(lowered["device"], memory, bf16, bf16, 0, "measured"),
    )


def _line(row: dict[str, Any], lowered: dict[str, Any] | None, cards: tuple[Card, Card]) -> str:
    name, best = _fastest(row)
    cells = [row["name"], _us(row["ours"]), _us(lowered and lowered["ours"])]
    cells.append(f"{best:.1f} {name}" if best else "–")
    cells.append(f"{row['ours'] / best:.2f}" if best and row["ours"] else "–")
    other = _fastest(lowered)[1] if lowered else None
    cells.append(f"{lowered['ours'] / other:.2f}" if lowered and other and lowered["ours"] else "–")
    work = work_of(row["group"], row["name"])
    for timed, card in zip((row, lowered), cards, strict=True):
        us = timed and timed["ours"]
        cells.append(f"{share(work, us, card):.0%}" if work and us else "–")
    return f"| {' | '.join(cells)} |"


def _tilelang(rows: list[dict[str, Any]]) -> list[str]:
    """Where both versions of sparse MLA were timed, natively (TileLang knows no override)."""
    timed = [row for row in rows if row["peers"].get("TileLang") and row["ours"]]
    if not timed:
        return []
    lines = ["", "## sparse MLA: Triton and TileLang, native", ""]
    lines += ["| case | Triton | TileLang | TileLang / Triton |", "|---|---:|---:|---:|"]
    for row in timed:
        other = row["peers"]["TileLang"]
        kind = row["group"].removeprefix("sparse MLA ").split(",")[0]
        cells = [
            f"{kind} {row['name']}",
            _us(row["ours"]),
            _us(other),
            f"{other / row['ours']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _fastest(row: dict[str, Any]) -> tuple[str, float | None]:
    timed = [(us, name) for name, us in row["peers"].items() if us and name not in FOR_SCALE]
    return (min(timed)[1], min(timed)[0]) if timed else ("", None)


def _us(value: float | None) -> str:
    return f"{value:.1f}" if value else "–"


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])), end="")
