"""The structure of Python files by blob id: definitions, and changed lines with the symbol they stand in.

It may import ``tool.git`` and the leaves.
"""

from tool.analysis.changes import (
    Block,
    Source,
    changed_blocks,
    decode_line,
    format_lines,
    format_place,
    is_significant,
)
from tool.analysis.modules import PACKAGE, Bindings, Modules, import_origin, module_name
from tool.analysis.outline import (
    Outline,
    Outlines,
    find_duplicates,
    find_new_duplicates,
    find_new_unbound,
    parse_outline,
)
from tool.analysis.references import (
    Unresolved,
    find_attributes,
    find_defined,
    find_missing,
    find_names,
    find_unresolved,
)
from tool.analysis.syntax import parse_syntax

__all__ = [
    "Bindings",
    "Block",
    "Modules",
    "Outline",
    "Outlines",
    "PACKAGE",
    "Source",
    "Unresolved",
    "changed_blocks",
    "decode_line",
    "find_attributes",
    "find_defined",
    "find_duplicates",
    "find_missing",
    "find_names",
    "find_new_duplicates",
    "find_new_unbound",
    "find_unresolved",
    "format_lines",
    "format_place",
    "import_origin",
    "is_significant",
    "module_name",
    "parse_outline",
    "parse_syntax",
]
