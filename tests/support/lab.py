"""A project in miniature: a wheel of a tiny sglang, a series, and the real tool on top.

Everything is real but small: the wheel is a zip that pip would install, patches are made by git, and the
commands are the tool's own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from packaging.version import Version

from tool.apply import checks as proofs
from tool.apply import engine
from tool.apply.compose import lock_patches
from tool.cli.app import main
from tool.project.workspace import Workspace
from tool.series import lockfile
from tool.series import model as series
from tool.series.lockfile import LockedRelease, LockedWheel
from tool.upstream import wheel_import as wheelimport
from tool.upstream.download import hash_file
from tool.upstream.resolve import Base

RELEASE = "0.5.23"
UTILS = "python/sglang/srt/utils.py"
TWINS = "python/sglang/srt/twins.py"
BODY = """\
    def run(self, x):
        a = x
        b = a
        c = b
        y = x + 1
        d = c
        e = d
        f = e
        return y, f
"""
"""A method that is so long that the three context lines of a hunk cannot tell two copies apart."""
TREE = {
    "sglang/__init__.py": "",
    "sglang/version.py": '__version__ = "0.5.23"\n',
    "sglang/srt/__init__.py": "",
    "sglang/srt/layers/attention/__init__.py": "",
    "sglang/srt/utils.py": "".join(f"def f{i}():\n    return {i}\n\n\n" for i in range(30)),
    "sglang/srt/twins.py": "class A:\n" + BODY + "\n\nclass B:\n" + BODY,
    "sglang/srt/config/N=1,K=2,name=x y.json": "{}\n",
}
EDITED = TREE["sglang/srt/utils.py"].replace("return 3\n", "return 33\n")
AGAIN = EDITED.replace("return 20\n", "return 2020\n")
"""utils.py after the first and the second of two patches."""
NEXT = "0.5.24"
"""The release after the one a lab begins with."""
TWIN = TREE["sglang/srt/twins.py"]
B_ONLY = TWIN[: TWIN.index("class B")] + TWIN[TWIN.index("class B") :].replace("x + 1", "x + 2")
"""twins.py with the method of the second class changed."""


class Lab:
    def __init__(self, root: Path, cache: Path, data: Path) -> None:
        self.root = root
        self.home = Workspace(cache, data)
        (root / "patches").mkdir(parents=True)
        (root / "ada_dsa").mkdir()
        (root / "ada_dsa" / "__init__.py").write_text('"""Kernels."""\n')
        (root / "ada_dsa" / "requirements.txt").write_text("triton>=3.5.1\n")
        self._lines = ["pin 0.5.23", "revision 1", "change demo >=0.5.9"]
        self._write_series()
        self.release(RELEASE, TREE)

    @property
    def folder(self) -> Path:
        """What the tool keeps of this project alone."""
        return self.home.project_data(self.root)

    # -- releases ---------------------------------------------------------------------------------

    def release(self, version: str, files: dict[str, str]) -> Path:
        """Put a wheel of ``version`` into the cache and its entry into series.lock."""
        path = write_wheel(self.home.wheels, version, files)
        git = self.home.open_repository()
        ref = wheelimport.release_ref(Version(version))
        git.run("update-ref", "-d", ref)
        commit = wheelimport.import_wheel(git, path, Version(version))
        wheel = LockedWheel(path.name, hash_file(path), path.stat().st_size)
        entry = LockedRelease(Version(version), (wheel,), commit, git.tree_of(commit), ())
        lockfile.save(self.root / "series.lock", self.lock.with_release(entry))
        return path

    # -- patches ----------------------------------------------------------------------------------

    def patch(
        self,
        name: str,
        edits: dict[str, str | None],
        *,
        on: str = RELEASE,
        releases: str | None = None,
    ) -> Path:
        """Write a patch that turns files of release ``on`` (plus the series so far) into ``edits``."""
        diff = self.diff(edits, on=on)
        path = self.root / "patches" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(header(releases or f"=={on}", f"change {name}") + diff)
        self._lines.append(f"    {name} {releases or f'=={on}'}")
        self._write_series()
        return path

    def diff(self, edits: dict[str, str | None], *, on: str = RELEASE) -> bytes:
        """The canonical diff of ``edits`` against release ``on`` with the series so far applied."""
        git = self.home.open_repository()
        base = self._base(on)
        loaded = (
            series.load_series(self.root) if any("patch" in line for line in self._lines) else None
        )
        parts = engine.apply_series(git, base, loaded.for_release(Version(on))) if loaded else ()
        tree = parts[-1].tree if parts else base.tree
        return tree_diff(git.git_dir, tree, edits)

    def regroup(self, name: str, change: str, needed: str) -> None:
        """Move the patch ``name`` to another change, which is needed on these releases."""
        moved = f"{change}/{name.partition('/')[2]}"
        (self.root / "patches" / change).mkdir()
        (self.root / "patches" / name).rename(self.root / "patches" / moved)
        path = self.root / "series.txt"
        line = f"change {change} {needed}\n    {moved}"
        path.write_text(path.read_text().replace(f"    {name}", line))
        self.relock(*(str(v) for v, entry in self.lock.releases.items() if entry.patches))

    def relock(self, *versions: str) -> None:
        """Check the series on ``versions`` and record it in the lock, without an index."""
        loaded, git = series.load_series(self.root), self.home.open_repository()
        for text in versions or (RELEASE,):
            version = Version(text)
            applied = engine.apply_series(git, self._base(text), loaded.for_release(version))
            proofs.check_applied(git, applied)
            old = self.lock.get(version)
            entry = LockedRelease(
                version, old.wheels, old.base_commit, old.base_tree, lock_patches(applied)
            )
            lockfile.save(self.root / "series.lock", self.lock.with_release(entry))

    # -- commands ---------------------------------------------------------------------------------

    @property
    def environ(self) -> dict[str, str]:
        """The environment of this process, with the folders of this project."""
        folders = {"TOOL_CACHE_DIR": str(self.home.cache), "TOOL_DATA_DIR": str(self.home.data)}
        return os.environ | folders

    def tool(self, *args: str, code: int | None = 0) -> Result:
        """Run a command on this project and assert its exit code, unless ``code`` is None."""
        given = [*args, "--series", str(self.root)]
        result = CliRunner().invoke(main, given, env=self.environ)
        assert code in (None, result.exit_code), (
            f"exit {result.exit_code}\n{result.output}\n{result.stderr}"
        )
        return result

    def json(self, *args: str, code: int = 0) -> dict[str, Any]:
        """The envelope a command prints with --json."""
        return json.loads(self.tool(*args, "--json", code=code).stdout)

    def apply(self, into: Path, *args: str, code: int = 0) -> dict[str, Any]:
        return self.json("apply", "--into", str(into), "--offline", "--quiet", *args, code=code)

    def fork(self, into: Path, patches: dict[str, dict[str, str | None]]) -> Path:
        """Write the patches, each as :meth:`patch` does, lock them, and make the worktree ``into``."""
        for name, edits in patches.items():
            self.patch(name, edits)
        self.relock()
        self.apply(into)
        return into

    def forget_repository(self) -> None:
        """A machine that has the project and the wheels, and on which the tool never ran."""
        shutil.rmtree(self.home.data)

    @property
    def lock(self) -> lockfile.Lock:
        return lockfile.load(self.root / "series.lock")

    def _base(self, version: str) -> Base:
        entry = self.lock.get(Version(version))
        return Base(entry.version, entry.base_commit, entry.base_tree, "pypi", f"v{version}")

    def _write_series(self) -> None:
        (self.root / "series.txt").write_text("\n".join(self._lines) + "\n")


def header(releases: str, subject: str = "change something") -> bytes:
    return (
        f"Description: {subject}\n Because it is needed.\nOrigin: vendor\nForwarded: no\n"
        f"Releases: {releases}\nDrop-When: never\n---\n"
    ).encode()


def write_wheel(folder: Path, version: str, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"sglang-{version}-py3-none-any.whl"
    info = f"sglang-{version}.dist-info"
    members = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            # A fixed date: the same release made twice must have the same hash.
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), text)
    return path


def tree_diff(git_dir: Path, tree: str, edits: dict[str, str | None]) -> bytes:
    """The canonical diff from ``tree`` to ``tree`` with ``edits`` (None deletes)."""
    from dataclasses import replace

    from tool.git.diff import canonical_diff
    from tool.git.repository import Git

    git = Git(git_dir)
    index = replace(git, index_file=git_dir / "lab-index")
    index.run("read-tree", tree)
    for path, text in edits.items():
        if text is None:
            gone = f"0 {'0' * 40}\t{path}\n".encode()
            index.run("update-index", "--index-info", stdin=gone)
            continue
        blob = git.out("hash-object", "-w", "--stdin", stdin=text.encode())
        index.run("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}")
    return canonical_diff(git, tree, index.out("write-tree"))


def git(folder: Path, *args: str) -> str:
    """Plain git, as a person would type it, with a fixed identity."""
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.invalid"]
    done = subprocess.run(
        ["git", *identity, *args], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def loaded_by(*args: str, env: dict[str, str] | None = None) -> tuple[list[str], set[str]]:
    """What ``tool ARGS`` prints, and the modules it has loaded by its end."""
    script = f"import sys; sys.argv[1:] = {args}; from tool.cli.app import main\n"
    script += "try: main()\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    *text, modules = done.stdout.splitlines()
    return text, set(modules.split())
