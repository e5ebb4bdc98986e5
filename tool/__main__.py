"""``python -m tool``."""

from __future__ import annotations

from tool.cli.app import main

if __name__ == "__main__":
    main()
