"""Which release a commit is based on: by release tags in its history, the version in its tree, or content."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from packaging.version import InvalidVersion, Version

from tool.errors import UsageError
from tool.git import Git, find_blobs
from tool.series import Lock
from tool.upstream.git_source import GitSource, list_release_tags

_STATED: Final = (
    ("python/sglang/version.py", re.compile(rb'^__version__ = "([^"\s]{1,100})"$', re.MULTILINE)),
    ("python/pyproject.toml", re.compile(rb'^version = "([^"\s]{1,100})"$', re.MULTILINE)),
)
"""Where sglang's sources say which version they are, if they do: later ones take it from the tag."""


@dataclass(frozen=True)
class Basis:
    """``release`` is what the commit is based on, ``how`` says by what it was found.

    ``tag`` is the commit of the release's tag in the history, None where there is none.
    """

    release: Version
    how: str
    tag: str | None = None


def find_basis(
    git: Git, lock: Lock, source: GitSource, commit: str, given: Version | None
) -> Basis:
    """The release that ``commit`` of ``source`` is based on; ``given`` by the user, or found.

    Raises:
        UsageError: nothing tells.
    """
    tags = _list_releases(git, commit, source)
    if given is not None:
        return Basis(given, "as --release says", tags.get(given))
    if tags:
        release = max(tags)
        many = int(git.out("rev-list", "--count", f"{tags[release]}..{commit}"))
        where = f"{many} commit(s) after its tag" if many else "the commit of its tag"
        return Basis(release, where, tags[release])
    for path, pattern in _STATED:
        oid = git.find(f"{commit}:{path}")
        match = pattern.search(git.blobs([oid])[oid]) if oid else None
        version = _read_version(match[1].decode("utf-8", "replace")) if match else None
        if version is not None:
            return Basis(version, f"{path} says so; no release tag is in its history")
    return _compare(git, lock, commit)


def _list_releases(git: Git, commit: str, source: GitSource) -> dict[Version, str]:
    """Release → commit of its tag, for the tags in the history: the source's own, else those of others."""
    for place in (source, None):
        found = {
            version: oid
            for name, oid in list_release_tags(git, commit, place)
            if (version := _read_version(name.removeprefix("v"))) is not None
        }
        if found:
            return found
    return {}


def _compare(git: Git, lock: Lock, commit: str) -> Basis:
    """The locked release with the most of the files that patches begin with; of several, the newest."""
    scores: dict[Version, tuple[int, int]] = {}
    for version, entry in lock.releases.items():
        net = entry.net_files()
        here = find_blobs(git, commit, list(net))
        scores[version] = (sum(here[p] == c.before for p, c in net.items()), len(net))
    best = max(scores, key=lambda v: (scores[v][0], v), default=None)
    if best is None or not scores[best][0]:
        raise UsageError(
            f"nothing tells which release {commit[:12]} is based on",
            why="no release tag is in its history, its tree states no version, and none of its files is "
            "one that a patch of the series was checked on",
            next_step="say it: --release RELEASE",
        )
    same, many = scores[best]
    return Basis(best, f"{same} of {many} patched files are that release's; no tag tells")


def _read_version(text: str) -> Version | None:
    """None for what is no release that could be carried: no version, or a local one."""
    try:
        version = Version(text)
    except InvalidVersion:
        return None
    return version if version.local is None and any(version.release) else None
