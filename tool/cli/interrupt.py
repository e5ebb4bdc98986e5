"""Ctrl-C: at once and without a word too many before a command has begun, and with an exit code of 130."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Final

EXIT_CODE: Final = 130
"""128 + SIGINT, as shells report it."""
_ours = False
"""Is the handler of SIGINT this module's affair? Not where a test calls a command in its own process."""


def leave_at_once() -> None:
    """From now on Ctrl-C ends the process: nothing was begun, so there is nothing to undo.

    Where the caller has SIGINT ignored (``nohup``, a shell's background job) it stays ignored.
    """
    global _ours
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
        _ours = True


def raise_error() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, so that what was begun is undone."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore() -> None:
    """From now on Ctrl-C does nothing: the result stands, and only a message or Python's end is left."""
    if _ours:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted before anything was begun\n")
    os._exit(EXIT_CODE)
