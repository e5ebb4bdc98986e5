"""The modules of one tree: which exist, what names each binds, and how its functions are called.

Answers rest on the text alone; nothing is imported. What the text cannot tell is None: a module with
``__getattr__``, names written through ``globals()``, or ``import *`` from outside the package.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from typing import ClassVar, Final

from tool.analysis.syntax import list_children, parse_syntax
from tool.git import Git

PACKAGE: Final = "sglang"
_FOLDER: Final = "python/"
_HOPS: Final = 5
"""Modules through which one name is followed before it counts as unknown."""
_DYNAMIC: Final = re.compile(rb"\bglobals\(\)|\bsys\.modules\[__name__\]")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def module_name(path: str) -> str:
    """``python/sglang/srt/utils/__init__.py`` → ``sglang.srt.utils``."""
    dotted = path.removeprefix(_FOLDER).removesuffix(".py").replace("/", ".")
    return dotted.removesuffix(".__init__")


def import_origin(node: ast.ImportFrom, path: str) -> str:
    """The absolute name of the module that ``node`` in the file ``path`` imports from."""
    if not node.level:
        return node.module or ""
    package = module_name(path).split(".")
    drop = node.level - path.endswith("/__init__.py")
    parts = package[: len(package) - drop]
    return ".".join([*parts, *([node.module] if node.module else [])])


class Bindings:
    """What the statements of a module or function bind: ``definitions``, ``imports`` as (module, name),
    and variables with how often each is ``assigned``; all of them are in ``names``."""

    def __init__(self, body: list[ast.stmt], path: str) -> None:
        self.names: set[str] = set()
        self.stars: list[str] = []
        self.definitions: dict[str, list[Definition]] = {}
        self.imports: dict[str, list[tuple[str, str | None]]] = {}
        self.assigned: Counter[str] = Counter()
        self.values: dict[str, list[ast.expr]] = {}
        for node in body:
            self._add(node, path)

    def _add(self, node: ast.stmt, path: str) -> None:
        if isinstance(node, Definition):
            self.definitions.setdefault(node.name, []).append(node)
            self.names.add(node.name)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                target = alias.name if alias.asname else name
                self.imports.setdefault(name, []).append((target, None))
                self.names.add(name)
            return
        if isinstance(node, ast.ImportFrom):
            origin = import_origin(node, path)
            for alias in node.names:
                if alias.name == "*":
                    self.stars.append(origin)
                    continue
                name = alias.asname or alias.name
                self.imports.setdefault(name, []).append((origin, alias.name))
                self.names.add(name)
            return
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            self.values.setdefault(node.targets[0].id, []).append(node.value)
        self._add_parts(node, path)

    def _add_parts(self, node: ast.AST, path: str) -> None:
        for child in list_children(node):
            if isinstance(child, ast.stmt):
                self._add(child, path)
                continue
            if isinstance(child, ast.Name):
                if isinstance(child.ctx, ast.Store):
                    self.names.add(child.id)
                    self.assigned[child.id] += 1
                continue
            if isinstance(child, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and child.name:
                self.names.add(child.name)
            self._add_parts(child, path)


class Modules:
    """The Python modules of ``tree``, which holds the package at ``python/sglang``.

    ``elsewhere`` is a folder whose files come from another place: nothing is known of them.
    """

    _known: ClassVar[dict[str, Bindings | None]] = {}
    """By blob and path: relative imports depend on where the file stands. None: not Python."""

    def __init__(self, git: Git, tree: str, *, elsewhere: str | None = None) -> None:
        self._git = git
        self._tree = tree
        self._elsewhere = module_name(elsewhere) if elsewhere else None
        self._found: dict[str, tuple[str, str] | None] = {}

    def exists(self, module: str) -> bool:
        """A module, a package, or a folder of modules."""
        if self._is_elsewhere(module):
            return True
        folder = f"{_FOLDER}{module.replace('.', '/')}"
        return (
            self._file(module) is not None or self._git.find(f"{self._tree}:{folder}") is not None
        )

    def binds(self, module: str, name: str) -> bool | None:
        """Does ``module`` have ``name``, as a name of its own, one it imports, or a submodule?"""
        return self._binds(module, name, _HOPS)

    def _binds(self, module: str, name: str, hops: int) -> bool | None:
        if not module.startswith(PACKAGE) or self._is_elsewhere(module) or not hops:
            return None
        source = self.source(module)
        if source is not None and _binds_at_margin(source, name):
            return True
        if self.exists(f"{module}.{name}"):
            return True
        if source is None:
            return False if self.exists(module) else None
        bindings = self.bindings(module)
        if bindings is None or name in bindings.names:
            return None if bindings is None else True
        if "__getattr__" in bindings.names or _DYNAMIC.search(source):
            return None
        if re.search(rb"\bglobal\b[^\n]*\b%s\b" % name.encode(), source):
            return True
        answers = [self._binds(star, name, hops - 1) for star in bindings.stars]
        return True if True in answers else (None if None in answers else False)

    def definitions(self, module: str, name: str) -> list[Definition] | None:
        """Every definition that ``name`` of ``module`` may mean; None when that is not known."""
        return self._definitions(module, name, _HOPS)

    def _definitions(self, module: str, name: str, hops: int) -> list[Definition] | None:
        source = self.source(module) if module.startswith(PACKAGE) and hops else None
        if source is None:
            return None
        if (found := _slice_definition(source, name)) is not None:
            return [found]
        bindings = self.bindings(module)
        if bindings is None:
            return None
        if name in bindings.definitions:
            known = name not in bindings.imports and not bindings.assigned[name]
            return bindings.definitions[name] if known else None
        origins = bindings.imports.get(name, [])
        if not origins and name not in bindings.names:
            origins = [(star, name) for star in bindings.stars if self._binds(star, name, hops - 1)]
        if len(origins) != 1 or origins[0][1] is None:
            return None
        return self._definitions(origins[0][0], origins[0][1], hops - 1)

    def source(self, module: str) -> bytes | None:
        """The text of a module or of a package's ``__init__``; None when there is no such file."""
        file = self._file(module)
        return self._git.blobs([file[1]])[file[1]] if file else None

    def bindings(self, module: str) -> Bindings | None:
        """None when there is no such file, or it is not Python."""
        file = self._file(module)
        if file is None:
            return None
        key = f"{file[1]}:{file[0]}"
        if key not in self._known:
            try:
                body = parse_syntax(self._git.blobs([file[1]])[file[1]]).body
                self._known[key] = Bindings(body, file[0])
            except SyntaxError:
                self._known[key] = None
        return self._known[key]

    def _is_elsewhere(self, module: str) -> bool:
        return self._elsewhere is not None and f"{module}.".startswith(f"{self._elsewhere}.")

    def _file(self, module: str) -> tuple[str, str] | None:
        """The module's path and blob."""
        if module not in self._found:
            stem = f"{_FOLDER}{module.replace('.', '/')}"
            paths = (f"{stem}/__init__.py", f"{stem}.py")
            blobs = ((path, self._git.find(f"{self._tree}:{path}")) for path in paths)
            self._found[module] = next(((path, blob) for path, blob in blobs if blob), None)
        return self._found[module]


def _binds_at_margin(source: bytes, name: str) -> bool:
    """Is ``name`` bound by a statement at the margin? Spares parsing the common case."""
    word = re.escape(name.encode())
    return (
        re.search(
            rb"^(?:(?:async[ ]+)?def|class)[ ]+%b\b|^%b[ ]*(?::|=[^=])|^from[ ][^#\n]*[ ]import[ ]"
            rb"(?:[^#\n(]*[ ,])?%b[ ]*(?:,|$|\n)" % (word, word, word),
            source,
            re.MULTILINE,
        )
        is not None
    )


def _slice_definition(source: bytes, name: str) -> Definition | None:
    """The definition of ``name``, if it is the only one at the margin and reads by itself."""
    word = re.escape(name.encode())
    starts = list(
        re.finditer(rb"^(?:(?:async[ ]+)?def|class)[ ]+%b\b" % word, source, re.MULTILINE)
    )
    again = rb"^[ \t]+(?:(?:async[ ]+)?def|class)[ ]+%b\b|^%b[ ]*=[^=]" % (word, word)
    if len(starts) != 1 or re.search(again, source, re.MULTILINE):
        return None
    begin = starts[0].start()
    while (line := source[:begin].rstrip(b"\n").rpartition(b"\n")[2]).startswith(b"@"):
        begin = source.rindex(line, 0, begin)
    if line.startswith((b")", b"]")):
        return None  # a decorator over several lines
    end = re.compile(rb"^[^\s#)]", re.MULTILINE).search(source, starts[0].end())
    text = source[begin : end.start() if end else len(source)]
    try:
        (node,) = parse_syntax(text).body
    except (SyntaxError, ValueError):
        return None
    return node if isinstance(node, Definition) else None
