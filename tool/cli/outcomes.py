"""How ``tool drift``, ``tool watch`` and ``tool rebase`` show what became of patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packaging.version import Version

from tool.classify import ReplayStep
from tool.cli.output import Report, format_table
from tool.rebase import Preview, count_outcomes
from tool.upstream import Base


def describe_ref(base: Base) -> list[str]:
    """What a git ref is based on, for a person; nothing for a release."""
    if base.basis is None:
        return []
    lines = [f"{base.based_on}; --release RELEASE overrides this"]
    if base.basis.release != base.release:
        lines.append(
            f"the patches are those of v{base.release}, the newest carried release up to it"
        )
    return lines


def make_step_result(
    step: ReplayStep, broken_since: Mapping[str, Version] | None = None
) -> dict[str, Any]:
    """One patch in a JSON result."""
    since = (broken_since or {}).get(step.patch.name)
    return {
        "patch": step.patch.name,
        "outcome": step.outcome.kind.value,
        "reasons": list(step.outcome.reasons),
        "first_broken_by": str(since) if since else None,
    }


def report_preview(done: Preview) -> Report:
    """Exit code 1 when a patch does not carry over."""
    rows = [("patch", "outcome", "reasons")]
    for step in done.steps:
        name, outcome = step.patch.name, step.outcome
        since = done.broken_since.get(name)
        known = done.remembered.get(name)
        first, *rest = (
            *outcome.reasons,
            *([f"first broken by v{since}"] if since else []),
            *([f"there is a {known}"] if known else []),
        )
        rows.append((name, outcome.kind.value, first))
        rows += [("", "", more) for more in rest]
    counts = count_outcomes(done.steps)
    summary = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    base = done.base
    lines = [f"v{done.source} -> {base.label}: {summary}", *describe_ref(base), *format_table(rows)]
    if done.same_as_lock is not None:
        lines.append(
            "the result is the locked tree of that release"
            if done.same_as_lock
            else "the result is not the locked tree of that release, which has patches of its own"
        )
    open_ = [s.patch.name for s in done.failing if s.patch.name not in done.remembered]
    stop = f", which stops at {open_[0]}" if open_ else ""
    if done.remembered and not open_:
        stop = ", which takes what is remembered"
    onto = base.typed if base.basis else f"v{base.release}"
    lines.append(f"next: tool rebase --onto {onto} --from v{done.source}{stop}")
    if base.basis and done.failing:
        lines.append(
            f"next: tool bisect --onto {onto} names the upstream commits that break patches"
        )
    result = {
        "from": str(done.source),
        "onto": base.typed if base.basis else str(base.release),
        "base": base.commit,
        "based_on": base.based_on,
        "tree": done.tree,
        "carries": not done.failing,
        "same_as_lock": done.same_as_lock,
        "remembered": done.remembered,
        "summary": counts,
        "patches": [make_step_result(step, done.broken_since) for step in done.steps],
    }
    return Report(result, lines, int(bool(done.failing)))
