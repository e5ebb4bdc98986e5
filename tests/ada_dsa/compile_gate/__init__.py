"""What both files of the gate are parametrized with."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

from tests.support.aot import ARCHS, SAMPLED

EACH = [
    pytest.param(arch, marks=() if arch in SAMPLED else pytest.mark.exhaustive) for arch in ARCHS
]
"""Every architecture, of which a run without ``-m exhaustive`` takes a sample."""


def sample(cases: Iterable[Any], more: Collection[Any]) -> list[Any]:
    """The cases of a test, of which those in ``more`` run with ``-m exhaustive`` alone.

    Such a case takes the configuration row and the branches of a kernel that other cases take too.
    """
    marks = pytest.mark.exhaustive
    return [pytest.param(case, marks=marks if case in more else ()) for case in cases]
