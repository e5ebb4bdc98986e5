"""A patch file: a DEP-3 header, a line ``---``, and a git diff. Read strictly.

Only what a patch of this series may contain parses: text hunks on regular files below
``python/sglang/``, with full blob ids. A rename, a mode change, a symlink, a binary hunk or a path
outside the package is refused here, before git sees a byte. ``git apply`` itself would accept
several of them.

The header is DEP-3 (https://dep-team.pages.debian.net/deps/dep3/) plus ``Releases`` and
``Drop-When``. The same fields make the commit message in a worktree, so a message edited there
comes back as the header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from tool.errors import UsageError
from tool.git import NULL_OID

ROOT: Final = "python/sglang/"
SEPARATOR: Final = b"---\n"
NAME_TRAILER: Final = "Patch-Name"
SHA_TRAILER: Final = "Patch-Sha256"

_FIELD = re.compile(r"([A-Z][A-Za-z0-9-]*): ?(.*)")
_DIFF_LIKE = re.compile(r"^(diff --git |--- |\+\+\+ |@@ |Index: |index [0-9a-f]{7,}\.\.)")
_DIFF_GIT = re.compile(r"diff --git a/(\S+) b/(\S+)")
_INDEX = re.compile(r"index ([0-9a-f]{40})\.\.([0-9a-f]{40})(?: (\d{6}))?")
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_FILE_MODES: Final = ("100644", "100755")


@dataclass(frozen=True)
class Hunk:
    """One hunk: 1-based first line and length on both sides, and its body lines with their sign."""

    old_start: int
    old_len: int
    new_start: int
    new_len: int
    lines: tuple[bytes, ...]


@dataclass(frozen=True)
class FileDiff:
    """What the patch does to one file. ``before``/``after`` are blob ids, NULL_OID when there is none."""

    path: str
    before: str
    after: str
    hunks: tuple[Hunk, ...]


@dataclass(frozen=True)
class Header:
    """``fields`` keep their order and their folded text (continuation lines without the leading space)."""

    subject: str
    body: str
    fields: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key == name), None)


@dataclass(frozen=True)
class PatchFile:
    header: Header
    diff: bytes
    files: tuple[FileDiff, ...]


@lru_cache(maxsize=256)
def parse(name: str, content: bytes) -> PatchFile:
    """Parse one patch file; the same one is asked for at many places.

    Raises:
        UsageError: naming the patch and line, for anything a patch of this series may not contain.
    """
    head, mark, diff = content.partition(b"\n" + SEPARATOR)
    if not mark:
        raise _refuse(name, 1, "no line '---' between the header and the diff")
    header = parse_header(name, head.decode("utf-8", "strict") + "\n")
    first_line = head.count(b"\n") + 3
    files = tuple(_DiffReader(name, diff, first_line).files())
    if not files:
        raise _refuse(name, first_line, "the diff is empty")
    return PatchFile(header, diff, files)


def with_fields(header: Header, **fields: str) -> Header:
    """``header`` with these fields set in place, new ones at the end; ``_`` stands for ``-``."""
    wanted = {name.replace("_", "-"): value for name, value in fields.items()}
    kept = [(name, wanted.pop(name, value)) for name, value in header.fields]
    return replace(header, fields=(*kept, *wanted.items()))


def same_hunks(one: PatchFile, other: PatchFile) -> bool:
    """Do both read the same: the same lines, context included, whatever their position?"""
    return [(f.path, [h.lines for h in f.hunks]) for f in one.files] == [
        (f.path, [h.lines for h in f.hunks]) for f in other.files
    ]


def parse_header(name: str, text: str) -> Header:
    fields: list[tuple[str, list[str]]] = []
    for number, line in enumerate(_lines(text), start=1):
        if _DIFF_LIKE.match(line.lstrip()):
            raise _refuse(name, number, "the header holds something git would apply as a diff")
        if line.startswith(" ") and fields:
            fields[-1][1].append("" if line == " ." else line[1:])
        elif match := _FIELD.fullmatch(line):
            fields.append((match[1], [match[2]]))
        else:
            raise _refuse(name, number, f"not a header line: {line!r}")
    if not fields or fields[0][0] != "Description":
        raise _refuse(name, 1, "the header does not begin with a Description field")
    description = fields[0][1]
    return Header(
        subject=description[0],
        body="\n".join(description[1:]).strip("\n"),
        fields=tuple((key, "\n".join(lines)) for key, lines in fields[1:]),
    )


def render(header: Header, diff: bytes) -> bytes:
    """The canonical file: inverse of ``parse``.

    Raises:
        UsageError: a line of the header holds nothing but a full stop: folded, it would read as empty.
    """
    lines = [f"Description: {header.subject}"]
    lines += _folded(header, header.body) if header.body else []
    for key, value in header.fields:
        first, _, rest = value.partition("\n")
        lines.append(f"{key}: {first}")
        lines += _folded(header, rest) if "\n" in value else []
    return "\n".join(lines).encode() + b"\n" + SEPARATOR + diff


def _folded(header: Header, text: str) -> Iterator[str]:
    for line in _lines(text):
        if line == ".":
            raise UsageError(
                "a line holds only '.', which DEP-3 reads as an empty line",
                where=f"the header of {header.subject!r}",
                next_step="reword that line where it was written (--why, or git commit --amend)",
            )
        yield f" {line}" if line else " ."


def _lines(text: str) -> list[str]:
    """Only a newline ends a line, as in git; str.splitlines would end one at a form feed too."""
    return text.removesuffix("\n").split("\n")


def message(header: Header, name: str, sha256: str) -> str:
    """The commit message for a patch: subject, body, and the fields as trailers."""
    trailers = [*header.fields, (NAME_TRAILER, name), (SHA_TRAILER, sha256)]
    block = "\n".join(f"{key}: {value.replace(chr(10), chr(10) + ' ')}" for key, value in trailers)
    parts = [header.subject, header.body, block]
    return "\n\n".join(part for part in parts if part) + "\n"


def from_message(text: str) -> tuple[Header, str | None]:
    """A commit message back to (header, patch name): inverse of ``message``.

    The hash trailer is dropped: it follows from the content. A message without trailers gives no
    name.
    """
    paragraphs = text.strip("\n").split("\n\n")
    subject = paragraphs[0].replace("\n", " ")
    fields = list(_trailers(paragraphs[-1])) if len(paragraphs) > 1 else []
    body = "\n\n".join(paragraphs[1:-1] if fields else paragraphs[1:])
    name = next((value for key, value in fields if key == NAME_TRAILER), None)
    kept = tuple((k, v) for k, v in fields if k not in (NAME_TRAILER, SHA_TRAILER))
    return Header(subject, body, kept), name


def _trailers(paragraph: str) -> Iterator[tuple[str, str]]:
    fields: list[tuple[str, list[str]]] = []
    for line in _lines(paragraph):
        if line.startswith(" ") and fields:
            fields[-1][1].append(line[1:])
        elif match := _FIELD.fullmatch(line):
            fields.append((match[1], [match[2]]))
        else:
            return  # prose: the message has no trailer block
    yield from ((key, "\n".join(lines)) for key, lines in fields)


class _DiffReader:
    """Walks a diff line by line; ``lines`` keep their ending so that CR and a missing newline survive."""

    def __init__(self, name: str, diff: bytes, first_line: int) -> None:
        self._name = name
        self._lines = diff.split(b"\n")
        if self._lines[-1] == b"":
            self._lines.pop()
        self._first = first_line
        self._at = 0

    def files(self) -> Iterator[FileDiff]:
        seen: set[str] = set()
        while self._at < len(self._lines):
            file = self._file()
            if file.path in seen:
                raise self._error(f"{file.path} is patched twice; merge the two sections")
            seen.add(file.path)
            yield file

    def _file(self) -> FileDiff:
        match = _DIFF_GIT.fullmatch(self._text())
        if not match or match[1] != match[2]:
            raise self._error(f"expected 'diff --git a/PATH b/PATH', found {self._text()!r}")
        path = self._check_path(match[1])
        self._at += 1
        created = deleted = False
        if self._text().startswith(("new file mode ", "deleted file mode ")):
            created = self._text().startswith("new")
            deleted = not created
            if self._text().rsplit(" ", 1)[1] not in _FILE_MODES:
                raise self._error(f"{path}: only regular files may be added or removed")
            self._at += 1
        index = _INDEX.fullmatch(self._text())
        if not index:
            raise self._error(
                f"{path}: found {self._text()!r} where a full index line must stand "
                "(no renames, mode changes, symlinks or binary hunks; export with full blob ids)"
            )
        if index[3] is not None and index[3] not in _FILE_MODES:
            raise self._error(f"{path}: mode {index[3]} is not a regular file")
        self._at += 1
        self._expect("--- /dev/null" if created else f"--- a/{path}")
        self._expect("+++ /dev/null" if deleted else f"+++ b/{path}")
        hunks = tuple(self._hunks())
        if not hunks:
            raise self._error(f"{path}: no hunks")
        before = NULL_OID if created else index[1]
        after = NULL_OID if deleted else index[2]
        return FileDiff(path, before, after, hunks)

    def _hunks(self) -> Iterator[Hunk]:
        while self._at < len(self._lines) and (match := _HUNK.match(self._text())):
            old_len = int(match[2] or 1)
            new_len = int(match[4] or 1)
            self._at += 1
            body: list[bytes] = []
            old = new = 0
            while (old, new) != (old_len, new_len) or self._next_is(b"\\"):
                if self._at >= len(self._lines) or old > old_len or new > new_len:
                    raise self._error("the hunk's lines do not add up to its header")
                line = self._lines[self._at]
                old += line[:1] in (b" ", b"-")
                new += line[:1] in (b" ", b"+")
                if line[:1] not in (b" ", b"-", b"+", b"\\"):
                    raise self._error("a hunk line must begin with a space, '+', '-' or '\\'")
                body.append(line)
                self._at += 1
            yield Hunk(int(match[1]), old_len, int(match[3]), new_len, tuple(body))

    def _next_is(self, sign: bytes) -> bool:
        return self._at < len(self._lines) and self._lines[self._at].startswith(sign)

    def _check_path(self, path: str) -> str:
        parts = path.split("/")
        if not path.startswith(ROOT) or ".." in parts or "." in parts or "" in parts:
            raise self._error(f"{path} is outside {ROOT}")
        if parts[-1].startswith(".git") or ".git" in parts:
            raise self._error(f"{path}: a patch may not touch git's own files")
        return path

    def _expect(self, text: str) -> None:
        if self._text() != text:
            raise self._error(f"expected {text!r}, found {self._text()!r}")
        self._at += 1

    def _text(self) -> str:
        if self._at >= len(self._lines):
            raise self._error("the diff ends too early")
        return self._lines[self._at].decode("utf-8", "backslashreplace")

    def _error(self, message: str) -> UsageError:
        return _refuse(self._name, self._first + self._at, message)


def _refuse(name: str, line: int, message: str) -> UsageError:
    return UsageError(
        message, where=f"patches/{name}:{line}", next_step="mend the patch, then run: tool lint"
    )
