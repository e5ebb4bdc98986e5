"""What the comparison of a patched tree with the stock one shares between the eras."""

from __future__ import annotations

from typing import Any

import boundaries
import releases

Found = dict[str, Any]
"""What selections.py prints of one tree."""


def of(found: Found, sm: str) -> Found:
    return {key: value for key, value in found.items() if key.startswith(f"{sm} ")}


def test_every_difference_of_a_start_has_a_reason(both: tuple[Found, Found]) -> None:
    """The matrix of GPUs, models and options; docs/boundaries.md is its table of reasons."""
    stock, patched = both
    cells = [key for key in stock if key.startswith("boundary ")]
    assert len(cells) == len(boundaries.SMS) * len(boundaries.MODELS) * len(boundaries.OPTIONS)
    assert list(boundaries.compare(stock, patched, releases.RELEASE)) == []
    assert sum(patched[key] != stock[key] for key in cells) > 150
    assert sum(isinstance(stock[key], dict) for key in cells) > len(cells) * 3 / 5
