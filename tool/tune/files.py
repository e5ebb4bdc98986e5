"""The files of configurations, as sglang reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tool import atomic
from tool.tune.candidates import KEYS, Config, key
from tool.tune.search import Row
from tool.tune.shapes import TOKENS


def list_files(rows: Sequence[Row], paths: Mapping[tuple[str, str], str]) -> dict[str, bytes]:
    """Content of the file of each shape that has a row better than the default, by its path.

    sglang takes the row of the nearest M. A file of the measured rows alone would give the others a
    configuration that was not measured for them, so every M of TOKENS has a row, with the default where
    nothing was measured. Where the default is not the same for all M (sglang has a file for the
    device already) a file is written only when every row was measured.
    """
    found = {}
    for shape in dict.fromkeys(row.unit.shape for row in rows):
        table = _make_table([row for row in rows if row.unit.shape == shape])
        if table is not None:
            found[paths[shape.kind, shape.title]] = render(table)
    return found


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write ``files`` below ``folder``."""
    for name, content in files.items():
        atomic.write(folder / name, content)


def _make_table(rows: Sequence[Row]) -> dict[int, Config] | None:
    if all(row.default is not None and key(row.config) == key(row.default) for row in rows):
        return None
    measured = {row.unit.m: row.config for row in rows}
    missing = [m for m in TOKENS if m not in measured]
    defaults = {key(row.default): row.default for row in rows if row.default is not None}
    if not missing:
        return measured
    if len(defaults) != 1:
        return None
    (default,) = defaults.values()
    return {m: measured.get(m, default) for m in TOKENS}


def render(table: Mapping[int, Config]) -> bytes:
    """Rows by M, as sglang's own files have them."""
    ordered = {
        str(m): {name: config[name] for name in sorted(config, key=_place)}
        for m, config in sorted(table.items())
    }
    return (json.dumps(ordered, indent=4) + "\n").encode()


def _place(name: str) -> tuple[int, str]:
    return (KEYS.index(name), "") if name in KEYS else (len(KEYS), name)
