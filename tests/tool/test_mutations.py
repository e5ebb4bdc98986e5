"""How strong the tests are: one-place changes to ``tool/``, of which a test must notice nearly all.

    pip install coverage
    MUTATIONS=60 MUTATION_SEED=7 pytest -m mutations tests/tool/test_mutations.py

``MUTATION_PACKAGES=classify,apply`` takes the places from these packages alone. The changes are made one
at a time in a copy of the tree. First all tests of tests/tool run without a change, and it is noted which of
them run which line. ``MUTATION_MAP=FILE`` keeps these notes: if the file exists, that run is left out. Notes
of an earlier tree can make a change look unnoticed, but never noticed. A change is then shown to the tests
that run its line, those of the file that mirrors the changed one first, and to the tests that run the tool as
another process. ``MUTATION_SECONDS`` limits how long the tests of one change may take by the notes; a change
that they do not notice within it counts as not noticed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mutations import list_places

ROOT = Path(__file__).parents[2]
WANTED = "not index and not gpu and not exhaustive and not mutations"


@pytest.mark.mutations
@pytest.mark.skipif("MUTATIONS" not in os.environ, reason="set MUTATIONS to how many to try")
def test_the_tests_notice_a_change(
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("coverage")
    number, seed = int(os.environ["MUTATIONS"]), int(os.environ.get("MUTATION_SEED", "1"))
    packages = [name for name in os.environ.get("MUTATION_PACKAGES", "").split(",") if name]
    root, known = tmp_path / "tree", Path(os.environ.get("MUTATION_MAP", tmp_path / "map.json"))
    left = shutil.ignore_patterns(".git", ".venv", "__pycache__", "sglang-v*")
    shutil.copytree(ROOT, root, ignore=left)
    numbers: dict[Path, int] = {}
    places = []
    for file, _ in list_places(root, []):
        numbers[file] = numbers.get(file, -1) + 1
        if not packages or file.parts[1] in packages:
            places.append([str(file), numbers[file]])
    env = os.environ | {"PYTHONPATH": str(root), "MUTATION_MAP": str(known.absolute())}
    env["MUTATIONS"] = json.dumps(random.Random(seed).sample(places, number))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-o", "addopts=", "-m", WANTED, f"--basetemp={tmp_path / 'children'}"]
    if not known.exists():
        subprocess.run([*command, "-p", "tests.support.line_map", "tests/tool"], cwd=root, env=env)
    unnoticed, tried = [], 0
    with subprocess.Popen(
        [*command, "-p", "tests.support.mutation_runner", "tests/tool"],
        cwd=root, env=env, stdout=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        for line in running.stdout:
            with capsys.disabled():  # it takes an hour
                print(line, end="", flush=True)
            tried += line.startswith(("noticed", "SURVIVED"))
            unnoticed += [line] if line.startswith("SURVIVED") else []
    record_property("tried", tried)
    record_property("not noticed", len(unnoticed))
    record_property("seed", seed)
    assert tried == number
    assert len(unnoticed) <= number // 20, "\n".join(unnoticed)
