"""Publish a composed commit as a worktree, whole or not at all.

The worktree is made under a random name beside its final place and moved there by a rename (an exchange
where an earlier state is replaced). A journal, written first, says what is under way; the next command
finishes or undoes it. So a kill at any moment leaves the old state or the new one:

1. journal
2. staged worktree, detached, with all files
3. the old worktree's HEAD is detached at the commit it holds
4. the branch and the two refs that describe it move in one transaction
5. the staged worktree's HEAD is attached to the branch
6. rename
7. what git does not keep of the old worktree moves to the new one; the old one is deleted, or kept as a
   backup when a file of it was edited meanwhile
8. the journal is removed
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from tool.errors import EnvironmentFault, ToolError, UsageError
from tool.git import (
    TIMEOUT,
    Git,
    blob_id,
    failure,
    find_admin,
    is_admin,
    is_oid,
    list_changes,
    list_worktrees,
    read_head,
    resolve_admin,
)
from tool.project.journal import REPAIR, Journal, Recovery, is_token
from tool.project.staging import (
    Replacement,
    carries_token,
    discard_worktree,
    list_claimants,
    new_token,
    point_admin,
    remove_admin,
    stage_worktree,
    swap_folders,
)

KIND: Final = "checkout"
_ZERO: Final = "0" * 40


@dataclass(frozen=True)
class Checkout:
    """A folder to hold the worktree. ``admin`` and ``head`` describe what is there now, if ours."""

    folder: Path
    branch: str
    admin: Path | None
    head: str | None


@dataclass(frozen=True)
class _Plan(Replacement):
    """What the journal says: the worktree that is made, and what its refs and folder were before."""

    branch: str
    head: str
    base: str
    branch_before: str | None
    tip_before: str | None
    base_before: str | None
    old_admin: str | None

    @property
    def trash(self) -> Path:
        """The replaced worktree, once nothing in it is needed."""
        return self.staged.with_name(f"{self.staged.name}.trash")

    def moves(self) -> tuple[tuple[str, str, str | None], ...]:
        """The refs that move: name, new value, old value."""
        return (
            (f"refs/heads/{self.branch}", self.head, self.branch_before),
            (tip_ref(self.branch), self.head, self.tip_before),
            (base_ref(self.branch), self.base, self.base_before),
        )


def tip_ref(branch: str) -> str:
    """Remembers the commit the tool left a branch at: anything else on it is the user's work."""
    return f"refs/ada/landed/{branch}/tip"


def base_ref(branch: str) -> str:
    """Remembers the base commit under a branch."""
    return f"refs/ada/landed/{branch}/base"


def inspect_folder(git: Git, folder: Path, branch: str | None, default: str) -> Checkout:
    """Look at ``folder``, through symbolic links, and decide on the branch.

    Raises:
        UsageError: the folder holds something that is not a clean worktree of this tool, or the
            branch is taken or carries commits of the user's.
    """
    folder = folder.resolve()
    if any(ord(char) < 32 for char in str(folder)):
        raise UsageError(
            "has a control character in its name",
            where=repr(str(folder)),
            next_step="choose another folder with --into",
        )
    if find_admin(folder) is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                "exists and is not a worktree of this tool",
                where=str(folder),
                next_step="choose another folder with --into",
            )
        target = Checkout(folder, branch or default, None, None)
    else:
        admin = resolve_admin(git, folder)
        if admin is None:
            raise UsageError(
                "is a worktree of another repository",
                where=str(folder),
                next_step="choose another folder with --into",
            )
        target = _existing(git, folder, admin, branch)
    _check_branch(git, target)
    return target


def recover_checkout(git: Git, journal: Journal) -> Recovery | None:
    """Finish or undo what a stopped command left; None when there is nothing. Raises nothing expected."""
    # Only the tool writes below refs/ada, and we hold its lock: nobody uses a lock file there.
    for stale in (git.git_dir / "refs" / "ada").rglob("*.lock"):
        stale.unlink()
    found = describe_checkout(git, journal)
    if found is None or found.problem:
        return found
    try:
        plan = _read(git, journal)
        assert plan is not None
        _unlock(git, plan)
        note = _retire(git, plan) if _is_published(git, plan) else _undo(git, plan)
        journal.remove()
    except (ToolError, OSError) as error:
        return Recovery(found.project, found.what, found.action, str(error))
    what = f"{found.what}; {note}" if note else found.what
    return Recovery(found.project, what, found.action)


def describe_checkout(git: Git, journal: Journal) -> Recovery | None:
    """What ``recover_checkout`` would do."""
    try:
        plan = _read(git, journal)
    except (ToolError, OSError) as error:
        return Recovery("", f"an apply noted in {journal.path}", "set aside", str(error))
    if plan is None:
        return None
    action = "finished" if _is_published(git, plan) else "undone"
    return Recovery(plan.project, f"an interrupted apply into {plan.folder}", action)


class Publication:
    """One checkout under way, as a context manager: leaving without ``finish`` undoes it.

    The caller checks the result while the files are written. ``warn`` is told what a person must know.
    """

    def __init__(
        self,
        git: Git,
        journal: Journal,
        project: Path,
        target: Checkout,
        head: str,
        base: str,
        warn: Callable[[str], None],
    ) -> None:
        self._git = git
        self._journal = journal
        self._target = target
        self._warn = warn
        self._process: subprocess.Popen[bytes] | None = None
        self._done = False
        self._plan = _Plan(
            token=new_token(),
            project=str(project),
            folder=str(target.folder),
            branch=target.branch,
            head=head,
            base=base,
            branch_before=git.resolve(f"refs/heads/{target.branch}"),
            tip_before=git.resolve(tip_ref(target.branch)),
            base_before=git.resolve(base_ref(target.branch)),
            old_admin=str(target.admin) if target.admin else None,
        )

    def __enter__(self) -> Publication:
        plan, git = self._plan, self._git
        # The journal is first: git locks the refs to check them, and a kill leaves the locks behind.
        self._journal.write(asdict(plan))
        try:
            _check_refs(git, plan)
            self._admin = stage_worktree(git, plan.place, plan.token, plan.head)
            worktree = Git(self._admin, work_tree=plan.staged)
            # More workers than one: checking out 6,000 files is bound by system calls.
            self._process = worktree.start("-c", "checkout.workers=0", "reset", "--hard", "--quiet")
        except BaseException:
            self.__exit__()
            raise
        return self

    def finish(self) -> None:
        """Wait for the files, then move refs and folder.

        Raises:
            EnvironmentFault: no space left, or the checkout hung.
        """
        self._wait()
        plan, git = self._plan, self._git
        if self._target.admin is not None:
            _detach(self._target.admin)
        else:
            self._release_missing()
        _move_refs(git, plan)
        Git(self._admin).run("symbolic-ref", "HEAD", f"refs/heads/{plan.branch}")
        point_admin(self._admin, plan.place)
        self._swap()
        self._done = True
        if note := _retire(git, plan):
            self._warn(note)
        self._journal.remove()

    def __exit__(self, *_: object) -> None:
        if self._done:
            return
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        undone = recover_checkout(self._git, self._journal)
        if undone is not None and undone.problem:
            self._warn(f"{undone}; {REPAIR}")

    def _wait(self) -> None:
        assert self._process is not None
        try:
            _, words = self._process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired as err:
            raise EnvironmentFault("writing the worktree did not finish") from err
        if self._process.returncode != 0:
            error = failure(("reset",), self._process.returncode, words)
            if b"unable to write" not in words:
                raise error
            # git does not say why; how much room there is does.
            free = shutil.disk_usage(self._plan.staged.parent).free
            raise EnvironmentFault(
                "the worktree could not be written",
                where=str(self._target.folder),
                why=f"{words.decode('utf-8', 'replace').splitlines()[0]}; {free // 1024} KiB of space left",
                next_step="free some space and run the same command again; nothing was changed",
            ) from error

    def _swap(self) -> None:
        plan = self._plan
        if self._target.admin is not None:
            _replace(plan)
            return
        with contextlib.suppress(FileNotFoundError):
            plan.place.rmdir()  # an empty folder the user made for us
        plan.staged.rename(plan.place)

    def _release_missing(self) -> None:
        """Free the branch from a worktree that git believes to be here and that is not: somebody moved or
        deleted it. Its entry stays, so that a moved one can be repaired; the entry before it goes."""
        place = self._plan.place
        nowhere = place.with_name(f".tool-moved-from-{place.name}")
        for admin in list_claimants(self._git, place):
            if admin.resolve() == self._admin:
                continue
            for earlier in list_claimants(self._git, nowhere):
                remove_admin(self._git, earlier)
            head = _detach(admin)
            point_admin(admin, nowhere)
            self._warn(
                f"the worktree that was in {place} is not there any more. If you moved it: it is no longer "
                f"on a branch, but at commit {head[:12]}; run git worktree repair in its new place. If you "
                "deleted it, there is nothing to do"
            )


def _existing(git: Git, folder: Path, admin: Path, branch: str | None) -> Checkout:
    _, head, current = read_head(git, folder)
    if current is None:
        raise UsageError(
            "is not on a branch", where=str(folder), next_step="choose another folder with --into"
        )
    if branch is not None and branch != current:
        raise UsageError(
            f"is on branch {current}, not {branch}",
            where=str(folder),
            next_step="choose another folder with --into",
        )
    if dirty := list_changes(admin, folder):
        raise UsageError(
            f"has {len(dirty)} uncommitted change(s), first {dirty[0]}",
            where=str(folder),
            next_step="commit them and run tool export, or choose another folder with --into",
        )
    if hidden := list_hidden_edits(admin, folder):
        raise UsageError(
            f"has {len(hidden)} change(s) that git status does not show, first {hidden[0]}",
            where=str(folder),
            why="the file is marked assume-unchanged or skip-worktree in git's index",
            next_step=f"git update-index --no-assume-unchanged --no-skip-worktree {hidden[0]}; then commit "
            "it or restore it",
        )
    return Checkout(folder, current, admin, head)


def list_hidden_edits(admin: Path, folder: Path) -> list[str]:
    """Files marked assume-unchanged or skip-worktree that do not hold what the index says."""
    git = Git(admin, work_tree=folder)
    rows = git.out("ls-files", "-v", "-z").split("\0")
    marked = {row[2:] for row in rows if row and (row[0] == "S" or row[0].islower())}
    if not marked:
        return []
    staged = (row.partition("\t") for row in git.out("ls-files", "-s", "-z").split("\0") if row)
    blobs = {path: entry.split()[1] for entry, _, path in staged if path in marked}
    return sorted(path for path, blob in blobs.items() if _blob_on_disk(folder / path) != blob)


def _blob_on_disk(path: Path) -> str | None:
    try:
        return blob_id(os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _check_branch(git: Git, target: Checkout) -> None:
    branch = target.branch
    try:
        branch.encode()
        valid = git.run("check-ref-format", "--branch", branch, check=False).returncode == 0
    except ValueError:  # not UTF-8, or a NUL byte
        valid = False
    if not valid:
        raise UsageError(
            f"{branch!r} is not a branch name", next_step="choose another with --branch"
        )
    tip = git.resolve(f"refs/heads/{branch}")
    if tip is None:
        return
    elsewhere = list_worktrees(git).get(branch)
    if elsewhere is not None and elsewhere.resolve() != target.folder:
        raise UsageError(
            f"branch {branch} is checked out in {elsewhere}",
            next_step=f"use that worktree, or name another branch: --branch {branch}-2",
        )
    if tip != git.resolve(tip_ref(branch)):
        raise UsageError(
            f"branch {branch} has commits of your own",
            why=f"its tip {tip[:12]} is not what tool apply left there",
            next_step="save them with tool export, or name another branch with --branch",
        )


def _updates(plan: _Plan) -> str:
    return "".join(f"update {ref} {new} {old or _ZERO}\n" for ref, new, old in plan.moves())


def _check_refs(git: Git, plan: _Plan) -> None:
    """Raises UsageError when git cannot move the refs: a name too long, or below another branch's."""
    script = f"start\n{_updates(plan)}prepare\nabort\n"
    done = git.run("update-ref", "--stdin", stdin=script.encode(), check=False)
    if done.returncode == 0:
        return
    error = failure(("update-ref",), done.returncode, done.stderr)
    if isinstance(error, EnvironmentFault):
        raise error
    raise UsageError(
        f"git cannot make the branch {plan.branch}",
        why=error.why,
        next_step="name another branch with --branch",
    )


def _move_refs(git: Git, plan: _Plan) -> None:
    git.run("update-ref", "--stdin", stdin=_updates(plan).encode())


def _detach(admin: Path) -> str:
    """Detach a worktree's HEAD at the commit it holds; returns the commit."""
    git = Git(admin)
    head = git.out("rev-parse", "HEAD")
    git.run("update-ref", "--no-deref", "HEAD", head)
    return head


def _read(git: Git, journal: Journal) -> _Plan | None:
    """The plan in the journal.

    Raises:
        IntegrityError: it is not one that this tool wrote.
    """
    body = journal.read()
    if body is None:
        return None
    try:
        plan = _Plan(**body)
        _check_plan(git, plan)
    except (TypeError, ValueError) as error:
        raise journal.damaged(error) from error
    return plan


def _check_plan(git: Git, plan: _Plan) -> None:
    """Raises ValueError at a value that this tool does not write: paths are made of them."""
    optional = ("branch_before", "tip_before", "base_before", "old_admin")
    for item in fields(plan):
        value = getattr(plan, item.name)
        if not (isinstance(value, str) or (value is None and item.name in optional)):
            raise ValueError(f"{item.name} is {value!r}")
    oids = (plan.head, plan.base, plan.branch_before, plan.tip_before, plan.base_before)
    if not is_token(plan.token) or not all(oid is None or is_oid(oid) for oid in oids):
        raise ValueError("it holds something else where a token or an object id belongs")
    if not plan.place.is_absolute() or ".." in plan.branch.split("/"):
        raise ValueError(f"folder {plan.folder!r}, branch {plan.branch!r}")
    admin = Path(plan.old_admin) if plan.old_admin else None
    if admin and not is_admin(git, admin):
        raise ValueError(f"{admin} is no worktree of {git.git_dir}")


def _unlock(git: Git, plan: _Plan) -> None:
    """Remove the lock files that a killed git left on what it was changing for us."""
    with contextlib.suppress(OSError):  # a name that git cannot make has no lock file either
        (git.git_dir / "refs" / "heads" / f"{plan.branch}.lock").unlink()
    (git.git_dir / "packed-refs.lock").unlink(missing_ok=True)
    if plan.old_admin is not None:
        (Path(plan.old_admin) / "HEAD.lock").unlink(missing_ok=True)


def _is_published(git: Git, plan: _Plan) -> bool:
    return carries_token(git, plan.place, plan.token)


def _undo(git: Git, plan: _Plan) -> str | None:
    """Back to the state before; returns what could not be put back because somebody changed it since."""
    if plan.old.exists() and not plan.place.exists():
        plan.old.rename(plan.place)
    discard_worktree(git, plan.place, plan.token)
    lines = []
    foreign = []
    for ref, new, before in plan.moves():
        current = git.resolve(ref)
        if current == new != before:
            lines.append(f"update {ref} {before} {new}\n" if before else f"delete {ref} {new}\n")
        elif current != before:
            foreign.append(ref)
    git.run("update-ref", "--stdin", stdin="".join(lines).encode())
    if plan.old_admin is not None and (admin := Path(plan.old_admin)).is_dir():
        branch = f"refs/heads/{plan.branch}"
        if Git(admin).out("rev-parse", "HEAD") == git.out("rev-parse", branch):
            Git(admin).run("symbolic-ref", "HEAD", branch)
        else:
            foreign.append(f"HEAD of {plan.folder}")
    if foreign:
        return f"{', '.join(foreign)} changed since and stays as it is"
    return None


def _retire(git: Git, plan: _Plan) -> str | None:
    """Dispose of the replaced worktree. What git does not keep of it moves to the new one.

    A worktree that was edited while the new one was made is kept as a backup; returns a sentence then.
    """
    if plan.old_admin is None:
        return None
    admin = Path(plan.old_admin)
    if plan.staged.exists():
        plan.staged.rename(plan.old)
    if plan.old.exists():
        left = _carry_over(admin, plan.old, plan.place)
        if left:
            point_admin(admin, plan.backup)
            plan.old.rename(plan.backup)
            return (
                f"{left[0]} changed while {plan.folder} was updated; the worktree with that change is "
                f"kept in {plan.backup} (remove it with: git worktree remove --force {plan.backup})"
            )
        plan.old.rename(plan.trash)
    if plan.trash.exists():
        shutil.rmtree(plan.trash)
    if not plan.backup.exists():
        remove_admin(git, admin)
    return None


def _carry_over(admin: Path, old: Path, new: Path) -> list[str]:
    """Move untracked and ignored files from one worktree to the other; returns what cannot move."""
    git = Git(admin, work_tree=old)
    text = git.out(
        "status", "--porcelain", "-z", "--untracked-files=normal", "--ignored=traditional",
        "--no-renames",
    )  # fmt: skip
    left = list_hidden_edits(admin, old)
    for row in text.split("\0"):
        state, path = row[:2], row[3:]
        if state in ("??", "!!"):
            if Path(path).name != "__pycache__":
                left += _move(old, new, Path(path))
        elif row:
            left.append(path)
    return left


def _move(old: Path, new: Path, path: Path) -> Iterator[str]:
    """Move ``path`` without replacing anything; yields what stayed because its place is taken."""
    source, target = old / path, new / path
    if not os.path.lexists(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.parent.resolve() != target.parent:
                raise NotADirectoryError  # a link leads out of the worktree
            source.rename(target)
        except OSError:
            yield str(path)
    elif source.is_dir() and target.is_dir() and not (source.is_symlink() or target.is_symlink()):
        for child in sorted(source.iterdir()):
            yield from _move(old, new, path / child.name)
    else:
        yield str(path)


def _replace(plan: _Plan) -> None:
    """Put the staged worktree in the place of the old one; the old one is then at ``staged`` or ``old``."""
    swap_folders(plan.staged, plan.place, plan.old)
