"""Progress on stderr: sentences, and bars where a person is looking."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from tool.project import Step


class Terminal:
    """The progress of one command; silent when ``quiet``."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet

    def note(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def bar(self, title: str) -> Iterator[Step]:
        if self.quiet or not sys.stderr.isatty():
            yield lambda done, total: None
            return
        from rich.console import Console  # slow to import, and few commands draw a bar
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(title)
            yield lambda done, total: progress.update(task, completed=done, total=total)
