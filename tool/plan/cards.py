"""Graphics cards: what ``--gpus`` names, and how much of a card's memory a server can have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tool.errors import UsageError

GIB: Final = 2**30
NODE: Final = 8
"""Cards of a node, if nothing else is said."""

CARDS: Final = {
    "RTX 3090": (86, 24),
    "RTX A6000": (86, 48),
    "A100": (80, 80),
    "A800": (80, 80),
    "RTX 4090": (89, 24),
    "RTX 4090D": (89, 24),
    "RTX 6000 Ada": (89, 48),
    "L20": (89, 48),
    "L40S": (89, 45),
    "H20": (90, 96),
    "H100": (90, 80),
    "H200": (90, 141),
    "B200": (100, 180),
    "RTX 5090": (120, 32),
    "RTX PRO 6000": (120, 96),
    "DGX Spark": (121, 119),
}
"""Name → capability (major * 10 + minor), nominal GiB. An L40S has 48 GiB, of which ECC takes 3. A DGX Spark
has 128 GB, 119 GiB, which its processor uses too."""
SINGLE: Final = ("DGX Spark",)
"""Machines with one GPU."""

_FILLER: Final = re.compile(r"nvidia|geforce|blackwell|[()]|-")
_VARIANT: Final = r"( (workstation|server|edition|max q|pcie|sxm\d?|nvl))*"
_GPUS: Final = re.compile(r"(\d+)\s*[x×*]\s*(.*?\S)(?:[\s(-]+(\d+)\s*(?:gib|gb|g)\)?)?", re.ASCII)


@dataclass(frozen=True)
class Cards:
    """``count`` equal cards on ``nodes`` equal machines. ``memory``: nominal bytes of one card."""

    count: int
    name: str
    sm: int
    memory: int
    nodes: int = 1

    @property
    def per_node(self) -> int:
        return self.count // self.nodes


def parse_gpus(text: str, nodes: int | None = None, per_node: int | None = None) -> Cards:
    """``32x RTX 4090 48GB`` → cards. A number of GB overrides the table; ``8x sm_89 48GB`` names none.

    Without ``nodes`` and ``per_node``, up to 8 cards are one node, more are nodes of 8, and a DGX Spark is a
    node of its own.

    Raises:
        UsageError: the text, the card or the division into nodes makes no sense.
    """
    found = _GPUS.fullmatch(text.strip().lower())
    if not found or int(found[1]) < 1:
        raise UsageError(
            f"--gpus {text!r} is not a number of cards and a name",
            why="all cards of a server are of one kind",
            next_step='give for example --gpus "8x RTX 4090 48GB"',
        )
    count = int(found[1])
    name, sm, size = _find_card(found[2], int(found[3]) if found[3] else None)
    if not 1 <= size <= 1024:
        raise UsageError(f"--gpus {text!r}: a card has 1 to 1024 GB, not {size}")
    if name in SINGLE and nodes is None and per_node is None:
        per_node = 1
    return Cards(count, name, sm, size * GIB, _divide(count, nodes, per_node))


def _find_card(text: str, size: int | None) -> tuple[str, int, int]:
    words = " ".join(_FILLER.sub(" ", text).split())
    capability = re.fullmatch(r"sm_?(\d{2,3})", words)
    if capability and size:
        return f"sm_{capability[1]}", int(capability[1]), size
    for name in sorted(CARDS, key=len, reverse=True):
        short = name.lower().removeprefix("rtx ")
        if re.fullmatch(rf"(rtx )?{short}{_VARIANT}", words):
            sm, nominal = CARDS[name]
            return name, sm, nominal if size is None else size
    raise UsageError(
        f"{text!r} is no card that the table knows",
        why=f"it knows {', '.join(CARDS)}",
        next_step='name its compute capability and memory, for example --gpus "8x sm_89 48GB"',
    )


def _divide(count: int, nodes: int | None, per_node: int | None) -> int:
    """The number of nodes."""
    if nodes is None:
        each = per_node or min(count, NODE)
        nodes = count // each if each > 0 and count % each == 0 else 0
    if nodes < 1 or count % nodes or (per_node is not None and nodes * per_node != count):
        raise UsageError(
            f"{count} cards do not make equal nodes",
            why=f"without --nodes and --per-node, more than {NODE} cards are nodes of {NODE}",
            next_step="give --nodes and --per-node; their product is the number of cards",
        )
    return nodes
