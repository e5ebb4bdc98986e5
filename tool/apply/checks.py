"""What must hold after every apply, beyond git's exit code.

* every touched Python file parses;
* no definition is there twice that was there once;
* no name is used that nothing binds, but for those of the file as it was;
* what a changed line imports, reads of a module or calls is there in the whole tree (references);
* every hunk sits in the symbol it was written for (placement).

Placement needs work only when a file was merged: if the file was, byte for byte, the one the patch
was written for, the result is the one its author saw. Otherwise the changed lines of (pre-image →
the author's result) and of (this base → our result) must be the same lines in the same symbols.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tool.analysis import (
    Modules,
    Outlines,
    find_duplicates,
    find_new_duplicates,
    find_new_unbound,
    find_unresolved,
)
from tool.apply.engine import Applied
from tool.apply.kernels import DESTINATION
from tool.errors import ConflictError, UpstreamedError
from tool.git import NULL_OID, Git, add_blobs, blob_id, find_blobs, private_index
from tool.series import FileChange, FileDiff, PatchFile

UNBOUND: Final = "is used, and nothing in the file binds it any more"


@dataclass(frozen=True)
class ChangedLine:
    """A line a diff adds (``+``) or removes (``-``) and the symbol it stands in."""

    sign: str
    text: bytes
    symbol: str

    def __str__(self) -> str:
        return f"{self.sign}{self.text.decode('utf-8', 'replace').strip()!r} in {self.symbol}"


def check_applied(git: Git, applied: Sequence[Applied], outlines: Outlines | None = None) -> int:
    """Check every patch of ``applied``; returns the number of files looked at.

    ``outlines`` may be shared between calls, so that a file is parsed once.

    Raises:
        ConflictError: naming the patch, the file and what does not hold.
        UpstreamedError: upstream already has a part of a patch.
    """
    outlines = outlines or Outlines(git)
    for patch in applied:
        intended = {} if patch.exact else compute_intended(git, patch.patch)
        check_one(git, patch, outlines, intended)
    return sum(len(patch.files) for patch in applied)


def check_one(git: Git, patch: Applied, outlines: Outlines, intended: Mapping[str, str]) -> None:
    """Check one patch. ``intended`` is ``compute_intended``'s; empty for a patch that applied exactly.

    Raises:
        ToolError: as ``check_applied``.
    """
    modules = Modules(git, patch.tree, elsewhere=DESTINATION)
    written = {f.path: f for f in patch.patch.files}
    for change in patch.files:
        if change.path.endswith(".py") and change.after != NULL_OID:
            _check_python(patch, change, outlines)
            if found := find_dangling(patch, change, outlines, modules):
                raise _failed(patch, found[0].place, found[0].message)
        if change.path in intended:
            before = written[change.path].before
            _check_placement(patch, change, before, intended[change.path], outlines)
    _check_paths(patch)


def _check_python(patch: Applied, change: FileChange, outlines: Outlines) -> None:
    try:
        after = outlines.of(change.after)
    except SyntaxError as err:
        raise _failed(patch, change.path, f"does not parse after the patch: {err}") from err
    if unknown := find_newly_unbound(change, outlines):
        raise _failed(patch, change.path, f"{', '.join(unknown)} {UNBOUND}")
    if not find_duplicates(after):
        return  # spares parsing the file as it was
    before = outlines.of(change.before) if change.before != NULL_OID else None
    if twice := find_new_duplicates(before, after):
        raise _failed(
            patch,
            change.path,
            f"{', '.join(twice)} is now defined twice: upstream has one of its own",
        )


def find_newly_unbound(change: FileChange, outlines: Outlines) -> list[str]:
    """Names a change leaves a Python file using that nothing binds, and that it did not use so before."""
    before = None if change.before == NULL_OID else outlines.or_empty(change.before)
    return find_new_unbound(before, outlines.or_empty(change.after))


@dataclass(frozen=True)
class Dangling:
    """A changed line of ``path`` that refers to something the release has not."""

    path: str
    line: int
    message: str

    @property
    def place(self) -> str:
        return f"{self.path} (line {self.line} with the patch)"


def find_dangling(
    patch: Applied, change: FileChange, outlines: Outlines, modules: Modules
) -> list[Dangling]:
    """References of the changed lines of a Python file that lead nowhere in the tree of the result."""
    lines = list_added_lines(patch, change, outlines)
    if not lines:
        return []
    found = find_unresolved(outlines.syntax(change.after, lines), change.path, lines, modules)
    return [Dangling(change.path, u.line, u.message) for u in found]


def list_added_lines(patch: Applied, change: FileChange, outlines: Outlines) -> frozenset[int]:
    """The 1-based lines of the result that the patch adds."""
    if not patch.exact and change.before != NULL_OID:
        runs = outlines.runs(change.before, change.after)
        return frozenset(n for r in runs for n in range(r.new_line, r.new_line + len(r.added)))
    found: set[int] = set()
    for file in patch.patch.files:
        for hunk in file.hunks if file.path == change.path else ():
            line = hunk.new_start
            for text in hunk.lines:
                if text.startswith(b"+"):
                    found.add(line)
                line += text.startswith((b"+", b" "))
    return frozenset(found)


def _check_paths(patch: Applied) -> None:
    written = {f.path for f in patch.patch.files}
    touched = {f.path for f in patch.files}
    if touched - written:
        raise _failed(
            patch, min(touched - written), "was changed, though the patch does not name it"
        )
    if written - touched:
        raise UpstreamedError(
            f"{min(written - touched)} needs no change here: upstream has this part of the patch",
            where=f"patches/{patch.name}",
            next_step="write a smaller patch for this release; nothing was changed",
        )


def _check_placement(
    patch: Applied, change: FileChange, before: str, after: str, outlines: Outlines
) -> None:
    """``before`` and ``after``: what the author of the patch had and made."""
    if change.before == before:
        return
    intended = list(changed_lines(before, after, outlines))
    actual = list(changed_lines(change.before, change.after, outlines))
    wanted, found = Counter(map(_key, intended)), Counter(map(_key, actual))
    if wanted == found:
        return
    want = next((line for line in intended if wanted[_key(line)] > found[_key(line)]), None)
    got = next((line for line in actual if found[_key(line)] > wanted[_key(line)]), None)
    raise _failed(
        patch, change.path, f"a hunk is not where it was written for: wanted {want}, found {got}"
    )


def _key(line: ChangedLine) -> tuple[str, bytes, str]:
    """What must agree. A diff may begin a run one line earlier or later where the line after it equals
    its first one, so order says nothing, and a blank line at the edge may count to either symbol."""
    return line.sign, line.text, line.symbol if line.text.strip() else ""


def compute_intended(git: Git, patch: PatchFile) -> dict[str, str]:
    """Per path, the blob the patch makes of its own pre-image."""
    results = {f.path: f.after for f in patch.files}
    edited = [f for f in patch.files if NULL_OID not in (f.before, f.after)]
    if all(_is_result(git, file) for file in edited):
        return results  # as the patch says itself; spares git the work
    with private_index(git, None) as index:
        add_blobs(index, {f.path: f.before for f in patch.files if f.before != NULL_OID})
        index.run("apply", "--cached", "--whitespace=nowarn", "-p1", "-", stdin=patch.diff)
        tree = index.out("write-tree")
    return results | find_blobs(git, tree, [f.path for f in edited])


def _is_result(git: Git, file: FileDiff) -> bool:
    """Is the blob that ``file`` names as the result here, and is it what the hunks make?"""
    if git.find(file.after) is None:
        return False
    made = file.apply(git.blobs([file.before])[file.before])
    return made is not None and blob_id(made) == file.after


def changed_lines(before: str, after: str, outlines: Outlines) -> Iterator[ChangedLine]:
    """The added and removed lines between two blobs, each with its symbol."""
    if NULL_OID in (before, after):
        return
    old, new = outlines.or_empty(before), outlines.or_empty(after)
    for run in outlines.runs(before, after):
        for line, text in enumerate(run.removed, run.old_line):
            yield ChangedLine("-", text, old.symbol_at(line))
        for line, text in enumerate(run.added, run.new_line):
            yield ChangedLine("+", text, new.symbol_at(line))


def _failed(patch: Applied, path: str, message: str) -> ConflictError:
    return ConflictError(
        f"{path} {message}",
        where=f"patches/{patch.name}",
        next_step="mend the patch for this release; nothing was changed",
    )
