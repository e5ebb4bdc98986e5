"""Replay the series of one release on another: a verdict per patch, nothing written.

What a person decided for a patch, its new text or that it is left out, takes the place of judging
it. So a rebase that stopped is gone on with by replaying it whole with one decision more: there is
no half-applied state to keep.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from packaging.version import Version

from tool.apply import checks as proofs
from tool.apply import engine
from tool.apply.engine import Applied
from tool.classify.classify import Classifier
from tool.classify.outcome import Outcome, OutcomeKind
from tool.git.index import private_index
from tool.git.repository import Git
from tool.series.model import Patch, Series
from tool.upstream.resolve import Base


@dataclass(frozen=True)
class Decision:
    """A person's word on one patch, and the verdict it answers.

    ``content`` is the whole new patch file; or ``skipped`` says why the patch is left out. ``how``
    says where the content is from: a person, or a remembered resolution.
    """

    kind: OutcomeKind
    evidence: tuple[str, ...]
    content: bytes | None = None
    skipped: str | None = None
    how: str = ""


@dataclass(frozen=True)
class Step:
    """One patch: what was judged, and what was decided instead, if anything."""

    patch: Patch
    verdict: Outcome
    parent: str
    parent_tree: str
    decision: Decision | None = None

    @property
    def applied(self) -> Applied | None:
        return self.verdict.applied

    @property
    def stops(self) -> bool:
        """Does a person have to decide?"""
        return self.decision is None and not (
            self.verdict.carries or self.verdict.kind is OutcomeKind.RETIRED
        )


def replay(
    git: Git,
    series: Series,
    base: Base,
    patches: Sequence[Patch],
    *,
    old_tree: str | None,
    decisions: Mapping[str, Decision] | None = None,
) -> Iterator[Step]:
    """Judge ``patches`` in order on ``base``; the caller may stop listening at any step.

    A patch that does not carry over is left out for those after it.
    """
    decided = decisions or {}
    with contextlib.ExitStack() as stack:
        court = _Replayer(git, stack, old_tree, base.tree)
        commit, tree = base.commit, base.tree
        for patch in patches:
            decision = decided.get(patch.name)
            if decision is not None:
                step = court.obey(decision, patch, commit, tree)
            else:
                retired = _retired(series, patch, base.release)
                step = Step(patch, retired or court.judge(patch, commit, tree), commit, tree)
            yield step
            if step.applied is not None:
                commit, tree = step.applied.commit, step.applied.tree


class _Replayer:
    """The index patches are tried on and the judge beside it, both made when a patch needs them."""

    def __init__(
        self,
        git: Git,
        stack: contextlib.ExitStack,
        old_tree: str | None,
        new_tree: str,
    ) -> None:
        self._git = git
        self._stack = stack
        self._trees = old_tree, new_tree
        self._held: str | None = None
        self._index: Git | None = None
        self._judge: Classifier | None = None

    def judge(self, patch: Patch, commit: str, tree: str) -> Outcome:
        """The verdict on ``patch`` on top of ``commit``."""
        index = self._holding(tree)
        if self._judge is None:
            self._judge = Classifier(index, *self._trees)
        verdict = self._judge.judge(patch, commit, tree)
        self._held = verdict.applied.tree if verdict.applied else tree
        return verdict

    def obey(self, decision: Decision, patch: Patch, commit: str, tree: str) -> Step:
        """Apply what a person decided."""
        applied = None
        if decision.content is not None:
            patch = replace(patch, given=decision.content)
            index = self._holding(tree)
            applied = engine.apply_patch(index, patch, commit, tree)
            self._held = applied.tree
            proofs.check_applied(index, [applied])
        verdict = Outcome(patch.name, decision.kind, decision.evidence, applied)
        return Step(patch, verdict, commit, tree, decision)

    def _holding(self, tree: str) -> Git:
        """The index, holding ``tree``."""
        if self._index is None:
            self._index = self._stack.enter_context(private_index(self._git, tree))
        elif self._held != tree:
            self._index.run("read-tree", tree)
        self._held = tree
        return self._index


def _retired(series: Series, patch: Patch, release: Version) -> Outcome | None:
    """The change is not needed there, as its line in series.txt says."""
    change = series.change_of(patch)
    if change.needed.contains(release, prereleases=True):
        return None
    why = f"upstream {change.upstream}" if change.upstream else "the change's line says no more"
    evidence = f"{change.name} is needed on {change.needed}: {why}"
    return Outcome(patch.name, OutcomeKind.RETIRED, (evidence,))
