"""The structure of Python files by blob id: definitions, and changed lines with the symbol they stand in.

It may import ``tool.git`` and the leaves.
"""

from tool.analysis.changes import Block, Source, changed_blocks, decode_line, is_significant
from tool.analysis.outline import (
    Outline,
    Outlines,
    find_duplicates,
    find_new_duplicates,
    parse_outline,
)

__all__ = [
    "Block",
    "Outline",
    "Outlines",
    "Source",
    "changed_blocks",
    "decode_line",
    "find_duplicates",
    "find_new_duplicates",
    "is_significant",
    "parse_outline",
]
