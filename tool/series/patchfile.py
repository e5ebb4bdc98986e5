"""A patch file: a DEP-3 header, a line ``---``, and a git diff. Read strictly.

Only what a patch of this series may contain parses: text hunks on regular files below
``python/sglang/``, with full blob ids, and empty files added or removed. A file may have any name that
is text: git writes a name with other characters than printable ASCII in quotes. A rename, a mode
change, a symlink, a binary hunk or a path outside the package is refused here, before git sees a byte.
``git apply`` itself would accept several of them.

The header is DEP-3 (https://dep-team.pages.debian.net/deps/dep3/) plus ``Releases`` and
``Drop-When``. The same fields make the commit message in a worktree, so a message edited there
comes back as the header.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from tool.errors import UsageError
from tool.git import NULL_OID, blob_id

ROOT: Final = "python/sglang/"
SEPARATOR: Final = b"---\n"
NAME_TRAILER: Final = "Patch-Name"
SHA_TRAILER: Final = "Patch-Sha256"
TREE_TRAILER: Final = "Kernels-Tree"
RELEASE_TRAILER: Final = "Sglang-Release"
"""``tool apply`` writes these four into its commits; a patch's header may not hold them."""

_RESERVED: Final = frozenset({NAME_TRAILER, SHA_TRAILER, TREE_TRAILER, RELEASE_TRAILER})
_RESERVED_WORDS: Final = "is a trailer that only tool apply writes"
_FIELD = re.compile(r"([A-Z][A-Za-z0-9-]*): ?(.*)")
_DIFF_LIKE = re.compile(r"(diff --git |--- |\+\+\+ |@@ |Index: |index [0-9a-f]{7,}\.\.)")
_INDEX = re.compile(r"index ([0-9a-f]{40})\.\.([0-9a-f]{40})(?: (\d{6}))?")
# Nine digits: Python refuses to read a number of more than 4,300.
_HUNK = re.compile(rb"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")
_FILE_MODES: Final = ("100644", "100755")
_MODE_NAMES: Final = {"120000": "a symlink", "160000": "a submodule", "040000": "a folder"}
_NOT_TEXT: Final = (
    ((b"old mode ", b"new mode "), "changes the mode of the file"),
    ((b"similarity ", b"dissimilarity ", b"rename ", b"copy "), "is a rename or a copy"),
    ((b"GIT binary patch", b"Binary files "), "is binary"),
)
EMPTY_BLOB: Final = blob_id(b"")
_ESCAPE = re.compile(rb'\\([abtnvfr"\\]|[0-3][0-7]{2})')
_ESCAPES: Final = dict(zip(b'abtnvfr"\\', b'\a\b\t\n\v\f\r"\\', strict=True))


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

    def added_lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines the patch adds, with their 1-based number in the new file."""
        for hunk in self.hunks:
            number = hunk.new_start
            for line in hunk.lines:
                if line.startswith(b"+"):
                    yield number, line[1:]
                number += line[:1] in (b"+", b" ")

    def apply(self, content: bytes) -> bytes | None:
        """``content`` with every hunk applied on its own line; None where one does not fit there."""
        old = _LINE.findall(content)
        new: list[bytes] = []
        at = 0
        for hunk in self.hunks:
            begin = hunk.old_start - bool(hunk.old_len)  # without lines: the line before the gap
            end = begin + hunk.old_len
            if begin < at or old[begin:end] != list(_list_side(hunk, b"-")):
                return None
            new += old[at:begin]
            new += _list_side(hunk, b"+")
            at = end
        return b"".join([*new, *old[at:]])


def _list_side(hunk: Hunk, sign: bytes) -> Iterator[bytes]:
    """The lines of a hunk as they are in the file before (``-``) or after it (``+``)."""
    for line, following in zip(hunk.lines, (*hunk.lines[1:], b""), strict=True):
        if line[:1] in (b" ", sign):
            yield line[1:] + (b"" if following.startswith(b"\\") else b"\n")


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
    if content.partition(b"\n")[0].endswith(b"\r"):
        raise _refuse(name, 1, "has CRLF line endings")
    head, mark, diff = content.partition(b"\n" + SEPARATOR)
    if not mark:
        raise _refuse(name, 1, "no line '---' between the header and the diff")
    try:
        text = head.decode()
    except UnicodeDecodeError as err:
        line = head.count(b"\n", 0, err.start) + 1
        raise _refuse(name, line, "the header is not UTF-8") from None
    header = parse_header(name, text + "\n")
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


def is_diff_like(line: str) -> bool:
    """Would git take this line of a message, quoted or indented as it may be, for one of a diff?"""
    return _DIFF_LIKE.match(line.lstrip(" \t>")) is not None


def find_path_fault(path: str) -> str | None:
    """Why a patch may not name ``path``, to be read after the path; None when it may."""
    parts = path.split("/")
    if not path.startswith(ROOT) or {"..", ".", ""} & set(parts):
        return f"is outside {ROOT}"
    if parts[-1].lower().startswith(".git") or any(part.lower() == ".git" for part in parts):
        return "is one of git's own files, which a patch may not touch"
    kinds = {unicodedata.category(char) for char in path}
    if "Cs" in kinds:
        return "is not UTF-8"
    if {"Cc", "Cf"} & kinds:
        return "has a control character in its name"
    return None


def unquote_name(text: str) -> str:
    """A file name as git prints it, with or without quotes. Raises ValueError.

    Rules: ``core.quotePath`` in git-config(1) and ``quote_c_style`` in git's quote.c.
    """
    if not text.startswith('"'):
        return text
    inner = text[1:-1].encode("utf-8", "surrogateescape")
    if len(text) < 2 or not text.endswith('"') or b'"' in re.sub(rb"\\.", b"", inner):
        raise ValueError("a quote is not closed")
    plain = _ESCAPE.sub(_unescape, inner)
    return plain.decode("utf-8", "surrogateescape")


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return bytes([_ESCAPES[code[0]] if len(code) == 1 else int(code, 8)])


def parse_header(name: str, text: str) -> Header:
    fields: list[tuple[str, list[str]]] = []
    for number, line in enumerate(_lines(text), start=1):
        if is_diff_like(line):
            raise _refuse(name, number, "the header holds something git would apply as a diff")
        if line.startswith(" ") and fields:
            if line[1:].partition(":")[0] in _RESERVED:
                raise _refuse(name, number, f"{line[1:].partition(':')[0]} {_RESERVED_WORDS}")
            fields[-1][1].append("" if line == " ." else line[1:])
        elif match := _FIELD.fullmatch(line):
            if match[1] in _RESERVED:
                raise _refuse(name, number, f"{match[1]} {_RESERVED_WORDS}")
            fields.append((match[1], [match[2]]))
        else:
            raise _refuse(name, number, f"not a header line: {line!r:.200}")
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
        UsageError: a line of the header holds nothing but a full stop (folded, it would read as empty),
            or is not UTF-8.
    """
    lines = [f"Description: {header.subject}"]
    lines += _folded(header, header.body) if header.body else []
    for key, value in header.fields:
        first, _, rest = value.partition("\n")
        lines.append(f"{key}: {first}")
        lines += _folded(header, rest) if "\n" in value else []
    try:
        return "\n".join(lines).encode() + b"\n" + SEPARATOR + diff
    except UnicodeEncodeError:
        raise UsageError(
            "the header is not UTF-8",
            where=f"the header of {ascii(header.subject)}",
            next_step="write it in UTF-8",
        ) from None


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
    name. Of the messages of several commits, which git puts together when they are squashed, the first
    one gives the fields; the others are text of the body.
    """
    paragraphs, blocks = _paragraphs(text)
    subject = paragraphs[0].replace("\n", " ")
    named = [at for at, fields in blocks.items() if _find(fields, NAME_TRAILER)]
    at = named[0] if named else max(blocks, default=-1)
    if not named and at != len(paragraphs) - 1:
        at = -1  # fields in the middle of a message that is nobody's patch are text
    fields = blocks.get(at, ())
    skipped = {at, *named}
    body = "\n\n".join(p for i, p in enumerate(paragraphs[1:], start=1) if i not in skipped)
    kept = tuple((k, v) for k, v in fields if k not in (NAME_TRAILER, SHA_TRAILER))
    return Header(subject, body, kept), _find(fields, NAME_TRAILER)


def squashed_names(text: str) -> list[str]:
    """The patches whose commits were squashed into the one that ``from_message`` names."""
    _, blocks = _paragraphs(text)
    names = [name for fields in blocks.values() if (name := _find(fields, NAME_TRAILER))]
    return names[1:]


_Fields = tuple[tuple[str, str], ...]


def _paragraphs(text: str) -> tuple[list[str], dict[int, _Fields]]:
    """The paragraphs of a message and, by their place, those after the first that are trailers."""
    paragraphs = text.strip("\n").split("\n\n")
    blocks = {at: tuple(_trailers(p)) for at, p in enumerate(paragraphs) if at}
    return paragraphs, {at: fields for at, fields in blocks.items() if fields}


def _find(fields: _Fields, name: str) -> str | None:
    return next((value for key, value in fields if key == name), None)


def _trailers(paragraph: str) -> Iterator[tuple[str, str]]:
    fields: list[tuple[str, list[str]]] = []
    for line in _lines(paragraph):
        if line.startswith(" ") and fields:
            fields[-1][1].append(line[1:])
        elif match := _FIELD.fullmatch(line):
            fields.append((match[1], [match[2]]))
        else:
            return  # prose: this is no block of trailers
    yield from ((key, "\n".join(lines)) for key, lines in fields)


class LineReader:
    """Walks a diff line by line; a CR at the end of a line is a part of it, as in git."""

    def __init__(self, name: str, diff: bytes, first_line: int) -> None:
        self._name = name
        self._lines = diff.split(b"\n")
        if self._lines[-1] == b"":
            self._lines.pop()
        self._first = first_line
        self._at = 0

    def read_hunks(self, path: str) -> tuple[Hunk, ...]:
        """The hunks of ``path`` that begin here; a hunk ends where its header says."""
        hunks = []
        while not self.at_end and (match := _HUNK.match(self._lines[self._at])):
            old_len, new_len = int(match[2] or 1), int(match[4] or 1)
            self._at += 1
            body: list[bytes] = []
            old = new = 0
            while (old, new) != (old_len, new_len) or self._next_is(b"\\ "):
                if self.at_end or old > old_len or new > new_len:
                    raise self.error("the hunk's lines do not add up to its header")
                line = self._lines[self._at]
                if line[:1] not in (b" ", b"-", b"+", b"\\"):
                    raise self.error("a hunk line must begin with a space, '+', '-' or '\\'")
                if b"\0" in line:
                    raise self.error(f"{path} is binary: the line holds a NUL byte")
                old += line[:1] in (b" ", b"-")
                new += line[:1] in (b" ", b"+")
                body.append(line)
                self._at += 1
            hunks.append(Hunk(int(match[1]), old_len, int(match[3]), new_len, tuple(body)))
        return tuple(hunks)

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._lines)

    def text(self) -> str:
        """The current line. Raises UsageError at the end."""
        if self.at_end:
            raise self.error("the diff ends too early")
        return self._lines[self._at].decode("utf-8", "surrogateescape")

    def take(self) -> str:
        """The current line, and go to the next one."""
        text = self.text()
        self._at += 1
        return text

    def check_mode(self, path: str, mode: str) -> None:
        if mode not in _FILE_MODES:
            kind = _MODE_NAMES.get(mode, f"of mode {mode}")
            raise self.error(f"{path} is {kind}; a patch holds only regular files")

    def check_path(self, path: str) -> None:
        if fault := find_path_fault(path):
            raise self.error(f"{_printable(path)} {fault}")

    def refuse_what_is_not_text(self, path: str) -> None:
        """Raise the reason, if this line or the next one says that this is no change of text."""
        for line in self._lines[self._at : self._at + 2]:
            for starts, reason in _NOT_TEXT:
                if line.startswith(starts):
                    raise self.error(f"{path} {reason}; a patch changes the text of regular files")

    def error(self, message: str) -> UsageError:
        return _refuse(self._name, self._first + self._at, message)

    def _next_is(self, sign: bytes) -> bool:
        return not self.at_end and self._lines[self._at].startswith(sign)


class _DiffReader(LineReader):
    """The diff of a patch file: every line has its place."""

    def files(self) -> Iterator[FileDiff]:
        seen: set[str] = set()
        while not self.at_end:
            file = self._file()
            if file.path in seen:
                raise self.error(f"{file.path} is patched twice; merge the two sections")
            seen.add(file.path)
            yield file

    def _file(self) -> FileDiff:
        path = self._path()
        self.check_path(path)
        self._at += 1
        created, deleted = self._created_or_deleted(path)
        before, after = self._blobs(path, created, deleted)
        if self.at_end or not self.text().startswith("--- "):
            self.refuse_what_is_not_text(path)
            if (before, after) in ((NULL_OID, EMPTY_BLOB), (EMPTY_BLOB, NULL_OID)):
                return FileDiff(path, before, after, ())
        self._expect("--- ", "/dev/null" if created else f"a/{path}")
        self._expect("+++ ", "/dev/null" if deleted else f"b/{path}")
        hunks = self.read_hunks(path)
        if not hunks:
            raise self.error(f"{path}: no hunks")
        if (created and hunks[0].old_len) or (deleted and hunks[0].new_len):
            raise self.error(f"{path}: the hunk is not that of a file added or removed whole")
        return FileDiff(path, before, after, hunks)

    def _path(self) -> str:
        line = self.text()
        found = (
            split_names(line.removeprefix("diff --git ")) if line.startswith("diff --") else None
        )
        if found is None or found[0] != f"a/{found[1][2:]}" or not found[1].startswith("b/"):
            raise self.error(
                f"expected 'diff --git a/PATH b/PATH', found {_printable(line)!r:.200}"
            )
        return found[1][2:]

    def _created_or_deleted(self, path: str) -> tuple[bool, bool]:
        words, _, mode = self.text().rpartition(" ")
        kind = words in ("new file mode", "deleted file mode")
        if kind:
            self.check_mode(path, mode)
            self._at += 1
        return kind and words.startswith("new"), kind and words.startswith("deleted")

    def _blobs(self, path: str, created: bool, deleted: bool) -> tuple[str, str]:
        index = _INDEX.fullmatch(self.text())
        if not index:
            self.refuse_what_is_not_text(path)
            raise self.error(
                f"{path}: found {_printable(self.text())!r:.200} where a full index line must stand "
                "(export with full blob ids: --full-index)"
            )
        if index[3] is not None:
            self.check_mode(path, index[3])
        if (index[1] == NULL_OID, index[2] == NULL_OID) != (created, deleted):
            raise self.error(f"{path}: the index line and the mode line do not say the same")
        self._at += 1
        return index[1], index[2]

    def _expect(self, sign: str, name: str) -> None:
        line = self.text()
        try:
            same = line.startswith(sign) and unquote_name(line[4:].removesuffix("\t")) == name
        except ValueError:
            same = False
        if not same:
            raise self.error(f"expected '{sign}{name}', found {_printable(line)!r:.200}")
        self._at += 1


def split_names(text: str) -> tuple[str, str] | None:
    """The two names of a ``diff --git`` line for one file; None when they cannot be told apart.

    A name with a space stands there without quotes, so only two names that are the same after their
    first folder can be told apart, as in git.
    """
    if text.startswith('"'):
        quoted = re.fullmatch(r'("(?:[^"\\]|\\.)*") ("(?:[^"\\]|\\.)*")', text)
        try:
            return (unquote_name(quoted[1]), unquote_name(quoted[2])) if quoted else None
        except ValueError:
            return None
    half = len(text) // 2
    one, other = text[:half], text[half + 1 :]
    if len(text) % 2 == 0 or text[half] != " ":
        return None
    same = one == other or one.partition("/")[2] == other.partition("/")[2] != ""
    return (one, other) if same else None


def _printable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _refuse(name: str, line: int, message: str) -> UsageError:
    return UsageError(
        message, where=f"patches/{name}:{line}", next_step="mend the patch, then run: tool lint"
    )
