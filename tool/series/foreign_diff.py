"""A diff that somebody else made, in any of the forms that ``git am`` takes, in one form.

git and this reader could understand a foreign diff differently: its four names of a file may differ, and
text between two files may look like a third. So the diff is read here once and written anew, and git
gets only what is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tool.errors import UsageError
from tool.series.patchfile import (
    EMPTY_BLOB,
    ROOT,
    Hunk,
    LineReader,
    is_diff_like,
    split_names,
    unquote_name,
)

_EXTENDED: Final = (
    "new file mode", "deleted file mode", "index", "similarity index", "dissimilarity index",
    "rename from", "rename to", "copy from", "copy to",
)  # fmt: skip


@dataclass(frozen=True)
class ForeignFile:
    """What a diff does to one file. ``mode`` is set for a file that is added or removed.

    ``source`` is the file that the old lines are of: another one than ``path`` where ``moved`` says that
    the file was renamed or copied.
    """

    path: str
    source: str
    moved: str | None
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
        old, new = _quote(f"a/{file.source}"), _quote(f"b/{file.path}")
        lines.append(f"diff --git {old} {new}".encode())
        if file.mode:
            lines.append(f"{'new' if file.created else 'deleted'} file mode {file.mode}".encode())
        if file.moved:
            lines.append(f"{file.moved} from {_quote(file.source)}".encode())
            lines.append(f"{file.moved} to {_quote(file.path)}".encode())
        if not file.hunks and file.moved:
            continue
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
        names = self.take().removeprefix("diff --git ")
        told = self._read_extended_header(names)
        moved = next((kind for kind in ("rename", "copy") if f"{kind} from" in told), None)
        if moved:
            source, path = (self._unquote(told.get(f"{moved} {end}", "")) for end in ("from", "to"))
            self.check_path(source)
            if not _are_names_of(names, source, path):
                raise self.error(f"the 'diff --git' line does not name {source} and {path}")
        else:
            source = path = self._strip(names)
        self.check_path(path)
        created, deleted = "new file mode" in told, "deleted file mode" in told
        mode = told.get("new file mode") or told.get("deleted file mode")
        for given in (mode, told.get("index", "").partition(" ")[2]):
            if given:
                self.check_mode(path, given)
        hunks: tuple[Hunk, ...] = ()
        if not self.at_end and self.text().startswith("--- "):
            self._check_name("--- ", "/dev/null" if created else source)
            self._check_name("+++ ", "/dev/null" if deleted else path)
            hunks = self.read_hunks(path)
            if not hunks:
                raise self.error(f"{path}: no hunks")
        elif not (created or deleted or moved):
            raise self.error(f"{path}: no hunks")
        if hunks and ((created and hunks[0].old_len) or (deleted and hunks[0].new_len)):
            raise self.error(f"{path}: the hunk is not that of a file added or removed whole")
        return ForeignFile(path, source, moved, created, deleted, mode, hunks)

    def _read_extended_header(self, names: str) -> dict[str, str]:
        """The lines between ``diff --git`` and the hunks, by their first words."""
        told: dict[str, str] = {}
        while not self.at_end:
            line = self.text()
            key = next((key for key in _EXTENDED if line.startswith(f"{key} ")), None)
            if key is None:
                self.refuse_what_is_not_text(names)
                break
            told[key] = line[len(key) + 1 :]
            self.take()
        return told

    def _unquote(self, text: str) -> str:
        try:
            return unquote_name(text)
        except ValueError as err:
            raise self.error(f"{text!r:.120} is not a file name: {err}") from err

    def _strip(self, names: str) -> str:
        """The path that both names mean, without a prefix of one folder."""
        found = {_without_prefix(name) for name in split_names(names) or ()}
        if len(found) != 1:
            raise self.error(
                f"the two names of 'diff --git {names:.160}' are not those of one file"
            )
        return found.pop()

    def _check_name(self, sign: str, wanted: str) -> None:
        line = self.text()
        name = self._unquote(line[4:].partition("\t")[0]) if line.startswith(sign) else ""
        if (name if wanted == "/dev/null" else _without_prefix(name)) != wanted:
            raise self.error(f"'{line:.120}' does not name {wanted}, as the lines above do")
        self.take()

    def error(self, message: str) -> UsageError:
        return UsageError(
            message,
            where=f"{self._name}, line {self._first + self._at} of the decoded diff",
            next_step="mend the diff, then import it again",
        )


def _are_names_of(names: str, source: str, path: str) -> bool:
    """Can ``names``, of a ``diff --git`` line, be split into ``source`` and ``path``?"""
    for at, char in enumerate(names):
        if char != " ":
            continue
        try:
            found = [_without_prefix(unquote_name(n)) for n in (names[:at], names[at + 1 :])]
        except ValueError:
            continue
        if found == [source, path]:
            return True
    return False


def _without_prefix(name: str) -> str:
    return name if name.startswith(ROOT) else name.partition("/")[2]
