"""Verify that a wheel, a worktree or an installed fork is what ``series.lock`` says.

The centre is one comparison. Git's tree id is computed from the content of every file under ``sglang/``
and must be the lock's tree of the patched release: not one file more, less or different. Left out are
what the base import leaves out (native modules) and what the fork adds (the kernels); the fork's version
in ``_version.py`` is replaced by the release's. Every file has its row in RECORD and every row its file.
The provenance document's claims about release, patches, tree and kernels must be true.

The lock does not hold native modules, the distribution's metadata or the kernels. They are compared with
the released wheel, whose hash the lock has, and with the kernels' source. Where one of these is not at
hand, the files in question are *not proven*: RECORD alone proves nothing, since whoever changes a file can
change it as well.

Then comes what Python executes instead of, or before, these files: byte code, native modules of the same
name, path files, modules beside the package, other distributions of it, scripts.

So there are three outcomes: *proven*; *not proven*, with a list of what is not; *refuted*, with what
differs. Installed files are compared without their modes: an installer or a file system may drop them.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tool.apply import DESTINATION, RELEASE_TRAILER, compose_commit, lock_patches, project_ref
from tool.errors import (
    ConflictError,
    EnvironmentFault,
    IntegrityError,
    ToolError,
    UpstreamedError,
    UsageError,
)
from tool.git import Git, Worktree, admin_folders, changed_files, check_ref, find_blobs, read_text
from tool.project import SILENT, Progress, Session, base_ref, tip_ref
from tool.series import (
    FileChange,
    Lock,
    LockedPatch,
    LockedRelease,
    LockedWheel,
    Series,
    read_kernels,
)
from tool.upstream import PREFIX, fetch_wheel
from tool.verify.beside import PACKAGE, inspect_site, inspect_start_folder
from tool.verify.checks import Fetch, Verification, VerifyReport
from tool.verify.files import Difference, FolderFiles, Unproven, WheelFiles
from tool.wheel import (
    READ_LIMIT,
    VERSION_FILE,
    NotRegularError,
    PatchProvenance,
    Wheel,
    WheelName,
    describe_patches,
    is_fork,
    open_regular,
    parse_record,
    public_release,
    read_commit,
    read_version,
    unsafe_name,
)

Patches = Callable[[Version], Sequence[PatchProvenance] | None]


def verify_artifact(session: Session, artifact: Path) -> VerifyReport:
    """Verify whatever ``artifact`` is, with all there is to compare it with.

    That is the lock, this checkout's kernels and patch files, the released wheel (downloaded when the
    cache lacks it, unless the session is offline), and for a worktree the tool's own repository.

    Raises:
        UsageError: it is none of the three, or of a release the lock does not carry.
    """
    kernels = read_kernels(session.series.kernel_dir)
    patches = functools.partial(_describe, session.series)
    fetch = functools.partial(_fetch, session)
    if artifact.is_file():
        lock = _add_ref(session, WheelName.parse(artifact.name).version)
        return verify_wheel(artifact, lock=lock, kernels=kernels, patches=patches, fetch=fetch)
    if not artifact.is_dir():
        raise UsageError("is neither a file nor a folder", where=str(artifact))
    if (artifact / PREFIX / PACKAGE).is_dir():
        return _verify_worktree(session, artifact, kernels)
    lock = _add_ref(session, _find_installed(artifact)[1])
    return verify_installed(
        artifact,
        lock=lock,
        kernels=kernels,
        patches=patches,
        fetch=fetch,
        progress=session.progress,
    )


def _add_ref(session: Session, version: Version) -> Lock:
    """The lock; for the fork of a git ref with what the series gives on it, computed anew.

    Raises:
        EnvironmentFault: the commit is not in the tool's repository.
        ToolError: as ``compose_commit`` and ``project_ref``.
    """
    short = read_commit(version)
    if short is None:
        return session.lock
    release = public_release(version)
    session.lock.get(release)
    git = session.workspace.find_repository()
    commit = git.resolve(short) if git else None
    if commit is None:
        raise EnvironmentFault(
            f"commit {short}, which {version} was built from, is not in the tool's repository",
            why="without it nothing tells what that fork holds",
            next_step="name the repository that has it: tool source add NAME URL|PATH, then: tool drift "
            f"--onto NAME/{short}",
        )
    with session.exclusive():
        composed = compose_commit(session, release, commit, f"commit {commit[:12]}")
        return session.lock.with_release(project_ref(session, composed).entry)


def verify_wheel(
    path: Path,
    *,
    lock: Lock,
    kernels: Mapping[str, bytes] | None = None,
    patches: Patches | None = None,
    released: Path | None = None,
    fetch: Fetch | None = None,
) -> VerifyReport:
    """Verify a fork wheel.

    Args:
        kernels: the kernel package's files by relative path, to be compared with the wheel's.
        patches: gives what the patch files of a release say about themselves; None when they are not
            those of the lock.
        released: the released wheel it was built from, or a folder that may hold it; proves the
            native modules and the metadata.
        fetch: gets the released wheel when ``released`` does not give it.

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
        verification = Verification(
            "wheel", path, lock, WheelFiles(wheel), kernels, patches, released, fetch
        )
        if name.distribution != PACKAGE or name.filename != path.name:
            found = Difference(path.name, "another file name", name.filename, path.name)
            verification.differences.append(found)
        return verification.verify_distribution(name.version, name.dist_info, name.tags)


def verify_installed(
    site_packages: Path,
    *,
    lock: Lock,
    kernels: Mapping[str, bytes] | None = None,
    patches: Patches | None = None,
    released: Path | None = None,
    fetch: Fetch | None = None,
    progress: Progress = SILENT,
) -> VerifyReport:
    """Verify the fork installed in ``site_packages``; arguments and errors as :func:`verify_wheel`.

    Raises:
        UsageError: the folder holds no sglang.
    """
    info, version = _find_installed(site_packages)
    singles: list[str] = []
    with contextlib.suppress(OSError, IntegrityError, NotRegularError):  # the checks will name it
        with open_regular(site_packages / info / "RECORD", links=True) as stream:
            rows = parse_record(stream.read(READ_LIMIT), info)
        singles = [
            path
            for path in rows
            if not unsafe_name(path) and path.split("/")[0] not in (PACKAGE, info, "bin", "Scripts")
        ]
    files = FolderFiles(site_packages, (PACKAGE, info), singles, links=True)
    verification = Verification(
        "installed", site_packages, lock, files, kernels, patches, released, fetch, progress
    )
    verification.differences, verification.unproven = inspect_site(site_packages, info)
    return verification.verify_distribution(version, info, None)


def verify_tree(
    directory: Path,
    *,
    lock: Lock,
    version: Version | None = None,
    kernels: Mapping[str, bytes] | None = None,
    expected: Mapping[str, tuple[str, str]] | None = None,
    wheel_base: bool = True,
    unproven: Sequence[Unproven] = (),
    progress: Progress = SILENT,
) -> VerifyReport:
    """Verify the files of a worktree that ``tool apply`` made.

    Args:
        version: the release; read from ``sglang/_version.py`` when not given.
        kernels: as for :func:`verify_wheel`.
        expected: the patched release, path (``python/…``) → (git mode, blob id), from git. Needed to
            name a differing file that the series does not touch.
        wheel_base: False for a worktree whose base came from a git repository, which holds files
            the wheels do not; then the lock proves the touched files, ``expected`` the others.
        unproven: what is known to be unproven beside.

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
    if root.is_symlink():
        link = Difference(PREFIX, "a link where a folder should be")
        return VerifyReport("worktree", directory, release, (), (), (link,))
    verification = Verification(
        "worktree", directory, lock, FolderFiles(root, ("",), links=False), kernels
    )
    verification.progress = progress
    verification.unproven += unproven
    if wheel_base:
        verification.unproven += inspect_start_folder(directory)
    return verification.verify_worktree(release, expected, wheel_base)


def _find_installed(site: Path) -> tuple[str, Version]:
    """The dist-info folder of the installed fork and its version; of several, the fork's."""
    found: list[tuple[bool, str, Version]] = []
    for path in sorted(site.glob("*.dist-info")):
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        if canonicalize_name(name) == PACKAGE:
            with contextlib.suppress(InvalidVersion):
                found.append((not is_fork(Version(version)), path.name, Version(version)))
    if not found:
        raise UsageError(
            f"no installed distribution of {PACKAGE}",
            where=str(site),
            next_step="name a wheel, a worktree made by tool apply, or a site-packages folder",
        )
    _, info, release = min(found)
    return info, release


def _tree_version(root: Path) -> Version:
    path = root / VERSION_FILE
    try:
        with open_regular(path) as stream:
            return read_version(stream.read(READ_LIMIT))
    except (OSError, NotRegularError, IntegrityError) as err:
        raise UsageError(
            "the worktree does not say which release it is", where=str(path), why=str(err)
        ) from err


def _describe(series: Series, release: Version) -> Sequence[PatchProvenance] | None:
    try:
        return describe_patches(series, release)
    except ToolError:
        return None


def _fetch(session: Session, locked: LockedRelease, wanted: LockedWheel, download: bool) -> Path:
    if (session.workspace.wheels / wanted.filename).is_file() or session.offline:
        return fetch_wheel(session, locked, wanted)
    if not download:
        raise EnvironmentFault(f"{wanted.filename} is not in the cache")
    session.progress.note(f"{wanted.filename} is needed to compare with")
    with session.exclusive():
        return fetch_wheel(session, locked, wanted)


def _verify_worktree(session: Session, folder: Path, kernels: Mapping[str, bytes]) -> VerifyReport:
    lock, progress = session.lock, session.progress
    applied = _find_applied(session, folder)
    if applied is None:
        return verify_tree(folder, lock=lock, kernels=kernels, progress=progress)
    git, version, tip, base = applied
    locked = lock.get(version)
    wheel_base = _stands_on(git, locked, tip)
    unproven: list[Unproven] = []
    if wheel_base:
        tree = locked.final_tree
    elif base is None or _holds_release(git, locked, base):
        tree = git.tree_of(tip)
    else:
        locked, tree = _recompute(session, version, base, tip, unproven)
    return verify_tree(
        folder,
        lock=lock.with_release(locked),
        version=version,
        kernels=kernels,
        expected=_list_tree(git, tree),
        wheel_base=wheel_base,
        unproven=unproven,
        progress=progress,
    )


def _holds_release(git: Git, locked: LockedRelease, base: str) -> bool:
    """Are the files that the series changes in ``base`` those of the release?"""
    net = locked.net_files()
    here = find_blobs(git, base, list(net))
    return all(here[path] == change.before for path, change in net.items())


def _recompute(
    session: Session, release: Version, base: str, tip: str, unproven: list[Unproven]
) -> tuple[LockedRelease, str]:
    """What the series gives on the git ref ``base``: an entry as of the lock, and the tree.

    A patch that does not apply there was carried by ``tool rebase``. What a person decided is in no lock, so
    only the commit that it made tells.
    """
    git, locked = session.git, session.lock.get(release)
    try:
        with session.exclusive():
            composed = compose_commit(session, release, base, f"commit {base[:12]}")
        entry = replace(locked, patches=lock_patches(composed.applied), commit=base)
        return entry, composed.tree
    except (ConflictError, UpstreamedError) as error:
        changes = changed_files(git, base, tip)
        files = tuple(
            FileChange(c.path, c.before, c.after)
            for c in changes
            if not c.path.startswith(f"{DESTINATION}/")
        )
        unproven.append(
            Unproven(
                f"{len(files)} patched files",
                f"{error.where} was carried to this git ref by tool rebase, and no lock holds what that gave",
            )
        )
        tree = git.tree_of(tip)
        made = LockedPatch("", "", tree, tip, files)
        return replace(locked, patches=(made,), commit=base), tree


def _find_applied(session: Session, folder: Path) -> tuple[Git, Version, str, str | None] | None:
    """The tool's repository, the release, the commit that ``tool apply`` left in ``folder``, and its base.

    None for a folder that is no worktree of the tool's repository: no other repository is believed, nor
    opened, and the folder's ``.git`` is not read at all.
    """
    git = session.workspace.find_repository()
    if git is None:
        return None
    mark = folder.resolve() / ".git"
    for admin in sorted(admin_folders(git).glob("*")):
        stated = read_text(admin / "gitdir").strip()
        branch = Worktree(folder, admin).branch
        if not stated or branch is None:
            continue
        if Path(os.path.realpath((admin / stated).parent)) / ".git" != mark:
            continue
        try:
            tip = session.git.resolve(check_ref(tip_ref(branch)))
            base = session.git.resolve(check_ref(base_ref(branch)))
            release = tip and _read_trailer(session.git, tip, RELEASE_TRAILER)
            return (session.git, Version(release), tip, base) if tip and release else None
        except (UsageError, InvalidVersion):
            return None
    return None


def _read_trailer(git: Git, commit: str, name: str) -> str | None:
    lines = git.out("cat-file", "commit", commit).splitlines()
    found = [line.removeprefix(f"{name}: ") for line in lines if line.startswith(f"{name}: ")]
    return found[-1] if found else None


def _stands_on(git: Git, locked: LockedRelease, commit: str) -> bool:
    base = locked.base_commit
    return git.run("merge-base", "--is-ancestor", base, commit, check=False).returncode == 0


def _list_tree(git: Git, tree: str) -> dict[str, tuple[str, str]]:
    """Path → (mode, blob id) of the files below ``python/`` in ``tree``."""
    raw = git.run("ls-tree", "-r", "-z", tree, "--", PREFIX).stdout
    entries = (
        entry.split("\t", 1) for entry in raw.decode("utf-8", "replace").split("\0") if entry
    )
    return {path: (meta.split()[0], meta.split()[2]) for meta, path in entries}
