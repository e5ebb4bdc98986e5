"""What each rebase met, patch by patch: written with every rebase, printed by ``tool history``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from packaging.version import Version

from tool.classify import OutcomeKind
from tool.errors import IntegrityError
from tool.series import Series

HISTORY_FILE: Final = "rebase-history.json"
_HEAD: Final = (
    "# What every rebase met",
    "",
    "Each row of the first table is one step of `tool rebase`, with the number of patches for each outcome.",
    "The tables after it list the patches: the outcome, what the patch became, and the reasons.",
    "`docs/design.md` explains the outcomes. This page is the output of `tool history`.",
    "",
)


@dataclass(frozen=True)
class HistoryRow:
    """What became of one patch: ``file`` is what stands for it on the new release, if anything."""

    patch: str
    outcome: OutcomeKind
    reasons: tuple[str, ...]
    decided: str
    file: str | None
    became: str


def load_history(series: Series) -> list[dict[str, Any]]:
    """The recorded rebases, oldest first. Raises IntegrityError as ``load_retired``."""
    return list(_load(series)["rebases"])


def load_retired(series: Series) -> list[dict[str, str]]:
    """The releases that were retired, each with its reason, in the order in which that was done.

    Raises:
        IntegrityError: the file does not parse.
    """
    return list(_load(series)["retired"])


def _load(series: Series) -> dict[str, Any]:
    path = series.root / HISTORY_FILE
    if not path.is_file():
        return {"rebases": [], "retired": []}
    try:
        raw = json.loads(path.read_bytes())
        return {"rebases": list(raw["rebases"]), "retired": list(raw.get("retired", ()))}
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            "the history cannot be read",
            where=str(path),
            why=str(error),
            next_step="restore it from version control",
        ) from error


def add_entry(series: Series, source: Version, onto: Version, rows: Sequence[HistoryRow]) -> bytes:
    """The file with this rebase added; the same step taken again replaces what it met before."""
    entry = {
        "from": str(source),
        "onto": str(onto),
        "patches": [
            {
                "patch": row.patch,
                "outcome": row.outcome.value,
                "reasons": list(row.reasons),
                "decided": row.decided,
                "file": row.file,
                "became": row.became,
            }
            for row in rows
        ],
    }
    step = (entry["from"], entry["onto"])
    history = _load(series)
    before = [e for e in history["rebases"] if (e["from"], e["onto"]) != step]
    # A release that is carried again is no longer retired.
    retired = [e for e in history["retired"] if e["release"] != str(onto)]
    return _dump([*before, entry], retired)


def note_retired(series: Series, release: Version, why: str) -> bytes:
    """The file with ``release`` retired. What the rebases met stays recorded."""
    history = _load(series)
    before = [e for e in history["retired"] if e["release"] != str(release)]
    return _dump(history["rebases"], [*before, {"release": str(release), "why": why}])


def _dump(rebases: Sequence[dict[str, Any]], retired: Sequence[dict[str, str]]) -> bytes:
    body: dict[str, Any] = {"rebases": list(rebases)}
    if retired:
        body["retired"] = list(retired)
    return (json.dumps(body, indent=2) + "\n").encode()


def render_markdown(
    found: Sequence[dict[str, Any]], retired: Sequence[dict[str, str]] = ()
) -> list[str]:
    """A table of counts, the retired releases, then a section a step with each patch's outcome."""
    if not found and not retired:
        return ["no rebase is recorded"]
    kinds = [k.value for k in OutcomeKind if any(_counts(e)[k.value] for e in found)]
    heading = ["step", "patches", *kinds]
    lines = [*_HEAD, _row(heading), _row(["---"] * len(heading))]
    for entry in found:
        counts = _counts(entry)
        cells = [str(counts[kind]) if counts[kind] else "" for kind in kinds]
        lines.append(_row([_step(entry), str(len(entry["patches"])), *cells]))
    if retired:
        lines += ["", "Retired, so no longer supported:", ""]
        lines += [f"- {entry['release']}: {entry['why']}" for entry in retired]
    for entry in found:
        lines += ["", f"### {_step(entry)}", "", _row(["patch", "outcome", "became", "reasons"])]
        lines.append(_row(["---"] * 4))
        for patch in entry["patches"]:
            became = patch["became"]
            if patch["decided"]:
                became += f" ({patch['decided']})"
            reasons = "<br>".join(patch["reasons"])
            lines.append(_row([patch["patch"], patch["outcome"], became, reasons]))
    return lines


def _counts(entry: dict[str, Any]) -> Counter[str]:
    return Counter(patch["outcome"] for patch in entry["patches"])


def _step(entry: dict[str, Any]) -> str:
    return f"{entry['from']} → {entry['onto']}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
