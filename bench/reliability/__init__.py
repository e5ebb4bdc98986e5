"""How the tool stands interruptions, forgeries and failures, in numbers."""

from __future__ import annotations
