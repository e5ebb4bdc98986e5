"""``tool verify``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from tool.cli.options import command
from tool.cli.output import Report
from tool.errors import IntegrityError
from tool.project import Session
from tool.verify import Unproven, VerifyReport, verify_artifact

_SHOWN: Final = 10
_ENDS: Final = {
    "proven": ("proven", 0),
    "not proven": ("NOT PROVEN", 1),
    "refuted": ("REFUTED", IntegrityError.exit_code),
}
"""Headline and exit code of each outcome."""


@command(
    session="offline quiet",
    reads=True,
    example=("tool verify ~/venv/lib/python3.11/site-packages",),
)
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
def verify(session: Session, artifact: Path) -> Report:
    """Verify a fork wheel, a worktree or an installed fork (its site-packages) against series.lock.

    Exit code 0: proven. 1: nothing is wrong, but not everything could be compared; what is not proven is
    listed. 5: refuted; the first file that differs is named. The released wheel is downloaded when it is
    needed; with --offline, what needs it stays unproven.
    """
    return report_verification(verify_artifact(session, artifact.absolute()))


def report_verification(found: VerifyReport) -> Report:
    """Exit code 0, 1 or 5, by the outcome."""
    name = f"{found.artifact} ({found.kind}"
    name += f", sglang {found.version})" if found.version else ")"
    headline, exit_code = _ENDS[found.outcome]
    lines = [f"{name}: {headline}"]
    lines += [f"  {d}" for d in found.differences[:_SHOWN]]
    if len(found.differences) > _SHOWN:
        lines.append(f"  and {len(found.differences) - _SHOWN} more (all of them: --json)")
    lines += [f"  checked: {text}" for text in found.checked]
    lines += [f"  not proven: {text}" for text in _group(found.unproven)]
    if found.outcome == "refuted":
        lines.append(
            "next: apply, build or install it again; if its kernels are meant to differ, verify from "
            "the checkout it was made with"
        )
    return Report(found.as_dict(), lines, exit_code)


def _group(unproven: Sequence[Unproven]) -> list[str]:
    """A line for each reason, with the files it holds for."""
    paths: dict[str, list[str]] = {}
    for item in unproven:
        paths.setdefault(item.reason, []).append(item.path)
    return [
        ", ".join(found[:_SHOWN])
        + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
        + f": {reason}"
        for reason, found in paths.items()
    ]
