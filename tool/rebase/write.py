"""A replay without open questions → the project's files: patches, series.txt, series.lock, history.

A patch that reads the same keeps its file and its range grows; one that does not becomes a new file
for the new release, and the old one ends where it was proven last. Every release that was carried
before must resolve to the same patches after.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from packaging.version import Version

from tool.apply import apply_series, check_applied, lock_patches, recompute_commits
from tool.classify import OutcomeKind, ReplayStep
from tool.errors import IntegrityError, UsageError
from tool.git import Git, canonical_diff
from tool.rebase.history import HISTORY_FILE, HistoryRow, add_entry
from tool.rebase.rerere import TAKEN
from tool.series import (
    LOCK_FILE,
    PATCH_DIR,
    SERIES_FILE,
    Header,
    Lock,
    LockedRelease,
    LockedWheel,
    Patch,
    Series,
    SeriesText,
    lockfile,
    make_specifier,
    name_next_file,
    parse_series,
    patchfile,
    widen_specifier,
)
from tool.upstream import Base


@dataclass(frozen=True)
class SeriesUpdate:
    """``files``: new content by path below the project's root. ``dated``: new patch files, each with
    the header fields that still speak of a release the old file stands for."""

    files: dict[str, bytes]
    rows: tuple[HistoryRow, ...]
    tree: str
    dated: dict[str, tuple[str, ...]]


class SeriesWriter:
    """Collects the edits, one patch after another."""

    def __init__(self, git: Git, series: Series, lock: Lock, target: Version) -> None:
        self._git = git
        self._series = series
        self._lock = lock
        self._target = target
        text = (series.root / SERIES_FILE).read_text(encoding="utf-8")
        self._text = SeriesText(text)
        self._headers: dict[str, bytes] = {}
        self._new: dict[str, bytes] = {}
        self._dated: dict[str, tuple[str, ...]] = {}
        self._names = {p.name for p in series.patches}
        self._others = {v: e for v, e in lock.releases.items() if e.patches and v != target}

    def write(
        self,
        source: Version,
        base: Base,
        wheels: Sequence[LockedWheel],
        steps: Sequence[ReplayStep],
    ) -> SeriesUpdate:
        """Raises IntegrityError when the new series does not give what was replayed."""
        rows = tuple(self._patch(step) for step in steps)
        self._retire(steps)
        text = str(self._text)
        series = self._check(text, [row.file for row in rows if row.file])
        applied = apply_series(self._git, base, series.for_release(self._target))
        check_applied(self._git, applied)
        last = next((s.applied.tree for s in reversed(steps) if s.applied), base.tree)
        tree = applied[-1].tree if applied else base.tree
        if tree != last:
            raise IntegrityError(
                "the new series does not give the tree that was replayed",
                why=f"tree {tree}, replayed {last}",
                next_step="report it; nothing was changed",
            )
        lock = recompute_commits(self._lock, self._series, self._headers).with_release(
            LockedRelease(
                self._target, tuple(wheels), base.commit, base.tree, lock_patches(applied)
            )
        )
        files = {f"{PATCH_DIR}/{n}": c for n, c in (self._headers | self._new).items()}
        files[SERIES_FILE] = text.encode()
        files[LOCK_FILE] = lockfile.dump(lock)
        files[HISTORY_FILE] = add_entry(self._series, source, self._target, rows)
        return SeriesUpdate(files, rows, tree, self._dated)

    def _patch(self, step: ReplayStep) -> HistoryRow:
        patch = next(p for p in self._series.patches if p.name == step.patch.name)
        proven = self._lock.checked_on(patch.name) - {self._target}
        kind, decision = step.outcome.kind, step.decision
        if step.applied is None:
            skipped = decision.skipped if decision else None
            self._end(patch, proven, kind, skipped)
            became = f"left out: {skipped}" if skipped else "not needed"
            decided = "skipped" if skipped else ""
            return HistoryRow(patch.name, kind, step.outcome.reasons, decided, None, became)
        decided = decision.how if decision else ""
        if is_unchanged(patch, step):
            if patch.applies_to(self._target):
                return HistoryRow(
                    patch.name, kind, step.outcome.reasons, decided, patch.name, "kept"
                )
            wider = widen_specifier(patch, self._target, proven, self._others)
            if wider is not None:
                self._text.respecify(patch.name, wider)
                self._header(patch, Releases=wider)
                became = f"kept, now {wider}"
                return HistoryRow(
                    patch.name, kind, step.outcome.reasons, decided, patch.name, became
                )
        self._end(patch, proven, kind, None)
        name = name_next_file(patch.name, self._target, self._names)
        self._names.add(name)
        header = patchfile.parse(patch.name, step.patch.content).header
        if fields := tuple(_speaking_of(header, proven)):
            self._dated[name] = fields
        header = patchfile.with_fields(header, Releases=f"=={self._target}")
        diff = canonical_diff(self._git, step.applied.parent_tree, step.applied.tree)
        self._new[name] = patchfile.render(header, diff)
        self._text.insert_after(patch.name, name, f"=={self._target}")
        return HistoryRow(patch.name, kind, step.outcome.reasons, decided, name, f"new file {name}")

    def _end(
        self, patch: Patch, proven: set[Version], kind: OutcomeKind, skipped: str | None
    ) -> None:
        """Give ``patch`` its upper bound where its range reaches the new release."""
        fields: dict[str, str] = {}
        if patch.applies_to(self._target):
            if not proven:
                raise UsageError(
                    f"{patch.name} was proven on no other release",
                    where=SERIES_FILE,
                    next_step=f"change it in place: tool refresh, or drop it: tool drop {patch.name}",
                )
            bounded = make_specifier(proven)
            self._text.respecify(patch.name, bounded)
            fields["Releases"] = bounded
        if skipped:
            header = patchfile.parse(patch.name, patch.content).header
            taken = kind in TAKEN and not header.get("Applied-Upstream")
            field = "Applied-Upstream" if taken else "Skipped"
            fields[field] = f"{self._target}, {skipped}"
        if fields:
            self._header(patch, **{name.replace("-", "_"): text for name, text in fields.items()})

    def _header(self, patch: Patch, **fields: str) -> None:
        parsed = patchfile.parse(patch.name, patch.content)
        header = patchfile.with_fields(parsed.header, **fields)
        self._headers[patch.name] = patchfile.render(header, parsed.diff)

    def _retire(self, steps: Sequence[ReplayStep]) -> None:
        """A change whose every patch upstream has is over, from this release on."""
        for change in {s.patch.change for s in steps}:
            own = [s for s in steps if s.patch.change == change]
            reasons = [
                s.decision.skipped
                for s in own
                if s.decision and s.decision.skipped and s.outcome.kind in TAKEN
            ]
            if reasons and len(reasons) == len(own) and all(r is not None for r in reasons):
                needed = next(c.needed for c in self._series.changes if c.name == change)
                self._text.retire(change, needed, self._target, str(reasons[0]))

    def _check(self, text: str, expected: list[str]) -> Series:
        """The edited series means what was replayed, and for every other release what it meant."""
        series = parse_series(self._series.root, text)
        contents = self._headers | self._new
        given = tuple(replace(p, content_override=contents.get(p.name)) for p in series.patches)
        series = replace(series, patches=given)
        names = [p.name for p in series.for_release(self._target)]
        if names != expected:
            extra = ", ".join(sorted(set(names) ^ set(expected))) or "their order"
            raise UsageError(
                f"series.txt would give v{self._target} other patches than were replayed: {extra}",
                where=SERIES_FILE,
                next_step="bound the ranges that reach that release, then rebase again",
            )
        for version, entry in self._others.items():
            if [p.name for p in series.for_release(version)] != [p.name for p in entry.patches]:
                raise IntegrityError(
                    f"the edit would change what v{version} resolves to",
                    where=SERIES_FILE,
                    next_step=f"see what differs now: tool check --refs v{version}",
                )
        return series


def _speaking_of(header: Header, releases: Collection[Version]) -> Iterator[str]:
    """The fields of ``header`` that name one of ``releases``, but for the field of the range."""
    names = "|".join(re.escape(str(v)) for v in releases)
    if not names:
        return
    named = re.compile(rf"(?<![\w.])v?(?:{names})(?!\.?\w)")
    texts = (("Description", f"{header.subject}\n{header.body}"), *header.fields)
    yield from (key for key, text in texts if key != "Releases" and named.search(text))


def is_unchanged(patch: Patch, step: ReplayStep) -> bool:
    """Does the patch read on the new release as it reads in its file?"""
    if step.decision is None:
        return step.outcome.kind in (OutcomeKind.CLEAN, OutcomeKind.MOVED)
    was = patchfile.parse(patch.name, patch.content)
    return patchfile.same_hunks(patchfile.parse(patch.name, step.patch.content), was)
