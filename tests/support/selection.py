"""The releases that a test session tests: the meaning of ``--sglang-ref``."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.version import InvalidVersion, Version

from tool.series import lockfile
from tool.series import model as series

BASE = "ADA_BASE_REF"
"""Environment variable with a git ref. A release is touched if its patches differ from those at the merge
base.
"""
MOST = 6
"""The most touched releases that ``ci`` tests. If there are more, it tests this many of them, at equal
distances.
"""


def releases(root: Path, refs: Iterable[str]) -> list[Version]:
    """The releases that ``refs`` ask for, oldest first.

    A ref is a release (``v0.5.23``), ``pin``, ``all``, or ``ci``: the first, the pin, the newest
    and the releases that the change under test touches, ``MOST`` of them.

    Raises:
        pytest.UsageError: a ref names no supported release, or the base ref does not resolve.
    """
    loaded = series.load_series(root)
    supported = sorted(lockfile.load(loaded.lock_path).releases)
    chosen: set[Version] = set()
    for ref in refs:
        match ref:
            case "all":
                chosen.update(supported)
            case "pin":
                chosen.add(loaded.pin)
            case "ci":
                chosen.update({supported[0], loaded.pin, supported[-1]})
                chosen.update(spread(sorted(touched(root) & set(supported)), MOST))
            case _:
                chosen.add(_release(ref, supported))
    return sorted(chosen)


def spread(found: list[Version], most: int) -> list[Version]:
    """``most`` of ``found`` at equal distances, with the first and the last. All of them if there are no
    more.
    """
    if len(found) <= most:
        return found
    return [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]


def touched(root: Path) -> set[Version]:
    """Releases whose set of patches (names and content) differs from the base commit's.

    The base is where HEAD left the ref that ADA_BASE_REF names; unset, nothing counts as touched.
    """
    ref = os.environ.get(BASE)
    if not ref:
        return set()
    base = _git(root, "merge-base", "HEAD", ref).strip()
    before = _patches(_git(root, "show", f"{base}:series.lock"))
    after = _patches((root / "series.lock").read_text(encoding="utf-8"))
    return {Version(release) for release in after if after[release] != before.get(release)}


def _patches(text: str) -> dict[str, dict[str, str]]:
    """The patches in a lock: release → patch name → content hash."""
    return {
        release: {patch["name"]: patch["sha256"] for patch in entry["patches"]}
        for release, entry in json.loads(text)["releases"].items()
    }


def _release(ref: str, supported: list[Version]) -> Version:
    try:
        found = Version(ref)
    except InvalidVersion:
        found = None
    if found not in supported:
        known = ", ".join(f"v{version}" for version in supported)
        raise pytest.UsageError(
            f"--sglang-ref {ref}: not a supported release; give pin, all, ci or one of {known}"
        )
    return found


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)
    if done.returncode != 0:
        raise pytest.UsageError(
            f"{BASE}={os.environ.get(BASE)}: git {' '.join(args)} failed: {done.stderr.strip()}. "
            f"Fetch that ref with its history, or unset {BASE}."
        )
    return done.stdout
