"""Carrying the series to another release: preview, stops, decisions, and the files written at the end.

It may import ``tool.classify`` and what is below it.
"""

from tool.rebase.bisect import Bisection, Break, bisect_breaks
from tool.rebase.explain import diff_bases, explain_patch
from tool.rebase.history import load_history, load_retired, render_markdown
from tool.rebase.preview import Preview, count_outcomes, preview_rebase
from tool.rebase.retire import Retired, retire_release
from tool.rebase.run import (
    RebaseResult,
    Stopped,
    abort_rebase,
    continue_rebase,
    restart_rebase,
    show_rebase,
    skip_patch,
    start_carry,
    start_rebase,
)
from tool.rebase.state import repair_state
from tool.rebase.status import RebaseStatus, read_status
from tool.rebase.watch import ThreadState, Watched, watch_releases
from tool.rebase.write import SeriesUpdate

__all__ = [
    "Bisection",
    "Break",
    "Preview",
    "RebaseResult",
    "RebaseStatus",
    "Retired",
    "SeriesUpdate",
    "Stopped",
    "ThreadState",
    "Watched",
    "abort_rebase",
    "bisect_breaks",
    "continue_rebase",
    "count_outcomes",
    "diff_bases",
    "explain_patch",
    "load_history",
    "load_retired",
    "preview_rebase",
    "read_status",
    "render_markdown",
    "repair_state",
    "restart_rebase",
    "retire_release",
    "show_rebase",
    "skip_patch",
    "start_carry",
    "start_rebase",
    "watch_releases",
]
