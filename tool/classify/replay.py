"""Replay the series of one release on another: an outcome for each patch, nothing written.

What a person decided for a patch, its new text or that it is left out, takes the place of judging
it. So a rebase that stopped is gone on with by replaying it whole with one decision more: there is
no half-applied state to keep.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from packaging.version import Version

from tool.apply import Applied, apply_patch, check_applied
from tool.classify.classify import Classifier
from tool.classify.outcome import Outcome, OutcomeKind
from tool.git import Git, private_index
from tool.series import Patch, Series
from tool.upstream import Base


@dataclass(frozen=True)
class Decision:
    """A person's word on one patch, and the outcome it answers.

    ``content`` is the whole new patch file; or ``skipped`` says why the patch is left out. ``how``
    says where the content is from: a person, or a remembered resolution.
    """

    kind: OutcomeKind
    reasons: tuple[str, ...]
    content: bytes | None = None
    skipped: str | None = None
    how: str = ""


@dataclass(frozen=True)
class ReplayStep:
    """One patch: what was judged, and what was decided instead, if anything."""

    patch: Patch
    outcome: Outcome
    parent: str
    parent_tree: str
    decision: Decision | None = None

    @property
    def applied(self) -> Applied | None:
        return self.outcome.applied

    @property
    def stops(self) -> bool:
        """Does a person have to decide?"""
        return self.decision is None and not (
            self.outcome.carries or self.outcome.kind is OutcomeKind.RETIRED
        )


def replay_series(
    git: Git,
    series: Series,
    base: Base,
    patches: Sequence[Patch],
    *,
    old_tree: str | None,
    decisions: Mapping[str, Decision] | None = None,
) -> Iterator[ReplayStep]:
    """Classify ``patches`` in order on ``base``; the caller may stop at any step.

    ``old_tree`` is the tree of the release the patches come from, where it is known. A patch that does
    not carry over is left out for those after it; but if ``decisions`` has got a decision about it when the
    caller goes on, its step is given again with that decision.
    """
    decided = decisions if decisions is not None else {}
    with private_index(git, base.tree) as index:
        classifier = Classifier(index, old_tree, base.tree)
        commit, tree = base.commit, base.tree
        for patch in patches:
            if decision := decided.get(patch.name):
                step = _apply_decision(index, decision, patch, commit, tree)
            else:
                retired = _find_retired(series, patch, base.release)
                outcome = retired or classifier.classify(patch, commit, tree)
                step = ReplayStep(patch, outcome, commit, tree)
            yield step
            if step.stops and (decision := decided.get(patch.name)):
                step = _apply_decision(index, decision, patch, commit, tree)
                yield step
            if step.applied is not None:
                commit, tree = step.applied.commit, step.applied.tree


def _apply_decision(
    index: Git, decision: Decision, patch: Patch, commit: str, tree: str
) -> ReplayStep:
    """What a person decided, on ``index``, which holds ``tree``."""
    applied = None
    if decision.content is not None:
        patch = replace(patch, content_override=decision.content)
        applied = apply_patch(index, patch, commit, tree)
        check_applied(index, [applied])
    outcome = Outcome(patch.name, decision.kind, decision.reasons, applied)
    return ReplayStep(patch, outcome, commit, tree, decision)


def _find_retired(series: Series, patch: Patch, release: Version) -> Outcome | None:
    """The change is not needed there, as its line in series.txt says."""
    change = series.change_of(patch)
    if change.needed.contains(release, prereleases=True):
        return None
    why = f"upstream {change.upstream}" if change.upstream else "the change's line says no more"
    reasons = f"{change.name} is needed on {change.needed}: {why}"
    return Outcome(patch.name, OutcomeKind.RETIRED, (reasons,))
