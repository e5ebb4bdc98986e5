"""``tool new``, ``refresh``, ``import``, ``drop`` and ``tune``: edit the series as its author thinks of it.

Each ends with a series that is checked: on every release an edit reaches, the series is applied, the
checks are run, and series.lock is written in the same transaction as the patches and series.txt. A
patch after the edited one whose lines are the same but whose pre-image is not is written anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from packaging.version import Version

from tool.apply import (
    Applied,
    apply_patch,
    apply_series,
    check_applied,
    commit_kernels,
    compose_commit,
    find_orphans,
    list_known_preimages,
    lock_patches,
    merge_diff,
    prepare_base,
    recompute_commits,
)
from tool.authoring.mail import apply_mail, read_mail, read_reason
from tool.authoring.worktree import (
    EditedWorktree,
    describe_change,
    read_worktree,
    refuse_leftovers,
)
from tool.errors import ConflictError, ToolError, UsageError
from tool.git import Git, add_blobs, canonical_diff, changed_files, private_index
from tool.project import Session
from tool.series import (
    LOCK_FILE,
    PATCH_DIR,
    SERIES_FILE,
    Header,
    Lock,
    LockedRelease,
    Patch,
    Series,
    SeriesText,
    find_stem,
    is_patch_name,
    lockfile,
    make_specifier,
    name_next_file,
    parse_series,
    patchfile,
)
from tool.upstream import Base, Request


@dataclass(frozen=True)
class Edited:
    """What an edit did.

    ``written`` and ``removed`` are patch files, ``files`` what went into the patch (path: added, changed
    or removed), and ``releases`` those that were checked anew. ``worktree_moved``: the worktree holds
    the series as it now is; None where the command has no worktree. ``lacking``: of a new patch, the other
    releases that the series carries. ``kept``: of a refreshed one, its files for other releases.
    """

    patch: str
    written: tuple[str, ...]
    removed: tuple[str, ...]
    releases: tuple[Version, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    worktree_moved: bool | None = None
    lacking: tuple[Version, ...] = ()
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeaderFields:
    """What a patch's header says; ``name`` is its file, ``change`` the change it belongs to."""

    name: str
    change: str
    subject: str
    why: str
    drop_when: str
    origin: str = "vendor"
    author: str = ""

    def header(self, releases: str) -> Header:
        fields = (
            ("Origin", self.origin),
            *((("Author", self.author),) if self.author else ()),
            ("Forwarded", "no"),
            ("Releases", releases),
            ("Drop-When", self.drop_when),
        )
        return Header(self.subject, self.why, fields)


class Author:
    """One edit of one project; used while ``session.exclusive()`` is held."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.git = session.git
        self.series = session.series
        self.lock = session.lock
        self.text = SeriesText((self.series.root / SERIES_FILE).read_text(encoding="utf-8"))
        self.tips: dict[Version, tuple[Base, str]] = {}
        """Base and last commit of each release that ``write`` has applied the series to."""

    def base(self, release: Version) -> Base:
        """The base of a carried release, with every pre-image its patches need."""
        self.lock.get(release)
        return prepare_base(self.session, Request(f"v{release}"))

    def applied(self, release: Version) -> tuple[Base, tuple[Applied, ...]]:
        base = self.base(release)
        return base, apply_series(self.git, base, self.series.for_release(release))

    def write(
        self,
        patch: str,
        contents: Mapping[str, bytes | None],
        releases: Sequence[Version],
        headers: Mapping[str, bytes] | None = None,
    ) -> Edited:
        """Check the edited series on ``releases`` and write everything; raises as ``prepare``."""
        files, done = self.prepare(patch, contents, releases, headers)
        self.session.write(files)
        return done

    def prepare(
        self,
        patch: str,
        contents: Mapping[str, bytes | None],
        releases: Sequence[Version],
        headers: Mapping[str, bytes] | None = None,
    ) -> tuple[dict[str, bytes | None], Edited]:
        """Check the edited series on ``releases``; returns the project's files as they are to be written.

        ``headers`` are patch files of which nothing but the header is new.

        Raises:
            ConflictError, UpstreamedError: it does not hold on one of them.
        """
        given = {name: data for name, data in contents.items() if data is not None}
        touched = self._list_paths({**contents, **(headers or {})})
        text = str(self.text)
        series = parse_series(self.series.root, text)
        bases = {release: self.base(release) for release in releases}
        lock = recompute_commits(self.lock, self.series, headers or {})
        for release, base in bases.items():
            edited_files = {**(headers or {}), **given}
            applied, renewed = self._check(
                series, release, base, edited_files, lock, set(bases), touched
            )
            self.tips[release] = (base, applied[-1].commit if applied else base.commit)
            given |= renewed
            old = lock.get(release)
            lock = lock.with_release(
                LockedRelease(
                    release, old.wheels, old.base_commit, old.base_tree, lock_patches(applied)
                )
            )
        new = {**(headers or {}), **given}
        edited = tuple(replace(p, content_override=new.get(p.name)) for p in series.patches)
        for orphan, oid in find_orphans(edited, list_known_preimages(lock)):
            raise ConflictError(
                f"{orphan.name} was written on {oid[:12]}, which no release would give any more",
                where=f"{PATCH_DIR}/{orphan.name}",
                next_step=f"write it anew first: tool refresh {orphan.name} --split, in a worktree of a "
                "later release it stands for",
            )
        # A patch renewed for one release must still be the checked one of the others.
        for entry in lock.releases.values():
            stale = [p.name for p in entry.patches if p.name in given]
            if stale and entry.version not in bases:
                raise ConflictError(
                    f"{stale[0]} also stands for v{entry.version}, which this edit does not reach",
                    where=f"{PATCH_DIR}/{stale[0]}",
                    next_step="give that release a patch of its own first (series.txt)",
                )
        files: dict[str, bytes | None] = {f"{PATCH_DIR}/{n}": c for n, c in contents.items()}
        files |= {f"{PATCH_DIR}/{n}": c for n, c in new.items()}
        files[SERIES_FILE] = text.encode()
        files[LOCK_FILE] = lockfile.dump(lock)
        removed = tuple(name for name, data in contents.items() if data is None)
        return files, Edited(patch, tuple(given), removed, tuple(releases))

    def _list_paths(self, contents: Mapping[str, bytes | None]) -> set[str]:
        """The files that the edited patches change, before the edit or after it."""
        old = [p for p in self.series.patches if p.name in contents]
        parsed = [patchfile.parse(p.name, p.content) for p in old]
        parsed += [refuse_leftovers(n, data) for n, data in contents.items() if data is not None]
        return {file.path for patch in parsed for file in patch.files}

    def _check(
        self,
        series: Series,
        release: Version,
        base: Base,
        given: Mapping[str, bytes],
        lock: Lock,
        reached: set[Version],
        touched: set[str],
    ) -> tuple[tuple[Applied, ...], dict[str, bytes]]:
        """Apply to ``release``, and write anew the patches whose pre-image the edit took away.

        Those name a ``touched`` file, and no other release needs them as they are. A patch that several
        releases share is written for the first of them, if the edit reaches all: the blob it was written
        on may be one that nothing gives any more.
        """
        renewed: dict[str, bytes] = {}
        done: list[Applied] = []
        with private_index(self.git, base.tree) as index:
            commit, tree = base.commit, base.tree
            for listed in series.for_release(release):
                patch = replace(listed, content_override=given.get(listed.name))
                applied = apply_patch(index, patch, commit, tree)
                check_applied(self.git, [applied])
                users = lock.checked_on(patch.name) | {release}
                concerned = any(file.path in touched for file in applied.patch.files)
                if not applied.exact and concerned and users <= reached and release == min(users):
                    diff = canonical_diff(self.git, applied.parent_tree, applied.tree)
                    renewed[patch.name] = patchfile.render(applied.patch.header, diff)
                    index.run("read-tree", tree)
                    patch = replace(patch, content_override=renewed[patch.name])
                    applied = apply_patch(index, patch, commit, tree)
                commit, tree = applied.commit, applied.tree
                done.append(applied)
        return tuple(done), renewed

    def move_worktree(self, worktree: EditedWorktree) -> bool:
        """Put the worktree on the series as it was written; False when that cannot be done."""
        if worktree.release not in self.tips:
            return False  # the edit did not reach the worktree's release
        try:
            return worktree.move(self.git, self.compose_head(worktree))
        except ToolError:
            return False  # the series is written; the worktree still has the change uncommitted

    def compose_head(self, worktree: EditedWorktree) -> str:
        """The commit that ``worktree`` is to be on, by the series as it is in the project.

        Raises:
            ToolError: the worktree is on a git ref, and the series does not apply there.
        """
        base, tip = self.tips[worktree.release]
        if worktree.on_ref:
            on = worktree.branch.base
            composed = compose_commit(self.session, worktree.release, on, on[:12])
            check_applied(self.git, composed.applied)
            base, tip = composed.base, composed.tip
        return commit_kernels(self.git, base, tip, self.series.kernel_dir)


def new_patch(session: Session, fields: HeaderFields, folder: Path) -> Edited:
    """Make a patch of a worktree's uncommitted changes, after those of the series.

    Raises:
        UsageError: nothing is changed there, or the name is taken.
    """
    with session.exclusive():
        author = Author(session)
        worktree = read_worktree(session, folder)
        if done := _finish_new(author, fields, worktree):
            return done
        _check_name(author.series, fields)
        worktree.require_changes()
        base, applied = author.applied(worktree.release)
        before = applied[-1].tree if applied else base.tree
        tree = _merge(author.git, before, worktree.diff, fields.name, worktree)
        done = _add(author, fields, worktree.release, before, tree)
        return replace(done, worktree_moved=author.move_worktree(worktree))


def _finish_new(author: Author, fields: HeaderFields, worktree: EditedWorktree) -> Edited | None:
    """Bring the worktree up to date after a ``tool new`` that was interrupted when the patch was written.

    None unless the series holds the patch, the worktree does not, and its files are what the series gives.
    """
    release, git = worktree.release, author.git
    listed = [patch.name for patch in author.series.for_release(release)]
    known = worktree.branch.list_patches(git, worktree.branch.head)
    if not worktree.diff or fields.name not in listed or fields.name in known:
        return None
    base, applied = author.applied(release)
    author.tips[release] = (base, applied[-1].commit)
    if git.tree_of(author.compose_head(worktree)) != worktree.tree:
        return None
    moved = author.move_worktree(worktree)
    return Edited(fields.name, (fields.name,), (), (release,), worktree.files, moved)


def refresh_patch(session: Session, name: str, folder: Path, *, split: bool = False) -> Edited:
    """Fold a worktree's uncommitted changes into the patch ``name``.

    With ``split`` they go into a new patch file, for the worktree's release and those after it that
    ``name`` stands for; the releases before keep the file as it is. Without such changes the new
    file says the same, written on what is there.

    Raises:
        UsageError: the patch is not one of the worktree's release, or there is nothing to write.
        ConflictError: the change does not fit there, or a later patch does not apply any more.
    """
    with session.exclusive():
        author = Author(session)
        worktree = read_worktree(session, folder)
        release, diff = worktree.release, worktree.diff
        patch = author.series.find_patch(name, release)
        applied = next((a for a in author.applied(release)[1] if a.name == patch.name), None)
        if applied is None:
            own = max(author.lock.checked_on(patch.name), default=None)
            raise UsageError(
                f"{patch.name} does not apply to v{release}",
                where=str(folder),
                next_step=f"edit it where it does: tool apply --sglang-ref v{own}" if own else None,
            )
        if diff and patch.name not in worktree.branch.list_patches(
            author.git, worktree.branch.head
        ):
            raise UsageError(
                f"does not contain {patch.name} yet: the series got it after this worktree was made",
                where=str(folder),
                next_step=f"git stash -u there, tool apply --sglang-ref v{release} --into {folder}, "
                "then git stash pop",
            )
        if not split and applied.exact:
            worktree.require_changes()
        tree = (
            _merge(author.git, applied.tree, diff, patch.name, worktree) if diff else applied.tree
        )
        if tree == applied.parent_tree:
            raise UsageError(
                f"nothing of {patch.name} would be left",
                next_step=f"tool drop {patch.name} --why TEXT",
            )
        content = patchfile.render(
            applied.patch.header, canonical_diff(author.git, applied.parent_tree, tree)
        )
        if split:
            done = _split(author, patch, release, content)
        else:
            done = author.write(patch.name, {patch.name: content}, _list_checked(author, patch))
        return replace(
            done,
            files=worktree.files,
            worktree_moved=author.move_worktree(worktree),
            kept=_list_kept(author, done),
        )


def _list_kept(author: Author, done: Edited) -> tuple[str, ...]:
    """The files of the edited patch for releases that the edit did not reach."""
    stem, lock = find_stem(done.patch), author.session.lock
    own = [p.name for p in author.session.series.patches if find_stem(p.name) == stem]
    return tuple(name for name in own if not lock.checked_on(name) & set(done.releases))


def _split(author: Author, patch: Patch, release: Version, content: bytes) -> Edited:
    checked = _list_checked(author, patch)
    before = [v for v in checked if v < release]
    after = [v for v in checked if v >= release]
    if not before:
        raise UsageError(
            f"{patch.name} stands for no release before v{release}",
            where=SERIES_FILE,
            next_step=f"tool refresh {patch.name}",
        )
    name = name_next_file(patch.name, release, {p.name for p in author.series.patches})
    author.text.respecify(patch.name, spec := make_specifier(before))
    author.text.insert_after(patch.name, name, successor := make_specifier(after))
    return author.write(
        name,
        {name: _releases(name, content, successor)},
        after,
        headers={patch.name: _releases(patch.name, patch.content, spec)},
    )


def _releases(name: str, content: bytes, spec: str) -> bytes:
    parsed = patchfile.parse(name, content)
    return patchfile.render(patchfile.with_fields(parsed.header, Releases=spec), parsed.diff)


def import_patch(
    session: Session, fields: HeaderFields, content: bytes, release: Version
) -> Edited:
    """Make a patch of a diff or a mail, after those of the series on ``release``.

    Raises:
        UsageError: it is not a diff, or holds what a patch may not.
        ConflictError: it does not apply, or only by searching for another place.
    """
    _check_name(session.series, fields)
    with session.exclusive():
        author = Author(session)
        base, applied = author.applied(release)
        before = applied[-1].tree if applied else base.tree
        mail = read_mail(author.git, fields.name, content)
        told = replace(
            fields,
            subject=fields.subject or mail.subject,
            why=fields.why or mail.body,
            author=mail.author,
        )
        if not told.subject or not told.why:
            raise UsageError(
                "the mail does not say what it does and why",
                where=fields.name,
                next_step="add: --subject TEXT --reason TEXT",
            )
        tree = apply_mail(author.git, before, mail, fields.name)
        return _add(author, told, release, before, tree)


def put_files(
    session: Session, fields: HeaderFields, files: Mapping[str, bytes], release: Version
) -> Edited:
    """Make a patch that adds ``files`` (content by path in the tree), or put them into the patch of that
    name. Files that the patch has already and ``files`` does not name stay in it.

    Raises:
        UsageError: the patch would change nothing, or ``release`` is not in series.lock.
        ConflictError: a patch after it does not apply any more.
    """
    with session.exclusive():
        author = Author(session)
        base, applied = author.applied(release)
        known = next((one for one in applied if one.name == fields.name), None)
        before = known.tree if known else applied[-1].tree if applied else base.tree
        tree = _add_files(author.git, before, files)
        if known is None:
            _check_name(author.series, fields)
            return _add(author, fields, release, before, tree)
        if tree == before:
            raise UsageError(f"{fields.name} has these files already", next_step="see: tool status")
        patch = author.series.find_patch(fields.name, release)
        header = fields.header(str(known.patch.header.get("Releases")))
        content = patchfile.render(header, canonical_diff(author.git, known.parent_tree, tree))
        done = author.write(patch.name, {patch.name: content}, _list_checked(author, patch))
        changes = changed_files(author.git, before, tree)
        return replace(done, files={change.path: describe_change(change) for change in changes})


def _add_files(git: Git, tree: str, files: Mapping[str, bytes]) -> str:
    with private_index(git, tree) as index:
        blobs = {
            path: index.out("hash-object", "-w", "--no-filters", "--stdin", stdin=content)
            for path, content in files.items()
        }
        add_blobs(index, blobs)
        return index.out("write-tree")


def drop_patch(session: Session, name: str, why: str) -> Edited:
    """Take the patch ``name`` out of the series; a comment in series.txt keeps the reason.

    Raises:
        ConflictError: a later patch does not apply without it.
    """
    reason = " ".join(why.split())
    if not reason:
        raise UsageError("a patch is not dropped without a reason", next_step="--why TEXT")
    with session.exclusive():
        author = Author(session)
        patch = author.series.find_patch(name)
        releases = _list_checked(author, patch)
        author.text.drop(patch.name, f"{patch.name} {patch.releases} was dropped: {reason}")
        return author.write(patch.name, {patch.name: None}, releases)


def _add(author: Author, fields: HeaderFields, release: Version, before: str, after: str) -> Edited:
    if before == after:
        raise UsageError(f"{fields.name} would change nothing", next_step="see: tool status")
    change = next((c for c in author.series.changes if c.name == fields.change), None)
    if change is not None and not change.needed.contains(release, prereleases=True):
        raise UsageError(
            f"the change {change.name} is over: it is needed on {change.needed}, not on v{release}",
            where=f"{SERIES_FILE}:{change.line}",
            next_step="name another change with --change, or widen that line",
        )
    spec = make_specifier([release])
    content = patchfile.render(fields.header(spec), canonical_diff(author.git, before, after))
    # A new change is needed on later releases too, until a person or upstream ends it.
    author.text.append(fields.change, fields.name, spec, needed=f">={release}")
    done = author.write(fields.name, {fields.name: content}, [release])
    changes = changed_files(author.git, before, after)
    others = [v for v in author.lock.carried if v != release]
    upper = change.needed if change else None
    return replace(
        done,
        files={change.path: describe_change(change) for change in changes},
        lacking=tuple(v for v in others if upper is None or upper.contains(v, prereleases=True)),
    )


def _merge(git: Git, tree: str, diff: bytes, name: str, worktree: EditedWorktree) -> str:
    """``tree`` with ``diff`` merged into it from the blobs it was made on."""
    patchfile.parse(name, b"Description: an edit\n---\n" + diff)
    with private_index(git, tree) as index:
        done = merge_diff(index, diff)
        if done.returncode != 0:
            next_step = (
                "a later patch changes the same lines: refresh that one, or make a new patch"
            )
            if worktree.on_ref:
                next_step = (
                    f"sglang {worktree.release} has other lines there than the git ref of the worktree: "
                    "commit the change in your own repository"
                )
            raise ConflictError(
                f"the change does not fit into {name}",
                why=read_reason(done.stderr),
                next_step=next_step,
            )
        return index.out("write-tree")


def _list_checked(author: Author, patch: Patch) -> list[Version]:
    found = author.lock.checked_on(patch.name)
    if not found:
        raise UsageError(
            f"{patch.name} is on no release of series.lock",
            where=LOCK_FILE,
            next_step="check and record it first: tool lock --sglang-ref RELEASE",
        )
    return sorted(found)


def _check_name(series: Series, fields: HeaderFields) -> None:
    if not is_patch_name(fields.name):
        raise UsageError(
            f"{fields.name!r:.120} is not a patch file name",
            next_step="write NAME and --change with lower case, digits and dashes",
        )
    if (
        any(p.name == fields.name for p in series.patches)
        or (series.root / PATCH_DIR / fields.name).exists()
    ):
        raise UsageError(
            f"{fields.name} exists already",
            where=PATCH_DIR,
            next_step=f"choose another name, or change it: tool refresh {fields.name}",
        )
