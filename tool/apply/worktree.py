"""``tool apply``: compose the series on a release and land it as a worktree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tool.apply import checks as proofs
from tool.apply.compose import Composition, compose
from tool.project import checkout as landing
from tool.project.workspace import Workspace
from tool.series import lockfile as locks
from tool.series.model import Series
from tool.upstream.resolve import Request


@dataclass(frozen=True)
class ApplyResult:
    """``state``: ``created``, ``updated`` or ``unchanged``."""

    folder: Path
    branch: str
    state: str
    composition: Composition
    proven_files: int


def apply_to_worktree(
    series: Series,
    home: Workspace,
    request: Request,
    *,
    into: Path | None,
    branch: str | None,
    note: Callable[[str], None],
) -> ApplyResult:
    """Make or refresh the worktree. ``note`` hears what a person should know meanwhile.

    Raises:
        ToolError: any of the reasons in compose, proofs and landing; the old state then stands.
    """
    lock = locks.load(series.lock_path)
    with home.exclusive():
        git = home.open_repository()
        if healed := landing.recover_checkout(git, home):
            note(healed)
        composed = compose(git, home, series, lock, request)
        release = composed.base.release
        folder = (into or Path.cwd() / f"sglang-v{release}").absolute()
        target = landing.inspect_folder(git, folder, branch, f"ada/v{release}")
        if target.head == composed.head:
            proven = proofs.check_applied(git, composed.applied)
            return ApplyResult(folder, target.branch, "unchanged", composed, proven)
        with landing.publish(git, home, target, composed.head, composed.base.commit) as under_way:
            proven = proofs.check_applied(git, composed.applied)
            under_way.finish()
    state = "updated" if target.admin else "created"
    return ApplyResult(folder, target.branch, state, composed, proven)
