"""``tool test``."""

from __future__ import annotations

import click

from tool.cli.completion import complete_release
from tool.cli.options import command
from tool.cli.output import Report
from tool.errors import UsageError
from tool.project import Session, run_patched_tests
from tool.upstream import Request, find_release, names_release


@command(reads=True, example=("tool test --sglang-ref v0.5.23",))
@click.option(
    "--sglang-ref",
    "refs",
    multiple=True,
    metavar="RELEASE",
    shell_complete=complete_release,
    help="Repeatable. Default: the pin.",
)
def test(session: Session, refs: tuple[str, ...]) -> Report:
    """Run the tests of tests/patched on the patched tree of a release.

    pytest runs in a process of its own; its output goes to standard error. Exit code 1: a test failed.
    """
    for ref in refs:
        if not names_release(ref):
            raise UsageError(
                f"{ref!r} is not a release",
                where="--sglang-ref",
                next_step="name a release that the series carries: tool status lists them",
            )
    releases = [find_release(session.series, Request(ref)) for ref in refs or ("pin",)]
    for release in releases:
        if not session.lock.get(release).patches:
            raise UsageError(
                f"the series has no patch on sglang {release}",
                where="series.lock",
                next_step="name a release that the series carries: tool status lists them",
            )
    passed = run_patched_tests(session.root, releases)
    names = ", ".join(f"v{release}" for release in releases)
    result = {"releases": [str(release) for release in releases], "passed": passed}
    if not passed:
        lines = [
            f"{names}: the patched tree fails its tests; pytest says above which",
            "next: mend the patch in a worktree: tool apply --sglang-ref "
            f"v{releases[-1]}, then tool refresh PATCH WORKTREE",
        ]
        return Report(result, lines, 1)
    newest = max(releases)
    after = (
        f"next: tool lock --pin v{newest} makes it the release that is used when none is named"
        if newest > session.series.pin
        else "next: tool check compares every release with series.lock"
    )
    return Report(result, [f"{names}: the patched tree passes its tests", after])
