"""The fork's version in the places a wheel keeps it: METADATA, the dist-info folder,
``_version.py``.

All must agree: pip 23 relies on METADATA, pip 26 on the file name, and neither says so.

``sglang/_version.py`` gets the fork's version too. ``sglang/version.py`` of every release reads it before
the installed metadata, and the string goes to ``sglang version``, ``/server_info`` and the logs, where a
user must see that this is the fork. No release compares the string (0.5.9 and 0.5.23 only print and
report it). The tuple beside it stays the release's, because code outside would compare that. One line
changes, and the change has an exact inverse, so the file can still be compared with the release's blob.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import Specifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tool.errors import IntegrityError, UsageError

VERSION_FILE: Final = "sglang/_version.py"
_LOCAL_PREFIX: Final = "ada"
_FORK_LABEL: Final = re.compile(rf"{_LOCAL_PREFIX}\.([1-9][0-9]*)(?:\.g([0-9a-f]{{12}}))?")
_REQUIRES: Final = b"Requires-Dist:"


def fork_version(release: Version, revision: int, commit: str | None = None) -> Version:
    """``0.5.23`` and 1 → ``0.5.23+ada.1``, which satisfies ``==0.5.23``.

    A git ref that is no release has its commit in it: ``0.5.23+ada.1.g0123456789ab``.

    Raises:
        UsageError: ``revision`` is not positive, or ``release`` has a local part already.
    """
    if revision < 1 or release.local:
        raise UsageError(f"no fork version for release {release}, revision {revision}")
    suffix = f".g{commit[:12]}" if commit else ""
    return Version(f"{release}+{_LOCAL_PREFIX}.{revision}{suffix}")


def is_fork(version: Version) -> bool:
    """Whether ``version`` is one :func:`fork_version` gives."""
    return _FORK_LABEL.fullmatch(version.local or "") is not None


def read_commit(version: Version) -> str | None:
    """The first 12 digits of the commit in a fork's version; None in that of a release."""
    match = _FORK_LABEL.fullmatch(version.local or "")
    return match[2] if match else None


def public_release(version: Version) -> Version:
    """``0.5.23+ada.1`` → ``0.5.23``."""
    return Version(version.public)


def replace_version(data: bytes, old: Version, new: Version) -> bytes:
    """``_version.py`` with ``old`` replaced by ``new``; with the two swapped, the exact inverse.

    Raises:
        IntegrityError: the assignment setuptools-scm writes is not there exactly once.
    """
    before, after = (f"\n__version__ = version = '{v}'\n".encode() for v in (old, new))
    if data.count(before) != 1:
        raise IntegrityError(
            f"the file does not set __version__ = version = '{old}' exactly once",
            where=VERSION_FILE,
            why="the fork's version is written there, and taken out again to verify",
        )
    return data.replace(before, after)


def replace_metadata(data: bytes, old: Version, new: Version, requirements: Sequence[str]) -> bytes:
    """METADATA with the version and ``requirements`` after the last Requires-Dist; all else as it
    was.

    Raises:
        IntegrityError: the header does not state ``Version: old`` exactly once.
    """
    lines, body = _split(data)
    stated = [n for n, line in enumerate(lines) if line.startswith(b"Version:")]
    if len(stated) != 1 or _value(lines[stated[0]]) != str(old):
        raise IntegrityError(
            f"METADATA does not state Version: {old} exactly once", where="METADATA"
        )
    lines[stated[0]] = f"Version: {new}\n".encode()
    end = max(
        (n + 1 for n, line in enumerate(lines) if line.startswith(_REQUIRES)), default=len(lines)
    )
    while end < len(lines) and lines[end][:1] in (b" ", b"\t"):  # the field goes on
        end += 1
    lines[end:end] = [f"Requires-Dist: {requirement}\n".encode() for requirement in requirements]
    return b"".join(lines) + body


def read_version(data: bytes) -> Version:
    """The version in ``_version.py``. Raises IntegrityError when it states none."""
    match = re.search(rb"^__version__ = version = '([^']+)'$", data, re.MULTILINE)
    try:
        return Version(match[1].decode() if match else "")
    except ValueError as err:
        raise IntegrityError("the file states no version", where=VERSION_FILE) from err


def read_identity(metadata: bytes) -> tuple[str, str]:
    """Name and version as METADATA states them; empty where it does not, or does twice."""
    fields: dict[bytes, list[str]] = {b"name": [], b"version": []}
    for line in _split(metadata)[0]:
        key = line.partition(b":")[0].lower()
        if key in fields:
            fields[key].append(_value(line))
    name, version = (found[0] if len(found) == 1 else "" for found in fields.values())
    return name, version


def read_requires_python(metadata: bytes) -> str | None:
    """The value of Requires-Python; None where METADATA has none."""
    lines = _split(metadata)[0]
    found = (_value(line) for line in lines if line.lower().startswith(b"requires-python:"))
    return next(found, None)


def find_missing_requirements(metadata: bytes, wanted: Iterable[str]) -> tuple[str, ...]:
    """Those of ``wanted`` that the wheel's own Requires-Dist do not already imply, in order.

    A requirement that cannot be compared counts as missing: a redundant line does no harm.

    Raises:
        UsageError: one does not parse, or the release pins a version it excludes.
    """
    present = [_requirement(text) for text in _stated_requirements(_split(metadata)[0])]
    missing: dict[str, None] = {}
    for text in wanted:
        new = _requirement(text)
        same = [r for r in present if canonicalize_name(r.name) == canonicalize_name(new.name)]
        for old in same:
            if old.marker in (None, new.marker) and (pin := _pin(old.specifier)):
                _check_pin(new, pin)
        if not any(_implies(old, new) for old in same):
            missing[str(new)] = None
    return tuple(missing)


def _split(metadata: bytes) -> tuple[list[bytes], bytes]:
    """The header's lines with their newlines, and the rest: the blank line and the description."""
    end = metadata.find(b"\n\n") + 1 or len(metadata)
    return re.split(rb"(?<=\n)", metadata[:end]), metadata[end:]


def _value(line: bytes) -> str:
    """What stands behind the colon of a header line."""
    return line.partition(b":")[2].strip(b" \n").decode(errors="replace")


def _stated_requirements(lines: Sequence[bytes]) -> list[str]:
    """The values of Requires-Dist, continuation lines included."""
    found: list[str] = []
    goes_on = False
    for line in lines:
        if goes_on and line[:1] in (b" ", b"\t"):
            found[-1] += line.decode(errors="replace").rstrip("\n")
            continue
        goes_on = line.startswith(_REQUIRES)
        if goes_on:
            found.append(_value(line))
    return found


def _requirement(text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as err:
        raise UsageError(f"{text!r} is not a requirement", why=str(err)) from err


def _check_pin(new: Requirement, pin: Version) -> None:
    if not new.specifier.contains(pin, prereleases=True):
        raise UsageError(
            f"the kernels need {new}, but the release pins {new.name}=={pin}",
            why="no environment could satisfy both, so the wheel would not install",
            next_step="widen the requirement, or drop the release from series.txt",
        )


def _implies(old: Requirement, new: Requirement) -> bool:
    if old.marker not in (None, new.marker) or not new.extras <= old.extras:
        return False
    pin = _pin(old.specifier)
    if pin and new.specifier.contains(pin, prereleases=True):
        return True
    return all(any(_clause_implies(o, n) for o in old.specifier) for n in new.specifier)


def _clause_implies(old: Specifier, new: Specifier) -> bool:
    if str(old) == str(new):
        return True
    return (
        new.operator == ">="
        and old.operator in (">=", ">", "~=")
        and Version(old.version) >= Version(new.version)
    )


def _pin(specifier: SpecifierSet) -> Version | None:
    for clause in specifier:
        if clause.operator == "==" and not clause.version.endswith(".*"):
            return Version(clause.version)
    return None
