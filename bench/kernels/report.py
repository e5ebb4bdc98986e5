"""Write docs/performance.md from two runs of bench.kernels.run: natively and under the sm_89 lowering.

python -m bench.kernels.report NATIVE.json SM89.json > docs/performance.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from bench.kernels.case import FOR_SCALE
from bench.kernels.roofline import Card, reached, share, work_of

HEAD = """# Kernel performance

The tables have the median time of a call in a replayed CUDA graph, in microseconds. A ratio is the time
of this project's kernel over that of the fastest peer in the same run.

The column "sm_89" is **not** a measurement of an RTX 4090. There, Triton compiled this project's kernels
for sm_89 (`TRITON_OVERRIDE_ARCH=sm89`), and they ran on the same Hopper GPU. Hopper emulates the fp8
`mma.sync` that Ada executes in hardware. Where arithmetic limits a kernel, the column is therefore too
slow.

"share" is the least time that bytes and dot products allow (`bench/kernels/roofline.py`) over the
measured time. It uses the rates that these runs reached. For memory that is the higher of a large device
copy and the fastest call of any row. For bf16 dot products it is a large matmul. For fp8 it is twice the
bf16 rate natively, and the bf16 rate under sm_89.

`bench/kernels/gpu.sh bench` measures, and `python -m bench.kernels.report` writes the tables.
"""
_CACHE = 64 << 20  # bytes; more than the L2 cache of any GPU that the benchmark has run on


class Row(TypedDict):
    """Of ``bench.kernels.run.Row``, as JSON, what the page needs; times in microseconds."""

    group: str
    name: str
    ours: float | None
    peers: dict[str, float | None]


class Run(TypedDict):
    """What ``bench.kernels.run --json`` writes."""

    date: str
    device: str
    versions: dict[str, str]
    missing_peers: NotRequired[dict[str, str]]
    copy_GB_s: float
    bf16_TFLOP_s: float
    rows: list[Row]


def page(native: Run, lowered: Run) -> str:
    """The Markdown text."""
    lines = [HEAD]
    for run, label in ((native, "native"), (lowered, "sm_89 lowering")):
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        lines.append(f"- {label}: {run['date']}, {run['device']}, {versions}")
    cards = measured_cards(native, lowered)
    lines.append(
        f"- rates for the shares: {cards[0].memory / 1e9:,.0f} GB/s, bf16 {cards[0].bf16 / 1e12:.0f} TFLOP/s"
    )
    under = {(row["group"], row["name"]): row for row in lowered["rows"]}
    header = ["case", "native", "sm_89", "peer", "native ratio", "sm_89 ratio"]
    header += ["native share", "sm_89 share"]
    group = ""
    for row in native["rows"]:
        if row["group"] != group:
            group = row["group"]
            lines += ["", f"## {group}", "", f"| {' | '.join(header)} |"]
            lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
        lines.append(_line(row, under.get((group, row["name"])), cards))
    lines += _tilelang(native["rows"])
    for name, why in native.get("missing_peers", {}).items():
        lines += ["", f"{name} was not compared with: {why}."]
    return "\n".join(lines) + "\n"


def measured_cards(native: Run, lowered: Run) -> tuple[Card, Card]:
    """The GPU at the rates that it reached, for either run.

    A kernel can move its bytes faster than a copy does, so the fastest call of any row counts too, in both
    runs. Hopper has no fp8 ``mma.sync``; the bfloat16 tensor cores do what the sm_89 lowering asks for.
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


def _line(row: Row, lowered: Row | None, cards: tuple[Card, Card]) -> str:
    ours = (row["ours"], lowered["ours"] if lowered else None)
    name, best = _fastest(row)
    other = _fastest(lowered)[1] if lowered else None
    cells = [row["name"], *map(_us, ours), f"{best:.1f} {name}" if best else "–"]
    for us, peer in zip(ours, (best, other), strict=True):
        cells.append(f"{us / peer:.2f}" if us and peer else "–")
    work = work_of(row["group"], row["name"])
    for us, card in zip(ours, cards, strict=True):
        cells.append(f"{share(work, us, card):.0%}" if work and us else "–")
    return f"| {' | '.join(cells)} |"


def _tilelang(rows: Sequence[Row]) -> list[str]:
    """The cases where the Triton and the TileLang kernel were timed. TileLang knows no lowering."""
    lines = ["", "## sparse MLA: Triton and TileLang, native", ""]
    lines += ["| case | Triton | TileLang | TileLang / Triton |", "|---|---:|---:|---:|"]
    head = len(lines)
    for row in rows:
        us, other = row["ours"], row["peers"].get("TileLang")
        if us and other:
            kind = row["group"].removeprefix("sparse MLA ").split(",")[0]
            cells = [f"{kind} {row['name']}", _us(us), _us(other), f"{other / us:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines if len(lines) > head else []


def _fastest(row: Row) -> tuple[str, float | None]:
    timed = [(us, name) for name, us in row["peers"].items() if us and name not in FOR_SCALE]
    return (min(timed)[1], min(timed)[0]) if timed else ("", None)


def _us(value: float | None) -> str:
    return f"{value:.1f}" if value else "–"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("native", type=Path, metavar="NATIVE.json")
    parser.add_argument("lowered", type=Path, metavar="SM89.json")
    options = parser.parse_args()
    native, lowered = (json.loads(path.read_text()) for path in (options.native, options.lowered))
    print(page(native, lowered), end="")


if __name__ == "__main__":
    main()
