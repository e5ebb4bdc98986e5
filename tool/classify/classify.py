"""Find the outcome of a patch: apply it and check the result, or tell why it cannot be applied.

What each outcome means is in :mod:`tool.classify.outcome`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from tool.analysis import (
    Block,
    Modules,
    Outlines,
    changed_blocks,
    decode_line,
    find_attributes,
    find_defined,
    find_new_duplicates,
    format_place,
)
from tool.apply import (
    DESTINATION,
    EMPTY_MERGE,
    UNBOUND,
    Applied,
    apply_patch,
    check_one,
    compute_intended,
    find_dangling,
    find_newly_unbound,
    list_added_lines,
)
from tool.classify.outcome import ConflictHunk, Outcome, OutcomeKind
from tool.classify.renames import RenameDetector
from tool.classify.semantics import find_semantic_conflicts
from tool.classify.upstreamed import FileVersions, UpstreamDetector, summarize
from tool.classify.vocabulary import Vocabulary
from tool.errors import ConflictError, UpstreamedError
from tool.git import NULL_OID, Git, canonical_diff, find_blobs
from tool.series import FileChange, Patch, PatchFile, patchfile

_SHOWN: Final = 6


class Classifier:
    """Classifies patches one after another on ``index``. ``old`` is the tree of their release."""

    def __init__(self, index: Git, old: str | None, new: str) -> None:
        self._index = index
        self._outlines = Outlines(index)
        self._upstream = UpstreamDetector(index, self._outlines)
        self._search = RenameDetector(index, self._outlines, old, new)
        self._words = Vocabulary(index, old, new)

    def classify(self, patch: Patch, commit: str, tree: str) -> Outcome:
        """Apply ``patch`` on ``commit``; ``index`` then holds the result, or ``tree`` as before.

        Raises:
            EnvironmentFault: a pre-image is missing.
            IntegrityError: a mode or a link appeared.
            UsageError: the patch file does not parse.
        """
        try:
            applied = apply_patch(self._index, patch, commit, tree)
        except UpstreamedError as error:
            aims = self._aims(patch, tree)
            return self._already(patch, aims, merged=error.why == EMPTY_MERGE)
        except ConflictError as error:
            return self._refused(patch, self._aims(patch, tree), error)
        outcome = self._judge(patch, applied, tree)
        if not outcome.carries:
            self._index.run("read-tree", tree)
        return outcome

    def _judge(self, patch: Patch, applied: Applied, tree: str) -> Outcome:
        """The outcome of a patch that git applied on ``tree``."""
        aims = () if applied.exact else self._aims(patch, tree)
        try:
            check_one(self._index, applied, self._outlines, {a.path: a.result for a in aims})
        except (ConflictError, UpstreamedError) as error:
            return self._unproven(patch, applied, aims or self._aims(patch, tree), error)
        outcome = self._carried(applied)
        stale = tuple(self._stale(aims))
        if stale := (*stale, *self._gone_words(applied, stale)):
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
                old_line, new_line = _find_first_change(old), _find_first_change(new)
                if distance := new_line - old_line:
                    key = (outline.symbol_at(new_line), distance)
                    seen.setdefault(key, (old_line, new_line))
            for (symbol, distance), (old_line, new_line) in seen.items():
                place = format_place(file.path, symbol, old_line)
                yield f"{place}: line {new_line} of the release ({distance:+d})"

    def _stale(self, aims: Sequence[FileVersions]) -> Iterator[str]:
        """What upstream did, outside of the lines the patch touches, that empties it of its meaning."""
        for aim in aims:
            ids = sorted({aim.before, aim.result, aim.current} - {NULL_OID})
            yield from find_semantic_conflicts(aim, self._index.blobs(ids), self._outlines)

    def _gone_words(self, applied: Applied, told: Sequence[str]) -> Iterator[str]:
        """Attributes that the patch reads or sets, and that upstream took out of the whole package.

        What the reasons ``told`` name already is left out.
        """
        used: dict[str, str] = {}
        own: set[str] = set()
        for change in applied.files:
            if change.path.endswith(".py") and change.after != NULL_OID:
                lines = list_added_lines(applied, change, self._outlines)
                syntax = self._outlines.syntax(change.after, lines)
                own |= find_defined(syntax, lines)
                for name, line in find_attributes(syntax, lines).items():
                    used.setdefault(name, f"{change.path} (line {line} with the patch)")
        own.update(name for name in used if any(f" uses {name}, " in line for line in told))
        words = {name for name in used if name not in own and not name.startswith("__")}
        for name in sorted(self._words.find_gone(words, [f.path for f in applied.files])):
            yield f"{used[name]}: the patch uses {name}, which no file of the release has"

    def _unproven(
        self,
        patch: Patch,
        applied: Applied,
        aims: Sequence[FileVersions],
        error: ConflictError | UpstreamedError,
    ) -> Outcome:
        """git applied it, and a check of the result failed."""
        reasons: list[str] = []
        kind = OutcomeKind.CONFLICT
        twice = [e for change in applied.files for e in self._twice(change)]
        if twice:
            kind, reasons = OutcomeKind.ELSEWHERE, twice
        elif part := self._part(applied, aims):
            kind, reasons = OutcomeKind.PARTIAL, part
        elif nameless := [e for c in applied.files for e in self._nameless(applied, c)]:
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

    def _nameless(self, applied: Applied, change: FileChange) -> Iterator[str]:
        """What the changed lines use that nothing in the file binds or the whole tree has not."""
        if not change.path.endswith(".py") or change.after == NULL_OID:
            return
        for name in find_newly_unbound(change, self._outlines):
            yield f"{change.path}: {name} {UNBOUND}"
        modules = Modules(self._index, applied.tree, elsewhere=DESTINATION)
        for found in find_dangling(applied, change, self._outlines, modules):
            yield f"{found.place} {found.message}"

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
        same = [
            any(block.same_change(other) for other in self._upstream.changes(aim))
            for aim, block in pairs
        ]
        if all(same):
            return Outcome(patch.name, OutcomeKind.EXACT, tuple(_found(pairs)))
        held = [
            ok or self._upstream.holds(aim, block)
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
        reasons: list[str] = []
        conflicts: list[ConflictHunk] = []
        for aim in gone:
            heir = self._search.file(aim.path, aim.before, NULL_OID)
            reasons.append(f"{aim.path} is gone" + (f", now {heir}" if heir else ""))
            name = heir.name if heir else None
            conflicts += [
                ConflictHunk(aim.path, b.symbol, b.old_line, b, (), name) for b in aim.intended
            ]
        others = [aim for aim in aims if aim not in gone]
        beside = self._find_conflicts(others)
        lost = [line for aim in others for line in self._lost(aim)]
        return Outcome(
            patch.name,
            OutcomeKind.GONE,
            (*reasons, *lost, *_format_clashes(beside)),
            None,
            (*conflicts, *beside),
        )

    def _weigh(self, patch: Patch, aims: Sequence[FileVersions], otherwise: str) -> Outcome:
        """A patch that does not apply: how much of it does the release hold, and where?"""
        held: list[str] = []
        elsewhere: list[str] = []
        open_blocks = 0
        for aim in aims:
            for block in aim.intended:
                if self._upstream.holds(aim, block):
                    held.append(f"{block.place}: the release has these lines: {summarize(block)}")
                elif where := self._upstream.elsewhere(aim, block):
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
        lost = [line for aim in aims for line in self._lost(aim)]
        clashes = [
            line
            for c, line in zip(conflicts, _format_clashes(conflicts), strict=True)
            if not any(told.startswith(f"{c.path}: {c.symbol} is gone") for told in lost)
        ]
        if held:
            kind, reasons = OutcomeKind.PARTIAL, (*held, *elsewhere, *lost)
        elif lost:
            kind, reasons = OutcomeKind.GONE, tuple(lost)
        else:
            kind, reasons = OutcomeKind.CONFLICT, () if clashes else (otherwise,)
        stale = self._stale(aims) if kind is OutcomeKind.CONFLICT else ()
        reasons = (*reasons, *clashes, *stale)
        return Outcome(patch.name, kind, reasons, None, conflicts)

    def _lost(self, aim: FileVersions) -> Iterator[str]:
        """Symbols the patch changes that the file no longer has."""
        old, new = self._upstream.source(aim.before), self._upstream.source(aim.current)
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
                there = self._search.symbol(symbol, old, self._upstream.source(heir.blob))
                yield f"{aim.path}: {symbol} is gone" + (
                    f", in {heir.name} as {there}" if there else ""
                )
            else:
                yield f"{aim.path}: {symbol} is gone"

    def _find_conflicts(self, aims: Sequence[FileVersions]) -> tuple[ConflictHunk, ...]:
        found: list[ConflictHunk] = []
        for aim in aims:
            away = any(not self._upstream.source(aim.current).has(b.symbol) for b in aim.intended)
            heir = None
            if aim.current != NULL_OID and (away or self._search.left(aim.before, aim.current)):
                heir = self._search.file(aim.path, aim.before, aim.current)
            changes = self._upstream.changes(aim)
            for block in aim.intended:
                theirs = tuple(b for b in changes if b.touches(block))
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
                )
            )
        return tuple(aims)


def _find_first_change(hunk: patchfile.Hunk) -> int:
    """The 1-based line of the old file at which ``hunk`` first removes or adds one."""
    offset = next((i for i, x in enumerate(hunk.lines) if x[:1] in (b"-", b"+")), 0)
    return hunk.old_start + offset


def _format_clashes(conflicts: Sequence[ConflictHunk]) -> list[str]:
    return [
        f"{format_place(c.path, c.symbol, c.line)}: upstream changed the same lines"
        for c in conflicts
    ]


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
