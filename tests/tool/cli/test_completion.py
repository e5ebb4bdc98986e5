"""What a shell completes, asked as bash asks it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.lab import Lab


def complete(lab: Lab, folder: Path, *words: str) -> list[str]:
    environ = lab.environ | {
        "_TOOL_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("tool", *words)),
        "COMP_CWORD": str(len(words)),
    }
    script = (
        "import sys; sys.argv = ['tool']; from tool.cli.app import main; main(prog_name='tool')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environ, capture_output=True, text=True
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("ref",), ["refresh"]),
        (("apply", "--sglang-ref", "v0"), ["v0.5.23"]),
        (("apply", "--sglang-ref", "p"), ["pin"]),
        (("drift", "--onto", "v0"), ["v0.5.23"]),
        (("explain", "de"), ["demo", "demo/answer.patch"]),
        (("refresh", "demo/"), ["demo/answer.patch"]),
        (("rebase", "--edit", "demo/"), ["demo/answer.patch"]),
        (("explain", "no-such"), []),
    ],
)
def test_it_completes_commands_releases_and_patches(
    ready: Lab, words: tuple[str, ...], wanted: list[str]
) -> None:
    assert complete(ready, ready.root, *words) == wanted


def test_it_is_silent_outside_of_a_project(lab: Lab, tmp_path: Path) -> None:
    assert complete(lab, tmp_path, "explain", "de") == []


def test_it_is_silent_where_the_lock_is_damaged(ready: Lab) -> None:
    (ready.root / "series.lock").write_text("{")
    assert complete(ready, ready.root, "apply", "--sglang-ref", "v0") == []
