"""How a definition is called, and whether a call fits."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tool.analysis.modules import Definition
from tool.analysis.syntax import last_name

_SAME_ARGUMENTS: Final = frozenset(
    {"abstractmethod", "cache", "classmethod", "inference_mode", "lru_cache", "no_grad", "override"}
    | {"staticmethod", "wraps"}
)
"""Decorators that leave the arguments of a function as they are."""


@dataclass(frozen=True)
class Signature:
    """What a call may pass; ``required`` counts the positional parameters without a default."""

    positional: tuple[str, ...]
    required: int
    keyword_only: frozenset[str]
    required_keywords: frozenset[str]
    any_positional: bool
    any_keyword: bool
    only_positional: int = 0

    def misfit(self, positional: int | None, keywords: Sequence[str]) -> str | None:
        """Why a call does not fit; ``positional`` is None where it spreads arguments with a star."""
        by_name = set(self.positional[self.only_positional :]) | self.keyword_only
        if not self.any_keyword:
            for name in keywords:
                if name not in by_name:
                    return f"which takes no argument {name}"
        if positional is None:
            return None
        if positional > len(self.positional) and not self.any_positional:
            return f"which takes at most {len(self.positional)} arguments by position"
        needed = set(self.positional[positional : self.required]) | self.required_keywords
        if missing := sorted(needed - set(keywords)):
            return f"which needs an argument {missing[0]}"
        return None


def read_signature(node: Definition, *, method: bool = False) -> Signature | None:
    """How ``node`` is called, a class by its ``__init__``; None when its text does not tell.

    ``method``: the first parameter is passed by Python, but for a static method.
    """
    if isinstance(node, ast.ClassDef):
        return _read_constructor(node)
    decorators = {last_name(d) for d in node.decorator_list}
    if decorators - _SAME_ARGUMENTS:
        return None
    args = node.args
    names = [a.arg for a in (*args.posonlyargs, *args.args)]
    required = len(names) - len(args.defaults)
    only = len(args.posonlyargs)
    if method and "staticmethod" not in decorators and names:
        names, required, only = names[1:], max(0, required - 1), max(0, only - 1)
    bare = {
        a.arg for a, default in zip(args.kwonlyargs, args.kw_defaults, strict=True) if not default
    }
    return Signature(
        tuple(names),
        required,
        frozenset(a.arg for a in args.kwonlyargs),
        frozenset(bare),
        args.vararg is not None,
        args.kwarg is not None,
        only,
    )


def _read_constructor(node: ast.ClassDef) -> Signature | None:
    own = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    special = any(isinstance(n, ast.FunctionDef) and n.name == "__new__" for n in node.body)
    if special or node.keywords:
        return None
    if len(own) == 1 and not node.decorator_list:
        return read_signature(own[0], method=True)
    if own or node.bases or {last_name(d) for d in node.decorator_list} != {"dataclass"}:
        return None
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    names = tuple(n.target.id for n in fields if isinstance(n.target, ast.Name))
    # Which fields may be left out depends on their values; which names exist does not.
    return Signature(names, 0, frozenset(), frozenset(), True, False)
