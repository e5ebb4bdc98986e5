"""``tool source``."""

from __future__ import annotations

import click

from tool.cli.options import command
from tool.cli.output import Report, format_table
from tool.errors import UsageError
from tool.project import Session
from tool.upstream import (
    GitSource,
    add_source,
    list_sources,
    mask_login,
    refresh_sources,
    remove_source,
)


@command(
    session="quiet",
    example=(
        "tool source add upstream https://github.com/sgl-project/sglang.git",
        "tool source fetch upstream",
        "tool source list",
        "tool source remove upstream",
    ),
)
@click.argument("action", type=click.Choice(["add", "fetch", "list", "remove"]))
@click.argument("name", required=False)
@click.argument("url", required=False, metavar="[URL|PATH]")
def source(session: Session, action: str, name: str | None, url: str | None) -> Report:
    """Remember git repositories of sglang, so that NAME/BRANCH is a ref everywhere.

    What was fetched is used until `fetch` brings what is new, of one source or of all. A ref that is not
    there yet is fetched by the command that names it.
    """
    if (url is not None) != (action == "add") or (
        name is None and action in ("add", "remove") or name is not None and action == "list"
    ):
        raise UsageError(
            f"tool source {action} takes other arguments",
            next_step={
                "add": "tool source add NAME URL|PATH",
                "fetch": "tool source fetch [NAME]",
                "list": "tool source list",
                "remove": "tool source remove NAME",
            }[action],
        )
    if action == "list":
        return _report_list(session)
    if action == "fetch":
        moved = refresh_sources(session, name)
        lines = [f"{one}: {', '.join(refs) or 'nothing is new'}" for one, refs in moved.items()]
        return Report({"moved": moved}, lines or ["the project has no git source"])
    if action == "remove":
        gone = remove_source(session, str(name))
        return Report({"removed": _describe(gone)}, [f"forgot {gone}; worktrees of it stay"])
    added = add_source(session, str(name), str(url))
    lines = [f"added {added}", f"next: tool drift --onto {added.name}/main"]
    return Report({"added": _describe(added)}, lines)


def _report_list(session: Session) -> Report:
    known = list(list_sources(session).values())
    rows = [(str(one.name), mask_login(one.url)) for one in known]
    lines = format_table(rows) if rows else ["the project has no git source"]
    return Report({"sources": [_describe(one) for one in known]}, lines)


def _describe(one: GitSource) -> dict[str, str]:
    return {"name": str(one.name), "url": mask_login(one.url)}
