"""Is the series in order? Everything that can be known without applying it.

Rules, by the name a finding carries:

==========
========================================================================================== header
the DEP-3 header lacks a field, or says other releases than series.txt file       patches/ and
series.txt do not name the same files diff       the diff holds something a patch may not: see
tool.patchfile canonical  the file is not what ``tool export`` would write character  bidirectional
or control characters, which make a review lie count      unidiff, ``git apply --numstat`` and our
reader do not agree on what the diff does kernels    a kernel file imports something other than
relatively, torch, triton, tilelang or the stdlib ==========
==========================================================================================
"""

from __future__ import annotations

import ast
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.specifiers import SpecifierSet
from unidiff.errors import UnidiffParseError
from unidiff.patch import PatchSet

from tool.errors import UsageError
from tool.git import Git
from tool.series import patchfile
from tool.series.kernels import find_kernels
from tool.series.layout import PATCH_DIR, SERIES_FILE
from tool.series.model import Patch, Series
from tool.series.patchfile import PatchFile

_ALWAYS: Final = ("Origin", "Releases", "Drop-When")
_FATE: Final = ("Forwarded", "Applied-Upstream")
_KERNEL_IMPORTS: Final = frozenset({"torch", "triton", "tilelang", "numpy"})


@dataclass(frozen=True)
class Finding:
    """``where`` is ``file`` or ``file:line``."""

    rule: str
    where: str
    message: str


def lint_series(series: Series) -> list[Finding]:
    """All findings, in file order; empty when the series is in order."""
    findings = list(_files(series))
    for patch in series.patches:
        if patch.path.is_file():
            findings += _patch(patch)
    findings += _kernels(series.kernel_dir)
    return findings


def _files(series: Series) -> Iterator[Finding]:
    listed = {p.name for p in series.patches}
    for patch in series.patches:
        if patch.path.is_symlink() or not patch.path.is_file():
            yield Finding(
                "file", f"{SERIES_FILE}:{patch.line}", f"{patch.name} is not a file in {PATCH_DIR}/"
            )
    folder = series.root / PATCH_DIR
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in listed and (path.is_symlink() or not path.is_dir()):
            yield Finding("file", f"{PATCH_DIR}/{name}", f"is not listed in {SERIES_FILE}")
    for change in series.changes:
        if not any(p.change == change.name for p in series.patches):
            yield Finding(
                "file", f"{SERIES_FILE}:{change.line}", f"change {change.name} has no patch"
            )


def _patch(patch: Patch) -> Iterator[Finding]:
    yield from _characters(patch)
    try:
        parsed = patchfile.parse(patch.name, patch.content)
    except (UsageError, UnicodeDecodeError) as err:
        where = getattr(err, "where", None) or f"{PATCH_DIR}/{patch.name}"
        yield Finding("diff", where, getattr(err, "message", str(err)))
        return
    where = f"{PATCH_DIR}/{patch.name}"
    yield from (Finding("header", where, message) for message in _header(patch, parsed))
    if patchfile.render(parsed.header, parsed.diff) != patch.content:
        yield Finding("canonical", where, "is not in canonical form; run: tool export")
    if message := _count(parsed):
        yield Finding("count", where, message)


def _header(patch: Patch, parsed: PatchFile) -> Iterator[str]:
    header = parsed.header
    for name in _ALWAYS:
        if not header.get(name):
            yield f"the header has no {name} field"
    if not any(header.get(name) for name in _FATE):
        yield f"the header says neither {' nor '.join(_FATE)}"
    if not header.body:
        yield "the Description says what, but not why"
    releases = header.get("Releases")
    if releases and SpecifierSet(releases) != patch.releases:
        yield f"Releases is {releases}, {SERIES_FILE}:{patch.line} says {patch.releases}"


def _characters(patch: Patch) -> Iterator[Finding]:
    for number, line in enumerate(patch.content.decode("utf-8", "replace").split("\n"), start=1):
        for char in line:
            # Cc: control characters but tab and a final CR; Cf: invisible format characters, bidi ones too.
            bad = unicodedata.category(char) in ("Cc", "Cf") and char not in "\t\r"
            if bad or char == "�" or (char == "\r" and not line.endswith("\r")):
                name = unicodedata.name(char, f"U+{ord(char):04X}")
                yield Finding("character", f"{PATCH_DIR}/{patch.name}:{number}", f"holds {name}")
                break


def _count(parsed: PatchFile) -> str | None:
    """Three readers, one diff: a difference means one of them sees something the others do not."""
    ours = {
        file.path: (
            sum(line[:1] == b"+" for hunk in file.hunks for line in hunk.lines),
            sum(line[:1] == b"-" for hunk in file.hunks for line in hunk.lines),
        )
        for file in parsed.files
    }
    if (git := _numstat(parsed.diff)) != ours:
        return f"git apply counts {git}, the file says {ours}"
    try:
        read = PatchSet(parsed.diff.decode("utf-8", "replace"))
    except UnidiffParseError as err:
        return f"unidiff cannot read it: {err}"
    if (uni := {f.path: (f.added, f.removed) for f in read}) != ours:
        return f"unidiff counts {uni}, the file says {ours}"
    return None


def _numstat(diff: bytes) -> dict[str, tuple[int, int]]:
    # --numstat reads the diff without touching any repository; the folder only has to exist.
    raw = Git(Path("/nonexistent")).out("apply", "--numstat", "-z", "-p1", "-", stdin=diff)
    rows = (row.split("\t") for row in raw.split("\0") if row)
    return {path: (int(added), int(removed)) for added, removed, path in rows}


def _kernels(folder: Path) -> Iterator[Finding]:
    for name, path in find_kernels(folder).items():
        if not name.endswith(".py"):
            continue
        for line, module in absolute_imports(path):
            root = module.split(".")[0]
            if root not in _KERNEL_IMPORTS and root not in sys.stdlib_module_names:
                yield Finding("kernels", f"{folder.name}/{name}:{line}", f"imports {root}")


def absolute_imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""
