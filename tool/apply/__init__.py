"""The series on a base: apply, check, compare with the lock, write a worktree, record the lock.

It may import ``tool.upstream``, ``tool.analysis`` and what is below them.
"""

from tool.apply.check_all import CHECK_RULES, check_releases, select_releases
from tool.apply.checks import (
    UNBOUND,
    Dangling,
    check_applied,
    check_one,
    compute_intended,
    find_dangling,
    find_newly_unbound,
    list_added_lines,
)
from tool.apply.compose import (
    Composition,
    check_patch_files,
    compose_release,
    compose_series,
    lock_patches,
    prepare_base,
    select_patches,
)
from tool.apply.engine import EMPTY_MERGE, Applied, apply_patch, apply_series, merge_diff
from tool.apply.kernels import DESTINATION, commit_kernels
from tool.apply.lint_imports import lint_imports
from tool.apply.lock import recompute_commits, update_lock
from tool.apply.preimages import find_missing_preimages, find_orphans, list_known_preimages
from tool.apply.ref_base import RefBuild, compose_commit, compose_ref, project_ref
from tool.apply.worktree import apply_to_worktree
from tool.series import RELEASE_TRAILER, TREE_TRAILER

__all__ = [
    "Applied",
    "CHECK_RULES",
    "Composition",
    "DESTINATION",
    "Dangling",
    "EMPTY_MERGE",
    "RELEASE_TRAILER",
    "RefBuild",
    "TREE_TRAILER",
    "UNBOUND",
    "apply_patch",
    "apply_series",
    "apply_to_worktree",
    "check_applied",
    "check_one",
    "check_patch_files",
    "check_releases",
    "commit_kernels",
    "compose_commit",
    "compose_ref",
    "compose_release",
    "compose_series",
    "compute_intended",
    "find_dangling",
    "find_missing_preimages",
    "find_newly_unbound",
    "find_orphans",
    "lint_imports",
    "list_added_lines",
    "list_known_preimages",
    "lock_patches",
    "merge_diff",
    "prepare_base",
    "project_ref",
    "recompute_commits",
    "select_patches",
    "select_releases",
    "update_lock",
]
