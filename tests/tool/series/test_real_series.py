"""The project's own series on the real releases: build, install into an empty environment, verify."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.version import Version

from tests.support.trees import CACHE
from tool.cli.app import main
from tool.series import lockfile
from tool.series import model as series

ROOT = Path(__file__).parents[3]


def tool(tmp_path: Path, *args: str, code: int = 0) -> dict[str, object]:
    env = {"TOOL_CACHE_DIR": str(CACHE), "TOOL_DATA_DIR": str(tmp_path / "data")}
    done = CliRunner().invoke(main, [*args, "--series", str(ROOT), "--json"], env=env)
    assert done.exit_code == code, f"{done.output}\n{done.stderr}"
    result: dict[str, object] = json.loads(done.stdout)["result"]
    return result


@pytest.mark.index
@pytest.mark.parametrize("release", [pytest.param("0.5.9", marks=pytest.mark.exhaustive), "0.5.23"])
def test_the_fork_wheel_installs_and_verifies(
    released_wheel: Callable[[str], Path], tmp_path: Path, release: str
) -> None:
    released_wheel(release)  # skips when neither cache nor index has it
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    request = ("build", "--sglang-ref", f"v{release}", "--python", python, "-q")
    built = tool(tmp_path, *request, "--out", str(tmp_path / "one"))
    again = tool(tmp_path, *request, "--out", str(tmp_path / "two"))
    assert built["sha256"] == again["sha256"]
    wheel = Path(str(built["path"]))
    tool(tmp_path, "verify", str(wheel))

    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    installed = environment / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
    subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--no-compile", "--no-index", str(wheel)], check=True
    )
    tool(tmp_path, "verify", str(installed))

    (touched, *_) = lockfile.load(ROOT / "series.lock").get(Version(release)).net_files()
    victim = installed / touched.removeprefix("python/")
    victim.write_bytes(victim.read_bytes() + b"# edited\n")
    assert touched.removeprefix("python/") in json.dumps(
        tool(tmp_path, "verify", str(installed), code=5)
    )


def test_every_locked_release_has_its_patches_and_back() -> None:
    loaded = series.load_series(ROOT)
    locked = lockfile.load(loaded.lock_path)
    for version, entry in locked.releases.items():
        wanted = [(p.name, p.sha256) for p in loaded.for_release(version)]
        assert [(p.name, p.sha256) for p in entry.patches] == wanted
    assert loaded.pin in locked.releases
