"""The files, against those that sglang ships and against what the release does with them."""

from __future__ import annotations

import json
import zipfile

import pytest

from tests.support.trees import Unavailable, released_wheel
from tool.tune.files import list_files, render
from tool.tune.search import Row, Unit
from tool.tune.shapes import TOKENS, Shape

SHAPE = Shape("gemm", (512, 6144), "")
PATHS = {("gemm", SHAPE.title): "sglang/configs/a.json"}
NAMES = (
    "BLOCK_SIZE_M",
    "BLOCK_SIZE_N",
    "BLOCK_SIZE_K",
    "GROUP_SIZE_M",
    "num_warps",
    "num_stages",
)
DEFAULT = dict(zip(NAMES, (64, 128, 128, 32, 4, 3), strict=True))
FASTER = dict(zip(NAMES, (16, 32, 128, 1, 4, 5), strict=True))


def row(m: int, config: dict[str, int], default: dict[str, int] = DEFAULT) -> Row:
    return Row(Unit(SHAPE, m), default, 10.0, config, 5.0, 0.0, 6)


def table(*rows: Row) -> dict[str, dict[str, int]]:
    (content,) = list_files(rows, PATHS).values()
    found: dict[str, dict[str, int]] = json.loads(content)
    return found


def test_rows_that_were_not_measured_are_the_default() -> None:
    """sglang takes the row of the nearest M: without them M=4096 would get the row of M=1."""
    found = table(row(1, FASTER), row(2, DEFAULT))
    assert [int(m) for m in found] == list(TOKENS)
    assert found["1"] == FASTER and all(found[m] == DEFAULT for m in found if m != "1")


def test_no_file_where_nothing_is_faster() -> None:
    assert list_files([row(1, DEFAULT), row(2, DEFAULT)], PATHS) == {}


def test_where_sglang_has_a_file_already_it_is_replaced_only_whole() -> None:
    """Its rows that were not measured are not known, so nothing stands for them."""
    other = DEFAULT | {"num_stages": 4}
    assert list_files([row(1, FASTER), row(2, other, other)], PATHS) == {}
    found = table(row(1, FASTER), *(row(m, other, other) for m in TOKENS[1:]))
    assert found["1"] == FASTER and found["4096"] == other


def test_the_bytes_are_those_of_the_files_that_sglang_ships() -> None:
    """Of the pinned release, read and written again. Some were written by hand and differ in white space,
    order or a last line feed, so most must agree, and all in what they say."""
    try:
        wheel = zipfile.ZipFile(released_wheel("0.5.23"))
    except Unavailable as error:
        pytest.skip(str(error))
    shipped = [name for name in wheel.namelist() if "dtype=fp8_w8a8,block_shape=[128" in name]
    same = 0
    for name in shipped:
        content = wheel.read(name)
        table = {int(m): config for m, config in json.loads(content).items()}
        made = render(table)
        assert json.loads(made) == json.loads(content)
        same += made == content
    assert len(shipped) > 200 and same > 0.8 * len(shipped)
