"""The fork's version and requirements in a wheel's files."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from packaging.version import Version

from tool.errors import IntegrityError, UsageError
from tool.wheel import overlay
from tool.wheel.version import (
    find_missing_requirements,
    fork_version,
    is_fork,
    public_release,
    read_commit,
    read_identity,
    read_version,
    replace_metadata,
    replace_version,
)

STOCK, FORK = Version("0.5.23"), Version("0.5.23+ada.1")


def test_the_forks_version() -> None:
    assert fork_version(STOCK, 1) == FORK and public_release(FORK) == STOCK
    assert is_fork(FORK) and not is_fork(STOCK)
    for other in ("0.5.23+ada.0", "0.5.23+ada.1.2", "0.5.23+ada", "0.5.23+cu129"):
        assert not is_fork(Version(other))
    of_ref = fork_version(STOCK, 1, "0123456789ab" + "c" * 28)
    assert str(of_ref) == "0.5.23+ada.1.g0123456789ab" and is_fork(of_ref)
    assert read_commit(of_ref) == "0123456789ab" and read_commit(FORK) is None
    assert public_release(of_ref) == STOCK and not is_fork(Version("0.5.23+ada.1.g012"))
    for release, revision in ((STOCK, 0), (STOCK, -1), (FORK, 1)):
        with pytest.raises(UsageError, match="no fork version"):
            fork_version(release, revision)


def test_the_version_a_file_states() -> None:
    line = b"version: str\n\n__version__ = version = '0.5.23'\n"
    assert read_version(line) == STOCK
    assert read_version(replace_version(line, STOCK, FORK)) == FORK
    for wrong in (b"", b"__version__ = '0.5.23'\n", line.replace(b"0.5.23", b"zero")):
        with pytest.raises(IntegrityError, match="states no version"):
            read_version(wrong)
    for wrong in (b"", line + line, line.replace(b"23", b"22")):
        with pytest.raises(IntegrityError, match="exactly once"):
            replace_version(wrong, STOCK, FORK)


@pytest.mark.parametrize(
    "metadata",
    [
        b"Name: sglang\n",
        b"Name: sglang\nVersion: 0.5.22\n",
        b"Name: sglang\nVersion: 0.5.23\nVersion: 0.5.23\n",
        b"Name: sglang\n\nVersion: 0.5.23\n",
    ],
)
def test_metadata_that_does_not_state_the_release_once(metadata: bytes) -> None:
    with pytest.raises(IntegrityError, match="exactly once"):
        replace_metadata(metadata, STOCK, FORK, ())


@pytest.mark.parametrize(
    ("metadata", "added"),
    [
        (b"Version: 0.5.23\nAuthor: a\n", b"Version: 0.5.23+ada.1\nAuthor: a\nRequires-Dist: x\n"),
        (
            b"Version: 0.5.23\nRequires-Dist: a\nRequires-Dist: b\n  >=1\n\t,<2\nAuthor: a\n\n"
            b"Requires-Dist: c\n",
            b"Version: 0.5.23+ada.1\nRequires-Dist: a\nRequires-Dist: b\n  >=1\n\t,<2\nRequires-Dist: x\n"
            b"Author: a\n\nRequires-Dist: c\n",
        ),
        (
            b"Version: 0.5.23\nRequires-Dist: b\n >=1\n",
            b"Version: 0.5.23+ada.1\nRequires-Dist: b\n >=1\nRequires-Dist: x\n",
        ),
    ],
)
def test_a_requirement_stands_after_the_last_one(metadata: bytes, added: bytes) -> None:
    assert replace_metadata(metadata, STOCK, FORK, ["x"]) == added


@pytest.mark.parametrize(
    ("metadata", "identity"),
    [
        (b"Name: sglang\nVersion: 1\n", ("sglang", "1")),
        (b"name: sglang\nVERSION: 1\n\nName: other\n", ("sglang", "1")),
        (b"Name: sglang\n", ("sglang", "")),
        (b"Name: a\nName: a\nVersion: 1\n", ("", "1")),
    ],
)
def test_what_metadata_says_it_is(metadata: bytes, identity: tuple[str, str]) -> None:
    assert read_identity(metadata) == identity


@pytest.mark.parametrize(
    ("stated", "wanted", "missing"),
    [
        ("", "triton>=3.5", True),
        ("triton>=3.5", "triton>=3.5", False),
        ("triton>=3.6", "triton>=3.5", False),
        ("triton>3.5", "triton>=3.5", False),
        ("triton~=3.6.1", "triton>=3.5", False),
        ("triton>=3.4", "triton>=3.5", True),
        ("triton<4", "triton>=3.5", True),
        ("triton>=3.6", "triton>3.5", True),  # not compared, so it counts as missing
        ("triton==3.6.0", "triton>=3.5", False),
        ("triton==3.6.*", "triton>=3.5", True),
        ("triton>=3.6", "triton", False),
        ("Triton>=3.6", "triton>=3.5", False),
        ("other>=3.6", "triton>=3.5", True),
        ("triton>=3.6; extra == 'a'", "triton>=3.5", True),
        ("triton>=3.6; python_version > '3'", "triton>=3.5; python_version > '3'", False),
        ("triton>=3.6", "triton>=3.5; python_version > '3'", False),
        ("triton[a]>=3.6", "triton>=3.5", False),
        ("triton>=3.6", "triton[a]>=3.5", True),
        ("triton>=3.6", "triton>=3.5,<4", True),
        ("triton>=3.6,<4", "triton>=3.5,<4", False),
        ("triton\n >=3.6", "triton>=3.5", False),
        ("triton>=3.4\nAuthor: a\n >=3.6", "triton>=3.5", True),
    ],
)
def test_whether_the_release_implies_it(stated: str, wanted: str, missing: bool) -> None:
    metadata = f"Version: 1\nRequires-Dist: {stated}\n" if stated else "Version: 1\n"
    found = find_missing_requirements(metadata.encode(), [wanted])
    assert bool(found) is missing


def test_requirements_that_cannot_be_met_or_read() -> None:
    pinned = b"Version: 1\nRequires-Dist: triton==3.4.0\n"
    with pytest.raises(UsageError, match="the release pins triton==3.4.0"):
        find_missing_requirements(pinned, ["triton>=3.5"])
    # Of another environment: both can be met.
    elsewhere = b"Version: 1\nRequires-Dist: triton==3.4.0; extra == 'old'\n"
    assert find_missing_requirements(elsewhere, ["triton>=3.5"]) == ("triton>=3.5",)
    with pytest.raises(UsageError, match="is not a requirement"):
        find_missing_requirements(pinned, ["triton at least 3"])


@pytest.mark.parametrize(
    ("locked", "patched", "why"),
    [({"a": None}, {}, "in the lock only"), ({}, {"b": b""}, "not in the lock")],
)
def test_patched_files_that_are_not_those_of_the_lock(
    locked: dict[str, object], patched: dict[str, bytes], why: str
) -> None:
    entry: Any = SimpleNamespace(net_files=lambda: locked)
    with pytest.raises(IntegrityError, match="are not those series.lock lists") as caught:
        overlay._overlay(cast(Any, None), entry, patched, {}, frozenset())
    assert caught.value.why == why and caught.value.where == next(iter({**locked, **patched}))
