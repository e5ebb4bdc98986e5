"""Tests of a patched sglang tree: put it first on the path, on a faked CUDA platform.

``ADA_RELEASE`` is the release. ``ADA_PATCHED_TREE`` names the ``python`` folder of the patched tree and
``ADA_STOCK_TREE`` that of the unpatched release. ``ADA_OVERLAY`` is a folder of packages that go before
those of the environment. The test session sets all of them. It runs each release in a subprocess,
because a process cannot import two releases of sglang.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Modules with tests that both eras import: a failed assertion shows its values.
pytest.register_assert_rewrite("e4m3_codes", "int4_checkpoints", "stock_parity")

HERE = Path(__file__).parent
STARTED_WITH = {
    name: value
    for name, value in os.environ.items()
    if name.startswith("SGLANG_") and name != "SGLANG_ADA_DSA_OVERRIDE_ARCH"
}

if "ADA_PATCHED_TREE" in os.environ:
    import releases

    sys.path.insert(0, str(HERE / releases.era(releases.RELEASE)))
    sys.path.insert(0, str(HERE))
    if overlay := os.environ.get("ADA_OVERLAY"):
        sys.path.insert(0, overlay)
    sys.path.insert(0, os.environ["ADA_PATCHED_TREE"])
    import fake_cuda

    fake_cuda.install()


@pytest.fixture(scope="session", autouse=True)
def _tree() -> None:
    if "ADA_PATCHED_TREE" not in os.environ:
        pytest.fail(
            "these tests need a patched tree: run pytest --sglang-ref RELEASE", pytrace=False
        )


def _as_started() -> None:
    for name in [name for name in os.environ if name.startswith("SGLANG_")]:
        del os.environ[name]
    os.environ.update(STARTED_WITH)


@pytest.fixture(autouse=True)
def _server_environment() -> Iterator[None]:
    """Resolving server arguments sets variables for the processes that a server spawns."""
    _as_started()  # a wider fixture may have resolved some too
    yield
    _as_started()


# What the stock tree and the patched tree select, for the comparison of the two.

_Selecting = list[tuple[subprocess.Popen[bytes], Path]]


@pytest.fixture(scope="session", autouse=True)
def _selecting(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> _Selecting:
    """Two processes that run beside the tests before the comparison, if the session has that comparison."""
    started: _Selecting = []
    if not any("both" in getattr(item, "fixturenames", ()) for item in request.session.items):
        return started
    script = HERE / releases.era(releases.RELEASE) / "selections.py"
    for variable in ("ADA_STOCK_TREE", "ADA_PATCHED_TREE"):
        # Its own folder, where it writes the model folders under the same relative paths: these
        # are part of the arguments that are compared.
        folder = tmp_path_factory.mktemp(variable)
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            command = [sys.executable, str(script), os.environ[variable]]
            process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err)
        started.append((process, folder))
    return started


@pytest.fixture(scope="session")
def both(_selecting: _Selecting) -> tuple[dict[str, Any], dict[str, Any]]:
    """The selections of the stock tree and of the patched tree, as selections.py prints them."""
    found: list[dict[str, Any]] = []
    for process, folder in _selecting:
        code = process.wait(timeout=1500)
        assert code == 0, (folder / "err").read_text()[-4000:]
        found.append(json.loads((folder / "out").read_text().splitlines()[-1]))
    return found[0], found[1]
