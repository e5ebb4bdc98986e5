"""A git repository as a source of sglang: what it holds is fetched, and a ref of it becomes a commit.

Every source has refs of its own in the tool's repository, below ``refs/ada/git/``: its branches, its release
tags and its HEAD as they were when they were fetched. A source that the project remembers is asked again only
for a ref that is not there, or by ``tool source fetch``. One that is named with ``--source`` is asked always.
"""

from __future__ import annotations

import hashlib
import re
import resource
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from packaging.version import Version

from tool.errors import EnvironmentFault, UsageError
from tool.git import Git, check_ref, failure, is_oid, last_line
from tool.project import Session

PREFIX: Final = "refs/ada/git/"
"""Below it: a folder for each source, named by the hash of its URL."""
MAX_PACK: Final = 4 << 30
"""Bytes that one fetch may write. sglang's whole history is a third of it."""

_HELPER: Final = (
    '!f() { test "$1" = get && '
    'printf "username=%s\\npassword=%s\\n" "$TOOL_LOGIN" "$TOOL_PASSWORD"; }; f'
)
_URL = re.compile(r"(https|ssh|file)://[^\s-]\S*|[\w.-]+@[\w.-]+:\S+")
_STEPS = re.compile(r"(.*?)((?:[~^][0-9]{0,6})*)")
_SHORT_OID = re.compile(r"[0-9a-f]{7,40}")
_TAGS: Final = "tags/v*"
_SIZE_SIGNS: Final = (b"File too large", b"died of signal 25")


@dataclass(frozen=True)
class GitSource:
    """``url`` is without a login, ``login`` what gives it to git. ``name`` is the project's for it."""

    url: str
    login: Mapping[str, str] = field(default_factory=dict, repr=False)
    name: str | None = None

    @property
    def refs(self) -> str:
        """The folder of its refs, without a slash at the end."""
        return PREFIX + hashlib.sha256(self.url.encode()).hexdigest()[:16]

    @property
    def is_local(self) -> bool:
        return Path(self.url).exists()

    def __str__(self) -> str:
        return f"{self.name} ({self.url})" if self.name else self.url


def make_source(text: str, name: str | None = None) -> GitSource:
    """The source that ``text``, a URL or the path of a repository, names.

    Raises:
        UsageError: it is neither.
    """
    url, login = split_login(check_url(text))
    return GitSource(url, login, name)


def find_commit(session: Session, source: GitSource, ref: str, *, refresh: bool = False) -> str:
    """The commit that ``ref``, a tag, a branch, HEAD, or a full or short id, is in ``source``.

    ``~3`` and ``^`` may follow. It is fetched when it is not here or when ``refresh`` says so.

    Raises:
        UsageError: the source has no such ref.
        EnvironmentFault: the source cannot be reached, or has no complete history.
    """
    use_login(session, source)
    match = _STEPS.fullmatch(ref)
    assert match is not None
    name, steps = check_ref(match[1]), match[2]
    git = session.git
    known = _find_here(git, source, name)
    if not session.offline and (known is None or (refresh and not is_oid(name))):
        offered = _fetch_name(git, source, name)
        known = _find_here(git, source, name)
        if known is None and offered:
            raise _incomplete(source, name)
        if not offered and not _SHORT_OID.fullmatch(name):
            known = None  # what is here is what the source had once
    if known is None:
        raise _not_found(source, name, offline=session.offline)
    commit = git.resolve(known + steps)
    if commit is None:
        raise UsageError(
            f"{ref} of {source} is no commit: {name} has fewer commits before it",
            next_step="name a commit that is there",
        )
    fetch_contents(session, source, commit)
    return commit


def fetch_source(session: Session, source: GitSource, *, first: bool = False) -> tuple[str, ...]:
    """Fetch HEAD, the release tags and every branch that was fetched before; returns the refs that moved.

    Names are without the source's folder. ``first``: nothing of it is here yet.

    Raises:
        EnvironmentFault: the source cannot be reached, or its history is not complete.
    """
    use_login(session, source)
    git = session.git
    before = _list_refs(git, source)
    offered = _list_offered(git, source)
    if not offered:
        raise UsageError(
            f"{source} has no commits",
            next_step="name another repository: tool source add NAME URL|PATH",
        )
    branches = [n for n in before if n.startswith("heads/") and f"refs/{n}" in offered]
    gone = [n for n in before if n.startswith("heads/") and n not in branches]
    if gone:  # first: git cannot have the branches a and a/b
        lines = "".join(f"delete {source.refs}/{name}\n" for name in gone)
        git.run("update-ref", "--stdin", stdin=lines.encode())
    _fetch(
        git, source, [*(f"refs/{n}:{n}" for n in branches), *(["HEAD:HEAD"] * ("HEAD" in offered))]
    )
    after = _list_refs(git, source)
    if first and not after:
        raise _incomplete(source, "HEAD")
    return tuple(sorted(n for n in before | after if before.get(n) != after.get(n)))


def forget_source(git: Git, source: GitSource) -> None:
    """Remove the refs of ``source``. Worktrees and branches made from it stay."""
    lines = "".join(f"delete {source.refs}/{name}\n" for name in _list_refs(git, source))
    if lines:
        git.run("update-ref", "--stdin", stdin=lines.encode())


def fetch_contents(session: Session, source: GitSource, commit: str) -> None:
    """Bring in, with one request, the package's files of ``commit`` that the repository has not.

    The history was fetched without contents; git would ask for every file by itself.
    """
    if source.is_local or session.offline:
        return
    tree = session.git.find(f"{commit}:python/sglang")
    if tree is None:
        return
    rows = session.git.out("rev-list", "--objects", "--missing=print", "--no-walk", tree)
    missing = [row[1:] for row in rows.splitlines() if row.startswith("?")]
    if not missing:
        return
    session.progress.note(f"fetching {len(missing)} file(s) of {source}")
    done = session.git.run(
        "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-gc",
        "--filter=blob:none", "--stdin", "--end-of-options", source.url,
        stdin="".join(f"{oid}\n" for oid in missing).encode(), check=False, max_file=MAX_PACK,
    )  # fmt: skip
    if done.returncode != 0:
        raise _transfer_failed(source, "file contents", done.stderr)


def list_release_tags(git: Git, commit: str, source: GitSource | None) -> Iterator[tuple[str, str]]:
    """Release tags in the history of ``commit`` (name, commit id), of ``source`` or of every source."""
    where = f"{source.refs}/tags" if source else PREFIX.rstrip("/")
    form = "%(refname)%00%(objectname)%00%(*objectname)"
    rows = git.out("for-each-ref", f"--format={form}", f"--merged={commit}", where).splitlines()
    for row in rows:
        name, oid, peeled = row.split("\0")
        _, mark, tag = name.partition("/tags/")
        if mark:
            yield tag, peeled or oid


def find_release_tag(git: Git, commit: str, release: Version) -> str | None:
    """The commit of the tag of ``release`` in the history of ``commit``, whichever source has it."""
    tags = dict(list_release_tags(git, commit, None))
    return tags.get(f"v{release}")


def use_login(session: Session, source: GitSource) -> None:
    """Let git log in to ``source`` from now on."""
    if source.login:
        session.git = Git(session.git.git_dir, env={**session.git.env, **source.login})


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


def check_url(text: str) -> str:
    """``text`` if it is a URL that git may be given, or the path of a folder, made absolute.

    Raises:
        UsageError: it is neither.
    """
    if _URL.fullmatch(text):
        return text
    if not text.startswith("-") and Path(text).is_dir():
        return str(Path(text).resolve())
    raise UsageError(
        f"{mask_login(text)!r} is not a source",
        next_step="a source is an https, ssh or file URL, the path of a repository, or a name that "
        "tool source list shows; --source also takes pypi and git",
    )


def _find_here(git: Git, source: GitSource, name: str) -> str | None:
    """The commit id of ``name`` in what was fetched; a tag wins, as in git."""
    for place in (f"tags/{name}", f"heads/{name}", name if name == "HEAD" else None):
        if place and (commit := git.resolve(f"{source.refs}/{place}")):
            return commit
    return git.resolve(name) if _SHORT_OID.fullmatch(name) else None


def _fetch_name(git: Git, source: GitSource, name: str) -> bool:
    """Fetch ``name`` and the release tags; False when the source offers nothing of that name."""
    if is_oid(name):
        _fetch(git, source, [f"{name}:commits/{name}"])
        return True
    offered = _list_offered(git, source)
    wanted = [
        f"{full}:{full.removeprefix('refs/')}"
        for full in (f"refs/tags/{name}", f"refs/heads/{name}", *(["HEAD"] * (name == "HEAD")))
        if full in offered
    ]
    if not wanted and _SHORT_OID.fullmatch(name):
        _fetch(git, source, ["refs/heads/*:heads/*"])  # the start of an id: it may be on any branch
    elif wanted:
        _fetch(git, source, wanted)
    return bool(wanted)


def _list_offered(git: Git, source: GitSource) -> set[str]:
    """The names of HEAD, the branches and the tags that the source has."""
    args = ("--end-of-options", source.url, "HEAD", "refs/heads/*", "refs/tags/*")
    done = git.run("ls-remote", *args, check=False)
    if done.returncode != 0:
        raise EnvironmentFault(
            f"cannot reach {source}",
            why=last_line(done.stderr),
            next_step="check the URL; the released wheel needs no git: --source pypi",
        )
    rows = done.stdout.decode("utf-8", "replace").splitlines()
    return {row.partition("\t")[2] for row in rows}


def _fetch(git: Git, source: GitSource, refspecs: Sequence[str]) -> None:
    """Fetch the release tags and ``refspecs``, whose right sides are below the source's folder."""
    # A blobless fetch takes the history and leaves file contents to be fetched when a patch needs them.
    # A local path has no network to save, and its upload-pack may not allow filters.
    narrow = [] if source.is_local else ["--filter=blob:none"]
    specs = []
    for spec in (f"refs/{_TAGS}:{_TAGS}", *refspecs):
        theirs, _, ours = spec.partition(":")
        specs.append(f"+{theirs}:{source.refs}/{ours}")
    done = git.run(
        "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-gc", *narrow,
        "--end-of-options", source.url, *specs, check=False, max_file=MAX_PACK,
    )  # fmt: skip
    if done.returncode != 0:
        what = (
            (refspecs or ["tags"])[-1]
            .partition(":")[0]
            .removeprefix("refs/heads/")
            .removeprefix("refs/tags/")
        )
        raise _transfer_failed(source, what, done.stderr)
    for key, value in (("promisor", "true"), ("partialclonefilter", "blob:none")) if narrow else ():
        # The tool's own settings have this from the fetch. A person's git in a worktree needs it too.
        name = f"remote.{source.url}.{key}"
        git.run("config", "--file", str(git.git_dir / "config"), name, value)


def _list_refs(git: Git, source: GitSource) -> dict[str, str]:
    """What was fetched of ``source``: name below its folder → object id."""
    rows = git.out("for-each-ref", "--format=%(refname) %(objectname)", source.refs).splitlines()
    return {
        name.removeprefix(f"{source.refs}/"): oid for name, oid in (row.split() for row in rows)
    }


def _transfer_failed(source: GitSource, what: str, stderr: bytes) -> EnvironmentFault:
    own_limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    unlimited = own_limit == resource.RLIM_INFINITY or own_limit >= MAX_PACK
    if unlimited and any(sign in stderr for sign in _SIZE_SIGNS):
        return EnvironmentFault(
            f"{source} sends more than {MAX_PACK >> 30} GiB",
            why="a fetch is bounded, so that a wrong repository does not fill the disk",
            next_step="fetch the branch you need into a repository of yours, and name that one",
        )
    known = failure(("fetch",), 1, stderr)
    if isinstance(known, EnvironmentFault):
        return known  # no space, or a place that cannot be written: not the source's fault
    return EnvironmentFault(
        f"cannot fetch {what} from {source}",
        why=last_line(stderr),
        next_step="check the URL and the ref; the released wheel needs no git: --source pypi",
    )


def _not_found(source: GitSource, name: str, *, offline: bool) -> UsageError | EnvironmentFault:
    if offline:
        return EnvironmentFault(
            f"{name} of {source} was never fetched",
            why="--offline uses nothing but the cache",
            next_step="run once without --offline",
        )
    return UsageError(
        f"{source} has no tag, branch or commit {name}",
        next_step="check the spelling; the branches it has: git ls-remote --heads "
        + mask_login(source.url),
    )


def _incomplete(source: GitSource, ref: str) -> EnvironmentFault:
    # git fetch exits 0 and leaves the ref out when the other side is shallow.
    where = source.url if source.is_local else "ITS-FOLDER"
    return EnvironmentFault(
        f"{source} has no complete history of {ref}",
        why="it is a shallow clone, so the blobs a three-way merge needs may be missing",
        next_step=f"git -C {where} fetch --unshallow, or use the released wheel: --source pypi",
    )
