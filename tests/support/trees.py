"""Patched and stock trees of released sglang, made by the tool itself, for tests that need them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.version import Version

from tests.patched import releases
from tool.apply import apply_to_worktree
from tool.errors import EnvironmentFault
from tool.git import Git, list_worktrees
from tool.project import Session, Workspace, locate_workspace
from tool.upstream import Request, choose_wheel, fetch_wheel

ROOT = Path(__file__).parents[2]
CACHE = locate_workspace().cache
"""The user's own cache. It is looked up before any test sets a private home."""


class Unavailable(Exception):
    """The file is not in the cache and the package index cannot be reached. A test is skipped for this."""


def released_wheel(version: str) -> Path:
    """The released wheel for this interpreter."""
    session = Session(ROOT, Workspace(cache=CACHE, data=CACHE))
    locked = session.lock.get(Version(version))
    try:
        return fetch_wheel(session, locked, choose_wheel(locked, None))
    except EnvironmentFault as err:
        raise Unavailable(str(err)) from err


class PatchedTrees:
    """The patched trees of a session. The series is applied once for each release, in a temporary folder."""

    def __init__(self, wanted: list[Version]) -> None:
        self.wanted = wanted
        self._folder: Path | None = None
        self._made: dict[Version, dict[str, str]] = {}

    def environment(self, release: Version) -> dict[str, str]:
        """The variables that tell a child process where the trees are.

        Raises:
            Unavailable: no network and nothing cached.
        """
        if release not in self._made:
            try:
                self._made[release] = self._make(release)
            except EnvironmentFault as err:
                raise Unavailable(str(err)) from err
        return self._made[release]

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _make(self, release: Version) -> dict[str, str]:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="patched-trees."))
        workspace = Workspace(cache=CACHE, data=self._folder / "data")
        done = apply_to_worktree(
            Session(ROOT, workspace),
            Request(f"v{release}"),
            into=self._folder / f"v{release}",
        )
        stock = self._folder / f"stock-v{release}"
        git = Git(workspace.repository)
        git.run("worktree", "add", "--quiet", "--detach", str(stock), done.composition.base.commit)
        assert list_worktrees(git)
        found = {
            releases.VARIABLE: str(release),
            "ADA_PATCHED_TREE": str(done.folder / "python"),
            "ADA_STOCK_TREE": str(stock / "python"),
        }
        if requirements := releases.overlay(release):
            found["ADA_OVERLAY"] = str(_overlay(requirements))
        return found


def _overlay(requirements: Path) -> Path:
    """A folder with the packages that a release needs in other versions than this environment has."""
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    folder = CACHE / "overlays" / f"{tag}-{digest}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(dir=folder.parent))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command += ["--target", str(temp), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode != 0:
        shutil.rmtree(temp)
        raise Unavailable(done.stderr.strip())
    with contextlib.suppress(OSError):  # another session was faster
        temp.rename(folder)
    return folder
