"""``tool check``."""

from __future__ import annotations

import dataclasses
import os

import click

from tool.apply import CHECK_RULES, check_releases, select_releases
from tool.cli.completion import complete_release
from tool.cli.options import command
from tool.cli.output import Report, format_table
from tool.project import Session


@command(session="offline quiet", example=("tool check --refs v0.5.9,v0.5.23",))
@click.option(
    "--refs",
    default="all",
    show_default=True,
    metavar="all|LIST",
    shell_complete=complete_release,
    help="v0.5.9,v0.5.23",
)
@click.option(
    "--jobs", "-j", type=click.IntRange(1), default=os.cpu_count() or 1, help="Default: all cores."
)
def check(session: Session, refs: str, jobs: int) -> Report:
    """Check the series on every supported release: replay, lock, round trip, no double apply."""
    checked = check_releases(session, select_releases(session, refs), jobs=jobs)
    rows: list[tuple[str, ...]] = [("release", "patches", *CHECK_RULES, "seconds")]
    for item in checked:
        failed = {f.rule for f in item.findings}
        marks = ("FAILED" if rule in failed else "ok" for rule in CHECK_RULES)
        many = f"{item.patches} ({item.merged} merged)" if item.merged else str(item.patches)
        rows.append((f"v{item.release}", many, *marks, f"{item.seconds:.2f}"))
    lines = format_table(rows)
    lines += [
        f"v{i.release}: {f.where}: {f.rule}: {f.message}" for i in checked for f in i.findings
    ]
    count = sum(len(i.findings) for i in checked)
    lines.append(f"{len(checked)} release(s), {count} finding(s)")
    result = {"releases": [dataclasses.asdict(item) for item in checked], "findings": count}
    return Report(result, lines, int(bool(count)))
