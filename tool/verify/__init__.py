"""Comparing a wheel, a worktree or an installed fork with series.lock.

It may import ``tool.wheel`` and what is below it.
"""

from tool.verify.checks import VerifyReport
from tool.verify.files import Unproven
from tool.verify.verify import verify_artifact

__all__ = [
    "Unproven",
    "VerifyReport",
    "verify_artifact",
]
