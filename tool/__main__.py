"""``python -m tool``, and the ``tool`` script."""

from __future__ import annotations

from tool.cli import interrupt


def run() -> None:
    interrupt.leave_at_once()
    from tool.cli.app import main  # the import takes a while, and Ctrl-C may come meanwhile

    try:
        main()
    finally:
        interrupt.ignore()


if __name__ == "__main__":
    run()
