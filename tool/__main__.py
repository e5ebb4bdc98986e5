"""``python -m tool``."""

from __future__ import annotations

import atexit
import gc


def run() -> None:
    """The command line, without looking for garbage: that is a tenth of a short command's time."""
    gc.disable()
    atexit.register(gc.freeze)  # the interpreter would look once more when it ends
    from tool.cli import main

    main()


if __name__ == "__main__":
    run()
