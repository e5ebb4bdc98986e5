"""docs/quickstart.md: its options are the releases' own, its partitions and its arithmetic are right."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ada_dsa import index_sharing
from tool.doctor import diagnose as doctor_judge

ROOT = Path(__file__).parents[2]
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()
GLM = SimpleNamespace(num_hidden_layers=78, index_topk_freq=4, index_skip_topk_offset=3)


@pytest.mark.index
@pytest.mark.parametrize("release", ["0.5.9", "0.5.23"])
def test_every_option_of_a_launch_is_one_of_the_release(
    release: str, released_wheel: Callable[[str], Path]
) -> None:
    launches = re.findall(r"^\$ .*launch_server (.*)$", QUICKSTART, re.MULTILINE)
    options = sorted({word[2:] for line in launches for word in line.split() if word[:2] == "--"})
    assert len(launches) == 3 and "dist-init-addr" in options
    with zipfile.ZipFile(released_wheel(release)) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".py")]
        known = "".join(
            wheel.read(name).decode()
            for name in names
            if name == "sglang/srt/server_args.py"
            or name.startswith("sglang/srt/arg_groups/fields/")
        )
    fields = [option.replace("-", "_") for option in options]
    assert [name for name in fields if not re.search(rf"^    {name}: ", known, re.MULTILINE)] == []


def test_partitions_start_every_stage_on_a_layer_with_an_indexer() -> None:
    found = re.findall(r"^\| (\d) \| `([\d,]+)` \|$", QUICKSTART, re.MULTILINE)
    full = index_sharing.full_layers(GLM)
    assert dict(found) == {
        str(n): ",".join(map(str, index_sharing.pipeline_partition(full, 78, n) or ()))
        for n in (2, 4, 5, 6)
    }


def test_memory_is_what_division_gives() -> None:
    number = r"([\d.]+) GB"
    row = (
        rf"^\| (\d+) × [^|]*?\((\d+) GiB\) \| TP8(?: × PP(\d))? \| {number} \| {number} \| {number}"
    )
    rows = re.findall(row, QUICKSTART, re.MULTILINE)
    assert len(rows) == 7
    for cards, size, stages, weights, card, left in rows:
        assert int(cards) == 8 * int(stages or 1)
        each, whole = 753 / int(cards), int(size) * 2**30 / 1e9
        assert (float(weights), float(card)) == (round(each, 1), round(whole, 1))
        assert float(left) == round(whole - each, 1)
    (found,) = re.findall(r"A token takes (\d+) bytes a layer and (\d+) for", QUICKSTART)
    row_bytes, key_bytes = map(int, found)
    assert f"{(20 * row_bytes + 5 * key_bytes) / 1000:.1f} KB" in QUICKSTART
    assert f"{20 * (row_bytes + key_bytes) / 1000:.1f} KB" in QUICKSTART
    assert f"{(20 * row_bytes + 5 * key_bytes) * 131_072 / 1e9:.1f} GB" in QUICKSTART


@pytest.mark.parametrize("document", ["README.md", "docs/quickstart.md"])
def test_the_options_are_those_of_tool_doctor(document: str) -> None:
    text = (ROOT / document).read_text()
    for _, options in doctor_judge.OPTIONS:
        assert f"`{options}`" in text
