"""git, as this tool runs it: one hardened runner, object ids, diffs, private indexes and worktrees.

It may import ``tool.errors`` and nothing else of the tool.
"""

from tool.git.diff import Run, TreeChange, canonical_diff, changed_files, changed_runs
from tool.git.history import Commit, list_commits
from tool.git.index import (
    COMMIT_ENV,
    DATE,
    IDENTITY,
    add_blobs,
    commit_tree,
    find_blobs,
    private_index,
)
from tool.git.isolation import ATTRIBUTES
from tool.git.objects import (
    EXECUTABLE,
    FILE,
    NULL_OID,
    blob_header,
    blob_id,
    commit_id,
    file_mode,
    tree_id,
)
from tool.git.repository import (
    OFFLINE,
    TIMEOUT,
    Git,
    GitFailed,
    check_ref,
    failure,
    is_oid,
    last_line,
    missing_object,
    require_version,
)
from tool.git.tempdir import make_tempdir, sweep_tempdirs
from tool.git.worktree import (
    Worktree,
    add_worktree,
    admin_folders,
    find_admin,
    find_worktree,
    is_admin,
    list_changes,
    list_worktrees,
    read_head,
    read_text,
    resolve_admin,
    write_worktree,
)

__all__ = [
    "ATTRIBUTES",
    "COMMIT_ENV",
    "Commit",
    "DATE",
    "EXECUTABLE",
    "FILE",
    "Git",
    "GitFailed",
    "IDENTITY",
    "NULL_OID",
    "OFFLINE",
    "Run",
    "TIMEOUT",
    "Worktree",
    "add_blobs",
    "add_worktree",
    "admin_folders",
    "TreeChange",
    "blob_header",
    "blob_id",
    "canonical_diff",
    "changed_files",
    "changed_runs",
    "check_ref",
    "commit_id",
    "commit_tree",
    "failure",
    "file_mode",
    "find_admin",
    "find_blobs",
    "find_worktree",
    "is_admin",
    "is_oid",
    "last_line",
    "list_changes",
    "list_commits",
    "list_worktrees",
    "make_tempdir",
    "missing_object",
    "private_index",
    "read_head",
    "read_text",
    "require_version",
    "resolve_admin",
    "sweep_tempdirs",
    "tree_id",
    "write_worktree",
]
