"""``series.txt``: which patches, in which order, for which sglang releases.

The file is quilt's ``series`` with a PEP 440 specifier per patch, grouped by the change each patch
belongs to::

    pin 0.5.23                                      the release used when none is named
    revision 1                                      the fork's own counter: 0.5.23+ada.1
    change kernel-swap >=0.5.9                      a change and the releases that need it
        kernel-swap/v0.5.23.patch ==0.5.23          a patch and the releases it was checked on
    change index-sharing >=0.5.9,<0.5.13 upstream 0.5.13: model code reads index_topk_freq

A change that upstream took keeps its line, its upper bound and the upstream reference, so the
whole life span stays readable. Indentation and ``#`` comments carry no meaning.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from tool.errors import UsageError
from tool.series.layout import KERNEL_DIR, LOCK_FILE, PATCH_DIR, SERIES_FILE
from tool.series.regular_file import read_regular_file

_PATCH_NAME = re.compile(r"([a-z0-9][a-z0-9-]{0,99})/[a-z0-9][a-z0-9._-]{0,99}\.patch")
_CHANGE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")
_MAX_SERIES: Final = 4 << 20
_MAX_PATCH: Final = 32 << 20
_MAX_WORD: Final = 200
"""Characters of a release or a specifier. Python refuses to read a number of more than 4,300 digits."""


@dataclass(frozen=True)
class Change:
    """One of the fork's changes: ``needed`` on these releases; taken by ``upstream`` since, if ever."""

    name: str
    needed: SpecifierSet
    upstream: str | None
    line: int


@dataclass(frozen=True)
class Patch:
    """One line of the series: a patch file and the releases it was proven on."""

    name: str
    releases: SpecifierSet
    change: str
    line: int
    path: Path
    content_override: bytes | None = field(default=None, repr=False)
    """Stands for the file's content where a patch is tried that no file holds yet."""

    def applies_to(self, release: Version) -> bool:
        return self.releases.contains(release, prereleases=True)

    @cached_property
    def content(self) -> bytes:
        if self.content_override is not None:
            return self.content_override
        try:
            return read_regular_file(self.path, _MAX_PATCH)
        except OSError as err:
            raise UsageError(
                f"cannot read patch {self.name}: {err.strerror}",
                where=f"{SERIES_FILE}:{self.line}",
                next_step=f"restore {self.path}, or take the line out of {SERIES_FILE}",
            ) from err

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Series:
    """The parsed series. ``root`` holds series.txt, series.lock, patches/ and ada_dsa/."""

    root: Path
    pin: Version
    revision: int
    changes: tuple[Change, ...]
    patches: tuple[Patch, ...]

    def for_release(self, release: Version) -> tuple[Patch, ...]:
        """The patches for ``release``, in order. Empty when the series does not know it."""
        return tuple(p for p in self.patches if p.applies_to(release))

    def change_of(self, patch: Patch) -> Change:
        return next(c for c in self.changes if c.name == patch.change)

    def find_patch(self, name: str, release: Version | None = None) -> Patch:
        """The patch that ``name`` means: ``CHANGE/FILE``, a change, or a file name that is there once.

        The suffix may be left out. Of a change it is the patch for ``release``.

        Raises:
            UsageError: no patch is meant, or several.
        """
        stem = name.removesuffix(".patch")
        found = [p for p in self.patches if p.name == f"{stem}.patch"]
        if not found:
            found = [
                p
                for p in self.patches
                if p.change == stem and (release is None or p.applies_to(release))
            ]
        if not found:
            found = [p for p in self.patches if p.path.name == f"{stem}.patch"]
        if len(found) == 1:
            return found[0]
        problem, known = "names several patches", [p.name for p in found]
        if not found:
            problem, known = "names no patch of the series", [p.name for p in self.patches]
            if own := [p.name for p in self.patches if p.change == stem]:
                problem, known = f"has no patch for v{release}", own
        raise UsageError(
            f"{name} {problem}",
            where=SERIES_FILE,
            why=f"there are: {', '.join(known)}",
            next_step="name one of these",
        )

    @property
    def lock_path(self) -> Path:
        return self.root / LOCK_FILE

    @property
    def kernel_dir(self) -> Path:
        return self.root / KERNEL_DIR


def parse_release(text: str) -> Version:
    """``v0.5.23`` or ``0.5.23`` → Version. Raises UsageError on anything else."""
    version = _read_version(text)
    if version is None:
        raise UsageError(
            f"{_shorten(text)!r} is not a release", next_step="write it as v0.5.23 or 0.5.23"
        )
    return version


def is_patch_name(text: str) -> bool:
    """Is ``text`` the name of a patch file, ``CHANGE/NAME.patch``, that stays below patches/?"""
    return _PATCH_NAME.fullmatch(text) is not None and ".." not in text


def read_specifier(text: str) -> SpecifierSet | None:
    """The PEP 440 specifier ``text``; None when it is not one of ordinary length."""
    try:
        found = SpecifierSet(text) if len(text) <= _MAX_WORD else None
    except InvalidSpecifier:
        return None
    return found or None


def _read_version(text: str) -> Version | None:
    """None when ``text`` is not a version of ordinary length."""
    try:
        return Version(text) if len(text) <= _MAX_WORD else None
    except InvalidVersion:
        return None


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_WORD else f"{text[:40]}…"


def load_series(root: Path) -> Series:
    """Read and validate ``root/series.txt``.

    Raises:
        UsageError: with the line number, for anything that does not parse.
    """
    path = root / SERIES_FILE
    try:
        text = read_regular_file(path, _MAX_SERIES).decode()
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(
            f"cannot read the series: {err}",
            where=str(path),
            next_step="restore the file from version control",
        ) from err
    return parse_series(root, text)


def parse_series(root: Path, text: str) -> Series:
    """The series that ``text`` would be in ``root``. Raises UsageError as ``load_series``."""
    return _Parser(root).parse(text)


class _Parser:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._line = 0
        self._pin: Version | None = None
        self._revision: int | None = None
        self._changes: list[Change] = []
        self._patches: list[Patch] = []

    def parse(self, text: str) -> Series:
        # As an editor and SeriesText count: a form feed in a comment does not end the line.
        for self._line, raw in enumerate(text.removesuffix("\n").split("\n"), start=1):
            words = raw.split("#", 1)[0].split()
            if words:
                self._directive(words)
        if self._pin is None:
            raise self._error(
                "the series names no default release", "add a line such as: pin 0.5.23"
            )
        if self._revision is None:
            raise self._error("the series has no revision", "add a line such as: revision 1")
        series = Series(
            self._root, self._pin, self._revision, tuple(self._changes), tuple(self._patches)
        )
        if not any(patch.applies_to(self._pin) for patch in series.patches):
            raise self._error(
                f"no patch applies to the pin {self._pin}", "widen a patch or move the pin"
            )
        return series

    def _directive(self, words: list[str]) -> None:
        match words:
            case ["pin", value]:
                self._once("pin", self._pin)
                self._pin = self._version(value)
            case ["revision", value] if re.fullmatch(r"[0-9]{1,9}", value):
                self._once("revision", self._revision)
                self._revision = int(value)
            case ["change", name, spec, *rest]:
                self._change(name, spec, rest)
            case [name, spec] if name.endswith(".patch"):
                self._patch(name, spec)
            case [name] if name.endswith(".patch"):
                raise self._error(
                    f"{name} has no release specifier", f"write for example: {name} =={self._pin}"
                )
            case _:
                raise self._error(
                    f"cannot read {_shorten(' '.join(words))!r}",
                    "a line is: pin RELEASE | revision N | change NAME SPECIFIER [upstream WHY] | "
                    "CHANGE/NAME.patch SPECIFIER (no spaces inside a specifier)",
                )

    def _change(self, name: str, spec: str, rest: list[str]) -> None:
        if not _CHANGE_NAME.fullmatch(name):
            raise self._error(
                f"{_shorten(name)!r} is not a change name", "use lower case, digits and dashes"
            )
        if any(c.name == name for c in self._changes):
            raise self._error(f"change {name} appears twice", "keep one of the two lines")
        if rest and (rest[0] != "upstream" or len(rest) == 1):
            raise self._error(
                f"unexpected text after the specifier of {name}",
                "write: upstream RELEASE: REFERENCE",
            )
        upstream = " ".join(rest[1:]) or None
        self._changes.append(Change(name, self._specifier(spec), upstream, self._line))

    def _patch(self, name: str, spec: str) -> None:
        if not is_patch_name(name):
            raise self._error(
                f"{_shorten(name)!r} is not a patch file name",
                "write CHANGE/NAME.patch: lower case, digits, dot, dash and underscore",
            )
        if any(p.name == name for p in self._patches):
            raise self._error(f"{name} appears twice", "keep one of the two lines")
        if not self._changes:
            raise self._error(f"{name} stands before any change line", "add: change NAME SPECIFIER")
        if name.partition("/")[0] != self._changes[-1].name:
            raise self._error(
                f"{name} is not in the folder of its change",
                f"move the file to {PATCH_DIR}/{self._changes[-1].name}/, or the line to its change",
            )
        self._patches.append(
            Patch(
                name=name,
                releases=self._specifier(spec),
                change=self._changes[-1].name,
                line=self._line,
                path=self._root / PATCH_DIR / name,
            )
        )

    def _once(self, what: str, seen: object) -> None:
        if seen is not None:
            raise self._error(f"a second {what} line", "keep one")

    def _version(self, text: str) -> Version:
        version = _read_version(text)
        if version is None:
            raise self._error(f"{_shorten(text)!r} is not a release", "write it as 0.5.23")
        return version

    def _specifier(self, text: str) -> SpecifierSet:
        found = read_specifier(text)
        if found is None:
            raise self._error(
                f"{_shorten(text)!r} is not a PEP 440 specifier",
                "write for example ==0.5.23 or >=0.5.9,<0.5.13",
            )
        return found

    def _error(self, message: str, next_step: str) -> UsageError:
        return UsageError(message, where=f"{SERIES_FILE}:{self._line}", next_step=next_step)
