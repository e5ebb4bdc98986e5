"""``tool lint``."""

from __future__ import annotations

import dataclasses

from tool.apply import lint_imports
from tool.cli.options import command
from tool.cli.output import Report
from tool.project import Session
from tool.series import lint_series


@command(reads=True, example=("tool lint --json",))
def lint(session: Session) -> Report:
    """Check headers, order file, canonical form, imports and the security rules; exit 1 on findings."""
    series = session.series
    findings = [*lint_series(series), *lint_imports(session)]
    lines = [f"{f.where}: {f.rule}: {f.message}" for f in findings]
    lines.append(f"{len(series.patches)} patches, {len(findings)} finding(s)")
    result = {"findings": [dataclasses.asdict(f) for f in findings]}
    return Report(result, lines, int(bool(findings)))
