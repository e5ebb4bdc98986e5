"""What every test of the compile gate needs."""

from __future__ import annotations

import pytest
import triton

from tests.support import aot


@pytest.fixture(autouse=True)
def leave_out_unknown_architectures(request: pytest.FixtureRequest) -> None:
    """Skip an architecture without rows of its own that the installed Triton's tools do not know.

    The disassemblers of Triton 3.5 and 3.6 know neither sm_110 nor sm_121.
    """
    callspec = getattr(request.node, "callspec", None)
    arch = callspec.params.get("arch") if callspec else None
    if arch in aot.BORROWED and not aot.can_disassemble(arch):
        pytest.skip(f"the disassembler of Triton {triton.__version__} does not know sm_{arch}")
