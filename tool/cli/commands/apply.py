"""``tool apply``."""

from __future__ import annotations

from pathlib import Path

import click

from tool.apply import apply_to_worktree
from tool.cli.options import command, make_request, release_option, source_options
from tool.cli.outcomes import describe_ref
from tool.cli.output import Report, format_table
from tool.project import Session
from tool.upstream import Base


@command(
    session="offline quiet",
    example=(
        "tool apply",
        "tool apply --sglang-ref v0.5.17 --into ~/sglang",
        "tool apply --sglang-ref upstream/main",
    ),
)
@release_option
@source_options
@click.option("--into", type=click.Path(path_type=Path), help="Default: ./sglang-vRELEASE.")
@click.option("--branch", help="Default: ada/vRELEASE.")
def apply(
    session: Session,
    ref: str,
    source: str | None,
    release: str | None,
    into: Path | None,
    branch: str | None,
) -> Report:
    """Apply the series to a release or a git ref: a git worktree, one commit per patch."""
    request = make_request(ref, source, release)
    done = apply_to_worktree(session, request, into=into, branch=branch)
    base, applied = done.composition.base, done.composition.applied
    outcomes = ["exact" if a.exact else "merged" for a in applied]
    result = {
        "state": done.state,
        "folder": str(done.folder),
        "branch": done.branch,
        "release": str(base.release),
        "source": base.source,
        "base": base.commit,
        "based_on": base.based_on,
        "as_locked": done.composition.locked,
        "head": done.head,
        "checked_files": done.checked_files,
        "patches": [
            {
                "name": a.name,
                "commit": a.commit,
                "tree": a.tree,
                "outcome": outcome,
                "files": [f.path for f in a.files],
            }
            for a, outcome in zip(applied, outcomes, strict=True)
        ],
    }
    rows = [
        (a.name, a.commit[:12], outcome, f"{len(a.files)} file(s)")
        for a, outcome in zip(applied, outcomes, strict=True)
    ]
    rows.append(("ada_dsa kernels", done.head[:12], "bundled", ""))
    lines = [
        *(f"  {line}" for line in format_table(rows)),
        *describe_ref(base),
        {
            "created": f"sglang {base.label} with {len(applied)} patches is in {done.folder}",
            "updated": f"updated {done.folder} to the series as it is now",
            "unchanged": f"{done.folder} already holds this; nothing changed",
        }[done.state],
        f"  branch {done.branch}, head {done.head[:12]}",
        f"next: {_build(base)} makes the wheel that pip installs; "
        f"or use the tree as it is: PYTHONPATH={done.folder}/python",
    ]
    return Report(result, lines)


def _build(base: Base) -> str:
    return f"tool build --sglang-ref {base.typed}" if base.basis else "tool build"
