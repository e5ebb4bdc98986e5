"""The history page is made of the recorded rebases."""

from __future__ import annotations

from pathlib import Path

from tool.rebase import load_history, render_markdown
from tool.series import load_series

ROOT = Path(__file__).parents[3]


def test_the_page_is_what_tool_history_prints() -> None:
    page = (ROOT / "docs" / "rebase-history.md").read_text(encoding="utf-8")
    assert page.splitlines() == render_markdown(load_history(load_series(ROOT)))
