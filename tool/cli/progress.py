"""A progress bar on stderr, for people only: silent when quiet or when nobody is looking."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Step = Callable[[int, int], None]
"""``step(done, total)``."""


@contextlib.contextmanager
def bar(title: str, *, quiet: bool) -> Iterator[Step]:
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title)
        yield lambda done, total: progress.update(task, completed=done, total=total)
