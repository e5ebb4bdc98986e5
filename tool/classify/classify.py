"""Find the outcome on a patch: apply it, prove the result, or tell why it cannot be applied.

What each outcome means is in :mod:`tool.classify.outcome`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from tool.analysis import Block, Outlines, changed_blocks, decode_line, find_new_duplicates
from tool.apply import (
    EMPTY_MERGE,
    UNBOUND,
    Applied,
    apply_patch,
    check_applied,
    compute_intended,
    find_newly_unbound,
)
from tool.classify.outcome import ConflictHunk, Outcome, OutcomeKind
from tool.classify.renames import RenameDetector
from tool.classify.semantics import find_semantic_conflicts
from tool.classify.upstreamed import FileVersions, UpstreamDetector, summarize
from tool.errors import ConflictError, UpstreamedError
from tool.git import NULL_OID, Git, canonical_diff, find_blobs
from tool.series import FileChange, Patch, PatchFile, patchfile

_SHOWN: Final = 6


class Classifier:
    """Judges patches one after another on ``index``; ``old`` is the tree of the release they come from."""

    def __init__(self, index: Git, old: str | None, new: str) -> None:
        self._index = index
        self._outlines = Outlines(index)
        self._presence = UpstreamDetector(index, self._outlines)
        self._search = RenameDetector(index, self._outlines, old, new)

    def classify(self, patch: Patch, commit: str, tree: str) -> Outcome:
        """Apply ``patch`` on ``commit``; ``index`` then holds the result, or ``tree`` as before.

        Raises:
            EnvironmentFault: a pre-image is missing.
            IntegrityError: a mode or a link appeared.
            UsageError: the patch file does not parse.
        """
        outcome = self._classify(patch, commit, tree)
        if not outcome.carries:
            self._index.run("read-tree", tree)
        return outcome

    def _classify(self, patch: Patch, commit: str, tree: str) -> Outcome:
        try:
            applied = apply_patch(self._index, patch, commit, tree)
        except UpstreamedError as error:
            aims = self._aims(patch, tree)
            return self._already(patch, aims, merged=error.why == EMPTY_MERGE)
        except ConflictError as error:
            return self._refused(patch, self._aims(patch, tree), error)
        try:
            check_applied(self._index, [applied], self._outlines)
        except (ConflictError, UpstreamedError) as error:
            return self._unproven(patch, applied, tree, error)
        outcome = self._carried(applied)
        if stale := () if applied.exact else tuple(self._stale(self._aims(patch, tree))):
            return Outcome(patch.name, OutcomeKind.STALE, stale + outcome.reasons)
        return outcome

    # -- it applies -------------------------------------------------------------------------------

    def _carried(self, applied: Applied) -> Outcome:
        name = applied.name
        if applied.exact:
            return Outcome(
                name, OutcomeKind.CLEAN, ("the files it changes are as they were",), applied
            )
        again = _parse_diff(self._index, applied)
        reasons = list(self._moves(applied.patch, again))
        if not patchfile.same_hunks(again, applied.patch):
            others = [
                f.path for f in applied.patch.files if not _reads_alike(f.path, again, applied)
            ]
            reasons = [f"{path}: other lines around the change" for path in others] + reasons
            return Outcome(name, OutcomeKind.MERGED, tuple(reasons), applied)
        if not reasons:
            return Outcome(name, OutcomeKind.CLEAN, ("every hunk is on its line",), applied)
        return Outcome(name, OutcomeKind.MOVED, tuple(reasons), applied)

    def _moves(self, was: PatchFile, now: PatchFile) -> Iterator[str]:
        """Which symbol moved, and how far, one line of reasons for each symbol and distance."""
        after = {f.path: f for f in now.files}
        for file in was.files:
            other = after.get(file.path)
            if other is None or len(other.hunks) != len(file.hunks) or file.before == NULL_OID:
                continue
            outline = self._outlines.or_empty(other.before)
            seen: dict[tuple[str, int], tuple[int, int]] = {}
            for old, new in zip(file.hunks, other.hunks, strict=True):
                offset = next((i for i, x in enumerate(old.lines) if x[:1] in (b"-", b"+")), 0)
                symbol = outline.symbol_at(new.old_start + offset)
                distance = new.old_start - old.old_start
                if distance:
                    seen.setdefault((symbol, distance), (old.old_start, new.old_start))
            for (symbol, distance), (old_line, new_line) in seen.items():
                yield f"{file.path}: {symbol} from line {old_line} to {new_line} ({distance:+d})"

    def _stale(self, aims: Sequence[FileVersions]) -> Iterator[str]:
        """What upstream did, outside of the lines the patch touches, that empties it of its meaning."""
        for aim in aims:
            ids = sorted({aim.before, aim.result, aim.current} - {NULL_OID})
            yield from find_semantic_conflicts(aim, self._index.blobs(ids))

    def _unproven(
        self, patch: Patch, applied: Applied, tree: str, error: ConflictError | UpstreamedError
    ) -> Outcome:
        """git was content, the proofs are not."""
        reasons: list[str] = []
        kind = OutcomeKind.CONFLICT
        aims = self._aims(patch, tree)
        twice = [e for change in applied.files for e in self._twice(change)]
        if twice:
            kind, reasons = OutcomeKind.ELSEWHERE, twice
        elif part := self._part(applied, aims):
            kind, reasons = OutcomeKind.PARTIAL, part
        elif nameless := [e for change in applied.files for e in self._nameless(change)]:
            kind, reasons = OutcomeKind.STALE, nameless
        conflicts = self._find_conflicts(aims) if kind is OutcomeKind.CONFLICT else ()
        return Outcome(patch.name, kind, tuple(reasons) or (error.message,), None, conflicts)

    def _twice(self, change: FileChange) -> Iterator[str]:
        """Definitions that upstream has in this file already and the patch adds again."""
        if not change.path.endswith(".py") or NULL_OID in (change.before, change.after):
            return
        try:
            before, after = self._outlines.of(change.before), self._outlines.of(change.after)
        except SyntaxError:
            return
        for name in find_new_duplicates(before, after):
            lines = [span.first for span in before.spans if span.name == name]
            where = f"line {lines[0]} of the release" if lines else "the patch itself"
            yield f"{change.path}: {name} is defined already, {where}; the patch adds another"

    def _nameless(self, change: FileChange) -> Iterator[str]:
        if change.path.endswith(".py") and change.after != NULL_OID:
            for name in find_newly_unbound(change, self._outlines):
                yield f"{change.path}: {name} {UNBOUND}"

    def _part(self, applied: Applied, aims: Sequence[FileVersions]) -> list[str]:
        """What upstream has of a patch that merged to less than it says; empty if that is not it."""
        changes = {f.path: f for f in applied.files}
        reasons: list[str] = []
        for aim in aims:
            change = changes.get(aim.path)
            now = (
                changed_blocks(self._index, aim.path, change.before, change.after, self._outlines)
                if change
                else ()
            )
            wanted, got = _changed(aim.intended), _changed(now)
            if got - wanted:
                return []  # a line is in another place: that is no outcome about upstream
            missing = wanted - got
            if change is None:
                reasons.append(f"{aim.path}: needs no change, the release has it")
            reasons += [
                f"{aim.path}: in the release already: {sign}{decode_line(line).strip()} in {symbol}"
                for sign, line, symbol in list(missing)[:_SHOWN]
            ]
        return reasons

    # -- upstream has it --------------------------------------------------------------------------

    def _already(self, patch: Patch, aims: Sequence[FileVersions], *, merged: bool) -> Outcome:
        """git says there is nothing left to do: is it the same change, or lines that look like it?"""
        pairs = [(aim, block) for aim in aims for block in aim.intended]
        same = [any(block.same_change(other) for other in aim.upstream) for aim, block in pairs]
        if all(same):
            return Outcome(patch.name, OutcomeKind.EXACT, tuple(_found(pairs)))
        held = [
            ok or self._presence.holds(aim, block)
            for ok, (aim, block) in zip(same, pairs, strict=True)
        ]
        if merged or all(held):
            return Outcome(patch.name, OutcomeKind.SQUASHED, tuple(_found(pairs)))
        # Reverse-apply searches by offset: it found lines like ours, not ours.
        return self._weigh(patch, aims, "its lines are there, but not where it was written for")

    def _refused(self, patch: Patch, aims: Sequence[FileVersions], error: ConflictError) -> Outcome:
        gone = [a for a in aims if a.current == NULL_OID and NULL_OID not in (a.before, a.result)]
        if not gone:
            return self._weigh(patch, aims, error.why or error.message)
        reasons = []
        conflicts = []
        for aim in gone:
            heir = self._search.file(aim.path, aim.before, NULL_OID)
            reasons.append(f"{aim.path} is gone" + (f", now {heir}" if heir else ""))
            first = aim.intended[0]
            conflicts.append(
                ConflictHunk(
                    aim.path, first.symbol, first.old_line, first, (), heir.name if heir else None
                )
            )
        return Outcome(patch.name, OutcomeKind.GONE, tuple(reasons), None, tuple(conflicts))

    def _weigh(self, patch: Patch, aims: Sequence[FileVersions], otherwise: str) -> Outcome:
        """A patch that does not apply: how much of it does the release hold, and where?"""
        held: list[str] = []
        elsewhere: list[str] = []
        open_blocks = 0
        for aim in aims:
            for block in aim.intended:
                if self._presence.holds(aim, block):
                    held.append(f"{block.place}: the release has these lines: {summarize(block)}")
                elif where := self._presence.elsewhere(aim, block):
                    elsewhere.append(where)
                else:
                    open_blocks += 1
        conflicts = self._find_conflicts(aims)
        if held and not elsewhere and not open_blocks:
            return Outcome(patch.name, OutcomeKind.SQUASHED, tuple(held), None, conflicts)
        if elsewhere and not open_blocks:
            return Outcome(
                patch.name, OutcomeKind.ELSEWHERE, tuple(elsewhere + held), None, conflicts
            )
        if held:
            return Outcome(
                patch.name, OutcomeKind.PARTIAL, tuple(held + elsewhere), None, conflicts
            )
        lost = [e for aim in aims for e in self._lost(aim)]
        if lost:
            return Outcome(patch.name, OutcomeKind.GONE, tuple(lost), None, conflicts)
        clashes = tuple(
            f"{t.path} line {t.line}, {t.symbol}: upstream changed the same lines"
            for t in conflicts
        )
        reasons = (*(clashes or (otherwise,)), *self._stale(aims))
        return Outcome(patch.name, OutcomeKind.CONFLICT, reasons, None, conflicts)

    def _lost(self, aim: FileVersions) -> Iterator[str]:
        """Symbols the patch changes that the file no longer has."""
        old, new = self._presence.source(aim.before), self._presence.source(aim.current)
        if not new.parses:
            return
        symbols = {b.symbol for b in aim.intended if old.has(b.symbol)}
        missing = sorted(s for s in symbols if not new.has(s))
        left = self._search.left(aim.before, aim.current)
        heir = self._search.file(aim.path, aim.before, aim.current) if missing or left else None
        if left and heir is not None:
            yield f"{aim.path} is a stub, its code is in {heir}"
        for symbol in missing:
            within = self._search.symbol(symbol, old, new)
            if within is not None:
                yield f"{aim.path}: {symbol} is gone, upstream renamed it to {within}"
            elif heir is not None:
                there = self._search.symbol(symbol, old, self._presence.source(heir.blob))
                yield f"{aim.path}: {symbol} is gone" + (
                    f", in {heir.name} as {there}" if there else ""
                )
            else:
                yield f"{aim.path}: {symbol} is gone"

    def _find_conflicts(self, aims: Sequence[FileVersions]) -> tuple[ConflictHunk, ...]:
        found: list[ConflictHunk] = []
        for aim in aims:
            away = any(not self._presence.source(aim.current).has(b.symbol) for b in aim.intended)
            heir = None
            if aim.current != NULL_OID and (away or self._search.left(aim.before, aim.current)):
                heir = self._search.file(aim.path, aim.before, aim.current)
            for block in aim.intended:
                theirs = tuple(b for b in aim.upstream if b.touches(block))
                if theirs and not any(block.same_change(b) for b in theirs):
                    name = heir.name if heir else None
                    line = block.old_line
                    found.append(ConflictHunk(aim.path, block.symbol, line, block, theirs, name))
        return tuple(found)

    def _aims(self, patch: Patch, tree: str) -> tuple[FileVersions, ...]:
        parsed = patchfile.parse(patch.name, patch.content)
        now = find_blobs(self._index, tree, [f.path for f in parsed.files])
        results = compute_intended(self._index, parsed)
        aims = []
        for file in parsed.files:
            result = results[file.path]
            current = now[file.path]
            aims.append(
                FileVersions(
                    file.path,
                    file.before,
                    result,
                    current,
                    changed_blocks(self._index, file.path, file.before, result, self._outlines),
                    changed_blocks(self._index, file.path, file.before, current, self._outlines),
                )
            )
        return tuple(aims)


def _changed(found: Sequence[Block]) -> Counter[tuple[str, bytes, str]]:
    lines: Counter[tuple[str, bytes, str]] = Counter()
    for block in found:
        lines.update(("-", line, block.symbol) for line in block.removed)
        lines.update(("+", line, block.symbol) for line in block.added)
    return lines


def _found(pairs: Sequence[tuple[FileVersions, Block]]) -> Iterator[str]:
    for _, block in pairs:
        yield f"{block.place}: the release has {summarize(block)}"


def _parse_diff(git: Git, applied: Applied) -> PatchFile:
    diff = canonical_diff(git, applied.parent_tree, applied.tree)
    return patchfile.parse(applied.name, patchfile.render(applied.patch.header, diff))


def _reads_alike(path: str, again: PatchFile, applied: Applied) -> bool:
    def bodies(patch: PatchFile) -> list[tuple[bytes, ...]]:
        return [h.lines for f in patch.files if f.path == path for h in f.hunks]

    return bodies(again) == bodies(applied.patch)
