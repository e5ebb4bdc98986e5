"""The command line itself: help, names, output and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click

from tests.support.lab import Lab, loaded_by
from tool.cli import app as cli
from tool.series import lint


class TestCommandLine:
    def test_help_loads_nothing_heavy(self) -> None:
        """--help imports little, because imports make it slow. bench/tool/apply.py measures the time."""
        text, modules = loaded_by("--help")
        assert "Exit codes" in "\n".join(text)
        heavy = {"git", "unidiff", "rich", "packaging", "torch", "sglang", "ada_dsa"}
        assert not heavy & modules

    def test_every_command_is_found_without_the_others(self) -> None:
        context = click.Context(cli.main)
        folder = Path(cli.__file__).parent / "commands"
        files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        names = cli.main.list_commands(context)
        assert {"import_" if name == "import" else name for name in names} == files
        for name in names:
            command = cli.main.get_command(context, name)
            assert command is not None and command.name == name
            text, modules = loaded_by(name, "--help")
            assert f"{name} [OPTIONS]" in text[0]
            loaded = {m for m in modules if m.startswith("tool.cli.commands.")}
            assert loaded == {f"tool.cli.commands.{'import_' if name == 'import' else name}"}

    def test_a_misspelt_command_is_recognized(self, lab: Lab) -> None:
        assert "'lint'" in lab.tool("lit", code=2).stderr

    def test_json_is_one_document_on_stdout(self, lab: Lab, fork: Path) -> None:
        for args, code in (
            (["status", "--json"], 0),
            (["apply", "--json", "--sglang-ref", "-x"], 2),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "tool", *args, "--series", str(lab.root)],
                capture_output=True, text=True, env=lab.environ,
            )  # fmt: skip
            envelope = json.loads(done.stdout)
            assert done.returncode == code == envelope["exit_code"]
            assert envelope["schema"] == 2 and envelope["command"] == args[0]

    def test_apply_for_a_person_says_where_and_what_next(self, lab: Lab, fork: Path) -> None:
        text = lab.tool("apply", "--into", str(fork), "--offline").output
        assert str(fork) in text and "tool build" in text and "nothing changed" in text

    def test_no_series_here(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "tool", "status"], cwd="/", capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        )  # fmt: skip
        assert done.returncode == 2 and "no series.txt" in done.stderr and "--series" in done.stderr

    def test_parts_never_import_each_other(self) -> None:
        root = Path(__file__).parents[3]
        for folder, banned in (("tool", "torch sglang ada_dsa triton"), ("ada_dsa", "tool sglang")):
            for path in (root / folder).rglob("*.py"):
                for _, module in lint.absolute_imports(path):
                    assert module.split(".")[0] not in banned.split(), f"{path} imports {module}"
