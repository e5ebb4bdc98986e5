"""Proof that a wheel, a worktree or an installed fork is what ``series.lock`` says.

The centre is one comparison. Git's tree id is computed from the content of every file under
``sglang/`` and must be the lock's tree of the patched release: not one file more, less or
different. Left out are what the base import leaves out (native modules) and what the fork adds (the
kernels); the version stamp is taken back. RECORD holds the rest together: every file has its row,
every row its file. The provenance document's claims about release, patches and tree must be the
lock's, and its kernel digest that of the kernels present.

Two things the lock cannot know stand on RECORD and provenance, which whoever changes a file could
change too: native modules and the kernels. Given the released wheel, the first are proven as well,
and given the kernels' source, the second. A report lists what was checked and what was not.

Installed files are compared without their modes: an installer or a file system may drop them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from packaging.version import Version

from tool.apply import RELEASE_TRAILER
from tool.errors import IntegrityError, UsageError
from tool.git import Git
from tool.project import Session
from tool.series import Lock, LockedRelease, read_kernels
from tool.upstream import PREFIX
from tool.verify.checks import PACKAGE, Verification, VerifyReport
from tool.verify.files import Difference, FolderFiles, WheelFiles
from tool.wheel import VERSION_FILE, Wheel, WheelName, parse_record, read_version


def verify_artifact(session: Session, artifact: Path) -> VerifyReport:
    """Verify whatever ``artifact`` is, with all there is to compare it with.

    That is the lock, this checkout's kernels, released wheels in the cache, and for a worktree the
    commits it stands on.

    Raises:
        UsageError: it is none of the three, or of a release the lock does not carry.
    """
    lock, released = session.lock, session.workspace.wheels
    kernels = read_kernels(session.series.kernel_dir)
    if artifact.is_file():
        return verify_wheel(artifact, lock=lock, kernels=kernels, released=released)
    if (artifact / PREFIX / PACKAGE).is_dir():
        return _verify_worktree(artifact, lock, kernels)
    return verify_installed(artifact, lock=lock, kernels=kernels, released=released)


def verify_wheel(
    path: Path,
    *,
    lock: Lock,
    kernels: Mapping[str, bytes] | None = None,
    released: Path | None = None,
) -> VerifyReport:
    """Verify a fork wheel.

    Args:
        kernels: the kernel package's files by relative path, to be compared with the wheel's.
        released: the released wheel it was built from, or a folder that may hold it; proves the
            native modules.

    Raises:
        UsageError: no such file, not a wheel's name, or a release the lock does not carry.
        IntegrityError: ``released`` is not a released wheel.
    """
    name = WheelName.parse(path.name)
    try:
        wheel = Wheel(path)
    except IntegrityError as err:
        difference = Difference(err.where or path.name, err.message, None, err.why)
        return VerifyReport("wheel", path, name.version, (), (), (difference,))
    with wheel:
        proof = Verification("wheel", path, lock, WheelFiles(wheel))
        return proof.distribution(name.version, name.dist_info, kernels, released, name.tags)


def verify_installed(
    site_packages: Path,
    *,
    lock: Lock,
    kernels: Mapping[str, bytes] | None = None,
    released: Path | None = None,
) -> VerifyReport:
    """Verify the fork installed in ``site_packages``; arguments and errors as :func:`verify_wheel`.

    Raises:
        UsageError: the folder holds no sglang, or several.
    """
    infos = sorted(site_packages.glob(f"{PACKAGE}-*.dist-info"))
    if len(infos) != 1:
        raise UsageError(
            f"{len(infos)} installed distributions of {PACKAGE}",
            where=str(site_packages),
            why=", ".join(i.name for i in infos) or None,
            next_step="name the site-packages folder of one environment",
        )
    info = infos[0].name
    name = WheelName.parse(info.removesuffix(".dist-info") + "-py3-none-any.whl")
    singles: list[str] = []
    with contextlib.suppress(OSError, IntegrityError):  # the proof will say what is wrong with it
        singles = [
            path
            for path in parse_record((infos[0] / "RECORD").read_bytes(), info)
            if path.split("/")[0] not in ("..", "", PACKAGE, info, "bin", "Scripts")
        ]
    subject = FolderFiles(site_packages, (PACKAGE, info), singles, links=True)
    proof = Verification("installed", site_packages, lock, subject)
    return proof.distribution(name.version, info, kernels, released, None)


def verify_tree(
    directory: Path,
    *,
    lock: Lock,
    version: Version | None = None,
    kernels: Mapping[str, bytes] | None = None,
    expected: Mapping[str, tuple[str, str]] | None = None,
    wheel_base: bool = True,
) -> VerifyReport:
    """Verify the files of a worktree that ``tool apply`` made.

    Args:
        version: the release; read from ``sglang/_version.py`` when not given.
        kernels: as for :func:`verify_wheel`.
        expected: the patched release without the kernels, path (``python/sglang/…``) → (git mode,
            blob id), from git. Needed to name a differing file that the series does not touch.
        wheel_base: False for a worktree whose base came from a git repository, which holds files
            the wheels do not; then the lock proves the touched files, ``expected`` the others.

    Raises:
        UsageError: not such a worktree, or a release the lock does not carry.
    """
    root = directory / PREFIX
    if not (root / PACKAGE).is_dir():
        raise UsageError(
            f"no {PREFIX}{PACKAGE} below this folder",
            where=str(directory),
            next_step="name a wheel, a worktree made by tool apply, or a site-packages folder",
        )
    release = version or _tree_version(root)
    proof = Verification("worktree", directory, lock, FolderFiles(root, (PACKAGE,), links=False))
    return proof.worktree(release, kernels, expected, wheel_base)


def _tree_version(root: Path) -> Version:
    path = root / VERSION_FILE
    try:
        return read_version(path.read_bytes())
    except (OSError, IntegrityError) as err:
        raise UsageError(
            "the worktree does not say which release it is",
            where=str(path),
            next_step="name it with --sglang-ref",
        ) from err


def _verify_worktree(folder: Path, lock: Lock, kernels: Mapping[str, bytes]) -> VerifyReport:
    git = _git_of(folder)
    release = _trailer(git, RELEASE_TRAILER)
    if git is None or release is None:
        return verify_tree(folder, lock=lock, kernels=kernels)
    version = Version(release)
    locked = lock.get(version)
    wheel_base = _stands_on(git, locked)
    tree = locked.final_tree if wheel_base else git.out("rev-parse", "--verify", "HEAD^^{tree}")
    return verify_tree(
        folder,
        lock=lock,
        version=version,
        kernels=kernels,
        expected=_listing(git, tree),
        wheel_base=wheel_base,
    )


def _git_of(folder: Path) -> Git | None:
    """The repository side of a worktree, None when there is none: its files still can be proven."""
    mark = folder / ".git"
    if mark.is_dir():
        return Git(mark)
    try:
        target = Path(mark.read_text(encoding="utf-8").removeprefix("gitdir:").strip())
    except (OSError, UnicodeDecodeError):
        return None
    admin = folder / target
    return Git(admin) if (admin / "HEAD").is_file() else None


def _trailer(git: Git | None, name: str) -> str | None:
    if git is None:
        return None
    done = git.run("log", "-1", f"--format=%(trailers:key={name},valueonly)", "HEAD", check=False)
    return done.stdout.decode("utf-8", "replace").strip() or None


def _stands_on(git: Git, locked: LockedRelease) -> bool:
    base = locked.base_commit
    done = git.run("merge-base", "--is-ancestor", base, "HEAD", check=False)
    return done.returncode == 0


def _listing(git: Git, tree: str) -> dict[str, tuple[str, str]]:
    """Path → (mode, blob id) of the package's files in ``tree``."""
    raw = git.run("ls-tree", "-r", "-z", tree, "--", f"{PREFIX}{PACKAGE}").stdout
    entries = (
        entry.split("\t", 1) for entry in raw.decode("utf-8", "replace").split("\0") if entry
    )
    return {path: (meta.split()[0], meta.split()[2]) for meta, path in entries}
