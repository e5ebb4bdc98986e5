"""What the changed lines of a Python file refer to in other files of the package, and in their own.

Only what the text settles is reported: an import, an attribute of an imported module, a call of a
function or method whose definition is known. A name that is bound twice, or that a parameter hides,
says nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tool.analysis.modules import PACKAGE, Bindings, Definition, Modules, import_origin
from tool.analysis.signatures import Signature, read_signature
from tool.analysis.syntax import list_children

_IMPORT_ERRORS: Final = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Unresolved:
    """A line that refers to something the tree has not."""

    line: int
    message: str


def find_unresolved(
    syntax: ast.Module, path: str, lines: Collection[int], modules: Modules
) -> Iterator[Unresolved]:
    """What ``lines`` (1-based) of the file ``path`` refer to and the tree of ``modules`` lacks.

    An import that a handler of ImportError guards is left out: the code says what happens without it.
    """
    reader = _Reader(syntax, path, frozenset(lines), modules)
    return reader.read(syntax.body, ())


@dataclass(frozen=True)
class Name:
    """A name in code; ``attribute`` where it stands after a dot, ``binds`` where it is a variable that is
    assigned to, a parameter, or what a definition defines."""

    text: str
    line: int
    attribute: bool = False
    binds: bool = False


def find_names(syntax: ast.Module, lines: Collection[int]) -> Iterator[Name]:
    """Every name on ``lines``, but for the keywords of calls and for imports: modules come from other
    files."""
    for node in _within(syntax, frozenset(lines)):
        match node:
            case ast.Name(id=text, ctx=context):
                name = Name(text, node.lineno, binds=isinstance(context, ast.Store))
            case ast.Attribute(attr=text):
                name = Name(text, node.end_lineno or node.lineno, attribute=True)
            case ast.arg(arg=text):
                name = Name(text, node.lineno, binds=True)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                name = Name(node.name, node.lineno, binds=True)
            case _:
                continue
        if name.line in lines:
            yield name


def find_attributes(syntax: ast.Module, lines: Collection[int]) -> dict[str, int]:
    """Attributes read or set on ``lines``, also by ``getattr`` and its like, each with its first line."""
    found: dict[str, int] = {}
    for node in _within(syntax, frozenset(lines)):
        match node:
            case ast.Attribute(attr=name):
                line = node.end_lineno or node.lineno
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr"),
                args=[_, ast.Constant(value=str(name), lineno=line), *_],
            ):
                pass
            case _:
                continue
        if line in lines:
            found.setdefault(name, line)
    return found


def find_defined(syntax: ast.Module, lines: Collection[int]) -> set[str]:
    """Functions, classes and fields that ``lines`` define; an attribute set on an object is none."""
    found: set[str] = set()
    for node in _within(syntax, frozenset(lines)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                if node.lineno in lines:
                    found.add(node.name)
                if isinstance(node, ast.ClassDef):
                    body = (n for n in node.body if n.lineno in lines)
                    found |= Bindings([n for n in body if not isinstance(n, Definition)], "").names
    return found


def _within(node: ast.AST, lines: frozenset[int]) -> Iterator[ast.AST]:
    """The nodes below ``node`` that may touch ``lines``; other parts of the file are not walked."""
    for child in list_children(node):
        first, last = getattr(child, "lineno", None), getattr(child, "end_lineno", None)
        if isinstance(child, Definition):
            first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
        if first is not None and last is not None and not _touches(lines, first, last):
            continue
        yield child
        yield from _within(child, lines)


def _touches(lines: frozenset[int], first: int, last: int) -> bool:
    if last - first < len(lines):
        return not lines.isdisjoint(range(first, last + 1))
    return any(first <= line <= last for line in lines)


_Scope = tuple[ast.AST, ...]
"""The definitions around a statement, outermost first."""


class _Reader:
    def __init__(
        self, syntax: ast.Module, path: str, lines: frozenset[int], modules: Modules
    ) -> None:
        self._path = path
        self._lines = lines
        self._modules = modules
        self._own = Bindings(syntax.body, path)
        self._locals: dict[ast.AST, Bindings] = {}

    def read(
        self, body: Sequence[ast.AST], scope: _Scope, *, guarded: bool = False
    ) -> Iterator[Unresolved]:
        for node in body:
            first, last = getattr(node, "lineno", None), getattr(node, "end_lineno", None)
            if isinstance(node, Definition):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if first is not None and last is not None and not _touches(self._lines, first, last):
                continue
            yield from self._look(node, scope, guarded)
            if isinstance(node, ast.Try) and _is_guard(node):
                yield from self.read(node.body, scope, guarded=True)
                rest = (*node.handlers, *node.orelse, *node.finalbody)
                yield from self.read(rest, scope, guarded=guarded)
                continue
            inner = (*scope, node) if isinstance(node, (*_SCOPES,)) else scope
            children = list_children(node)
            yield from self.read(children, inner, guarded=guarded)

    def _look(self, node: ast.AST, scope: _Scope, guarded: bool) -> Iterator[Unresolved]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            if not guarded:
                yield from self._imports(node)
        elif isinstance(node, ast.Attribute):
            yield from self._attribute(node, scope)
        elif isinstance(node, ast.Call):
            yield from self._call(node, scope)

    def _imports(self, node: ast.Import | ast.ImportFrom) -> Iterator[Unresolved]:
        for alias in node.names:
            if alias.lineno not in self._lines and node.lineno not in self._lines:
                continue
            line = alias.lineno if alias.lineno in self._lines else node.lineno
            if isinstance(node, ast.Import):
                module, name = alias.name, None
            else:
                module, name = import_origin(node, self._path), alias.name
            if module.partition(".")[0] == PACKAGE and (
                why := find_missing(self._modules, module, name)
            ):
                yield Unresolved(line, why)

    def _attribute(self, node: ast.Attribute, scope: _Scope) -> Iterator[Unresolved]:
        """``module.name`` of an imported module, or ``Class.name`` of a class that stands alone."""
        line = node.end_lineno or node.lineno
        if line not in self._lines or not isinstance(node.ctx, ast.Load):
            return
        if module := self._module(node.value, scope):
            if self._modules.binds(module, node.attr) is False:
                yield Unresolved(line, f"uses {module}.{node.attr}, and there is none")
        elif (
            isinstance(node.value, ast.Name)
            and (origin := self._origin(node.value.id, scope))
            and self._has_member(origin[0], origin[1] or "", node.attr) is False
        ):
            yield Unresolved(
                line, f"uses {node.value.id}.{node.attr}, and {origin[0]} has no such attribute"
            )

    def _module(self, node: ast.expr, scope: _Scope) -> str | None:
        """The module of the package that ``node`` is, if it is one."""
        if isinstance(node, ast.Name):
            origin = self._origin(node.id, scope)
            if origin is None or origin[1] is None:
                return origin[0] if origin else None
            parent, name = origin
        elif isinstance(node, ast.Attribute) and (module := self._module(node.value, scope)):
            parent, name = module, node.attr
        else:
            return None
        bindings = self._modules.bindings(parent)
        is_value = bindings is not None and name in bindings.names
        return (
            f"{parent}.{name}"
            if not is_value and self._modules.exists(f"{parent}.{name}")
            else None
        )

    def _has_member(self, module: str, name: str, member: str) -> bool | None:
        """Has the class, or the one instance of it that ``name`` is, a ``member``? None: not known."""
        found = self._modules.definitions(module, name)
        if found is None:
            bindings = self._modules.bindings(module)
            values = bindings.values.get(name, []) if bindings else []
            if bindings is None or len(values) != 1 or bindings.assigned[name] != 1:
                return None
            match values[0]:
                case ast.Call(func=ast.Name(id=maker)):
                    found = self._modules.definitions(module, maker)
        if found is None or len(found) != 1 or not isinstance(found[0], ast.ClassDef):
            return None
        return _has_member(found[0], member)

    def _call(self, node: ast.Call, scope: _Scope) -> Iterator[Unresolved]:
        line = node.func.end_lineno or node.lineno
        whole = line in self._lines
        keywords = [k for k in node.keywords if k.arg and (whole or k.value.lineno in self._lines)]
        if not whole and not keywords:
            return
        signatures = self._signatures(node.func, scope)
        if not signatures or None in signatures:
            return
        spread = any(isinstance(a, ast.Starred) for a in node.args)
        spread |= any(k.arg is None for k in node.keywords)
        count = None if spread or not whole else len(node.args)
        names = [k.arg for k in keywords if k.arg]
        why = [s.misfit(count, names) for s in signatures if s is not None]
        if all(why):
            at = keywords[0].value.lineno if keywords and not whole else line
            yield Unresolved(at, f"calls {ast.unparse(node.func)}, {why[0]}")

    def _signatures(self, func: ast.expr, scope: _Scope) -> list[Signature | None]:
        """Of everything ``func`` may mean; empty when nothing is known."""
        if isinstance(func, ast.Name):
            return [read_signature(d) for d in self._definitions(func.id, scope)]
        if not isinstance(func, ast.Attribute):
            return []
        classes = [s for s in scope if isinstance(s, ast.ClassDef)]
        match func.value:
            case ast.Name(id="self" | "cls") if classes:
                return self._method(classes[-1], func.attr, _DEPTH)
        module = self._module(func.value, scope)
        known = self._modules.definitions(module, func.attr) if module else None
        return [read_signature(d) for d in known or ()]

    def _method(self, node: ast.ClassDef, name: str, depth: int) -> list[Signature | None]:
        own = [n for n in node.body if isinstance(n, _Function) and n.name == name]
        if own:
            return [read_signature(n, method=True) for n in own]
        if not depth or name in list_attributes(node):
            return []
        for base in node.bases:
            found = self._definitions(base.id, ()) if isinstance(base, ast.Name) else []
            if len(found) != 1 or not isinstance(found[0], ast.ClassDef):
                return []  # it may come from there
            # The bases of a class of another file are names there, which this file does not tell.
            here = found[0] in self._own.definitions.get(found[0].name, ())
            if signatures := self._method(found[0], name, depth - 1 if here else 0):
                return signatures
            if found[0].bases and not here:
                return []
        return []

    def _definitions(self, name: str, scope: _Scope) -> list[Definition]:
        bindings = self._bindings(name, scope)
        if bindings is None or bindings.assigned[name]:
            return []
        origins, defined = bindings.imports.get(name, []), bindings.definitions.get(name, [])
        if not origins:
            return defined
        if defined or len(origins) != 1 or origins[0][1] is None:
            return []
        return self._modules.definitions(origins[0][0], origins[0][1]) or []

    def _origin(self, name: str, scope: _Scope) -> tuple[str, str | None] | None:
        """The one import of the package that binds ``name`` in ``scope``."""
        bindings = self._bindings(name, scope)
        if bindings is None or name in bindings.definitions or bindings.assigned[name]:
            return None
        origins = set(bindings.imports.get(name, []))
        origin = origins.pop() if len(origins) == 1 else None
        return origin if origin and origin[0].partition(".")[0] == PACKAGE else None

    def _bindings(self, name: str, scope: _Scope) -> Bindings | None:
        """Those of the innermost function or of the module that bind ``name``; None for a parameter."""
        for around in reversed(scope):
            if isinstance(around, _Function | ast.Lambda):
                args = around.args
                every = (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg)
                if any(a is not None and a.arg == name for a in every):
                    return None
            if isinstance(around, _Function):
                if around not in self._locals:
                    self._locals[around] = Bindings(around.body, self._path)
                if name in self._locals[around].names:
                    return self._locals[around]
            elif not isinstance(around, ast.ClassDef) and _stores(around, name):
                return None
        return self._own if name in self._own.names else None


def _stores(node: ast.AST, name: str) -> bool:
    found = (n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == name)
    return any(isinstance(n.ctx, ast.Store) for n in found)


def _is_guard(node: ast.Try) -> bool:
    """Does the code say what happens where an import of its body fails?"""
    for handler in node.handlers:
        caught = [handler.type] if not isinstance(handler.type, ast.Tuple) else handler.type.elts
        names = {c.id for c in caught if isinstance(c, ast.Name)}
        if handler.type is None or names & _IMPORT_ERRORS:
            return True
    return False


def _has_member(node: ast.ClassDef, member: str) -> bool | None:
    """Has a class that has no base the attribute ``member``? None when its text does not tell."""
    bases = {b.id if isinstance(b, ast.Name) else "" for b in node.bases}
    if node.keywords or bases - _PLAIN_BASES:
        return None
    if member in _ANY_CLASS or member in Bindings(node.body, "").names:
        return True  # without reading all of its methods
    members = list_attributes(node)
    return None if members & _DYNAMIC_METHODS else member in members


def list_attributes(node: ast.ClassDef) -> set[str]:
    """What the body of the class binds, and what its methods assign on ``self`` and ``cls``."""
    found = set(Bindings(node.body, "").names)
    left: list[ast.AST] = [node]
    while left:
        inner = left.pop()
        left += list_children(inner)
        if isinstance(inner, ast.Attribute):
            match inner:
                case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                    found.add(name)
    return found


_PLAIN_BASES: Final = {"Enum", "Flag", "IntEnum", "IntFlag", "StrEnum", "int", "object", "str"}
_DYNAMIC_METHODS: Final = {"__getattr__", "__getattribute__"}
_ANY_CLASS: Final = frozenset(dir(type)) | frozenset(dir(str)) | {"name", "value", "__members__"}
_DEPTH: Final = 3
_SCOPES: Final = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda,
    ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
)  # fmt: skip


def find_missing(modules: Modules, module: str, name: str | None) -> str | None:
    """What of ``from module import name`` (``import module`` without a name) the tree lacks."""
    if not modules.exists(module):
        # Modules that are compiled are not in the tree.
        return None if "._" in module else f"imports {module}, and there is no such module"
    if name in (None, "*") or modules.binds(module, str(name)) is not False:
        return None
    if str(name).startswith("_") and modules.source(module) is None:
        return None
    return f"imports {name} from {module}, which has no such name"
