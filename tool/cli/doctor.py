"""The command that examines an environment; found by ``tool.cli``."""

from __future__ import annotations

from pathlib import Path

import click

from tool.cli import output as report
from tool.cli.options import reporting
from tool.cli.output import Report


@click.command()
@reporting
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Interpreter of the environment to examine. Default: the one that runs the tool.",
)
def doctor(python: Path | None) -> Report:
    """Examine an environment: GPU, driver, versions, which kernels serve, a self-test of each.

    Exit code 1 when something would keep the fork from serving; what to do is said.
    """
    from tool.doctor import examine as command

    return command.examine(python, report.note)


COMMANDS = (doctor,)
