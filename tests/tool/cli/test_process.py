"""What the process owes its shell: exit codes, signals and streams that do not take what is written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.lab import Lab, git
from tool.cli.app import SUMMARIES


def run(
    lab: Lab, *args: str, stdout: str | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """The command as a shell starts it; ``stdout`` is a file to write to."""
    with open(stdout or os.devnull, "w") as out:  # noqa: PTH123
        return subprocess.run(
            [sys.executable, "-m", "tool", *args],
            env=lab.environ | environ,
            stdout=out if stdout else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def test_summaries_are_short_sentences() -> None:
    assert [
        name for name, text in SUMMARIES.items() if len(text) > 60 or len(text.split()) > 8
    ] == []


@pytest.mark.parametrize("args", [("--help",), ("status", "--help")])
def test_help_into_a_full_disk(ready: Lab, args: tuple[str, ...]) -> None:
    done = run(ready, *args, stdout="/dev/full")
    assert done.returncode == 6 and "could not be written" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_a_report_into_a_full_disk(ready: Lab, json_option: tuple[str, ...]) -> None:
    done = run(ready, "status", "--series", str(ready.root), *json_option, stdout="/dev/full")
    assert done.returncode == 6 and "could not be written" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_reader_that_has_seen_enough(ready: Lab) -> None:
    command = (
        f"{sys.executable} -m tool status --series {ready.root} | true; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(
        ["bash", "-c", command], env=ready.environ, capture_output=True, text=True
    )
    assert done.stdout.strip() in ("0", "141") and done.stderr == ""


@pytest.mark.parametrize("args", [("--help",), ("status",)])
def test_an_ascii_terminal(ready: Lab, args: tuple[str, ...]) -> None:
    series = () if args == ("--help",) else ("--series", str(ready.root))
    done = run(ready, *args, *series, PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 0 and done.stderr == ""
    # click writes help in UTF-8 whatever is asked.
    assert args == ("--help",) or done.stdout.isascii()


def test_no_home_and_no_passwd_entry(ready: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    for name in ("TOOL_DATA_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(name)
    from click.testing import CliRunner

    from tool.cli.app import main

    result = CliRunner().invoke(main, ["status", "--json", "--series", str(ready.root)])
    error = json.loads(result.stdout)["error"]
    assert result.exit_code == 6 and "TOOL_DATA_DIR" in error["next"]


def test_a_damaged_repository(ready: Lab, tmp_path: Path) -> None:
    ready.apply(tmp_path / "fork")
    head = git(tmp_path / "fork", "rev-parse", "HEAD~2^{tree}")
    (ready.root / "ada_dsa" / "__init__.py").write_text('"""Newer."""\n')
    for damage in ("config", "object", "HEAD"):
        name = f"objects/{head[:2]}/{head[2:]}" if damage == "object" else damage
        path = ready.home.repository / name
        if not path.exists():
            continue
        content = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(b"\x00garbage [")
        for args in (("apply", "--into", str(tmp_path / "fork"), "--offline"), ("status",)):
            result = ready.tool(*args, "--json", code=None)
            assert result.exit_code in (0, 5, 6), (damage, args, result.stdout)
        path.write_bytes(content)
    ready.apply(tmp_path / "fork")


class TestInterrupt:
    def test_before_anything_was_begun(self, ready: Lab) -> None:
        """Ctrl-C while modules are imported: no traceback."""
        for delay in (0.05, 0.1, 0.15, 0.2, 0.3):
            process = subprocess.Popen(
                [sys.executable, "-c", "import tool.__main__ as m; print(flush=True); m.run()"]
                + ["status", "--series", str(ready.root)],
                env=ready.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            _, words = process.communicate(timeout=60)
            assert process.returncode in (0, 130), words
            assert "Traceback" not in words

    @pytest.mark.parametrize("args", [("status",), ("explain", "nothing"), ("--help",)])
    def test_after_everything_was_said(self, ready: Lab, args: tuple[str, ...]) -> None:
        """Ctrl-C while Python ends: the result stands."""
        code = "import atexit, os; atexit.register(lambda: os.kill(os.getpid(), 2))\n"
        code += "import tool.__main__ as m; m.run()"
        series = () if args == ("--help",) else ("--series", str(ready.root))
        done = subprocess.run(
            [sys.executable, "-c", code, *args, *series],
            env=ready.environ, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == (2 if "nothing" in args else 0), done.stderr
        assert "interrupted" not in done.stderr and "Exception" not in done.stderr

    def test_of_a_waiting_command(self, ready: Lab) -> None:
        with ready.home.exclusive():
            process = subprocess.Popen(
                [sys.executable, "-m", "tool", "lock", "--json", "--offline"]
                + ["--series", str(ready.root)],
                env=ready.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert process.stderr is not None
            process.stderr.readline()
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
        error = json.loads(out)["error"]
        assert process.returncode == 130 == error["exit_code"]
        assert "tool status" in error["next"] and error["why"]
