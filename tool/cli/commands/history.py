"""``tool history``."""

from __future__ import annotations

from tool.cli.options import command
from tool.cli.output import Report
from tool.project import Session
from tool.rebase import load_history, load_retired, render_markdown


@command(reads=True, example=("tool history > docs/rebase-history.md",))
def history(session: Session) -> Report:
    """Print what every rebase met, as Markdown: docs/rebase-history.md is made with it."""
    rebases, retired = load_history(session.series), load_retired(session.series)
    return Report({"rebases": rebases, "retired": retired}, render_markdown(rebases, retired))
