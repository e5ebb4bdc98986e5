"""One command at work on a project: its session, the tool's folders, worktrees and files written whole.

It may import ``tool.series``, ``tool.git`` and the leaves.
"""

from tool.project import transaction
from tool.project.checkout import base_ref, inspect_folder, publish, tip_ref
from tool.project.session import SILENT, Progress, Session, Step
from tool.project.workspace import Workspace, locate_workspace

__all__ = [
    "Progress",
    "SILENT",
    "Session",
    "Step",
    "Workspace",
    "base_ref",
    "inspect_folder",
    "locate_workspace",
    "publish",
    "tip_ref",
    "transaction",
]
