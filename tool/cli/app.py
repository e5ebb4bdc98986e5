"""The command line: which commands there are, each in a module of its own.

A command's module is imported when the command is called. ``tool --help`` imports none of them: what a
command does is said here in a line.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, Final

import click

from tool.cli.output import drop_output, prepare_streams, print_warnings
from tool.errors import EnvironmentFault

SECTIONS: Final = {
    "Use the fork": {
        "plan": "Compute what fits, and the launch command.",
        "apply": "Make a worktree of a patched release.",
        "verify": "Compare a wheel, worktree or installation with series.lock.",
        "doctor": "Examine GPU, driver, versions and kernels.",
        "tune": "Find the fastest fp8 configurations for a GPU.",
    },
    "Ship it": {
        "build": "Build the wheel of the fork.",
        "publish": "Write wheels, index and notes to hand out.",
    },
    "Look": {
        "status": "Show the pin, caches and patches.",
        "explain": "Show purpose, releases and dependents of a patch.",
        "diff": "Compare the series between two releases.",
        "history": "Print the outcomes of every rebase.",
    },
    "Carry the series to another release": {
        "source": "Remember git repositories of sglang.",
        "watch": "Preview a rebase onto each new release.",
        "drift": "Preview a rebase onto a release or ref.",
        "bisect": "Name the upstream commits that break patches.",
        "rebase": "Carry the series; stop where you decide.",
    },
    "Write patches": {
        "new": "Make a patch of uncommitted changes.",
        "refresh": "Add uncommitted changes to a patch.",
        "import": "Make a patch of a diff or mail.",
        "export": "Write commits of a worktree as patches.",
        "drop": "Remove a patch, or retire a release.",
    },
    "Keep the project sound": {
        "lint": "Check patch files, headers and order.",
        "check": "Apply every release; compare with series.lock.",
        "test": "Run the tests of a patched release.",
        "lock": "Record results in series.lock; move the pin.",
        "repair": "Finish or undo an interrupted command.",
    },
}
"""Every command and what it does, by what a person wants. ``import`` lives in ``import_.py``, because the
name is a keyword."""

SUMMARIES: Final = {name: text for part in SECTIONS.values() for name, text in part.items()}


class _Commands(click.Group):
    def main(self, *args: Any, **kwargs: Any) -> Any:
        prepare_streams()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # help that standard output does not take
            drop_output()
            print_warnings([f"the output could not be written: {error.strerror}"])
            sys.exit(EnvironmentFault.exit_code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUMMARIES:
            return None
        module = "import_" if cmd_name == "import" else cmd_name
        found: click.Command = getattr(import_module(f"tool.cli.commands.{module}"), module)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, SUMMARIES))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])


@click.group(
    cls=_Commands,
    # Only the names: click compares a misspelt one with them. get_command has the commands themselves.
    commands=[click.Command(name) for name in SUMMARIES],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="ada-dsa", prog_name="tool")
def main() -> None:
    """Keep a fork of sglang as an ordered patch series: apply it, check it, build it.

    \b
    Exit codes: 0 ok · 1 findings · 2 usage or configuration · 3 a patch conflicts ·
    4 upstream has a patch or a part of it · 5 integrity (lock, hash, tree) ·
    6 environment (git too old, network, space) · 70 internal error · 130 interrupted (Ctrl-C)
    """
