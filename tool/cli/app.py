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

SUMMARIES: Final = {
    "apply": "Apply the series to a release: a worktree of commits.",
    "build": "Build the fork wheel: the released wheel, patched.",
    "check": "Check the series on every supported release.",
    "diff": "Show how the series differs between two releases.",
    "doctor": "Examine an environment: GPU, versions, kernels, self-test.",
    "drift": "Show what carrying the series to a release would meet.",
    "drop": "Take a patch out of the series.",
    "explain": "Say what a patch is for and what depends on it.",
    "export": "Write a worktree's commits back as patch files.",
    "history": "Print what every rebase met, as Markdown.",
    "import": "Make a patch of a diff or a mail.",
    "lint": "Check headers, order file, form and security rules.",
    "lock": "Apply and check the series; record it in series.lock.",
    "new": "Make a patch of what is uncommitted in a worktree.",
    "plan": "Compute what fits on given cards, and the launch command.",
    "rebase": "Carry the series to another release.",
    "refresh": "Fold what is uncommitted in a worktree into a patch.",
    "repair": "Finish or undo what an interrupted command left.",
    "status": "Show the pin, the cache, and each patch on a release.",
    "verify": "Verify a fork wheel, a worktree or an installed fork.",
    "watch": "Look for a newer release and preview the rebase.",
}
"""Every command and what it does. ``import`` lives in ``import_.py``, because the name is a keyword."""


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
        return sorted(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUMMARIES:
            return None
        module = "import_" if cmd_name == "import" else cmd_name
        found: click.Command = getattr(import_module(f"tool.cli.commands.{module}"), module)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in self.list_commands(ctx)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in SUMMARIES and not args[0].startswith("-"):
            # click compares a misspelt name with the commands it has loaded.
            for name in SUMMARIES:
                self.add_command(click.Command(name))
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
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
