"""Worktree commits → patch files and series.txt: the inverse of ``tool apply``.

A commit message made by ``tool apply`` holds the patch's whole header, so editing the message
edits the header. A commit that is gone takes its patch out of the release's series, and another order
of the commits becomes the order of series.txt. All files change together or not at all, and a patch file
is written only when its content changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tool.apply import DESTINATION
from tool.authoring.worktree import (
    Branch,
    describe_change,
    find_release_of,
    open_branch,
    refuse_leftovers,
)
from tool.errors import UsageError
from tool.git import Git, canonical_diff, changed_files, find_blobs, list_changes, list_commits
from tool.project import Session
from tool.series import (
    PATCH_DIR,
    SERIES_FILE,
    TREE_TRAILER,
    Series,
    SeriesText,
    make_specifier,
    parse_series,
    patchfile,
)


@dataclass(frozen=True)
class Exported:
    """What became of the series.

    ``written``: patch files whose content changed; ``kept``: those that were right already. ``removed``:
    patches that no commit holds any more, with the patch that a commit was squashed into, if it says so.
    ``order``: the patches of the release in their new order; empty when it is the old one. ``files``: for
    each written patch, the files it changes and how.
    """

    written: tuple[str, ...]
    kept: tuple[str, ...]
    removed: Mapping[str, str | None]
    order: tuple[str, ...]
    files: Mapping[str, Mapping[str, str]]


@dataclass
class _Commits:
    """The patches that the branch's commits hold, in order."""

    contents: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    squashed: dict[str, str] = field(default_factory=dict)


def export_patches(session: Session, folder: Path) -> Exported:
    """Write the patches of ``folder``'s branch into ``patches/`` and series.txt.

    Raises:
        UsageError: the worktree is dirty, a commit has no patch name, two commits share one, a
            patch is not in series.txt, or a commit edits the bundled kernels.
    """
    with session.exclusive():
        git, series = session.git, session.series
        branch = open_branch(session, folder.absolute())
        if dirty := list_changes(branch.admin, folder):
            raise UsageError(
                f"has uncommitted changes, first {dirty[0]}",
                where=str(folder),
                next_step="commit them, then export again",
            )
        release = find_release_of(git, branch)
        _refuse_ref(session, branch, release)
        found = _read_commits(git, series, branch, release)
        contents = dict(found.contents)
        text = SeriesText((series.root / SERIES_FILE).read_text(encoding="utf-8"))
        removed = [
            patch
            for patch in series.for_release(release)
            if patch.name in branch.list_patches(git, branch.tip) and patch.name not in contents
        ]
        files: dict[str, bytes | None] = {}
        for patch in removed:
            others = session.lock.checked_on(patch.name) - {release}
            how = f"squashed into {into}" if (into := found.squashed.get(patch.name)) else "removed"
            if not others:
                text.drop(patch.name, f"{patch.name} {patch.releases} was {how} in a worktree")
                files[patch.name] = None
                continue
            spec = _exclude(others, release)
            text.respecify(patch.name, spec)
            parsed = patchfile.parse(patch.name, patch.content)
            header = patchfile.with_fields(parsed.header, Releases=spec)
            files[patch.name] = patchfile.render(header, parsed.diff)
        order = _find_order(git, series, branch, release, list(contents), [p.name for p in removed])
        if order:
            text.reorder(order)
        new = parse_series(series.root, str(text))
        if order and [p.name for p in new.for_release(release)] != order:
            raise UsageError(
                "series.txt cannot hold this order of the commits",
                where=", ".join(order),
                next_step="order the commits as series.txt does: git rebase -i",
            )
        old = {p.name: p.content for p in series.patches if p.name in contents}
        written = tuple(n for n, content in contents.items() if old[n] != content)
        files |= {n: contents[n] for n in written}
        _write(session, files, str(text) if removed or order else None)
        return Exported(
            written,
            tuple(n for n in contents if n not in written),
            {p.name: found.squashed.get(p.name) for p in removed},
            tuple(order),
            {n: found.files[n] for n in written},
        )


def _write(session: Session, files: Mapping[str, bytes | None], text: str | None) -> None:
    changed: dict[str, bytes | None] = {f"{PATCH_DIR}/{n}": data for n, data in files.items()}
    if text is not None:
        changed[SERIES_FILE] = text.encode()
    if changed:
        session.write(changed)


def _refuse_ref(session: Session, branch: Branch, release: Version) -> None:
    """A patch file holds the blobs of a release; commits on other files would be written for those."""
    entry = session.lock.releases.get(release)
    net = entry.net_files() if entry and entry.base_commit != branch.base else {}
    here = find_blobs(session.git, branch.base, list(net))
    if other := min(
        (path for path, change in net.items() if here[path] != change.before), default=None
    ):
        raise UsageError(
            f"is on a git ref with another {other} than sglang {release}",
            where=str(branch.folder),
            why="patch files are written for the files of a release",
            next_step="leave the change uncommitted there, then: tool new, or tool refresh",
        )


def _exclude(others: set[Version], release: Version) -> str:
    """The specifier of ``others``, without ``release``."""
    spec = make_specifier(others)
    inside = SpecifierSet(spec).contains(release, prereleases=True)
    return f"{spec},!={release}" if inside else spec


def _find_order(
    git: Git,
    series: Series,
    branch: Branch,
    release: Version,
    names: Sequence[str],
    removed: Sequence[str],
) -> list[str]:
    """The new order of the release's patches; empty when the commits are in the order they were made in.

    A patch that the series got since the worktree was made keeps its place.
    """
    before = [n for n in branch.list_patches(git, branch.tip) if n in names]
    if [n for n in names if n in before] == before:
        return []
    moved = iter(names)
    current = [p.name for p in series.for_release(release) if p.name not in removed]
    wanted = [next(moved) if name in names else name for name in current]
    return [] if wanted == current else wanted


def _read_commits(git: Git, series: Series, branch: Branch, release: Version) -> _Commits:
    known = {p.name for p in series.for_release(release)}
    found = _Commits()
    for entry in list_commits(git, branch.base, branch.head):
        commit, parents, text = entry.oid, entry.parents, entry.message
        where = f"commit {commit[:12]} ({entry.summary})"
        if len(parents) != 1:
            raise UsageError("is a merge", where=where, next_step="rebase it into single commits")
        header, name = patchfile.from_message(text)
        files = {c.path: describe_change(c) for c in changed_files(git, parents[0], commit)}
        bundled = [path for path in files if path.startswith(f"{DESTINATION}/")]
        kernels = header.get(TREE_TRAILER)
        if name is None and kernels and kernels == git.find(f"{commit}:{DESTINATION}"):
            if own := sorted(set(files) - set(bundled)):
                raise UsageError(
                    f"changes {own[0]} in the commit that bundles the kernels",
                    where=where,
                    next_step="move that change to a commit of its own patch",
                )
            continue  # the source of the kernels is ada_dsa/, not this commit
        if bundled:
            raise UsageError(
                "changes the bundled kernels",
                where=where,
                next_step="make that change in ada_dsa/ and apply again",
            )
        if name is None:
            raise UsageError(
                "has no Patch-Name trailer",
                where=where,
                next_step="squash it into the patch it belongs to (git rebase -i --autosquash), or name a "
                "new one: git commit --amend --trailer 'Patch-Name: CHANGE/NAME.patch'",
            )
        if name in found.contents:
            raise UsageError(
                f"is a second commit of {name}", where=where, next_step="squash the two"
            )
        if name not in known:
            raise UsageError(
                f"belongs to {name}, which series.txt does not list for v{release}",
                where=where,
                next_step=f"add the line '    {name} =={release}' to series.txt, below its change",
            )
        if not files:
            raise UsageError(
                f"changes nothing, and {name} with it",
                where=where,
                next_step="drop the commit (git rebase -i); export then takes the patch out",
            )
        content = patchfile.render(header, canonical_diff(git, parents[0], commit))
        refuse_leftovers(name, content)  # what we write, we can read
        found.contents[name] = content
        found.files[name] = files
        found.squashed |= dict.fromkeys(patchfile.squashed_names(text), name)
    return found
