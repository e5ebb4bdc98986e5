"""docs/troubleshooting.md quotes messages that the tool, the kernels and the patches do have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HOLE = "\0"
"""Stands for a value in a message."""
OVERRIDES = ("SGLANG_ADA_DSA_OVERRIDE_ARCH=", "TRITON_OVERRIDE_ARCH=")
"""The start of two messages: the name is a constant, so no string holds it with the sign."""


def templates(tree: ast.AST) -> Iterator[str]:
    """Every string of ``tree``; what an f-string computes is a hole."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
                else HOLE
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def known() -> str:
    """All strings of the tool and the kernels, and what the patches' hunks show afterwards."""
    found: list[str] = []
    for folder in ("tool", "ada_dsa"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found += templates(ast.parse(path.read_text(encoding="utf-8")))
    for path in sorted((ROOT / "patches").rglob("*.patch")):
        lines = path.read_text(encoding="utf-8").splitlines()
        after = "\n".join(line[1:] for line in lines if line.startswith(("+", " ")))
        found.append(re.sub(r"[\"']\s*\n\s*f?[\"']", "", after))
    return "\n".join(found)


def quoted() -> list[str]:
    """The messages in the first column of the page's tables, without the headings."""
    rows = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row)]


def fragments(message: str) -> list[str]:
    """The parts of ``message`` around its values, which the page shows as an ellipsis."""
    parts = [part.strip(" :,") for part in message.split("…")]
    return [part for part in parts if part and part not in OVERRIDES]


KNOWN = known()


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_exists(message: str) -> None:
    missing = [part for part in fragments(message) if part not in KNOWN]
    assert missing == []


def test_an_invented_message_is_found() -> None:
    assert len(quoted()) > 50
    assert [part for part in fragments("… was eaten by the dog") if part not in KNOWN]
