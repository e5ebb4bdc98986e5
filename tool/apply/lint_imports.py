"""The imports that patches add, looked up without applying anything.

A module of the kernels must be in the project's own folder. One of sglang must be in the trees that
series.lock records for the patch; the trees that the repository has not are left out, so a machine that
never ran the tool learns of these imports from ``tool check``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tool.analysis import (
    PACKAGE,
    Bindings,
    Modules,
    find_missing,
    import_origin,
    module_name,
    parse_syntax,
)
from tool.apply.kernels import DESTINATION
from tool.errors import IntegrityError, UsageError
from tool.git import Git
from tool.project import Session
from tool.series import PATCH_DIR, Finding, LockedRelease, Patch, patchfile

_STATEMENT: Final = re.compile(r"\s*(?:from\s+[\w.]+\s+import|import)\s")
_TRY: Final = re.compile(r"^[+ ]\s*try:\s*$")

Import = tuple[int, str, str | None]
"""Line of the patch file, module, and the name taken from it."""


def lint_imports(session: Session) -> list[Finding]:
    """Imports of modules and names that are not there, each once, in the order of the series."""
    series = session.series
    git = session.workspace.find_repository()
    releases = _list_releases(session) if git else ()
    found: dict[tuple[str, str], Finding] = {}
    for patch in series.patches:
        if not patch.path.is_file():
            continue
        for line, why in _find_bad(session, git, releases, patch):
            where = f"{PATCH_DIR}/{patch.name}:{line}"
            found.setdefault((where, why), Finding("imports", where, why))
    return list(found.values())


def _list_releases(session: Session) -> Sequence[LockedRelease]:
    try:
        return tuple(session.lock.releases.values())
    except IntegrityError:
        return ()  # a lock that does not parse is not what lint looks for


def _find_bad(
    session: Session, git: Git | None, releases: Sequence[LockedRelease], patch: Patch
) -> Iterator[tuple[int, str]]:
    try:
        imports = list(list_imports(patch))
    except (UsageError, UnicodeDecodeError):
        return  # the rule "diff" has a finding about it
    kernels = module_name(DESTINATION)
    inside = [i for i in imports if f"{i[1]}.".startswith(f"{kernels}.")]
    for line, module, name in inside:
        rest = module.removeprefix(kernels).strip(".").replace(".", "/")
        if why := _find_missing_kernel(session.series.kernel_dir / rest, name):
            yield line, f"imports {name or module} from {module}, {why}"
    others = [i for i in imports if i not in inside and i[1].partition(".")[0] == PACKAGE]
    for release in releases if others else ():
        for entry in release.patches:
            if entry.name != patch.name or not git or git.find(f"{entry.tree}^{{tree}}") is None:
                continue
            modules = Modules(git, entry.tree, elsewhere=DESTINATION)
            for line, module, name in others:
                if why := find_missing(modules, module, name):
                    yield line, f"{why} in v{release.version}"


def _find_missing_kernel(place: Path, name: str | None) -> str | None:
    """Why ``name`` cannot be imported from the module or folder ``place`` of the kernels."""
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():
        return f"and {file.name} is not in the kernels' folder"
    if name is None or name == "*" or (place / name).is_dir() or (place / f"{name}.py").is_file():
        return None
    names = Bindings(parse_syntax(file.read_bytes()).body, file.as_posix()).names
    return None if name in names or "__getattr__" in names else "which has no such name"


def list_imports(patch: Patch) -> Iterator[Import]:
    """The imports that added lines hold whole, but for those in a ``try`` block."""
    diff = patchfile.parse(patch.name, patch.content).diff
    offset = patch.content[: len(patch.content) - len(diff)].count(b"\n")
    lines = diff.decode("utf-8", "replace").split("\n")
    path, before = "", ""
    for number, line in enumerate(lines):
        if line.startswith("+++ b/"):
            path = line[len("+++ b/") :]
        elif line.startswith("+") and _STATEMENT.match(line[1:]) and not _TRY.match(before):
            for module, name in _parse_import(lines[number:], path):
                yield offset + number + 1, module, name
        before = line if line.strip("+ ") else before


def _parse_import(lines: list[str], path: str) -> Iterator[tuple[str, str | None]]:
    text = ""
    for line in lines:
        if not line.startswith("+"):
            return
        text += line[1:].strip() + "\n"
        if text.count("(") <= text.count(")") and not text.endswith("\\\n"):
            break
    try:
        (node, *_) = parse_syntax(text.encode()).body
    except SyntaxError:
        return
    if isinstance(node, ast.Import):
        yield from ((alias.name, None) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from ((import_origin(node, path), alias.name) for alias in node.names)
