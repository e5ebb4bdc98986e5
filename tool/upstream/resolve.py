"""From what the user typed to a base commit: a release from the package index, or a git ref.

The package index is the default because it is what everyone can reach. With a git source the base
is sglang's own commit. Its id differs from that of the imported wheel, but the files that the series
touches are the same: series.lock holds the blob id of each.
"""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.version import Version

from tool.errors import EnvironmentFault, IntegrityError, UsageError
from tool.git import Git, check_ref, is_oid, last_line
from tool.project import Session
from tool.series import Lock, LockedRelease, LockedWheel, Series, parse_release
from tool.upstream.download import (
    discover_wheels,
    fetch_wheel,
    list_cached,
    order_wheels,
)
from tool.upstream.wheel_import import import_wheel, release_ref

PYPI: Final = "pypi"
GIT: Final = "git"
DEFAULT_URL: Final = "https://github.com/sgl-project/sglang.git"
PIN: Final = "pin"

_RELEASE = re.compile(r"v?\d+\.\d+[A-Za-z0-9.+!-]*")
_HELPER: Final = (
    '!f() { test "$1" = get && '
    'printf "username=%s\\npassword=%s\\n" "$TOOL_LOGIN" "$TOOL_PASSWORD"; }; f'
)
_URL = re.compile(r"(https|ssh|file)://[^\s-]\S*|[\w.-]+@[\w.-]+:\S+")


@dataclass(frozen=True)
class Request:
    """What to apply to. ``source`` is ``pypi``, ``git`` or a git URL or path; None lets the ref decide."""

    ref: str
    source: str | None = None
    release: Version | None = None


def find_release(series: Series, request: Request) -> Version:
    """The release whose patches apply: the ref itself, the one given beside a git ref, or the pin."""
    if request.release is not None:
        return request.release
    if request.ref == PIN:
        return series.pin
    return parse_release(request.ref) if _RELEASE.fullmatch(request.ref) else series.pin


def names_release(ref: str) -> bool:
    """Does ``ref`` name a release, or the pin, rather than a git ref?"""
    return ref == PIN or _RELEASE.fullmatch(ref) is not None


def resolve_base(session: Session, request: Request) -> Base:
    """Find or fetch the base commit.

    Raises:
        UsageError: unknown release, or not a ref.
        EnvironmentFault: nothing cached and offline, or the transfer failed.
        IntegrityError: what came is not what series.lock holds.
    """
    release = find_release(session.series, request)
    named = names_release(request.ref)
    if request.source in (None, PYPI) and named:
        return _from_index(session, session.lock.get(release))
    if request.source == PYPI:
        raise UsageError(
            f"{request.ref!r} is not a release, and the package index knows only releases",
            next_step="name a release (v0.5.23), or take the ref from git: --source git",
        )
    source = DEFAULT_URL if request.source in (None, GIT) else _check_url(str(request.source))
    url, login = split_login(source)
    if login:
        session.git = Git(session.git.git_dir, env={**session.git.env, **login})
    ref = f"v{release}" if named else check_ref(request.ref)
    return Base(release, *_from_git(session, url, ref), GIT, f"{ref} of {url}")


def find_imported(git: Git, locked: LockedRelease) -> str | None:
    """The base commit if the repository has it already. Raises IntegrityError when it is another one."""
    commit = git.resolve(release_ref(locked.version))
    if commit is not None and commit != locked.base_commit:
        raise IntegrityError(
            f"the base of sglang {locked.version} is not the locked one",
            where=str(git.git_dir),
            why=f"{release_ref(locked.version)} is {commit}, locked {locked.base_commit}",
            next_step=f"restore series.lock, or drop the ref: git -C {git.git_dir} update-ref -d "
            f"{release_ref(locked.version)}",
        )
    return commit


def _from_index(session: Session, locked: LockedRelease) -> Base:
    git = session.git
    if find_imported(git, locked) is None:
        for wanted in order_wheels(session, locked):
            path = fetch_wheel(session, locked, wanted)
            commit = import_wheel(git, path, locked.version, progress=session.progress)
            if commit == locked.base_commit:
                break
            git.run("update-ref", "-d", release_ref(locked.version))
        else:
            raise IntegrityError(
                f"importing {path.name} gave commit {commit}, and no other wheel gave the locked one",
                where="series.lock",
                why=f"the lock holds {locked.base_commit}",
                next_step="report it: the wheels' hashes are right, so the import is not reproducible here",
            )
    return Base(locked.version, locked.base_commit, locked.base_tree, PYPI, f"v{locked.version}")


def _from_git(session: Session, url: str, ref: str) -> tuple[str, str]:
    """Fetch ``ref`` of ``url`` and return (commit, tree)."""
    git = session.git
    local = f"refs/ada/git/{hashlib.sha256(url.encode()).hexdigest()[:16]}/{ref}"
    if not session.offline:
        _fetch(git, url, ref, local)
    commit = git.resolve(local)
    if commit is None and not session.offline:
        # git fetch exits 0 and leaves the ref out when the other side is shallow.
        raise EnvironmentFault(
            f"{url} has no complete history of {ref}",
            why="it is a shallow clone, so the blobs a three-way merge needs may be missing",
            next_step=f"git -C {url} fetch --unshallow, or use the released wheel: --source pypi",
        )
    if commit is None:
        raise EnvironmentFault(
            f"{ref} of {url} was never fetched",
            why="--offline uses nothing but the cache",
            next_step="run once without --offline",
        )
    return commit, git.tree_of(commit)


def _fetch(git: Git, url: str, ref: str, local: str) -> None:
    # A blobless fetch takes the history and leaves file contents to be fetched when a patch needs them.
    # A local path has no network to save, and its upload-pack may not allow filters.
    narrow = [] if Path(url).exists() else ["--filter=blob:none"]
    source = ref if is_oid(ref) else _full_ref(git, url, ref)
    done = git.run(
        "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-gc", *narrow,
        "--end-of-options", url, f"+{source}:{local}", check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise EnvironmentFault(
            f"cannot fetch {ref} from {url}",
            why=last_line(done.stderr),
            next_step="check the URL and the ref; the released wheel needs no git: --source pypi",
        )
    for key, value in (("promisor", "true"), ("partialclonefilter", "blob:none")) if narrow else ():
        # The tool's own settings have this from the fetch. A person's git in a worktree needs it too.
        git.run("config", "--file", str(git.git_dir / "config"), f"remote.{url}.{key}", value)


def _full_ref(git: Git, url: str, ref: str) -> str:
    """``refs/tags/REF`` or ``refs/heads/REF``, whichever the remote has: a tag wins, as in git."""
    done = git.run(
        "ls-remote", "--end-of-options", url, f"refs/tags/{ref}", f"refs/heads/{ref}", check=False
    )
    if done.returncode != 0:
        raise EnvironmentFault(
            f"cannot reach {url}",
            why=last_line(done.stderr),
            next_step="check the URL; the released wheel needs no git: --source pypi",
        )
    names = [line.split("\t")[1] for line in done.stdout.decode().splitlines()]
    for name in (f"refs/tags/{ref}", f"refs/heads/{ref}"):
        if name in names:
            return name
    raise UsageError(
        f"{url} has no tag or branch {ref}", next_step="check the spelling of --sglang-ref"
    )


def mask_login(url: str) -> str:
    """``url`` with stars for the name and password in it, for messages."""
    return re.sub(r"(?<=://)[^/@\s]*@", "***@", url)


def split_login(url: str) -> tuple[str, dict[str, str]]:
    """A URL without the name and password in it, and variables that let git use them.

    git would write them into messages, into the configuration of the repository and into the arguments of
    its helpers, which every user of the machine can list. With the variables a credential helper gives them
    to that host alone, and nothing is stored. ssh knows no password in a URL; it is left out.
    """
    parts = urllib.parse.urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    name, _, password = login.partition(":")
    if not at or parts.scheme not in ("https", "ssh"):
        return url, {}
    if parts.scheme == "ssh":
        return parts._replace(netloc=f"{name}@{host}").geturl(), {}
    return parts._replace(netloc=host).geturl(), {
        "TOOL_LOGIN": urllib.parse.unquote(name),
        "TOOL_PASSWORD": urllib.parse.unquote(password),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"credential.https://{host}.helper",
        "GIT_CONFIG_VALUE_0": _HELPER,
    }


def _check_url(text: str) -> str:
    if _URL.fullmatch(text):
        return text
    if not text.startswith("-") and Path(text).is_dir():
        return str(Path(text).resolve())
    raise UsageError(
        f"{mask_login(text)!r} is not a source",
        next_step="--source takes pypi, git, an https/ssh/file URL, or the path of a repository",
    )


@dataclass(frozen=True)
class Base:
    """A commit to apply to. ``source`` is ``pypi`` (the released wheel) or ``git``."""

    release: Version
    commit: str
    tree: str
    source: str
    label: str


@dataclass(frozen=True)
class ResolvedRelease:
    """``wheels`` go into series.lock; empty for a git source, or where nobody asked for them."""

    base: Base
    wheels: tuple[LockedWheel, ...]


def previous_release(lock: Lock, release: Version, named: Version | None) -> Version:
    """The release to start from: ``named``, or the newest one below ``release`` that has patches.

    Raises:
        UsageError: there is none.
    """
    supported = sorted(v for v, entry in lock.releases.items() if entry.patches)
    if named is not None:
        if named not in supported:
            lock.get(named)  # the usual refusal, when the lock lacks it
            raise UsageError(f"the series has no patch on sglang {named}", where="series.lock")
        return named
    below = [v for v in supported if v < release]
    if below:
        return below[-1]
    raise UsageError(
        f"the series supports nothing older than sglang {release}",
        where="series.lock",
        why=f"supported releases: {', '.join(f'v{v}' for v in supported) or 'none'}",
        next_step="to go to an older release, name the one to start from with --from",
    )


def _find_wheels(session: Session, release: Version, *, whole: bool) -> tuple[LockedWheel, ...]:
    cached = list_cached(session.workspace, release)
    if not session.offline and (whole or not cached):
        return discover_wheels(session, release, whole=whole)
    if not cached:
        raise EnvironmentFault(
            f"no wheel of sglang {release} is in the cache",
            where=str(session.workspace.wheels),
            why="--offline uses nothing but the cache",
            next_step="run once without --offline",
        )
    if whole:
        session.progress.note(
            f"--offline: the lock of sglang {release} gets the {len(cached)} cached wheel(s); add those of "
            f"the index later with: tool lock --wheels v{release}"
        )
    return cached


def resolve_release(session: Session, request: Request, *, whole: bool) -> ResolvedRelease:
    """Find or fetch ``request``'s base. ``whole``: with every wheel of the release, as a lock needs.

    A release that is not locked is whatever the index serves; its hashes are recorded, not checked.

    Raises:
        UsageError: no such release, or it is yanked.
        EnvironmentFault: offline and not in the cache, or the transfer failed.
        IntegrityError: a wheel cannot be read.
    """
    git, releases = session.git, session.lock.releases
    release = find_release(session.series, request)
    from_git = request.source not in (None, PYPI) or not names_release(request.ref)
    if from_git or release in releases:
        base = resolve_base(session, request)
        wheels = releases[release].wheels if base.source == PYPI else ()
        return ResolvedRelease(base, wheels)
    known = None if whole else git.resolve(release_ref(release))
    if known is not None:  # imported by an earlier look at it
        return ResolvedRelease(Base(release, known, git.tree_of(known), PYPI, f"v{release}"), ())
    wheels = _find_wheels(session, release, whole=whole)
    path = session.workspace.wheels / wheels[0].filename
    commit = import_wheel(git, path, release, progress=session.progress)
    base = Base(release, commit, git.tree_of(commit), PYPI, f"v{release}")
    return ResolvedRelease(base, wheels)
