"""``--gpus``, ``--nodes`` and ``--per-node``."""

from __future__ import annotations

import pytest

from tool.errors import UsageError
from tool.plan import GIB, parse_gpus


@pytest.mark.parametrize(
    ("text", "count", "name", "sm", "memory"),
    [
        ("32x RTX 4090 48GB", 32, "RTX 4090", 89, 48),
        ("8 x RTX 4090", 8, "RTX 4090", 89, 24),
        ("1x 3090", 1, "RTX 3090", 86, 24),
        ("8×A100-80GB", 8, "A100", 80, 80),
        ("8x A100 40 GiB", 8, "A100", 80, 40),
        ("4x NVIDIA RTX PRO 6000 Blackwell (96GB)", 4, "RTX PRO 6000", 120, 96),
        ("8x NVIDIA GeForce RTX 5090", 8, "RTX 5090", 120, 32),
        ("8x RTX 6000 Ada", 8, "RTX 6000 Ada", 89, 48),
        ("8x H200", 8, "H200", 90, 141),
        ("8x sm_89 48GB", 8, "sm_89", 89, 48),
        ("2x NVIDIA DGX Spark", 2, "DGX Spark", 121, 119),
    ],
)
def test_what_people_write(text: str, count: int, name: str, sm: int, memory: int) -> None:
    cards = parse_gpus(text)
    assert (cards.count, cards.name, cards.sm) == (count, name, sm)
    assert cards.memory == memory * GIB


@pytest.mark.parametrize(
    ("text", "nodes", "per_node", "expected"),
    [
        ("8x H200", None, None, (1, 8)),
        ("6x H200", None, None, (1, 6)),
        ("2x DGX Spark", None, None, (2, 1)),
        ("4x DGX Spark", 1, None, (1, 4)),
        ("32x H200", None, None, (4, 8)),
        ("32x H200", 8, None, (8, 4)),
        ("32x H200", None, 4, (8, 4)),
        ("32x H200", 2, 16, (2, 16)),
        ("10x H200", 1, None, (1, 10)),
    ],
)
def test_nodes(
    text: str, nodes: int | None, per_node: int | None, expected: tuple[int, int]
) -> None:
    cards = parse_gpus(text, nodes, per_node)
    assert (cards.nodes, cards.per_node) == expected


@pytest.mark.parametrize(
    ("text", "nodes", "per_node", "says"),
    [
        ("RTX 4090", None, None, "not a number of cards"),
        ("0x RTX 4090", None, None, "not a number of cards"),
        ("", None, None, "not a number of cards"),
        ("8x RTX 4090 + 8x RTX 5090", None, None, "is no card"),
        ("8x RTX 4090 and 3090", None, None, "is no card"),
        ("8x GTX 1080", None, None, "is no card"),
        ("8x sm_89", None, None, "is no card"),
        ("8x RTX 4090 0GB", None, None, "1 to 1024 GB"),
        ("8x RTX 4090 4096GB", None, None, "1 to 1024 GB"),
        ("12x RTX 4090", None, None, "do not make equal nodes"),
        ("32x RTX 4090", 3, None, "do not make equal nodes"),
        ("32x RTX 4090", 2, 8, "do not make equal nodes"),
        ("32x RTX 4090", 0, None, "do not make equal nodes"),
        ("32x RTX 4090", None, 0, "do not make equal nodes"),
        ("32x RTX 4090", None, -8, "do not make equal nodes"),
    ],
)
def test_nonsense_is_refused(text: str, nodes: int | None, per_node: int | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_gpus(text, nodes, per_node)
