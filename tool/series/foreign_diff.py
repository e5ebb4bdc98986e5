"""A diff that somebody else made, in any of the forms that ``git am`` takes, in one form.

git and this reader could understand a foreign diff differently: its four names of a file may differ, and
text between two files may look like a third. So the diff is read here once and written anew, and git
gets only what is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tool.series.patchfile import (
    EMPTY_BLOB,
    ROOT,
    Hunk,
    LineReader,
    is_diff_like,
    split_names,
    unquote_name,
)


@dataclass(frozen=True)
class ForeignFile:
    """What a diff does to one file. ``mode`` is set for a file that is added or removed."""

    path: str
    created: bool
    deleted: bool
    mode: str | None
    hunks: tuple[Hunk, ...]


def read_foreign_diff(name: str, diff: bytes, first_line: int = 1) -> tuple[ForeignFile, ...]:
    """The files of ``diff``, which begins with ``diff --git``.

    The names may have prefixes (``a/``, ``i/``) or none (``git diff --no-prefix``).

    Raises:
        UsageError: it holds what a patch may not, names that do not agree, or lines of a diff outside
            the hunks.
    """
    return tuple(_Reader(name, _without_cr(diff), first_line).files())


def render_foreign_diff(files: Sequence[ForeignFile]) -> bytes:
    """A diff that ``git apply -p1`` reads exactly as ``files``."""
    lines: list[bytes] = []
    for file in files:
        old, new = _quote(f"a/{file.path}"), _quote(f"b/{file.path}")
        lines.append(f"diff --git {old} {new}".encode())
        if file.mode:
            lines.append(f"{'new' if file.created else 'deleted'} file mode {file.mode}".encode())
        if not file.hunks:
            blobs = ("0" * 40, EMPTY_BLOB) if file.created else (EMPTY_BLOB, "0" * 40)
            lines.append("index {}..{}".format(*blobs).encode())
            continue
        lines.append(b"--- /dev/null" if file.created else f"--- {old}\t".encode())
        lines.append(b"+++ /dev/null" if file.deleted else f"+++ {new}\t".encode())
        for hunk in file.hunks:
            sides = (hunk.old_start, hunk.old_len, hunk.new_start, hunk.new_len)
            lines.append(b"@@ -%d,%d +%d,%d @@" % sides)
            lines += hunk.lines
    return b"\n".join(lines) + b"\n"


def _without_cr(diff: bytes) -> bytes:
    """``diff`` without the CRs that a mail program put at the ends of lines.

    git never ends a ``diff --git`` line with one, so such a line tells them from those of the files.
    """
    return diff.replace(b"\r\n", b"\n") if diff.partition(b"\n")[0].endswith(b"\r") else diff


def _quote(name: str) -> str:
    """``name`` as git quotes it; find_path_fault has refused control characters."""
    if name.isascii() and not {'"', "\\"} & set(name):
        return name
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').encode()
    return '"' + "".join(chr(b) if b < 128 else f"\\{b:03o}" for b in escaped) + '"'


class _Reader(LineReader):
    def files(self) -> Iterator[ForeignFile]:
        seen: set[str] = set()
        while not self.at_end:
            file = self._file()
            if file.path in seen:
                raise self.error(f"{file.path} is changed twice")
            seen.add(file.path)
            yield file
            if not self.at_end and not self.text().startswith("diff --git "):
                self._read_end()

    def _read_end(self) -> None:
        """A signature or a list's footer. Lines of a diff in it would be applied by ``git am``."""
        while not self.at_end:
            if is_diff_like(self.text()):
                raise self.error("a line of a diff stands outside the hunks")
            self.take()

    def _file(self) -> ForeignFile:
        line = self.take()
        names = split_names(line.removeprefix("diff --git "))
        path = self._strip(names)
        created = deleted = False
        mode = None
        while not self.at_end and not self.text().startswith(("--- ", "diff --git ")):
            words, _, last = self.text().rpartition(" ")
            if words in ("new file mode", "deleted file mode"):
                created, deleted, mode = words[0] == "n", words[0] == "d", last
                self.check_mode(path, mode)
            elif words.startswith("index ") and len(last) == 6:
                self.check_mode(path, last)
            elif not self.text().startswith("index "):
                self.refuse_what_is_not_text(path)
                break
            self.take()
        if self.at_end or not self.text().startswith("--- "):
            if not (created or deleted):
                raise self.error(f"{path}: no hunks")
            return ForeignFile(path, created, deleted, mode, ())
        self._check_name("--- ", "/dev/null" if created else path)
        self._check_name("+++ ", "/dev/null" if deleted else path)
        hunks = self.read_hunks()
        if not hunks:
            raise self.error(f"{path}: no hunks")
        if (created and hunks[0].old_len) or (deleted and hunks[0].new_len):
            raise self.error(f"{path}: the hunk is not that of a file added or removed whole")
        return ForeignFile(path, created, deleted, mode, hunks)

    def _strip(self, names: tuple[str, str] | None) -> str:
        """The path that both names mean, without a prefix of one folder."""
        found = {_without_prefix(name) for name in names} if names else set()
        if len(found) != 1:
            self._at -= 1
            raise self.error("the two names of the 'diff --git' line are not those of one file")
        path = found.pop()
        self.check_path(path)
        return path

    def _check_name(self, sign: str, wanted: str) -> None:
        line = self.text()
        try:
            name = unquote_name(line[4:].partition("\t")[0]) if line.startswith(sign) else ""
        except ValueError:
            name = ""
        if (name if wanted == "/dev/null" else _without_prefix(name)) != wanted:
            raise self.error(f"'{line:.120}' does not name {wanted}, as the lines above do")
        self.take()


def _without_prefix(name: str) -> str:
    return name if name.startswith(ROOT) else name.partition("/")[2]
