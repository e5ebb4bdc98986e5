"""The plot of decode steps from made-up numbers: nothing here was measured."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from bench.serving.plot import COLOURS, draw_steps

SVG = "{http://www.w3.org/2000/svg}"
POINTS = [(streams, context) for streams in (1, 64) for context in (2048, 131_072)]
LINES = {
    "stock": {point: 1.0 + point[0] for point in POINTS},
    "fork": {point: 2.0 + point[0] for point in POINTS[:-1]},
}


def test_it_has_every_point_the_axes_their_units_and_a_legend(tmp_path: Path) -> None:
    draw_steps(LINES, tmp_path / "steps.svg")
    root = ET.parse(tmp_path / "steps.svg").getroot()
    texts = {"".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")}
    assert {"1 stream", "64 streams", "2K", "128K", "stock", "fork"} <= texts
    assert {"context (tokens)", "decode step (ms)"} <= texts
    for colour, line in zip(COLOURS, LINES.values(), strict=False):
        marks = [use for use in root.iter(f"{SVG}use") if f"fill: {colour}" in use.get("style", "")]
        assert len(marks) == len(line) + 1  # one is in the legend


def test_a_longer_step_is_drawn_higher(tmp_path: Path) -> None:
    draw_steps(LINES, tmp_path / "steps.svg")
    root = ET.parse(tmp_path / "steps.svg").getroot()

    def heights(colour: str) -> list[float]:
        uses = [use for use in root.iter(f"{SVG}use") if f"fill: {colour}" in use.get("style", "")]
        return [float(use.attrib["y"]) for use in uses][:2]

    assert all(f < s for f, s in zip(heights(COLOURS[1]), heights(COLOURS[0]), strict=True))


def test_equal_numbers_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        draw_steps(LINES, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
