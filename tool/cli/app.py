"""The command line: options in, reports out. No logic lives here.

A command's module is imported when it is called, and what that needs inside the command: ``tool --help``
must not pay for GitPython or unidiff, nor one command for the options of all others.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

_MODULE: Final = {
    **dict.fromkeys(("apply", "build", "export", "lint", "lock", "status", "verify"), "series"),
    **dict.fromkeys(("drop", "import", "new", "refresh"), "author"),
    "doctor": "doctor",
    **dict.fromkeys(("check", "diff", "drift", "explain", "history", "rebase", "watch"), "rebase"),
}
"""Where each command is defined."""


class _Commands(click.Group):
    """Commands by name, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_MODULE)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        # Of a name that is none, click says which of those it has are like it: then it needs them all.
        modules = {_MODULE[cmd_name]} if cmd_name in _MODULE else {*_MODULE.values()}
        for module in modules:
            for command in import_module(f"tool.cli.{module}").COMMANDS:
                self.add_command(command)
        return super().get_command(ctx, cmd_name)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="ada-dsa", prog_name="tool")
def main() -> None:
    """Keep a fork of sglang as an ordered patch series: apply it, prove it, build it.

    \b
    Exit codes: 0 ok · 1 findings · 2 usage or configuration · 3 a patch conflicts ·
    4 an upstream verdict needs a person · 5 integrity (lock, hash, tree) ·
    6 environment (git too old, network, space) · 70 internal error
    """
