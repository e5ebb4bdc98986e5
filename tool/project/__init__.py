"""One command at work on a project: its session, the tool's folders, worktrees and files written whole.

It may import ``tool.series``, ``tool.git`` and the leaves.
"""

from tool.project.checkout import base_ref, inspect_folder, tip_ref
from tool.project.folder import FolderReplacement
from tool.project.journal import REPAIR, Recovery, set_aside
from tool.project.patched_tests import PATCHED_TESTS, run_patched_tests
from tool.project.repair import repair_project
from tool.project.session import SILENT, Progress, Session, Step
from tool.project.staging import (
    carries_token,
    discard_worktree,
    new_token,
    point_admin,
    stage_worktree,
    staged_path,
)
from tool.project.workspace import Workspace, locate_workspace

__all__ = [
    "FolderReplacement",
    "PATCHED_TESTS",
    "Progress",
    "REPAIR",
    "Recovery",
    "SILENT",
    "Session",
    "Step",
    "Workspace",
    "stage_worktree",
    "base_ref",
    "carries_token",
    "discard_worktree",
    "inspect_folder",
    "locate_workspace",
    "new_token",
    "point_admin",
    "repair_project",
    "run_patched_tests",
    "set_aside",
    "staged_path",
    "tip_ref",
]
