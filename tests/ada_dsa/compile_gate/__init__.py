"""What both files of the gate are parametrized with."""

import pytest

from tests.support.aot import ARCHS, SAMPLED

EACH = [
    pytest.param(arch, marks=() if arch in SAMPLED else pytest.mark.exhaustive) for arch in ARCHS
]
"""Every architecture, of which a run without ``-m exhaustive`` takes a sample."""
