"""Draw decode steps over contexts. Needs matplotlib (``pip install -e '.[bench]'``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import matplotlib

COLOURS: Final = ("#555555", "#0072b2", "#d55e00")
"""Of the lines, in order: apart for colour-blind readers and in print (Wong 2011, Nature Methods 8:441)."""
MARKERS: Final = ("s", "o", "^")


def draw_steps(lines: Mapping[str, Mapping[tuple[int, int], float]], path: Path) -> None:
    """Write ``path`` (SVG): a panel for each number of streams, a line for each name.

    The same numbers give the same bytes with the same matplotlib.

    Args:
        lines: name of a line → (streams, context in tokens) → time of a decode step in ms.
    """
    matplotlib.use("svg")
    from matplotlib import pyplot

    points = {point for line in lines.values() for point in line}
    panels = sorted({streams for streams, _ in points})
    contexts = sorted({context for _, context in points})
    with matplotlib.rc_context({"svg.hashsalt": "steps", "svg.fonttype": "none", "font.size": 9}):
        size = (3 * len(panels), 2.9)
        figure, axes = pyplot.subplots(1, len(panels), figsize=size, squeeze=False)
        for streams, axis in zip(panels, axes[0], strict=True):
            for (name, line), colour, marker in zip(lines.items(), COLOURS, MARKERS, strict=False):
                at = sorted(context for s, context in line if s == streams)
                values = [line[streams, context] for context in at]
                axis.plot(at, values, marker, linestyle="-", color=colour, label=name)
            axis.set_xscale("log", base=2)
            axis.set_xticks(contexts, [f"{context // 1024}K" for context in contexts])
            axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
            axis.grid(axis="y", color="#dddddd")
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_title(f"{streams} stream{'s' if streams > 1 else ''}", fontsize=10)
            axis.set_xlabel("context (tokens)")
        axes[0][0].set_ylabel("decode step (ms)\nlower is better")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=len(lines), frameon=False)
        figure.tight_layout(rect=(0, 0.08, 1, 1))
        figure.savefig(path, format="svg", metadata={"Date": None})
        pyplot.close(figure)
