"""``tool apply``: compose the series on a release and publish it as a worktree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tool.apply.checks import check_applied
from tool.apply.compose import Composition, compose_series
from tool.apply.kernels import commit_kernels
from tool.project import Session, inspect_folder
from tool.upstream import Request


@dataclass(frozen=True)
class ApplyResult:
    """``head`` is the commit that bundles the kernels, the last of the fork."""

    folder: Path
    branch: str
    state: Literal["created", "updated", "unchanged"]
    composition: Composition
    head: str
    checked_files: int


def apply_to_worktree(
    session: Session, request: Request, *, into: Path | None = None, branch: str | None = None
) -> ApplyResult:
    """Make or update the worktree; by default ``./sglang-vRELEASE`` on the branch ``ada/vRELEASE``.

    A git ref such as upstream/main gives ``./sglang-upstream-main`` and ``ada/upstream-main``.

    Raises:
        ToolError: any of the reasons in compose, checks and checkout; the old state then stands.
    """
    with session.exclusive():
        git = session.git
        composed = compose_series(session, request)
        head = commit_kernels(git, composed.base, composed.tip, session.series.kernel_dir)
        name = composed.base.slug
        folder = into or Path.cwd() / f"sglang-{name}"
        found = inspect_folder(git, folder, branch, f"ada/{name}")
        if found.head == head:
            checked = check_applied(git, composed.applied)
            return ApplyResult(found.folder, found.branch, "unchanged", composed, head, checked)
        with session.publish(found, head, composed.base.commit) as publication:
            checked = check_applied(git, composed.applied)
            publication.finish()
    state: Literal["updated", "created"] = "updated" if found.admin else "created"
    return ApplyResult(found.folder, found.branch, state, composed, head, checked)
