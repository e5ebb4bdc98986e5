"""Is the series in order? Everything that can be known without applying it.

The rules, by the name that a finding carries:

============= =====================================================================================
file          patches/ and series.txt do not name the same files
line endings  a file has CRLF line endings: git converted it on checkout
header        the DEP-3 header lacks a field, or says other releases than series.txt
diff          the diff holds something that a patch may not hold: see tool.series.patchfile
content       the patch adds a leftover of an editor, or a conflict marker
canonical     the file is not what ``tool export`` would write
character     the patch adds bidirectional or control characters, which make a review misleading
count         ``git apply --numstat``, unidiff and our reader do not agree on what the diff does
kernels       a kernel file imports something other than relatively, torch, triton, tilelang, numpy or
              the standard library, or does not parse
============= =====================================================================================
"""

from __future__ import annotations

import ast
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unidiff.errors import UnidiffParseError
from unidiff.patch import PatchSet

from tool.errors import UsageError
from tool.git import Git, GitFailed
from tool.series import patchfile
from tool.series.content import find_content_faults
from tool.series.kernels import find_kernels
from tool.series.layout import LOCK_FILE, PATCH_DIR, SERIES_FILE
from tool.series.model import Patch, Series, read_specifier
from tool.series.patchfile import PatchFile

_ALWAYS: Final = ("Origin", "Releases", "Drop-When")
_FATE: Final = ("Forwarded", "Applied-Upstream")
_PLAIN: Final = re.compile(r"[\w./+=,@-]+", re.ASCII)
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
    for name in (SERIES_FILE, LOCK_FILE):
        if (series.root / name).is_file():
            findings += _line_endings(name, (series.root / name).read_bytes())
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


def _line_endings(name: str, content: bytes) -> Iterator[Finding]:
    if b"\r\n" in content:
        yield Finding(
            "line endings",
            name,
            "has CRLF line endings, which git or an editor made; delete it, then: "
            f"git -c core.autocrlf=false checkout -- {name}",
        )


def _patch(patch: Patch) -> Iterator[Finding]:
    where = f"{PATCH_DIR}/{patch.name}"
    # The diff may hold CRLF lines of upstream; the first line of the file is ours.
    if damaged := list(_line_endings(where, patch.content.partition(b"\n")[0] + b"\n")):
        yield from damaged
        return
    try:
        parsed = patchfile.parse(patch.name, patch.content)
    except UsageError as err:
        yield from _characters(patch, None)
        yield Finding("diff", err.where or where, err.message)
        return
    yield from _characters(patch, parsed)
    yield from (Finding("header", where, message) for message in _header(patch, parsed))
    for fault in find_content_faults(parsed):
        line = f", line {fault.line}," if fault.line else ""
        yield Finding("content", where, f"{fault.path}{line} {fault.message}")
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
    if releases and read_specifier(releases) != patch.releases:
        yield f"Releases is {releases}, {SERIES_FILE}:{patch.line} says {patch.releases}"


def _characters(patch: Patch, parsed: PatchFile | None) -> Iterator[Finding]:
    """Of a diff only what it adds: nobody can change the lines that upstream has."""
    header = patch.content.count(b"\n") - parsed.diff.count(b"\n") if parsed else sys.maxsize
    first = {f.path: next(f.added_lines(), (0, b"")) for f in parsed.files} if parsed else {}
    starts = {line for number, line in first.values() if number == 1}
    for number, raw in enumerate(patch.content.split(b"\n"), start=1):
        if number > header and raw[:1] != b"+":
            continue
        line = raw.decode("utf-8", "replace")
        if number > header and raw[1:] in starts:
            line = line.replace("\ufeff", "", 1)  # a byte order mark, where Python takes it for one
        for char in line:
            # Cc: control characters but tab and a final CR; Cf: invisible format characters, bidi ones too.
            bad = unicodedata.category(char) in ("Cc", "Cf") and char not in "\t\r"
            if bad or char == "\ufffd" or (char == "\r" and not line.endswith("\r")):
                name = unicodedata.name(char, f"U+{ord(char):04X}")
                yield Finding("character", f"{PATCH_DIR}/{patch.name}:{number}", f"holds {name}")
                break


def _count(parsed: PatchFile) -> str | None:
    """Three readers, one diff: a difference means that one of them sees what the others do not."""
    ours = {
        file.path: (
            sum(line[:1] == b"+" for hunk in file.hunks for line in hunk.lines),
            sum(line[:1] == b"-" for hunk in file.hunks for line in hunk.lines),
        )
        for file in parsed.files
    }
    try:
        git = _numstat(parsed.diff)
    except GitFailed as err:
        return f"git cannot read it: {err.why}"
    if git != ours:
        return f"git apply counts {git}, the file says {ours}"
    if not all(_PLAIN.fullmatch(file.path) and file.hunks for file in parsed.files):
        return None  # unidiff reads neither quoted names nor files without lines
    try:
        read = PatchSet(parsed.diff.decode("utf-8", "replace"))
    except UnidiffParseError as err:
        return f"unidiff cannot read it: {err}"
    third = {file.path: (file.added, file.removed) for file in read}
    return None if third == ours else f"unidiff counts {third}, the file says {ours}"


def _numstat(diff: bytes) -> dict[str, tuple[int, int]]:
    # --numstat reads the diff without touching any repository; the folder only has to exist.
    raw = Git(Path("/nonexistent")).out("apply", "--numstat", "-z", "-p1", "-", stdin=diff)
    rows = (row.split("\t", 2) for row in raw.split("\0") if row)
    return {path: (int(added), int(removed)) for added, removed, path in rows}


def _kernels(folder: Path) -> Iterator[Finding]:
    for name, path in find_kernels(folder).items():
        where = f"{folder.name}/{name}"
        yield from _line_endings(where, path.read_bytes())
        if not name.endswith(".py"):
            continue
        try:
            for line, module in absolute_imports(path):
                root = module.split(".")[0]
                if root not in _KERNEL_IMPORTS and root not in sys.stdlib_module_names:
                    yield Finding("kernels", f"{where}:{line}", f"imports {root}")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
            yield Finding("kernels", where, f"does not parse: {err or type(err).__name__}")


def absolute_imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""
