"""Edits of ``series.txt`` that keep comments, order and layout, and the arithmetic of ranges."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tool.errors import UsageError
from tool.series.layout import SERIES_FILE
from tool.series.model import Patch


class SeriesText:
    """The file's lines; every edit touches one line or adds one."""

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")

    def __str__(self) -> str:
        return "\n".join(self._lines)

    def respecify(self, name: str, releases: str) -> None:
        """Give a patch another range; a comment after it keeps its place."""
        at, match = self._find(name)
        self._lines[at] = f"{match[1]}{match[2]}{match[3]}{releases}{match[5]}"

    def insert_after(self, name: str, new: str, releases: str) -> None:
        """A line for the patch ``new`` below that of ``name``, in the same columns.

        Where the file has one column for all specifiers, that counts, and not the line of ``name``.
        """
        self._insert(self._find(name)[0] + 1, name, new, releases)

    def insert_before(self, name: str, new: str, releases: str) -> None:
        """As ``insert_after``, above that of ``name``."""
        self._insert(self._find(name)[0], name, new, releases)

    def _insert(self, at: int, name: str, new: str, releases: str) -> None:
        match = self._find(name)[1]
        column = self._find_column() or match.start(4)
        self._lines.insert(at, _format_line(match[1], new, releases, column))

    def _find_column(self) -> int | None:
        """Where the specifiers of all patches begin; None where the file has no such column.

        A name that is too long for the column has one space after it.
        """
        matches = [match for line in self._lines if (match := _PATCH.match(line))]
        padded = {match.start(4) for match in matches if len(match[3]) > 1}
        if len(padded) != 1 or any(match.start(4) < min(padded) for match in matches):
            return None
        return padded.pop()

    def set_value(self, word: str, value: str) -> None:
        """Give the line ``pin`` or ``revision`` another value; a comment after it stays."""
        line = re.compile(rf"(\s*{word}\s+)[^\s#]+(.*)$")
        self._lines = [line.sub(rf"\g<1>{value}\g<2>", text) for text in self._lines]

    def require(self, change: str, needed: str) -> None:
        """Let ``change`` be needed on the releases ``needed``; what follows on its line stays."""
        at = self._change(change)
        assert at is not None
        self._lines[at] = re.sub(r"(\s*change\s+\S+\s+)[^\s#]+", rf"\g<1>{needed}", self._lines[at])

    def append(self, change: str, new: str, releases: str, *, needed: str) -> None:
        """A line for the patch ``new`` at the end of ``change``.

        A change that is not there goes to the end of the file, ``needed`` on these releases.
        """
        at = self._change(change)
        line = _format_line("    ", new, releases, self._find_column() or 0)
        if at is None:
            while self._lines and not self._lines[-1].strip():
                self._lines.pop()
            self._lines += ["", f"change {change} {needed}", line, ""]
            return
        last = at
        for number in range(at + 1, len(self._lines)):
            words = self._lines[number].split("#", 1)[0].split()
            if words[:1] == ["change"]:
                break
            if words:
                last = number
        match = _PATCH.match(self._lines[last]) if last != at else None
        if match:
            self.insert_after(match[2], new, releases)
        else:
            self._lines.insert(last + 1, line)

    def drop(self, name: str, comment: str) -> None:
        """Replace a patch's line by a comment; that of its change too, when it has no other patch."""
        at, match = self._find(name)
        self._lines[at] = f"{match[1]}# {comment}"
        change = name.partition("/")[0]
        head = self._change(change)
        if head is not None and not any(
            (other := _PATCH.match(line)) and other[2].startswith(f"{change}/")
            for line in self._lines
        ):
            self._lines[head] = f"# {self._lines[head].strip()}"

    def reorder(self, names: Sequence[str]) -> None:
        """Let the patches ``names`` stand in this order, and their changes in that of their patches.

        Raises:
            UsageError: the patches of a change would not stand together.
        """
        changes = list(dict.fromkeys(name.partition("/")[0] for name in names))
        if [name.partition("/")[0] for name in names] != [
            name.partition("/")[0]
            for change in changes
            for name in names
            if name.startswith(f"{change}/")
        ]:
            raise UsageError(
                "in this order the patches of a change do not stand together",
                where=", ".join(names),
                next_step="series.txt lists change by change: order the commits so, or squash them",
            )
        for change in changes:
            own = [name for name in names if name.startswith(f"{change}/")]
            places = sorted(self._find(name)[0] for name in own)
            lines = [self._lines[self._find(name)[0]] for name in own]
            for place, line in zip(places, lines, strict=True):
                self._lines[place] = line
        blocks = {change: self._block(change) for change in changes}
        texts = {change: self._lines[slice(*block)] for change, block in blocks.items()}
        # From the last place to the first: a block of another length moves only what comes after it.
        places_of_blocks = sorted(blocks.values())
        for (start, end), change in reversed(list(zip(places_of_blocks, changes, strict=True))):
            self._lines[start:end] = texts[change]

    def _block(self, change: str) -> tuple[int, int]:
        """The lines of a change, from its own to its last patch."""
        start = self._change(change)
        assert start is not None
        own = [
            at
            for at, line in enumerate(self._lines)
            if (match := _PATCH.match(line)) and match[2].startswith(f"{change}/")
        ]
        return start, max(own) + 1

    def retire(self, change: str, needed: SpecifierSet, bound: Version, reference: str) -> None:
        """Note that upstream has ``change`` since ``bound``; a reference that is there stays."""
        at = self._change(change)
        if at is None or re.search(r"\supstream\s", self._lines[at]):
            return
        kept = [str(s) for s in needed if not s.operator.startswith("<")]
        spec = ",".join([*kept, f"<{bound}"])
        code, mark, comment = self._lines[at].partition("#")
        line = f"change {change} {spec} upstream {bound}: {' '.join(reference.split())}"
        # A '#' would begin a comment; a reference to a pull request often has one.
        self._lines[at] = line.replace("#", "PR ") + (f"  {mark}{comment}" if mark else "")
        assert code.split()[1] == change

    def _find(self, name: str) -> tuple[int, re.Match[str]]:
        for at, line in enumerate(self._lines):
            match = _PATCH.match(line)
            if match and match[2] == name:
                return at, match
        raise UsageError(f"{name} is not listed", where=SERIES_FILE)

    def _change(self, change: str) -> int | None:
        for at, line in enumerate(self._lines):
            if line.split("#", 1)[0].split()[:2] == ["change", change]:
                return at
        return None


_PATCH = re.compile(r"(\s*)([^\s#]+\.patch)(\s+)([^\s#]+)(.*)$")


def _format_line(indent: str, name: str, releases: str, column: int) -> str:
    """The line of a patch; ``releases`` begins at ``column``, or after one space where that is later."""
    return f"{indent}{name}".ljust(column - 1) + f" {releases}"


def make_specifier(checked: Collection[Version]) -> str:
    """The specifier from the first to the last of ``checked``."""
    first, last = min(checked), max(checked)
    return f"=={first}" if first == last else f">={first},<={last}"


def widen_specifier(
    patch: Patch, target: Version, checked: Collection[Version], carried: Collection[Version]
) -> str | None:
    """``patch``'s range with ``target``; None when that would claim a release it was not checked on."""
    if patch.applies_to(target):
        return str(patch.releases)
    wanted = SpecifierSet(text := make_specifier({*checked, target}))
    claimed = {v for v in carried if wanted.contains(v, prereleases=True)}
    return None if claimed - {*checked, target} else text


def name_next_file(name: str, release: Version, taken: Collection[str]) -> str:
    """The file for what ``name`` becomes on ``release``: the same folder and stem, and the release.

    ``kernel-swap/v0.5.22.patch`` becomes ``kernel-swap/v0.5.23.patch``; ``kernel-swap/rope.patch``
    becomes ``kernel-swap/rope-v0.5.23.patch``.
    """
    stem = find_stem(name)
    wanted = f"{stem}v{release}.patch"
    number = 2
    while wanted in taken:
        wanted = f"{stem}v{release}-{number}.patch"
        number += 1
    return wanted


def find_stem(name: str) -> str:
    """What the files of one patch for several releases have in common: ``name_next_file`` keeps it."""
    stem = re.sub(r"(?<=[/-])v\d[0-9a-z.]*(-\d+)?$", "", name.removesuffix(".patch"))
    return stem if stem.endswith(("/", "-")) else f"{stem}-"


def exclude_release(releases: SpecifierSet, release: Version, checked: Collection[Version]) -> str:
    """A specifier of ``checked`` that leaves ``release`` out, and what ``releases`` leaves out."""
    spans = make_specifier(checked)
    others = {Version(s.version) for s in releases if s.operator == "!="} | {release}
    inside = [v for v in sorted(others) if min(checked) < v < max(checked)]
    return ",".join([spans, *(f"!={v}" for v in inside)])


def widen_needed(needed: SpecifierSet, release: Version) -> str | None:
    """``needed`` with ``release``, which is before its lower bound; None when another bound excludes it."""
    lower = [s for s in needed if s.operator in (">=", "==")]
    others = [str(s) for s in needed if s not in lower]
    if len(lower) != 1 or not SpecifierSet(",".join(others)).contains(release, prereleases=True):
        return None
    bound = lower[0]
    upper = [f"<={bound.version}"] if bound.operator == "==" else []
    return ",".join([f">={release}", *upper, *others]) if release < Version(bound.version) else None
