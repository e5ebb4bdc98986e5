"""``tool verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from tool.cli.options import command
from tool.cli.output import Report
from tool.errors import IntegrityError
from tool.project import Session
from tool.verify import VerifyReport, verify_artifact

_SHOWN: Final = 10


@command(reads=True)
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
def verify(session: Session, artifact: Path) -> Report:
    """Verify a fork wheel, a worktree or an installed fork (its site-packages) against series.lock.

    Exit code 5 when it does not hold; the first file that differs is named.
    """
    return report_verification(verify_artifact(session, artifact.absolute()))


def report_verification(found: VerifyReport) -> Report:
    """Exit code 5 when there is a difference."""
    name = f"{found.artifact} ({found.kind}"
    name += f", sglang {found.version})" if found.version else ")"
    lines = [f"{name}: {'holds' if found.ok else 'DOES NOT HOLD'}"]
    lines += [f"  {d}" for d in found.differences[:_SHOWN]]
    if len(found.differences) > _SHOWN:
        lines.append(f"  and {len(found.differences) - _SHOWN} more (all of them: --json)")
    lines += [f"  checked: {text}" for text in found.checked]
    lines += [f"  not proven: {text}" for text in found.unproven]
    if not found.ok:
        lines.append(
            "next: apply, build or install it again; if its kernels are meant to differ, verify from "
            "the checkout it was made with"
        )
    return Report(found.as_dict(), lines, 0 if found.ok else IntegrityError.exit_code)
