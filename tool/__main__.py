"""``python -m tool``, and the ``tool`` script."""

from __future__ import annotations

import gc

from tool.cli import interrupt


def run() -> None:
    # Syntax trees are many small objects without cycles. The collector goes through all of them again
    # and again, finds nothing, and takes up to half of the time of `tool drift`.
    gc.disable()
    interrupt.leave_at_once()
    from tool.cli.app import main  # the import takes a while, and Ctrl-C may come meanwhile

    try:
        main()
    finally:
        interrupt.ignore()


if __name__ == "__main__":
    run()
