"""``tool watch``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from tool.cli.options import command
from tool.cli.outcomes import report_preview
from tool.cli.output import Report, format_table
from tool.project import Session
from tool.rebase import Preview, ThreadState, Watched, count_outcomes, watch_releases


@command(
    session="quiet",
    example=(
        "tool watch --json",
        "tool watch --pre --source git",
    ),
)
@click.option("--pre", is_flag=True, help="Look at pre-releases and dev versions too.")
@click.option(
    "--source",
    metavar="git|URL|PATH",
    help="A git repository of sglang, in which to look for merged upstream threads.",
)
def watch(session: Session, pre: bool, source: str | None) -> Report:
    """Look for newer releases on the index and show what carrying the series to each would meet.

    Upstream threads are those that the patches' headers name as open. A wheel has no history, so they are
    looked up only with --source.

    For cron or CI: exit code 1 when the series does not carry over to one of the releases.
    """
    found = watch_releases(session, prereleases=pre, source=source)
    reports = [report_preview(preview) for preview in found.previews]
    last: dict[str, Any] = dict(reports[-1].result) if reports else {}
    result = {
        "newer": str(found.previews[-1].base.release) if found.previews else None,
        "new": [report.result for report in reports],
        "unusable": {str(release): why for release, why in found.unusable.items()},
        "threads": [_make_thread(state) for state in found.threads],
        "markdown": "\n".join(_format_markdown(found)),
        **last,
    }
    lines = [line for report in reports for line in report.lines if not line.startswith("next:")]
    lines += [f"v{release}: not looked at: {why}" for release, why in found.unusable.items()]
    if not lines:
        lines = [f"the series carries the newest release, v{found.newest_carried}"]
    lines += _thread_lines(found.threads)
    lines += [f"next: {text}" for text in _next_steps(found)]
    return Report(result, lines, max((report.exit_code for report in reports), default=0))


def _next_steps(found: Watched) -> Iterator[str]:
    if found.previews:
        first = found.previews[0]
        stop = f", which stops at {first.failing[0].patch.name}" if first.failing else ""
        yield f"tool rebase --onto v{first.base.release}{stop}"


def _make_thread(state: ThreadState) -> dict[str, Any]:
    return {
        "number": state.thread.number,
        "note": state.thread.note,
        "patches": list(state.thread.patches),
        "state": state.state,
        "release": str(state.release) if state.release else None,
        "title": state.title,
    }


def _thread_lines(threads: tuple[ThreadState, ...]) -> list[str]:
    if not threads:
        return []
    rows = [("thread", "state", "header says", "named by")]
    rows += [
        (
            f"#{one.thread.number}",
            _describe(one),
            one.thread.note,
            ", ".join(one.thread.patches),
        )
        for one in threads
    ]
    lines = format_table(rows)
    if any(one.state is None for one in threads):
        lines.append("upstream threads are looked up with: tool watch --source git")
    return lines


def _describe(one: ThreadState) -> str:
    if one.state is None:
        return "not looked up"
    where = "not in the history of" if one.state == "not merged" else f"{one.state} in"
    return f"{where} v{one.release}"


def _format_markdown(found: Watched) -> Iterator[str]:
    """The tables of an issue: a row for each new release, the patches that stop, the threads."""
    if found.previews or found.unusable:
        yield from ("| release | patches | carries |", "| --- | --- | --- |")
    for preview in found.previews:
        yield f"| {preview.base.release} | {_summarize(preview)} | {_carries(preview)} |"
    for release, why in found.unusable.items():
        yield f"| {release} | not looked at | {_cell(why)} |"
    for preview in found.previews:
        if preview.failing:
            yield from ("", f"Patches that stop on {preview.base.release}:", "")
            yield from ("| patch | outcome | reasons |", "| --- | --- | --- |")
        for step in preview.failing:
            reasons = "<br>".join(_cell(reason) for reason in step.outcome.reasons)
            yield f"| `{step.patch.name}` | {step.outcome.kind.value} | {reasons} |"
    if found.threads:
        yield from ("", "Open upstream threads of the patches:", "")
        yield from ("| thread | state | title |", "| --- | --- | --- |")
    for one in found.threads:
        yield f"| #{one.thread.number} | {_describe(one)} | {_cell(one.title)} |"
    for text in _next_steps(found):
        yield from ("", f"Next: `{text.partition(',')[0]}`")


def _summarize(preview: Preview) -> str:
    counts = count_outcomes(preview.steps)
    return ", ".join(f"{number} {kind}" for kind, number in counts.items())


def _carries(preview: Preview) -> str:
    return f"stops at `{preview.failing[0].patch.name}`" if preview.failing else "yes"


def _cell(text: str) -> str:
    """Text as a cell of a table: upstream's code is in some reasons."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return safe.replace("@", "@&#8203;")  # mentions nobody
