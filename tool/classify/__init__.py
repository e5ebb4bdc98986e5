"""What becomes of each patch on another release, with reasons a person can read.

It may import ``tool.apply`` and what is below it.
"""

from tool.classify.outcome import CARRIES, UPSTREAM, ConflictHunk, OutcomeKind
from tool.classify.replay import Decision, ReplayStep, replay_series

__all__ = [
    "CARRIES",
    "ConflictHunk",
    "Decision",
    "OutcomeKind",
    "ReplayStep",
    "UPSTREAM",
    "replay_series",
]
