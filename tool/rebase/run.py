"""``tool rebase``: carry the series to another release, patch by patch, and land it whole.

The project is not touched until every patch has an answer; then patches, series.txt, series.lock and
the history change in one transaction. A patch that needs a person stops the rebase with a worktree
at exactly that patch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from packaging.version import Version

from tool.apply import compose
from tool.classify import replay as replays
from tool.classify.outcome import CARRIES, OutcomeKind
from tool.classify.replay import Decision, Step
from tool.errors import UsageError
from tool.git.diff import canonical_diff
from tool.git.repository import Git
from tool.project import checkout as landing
from tool.project import transaction
from tool.project.workspace import Workspace
from tool.rebase import conflict
from tool.rebase import preview as drift
from tool.rebase import rerere as resolutions
from tool.rebase import state as rebase_state
from tool.rebase.conflict import MergedFile
from tool.rebase.state import State, Stop
from tool.rebase.write import SeriesUpdate, SeriesWriter
from tool.series import lockfile as locks
from tool.series import patchfile
from tool.series.model import Patch, Series
from tool.series.model import load_series as load_series
from tool.upstream import resolve as upstream
from tool.upstream.resolve import Base, Request, previous_release, resolve_release

Note = Callable[[str], None]
BY_HAND: Final = "by hand"
AS_MERGED: Final = "as merged"
"""Nothing was changed in the worktree: a person looked at what was there, and went on."""


@dataclass(frozen=True)
class Stopped:
    """What a person has to decide on: the patch, what its files hold now, and where.

    ``asked``: the patch carries over, and the rebase was told to stop at it.
    """

    step: Step
    folder: Path
    merged: tuple[MergedFile, ...]

    @property
    def asked(self) -> bool:
        return not self.step.stops


@dataclass(frozen=True)
class RebaseResult:
    """``stopped``, or landed. ``carried`` and ``steps`` are missing where an earlier command, killed
    while it wrote, had decided everything. ``remembered`` names resolutions used."""

    source: Version
    onto: Version
    steps: tuple[Step, ...]
    carried: SeriesUpdate | None
    stopped: Stopped | None
    remembered: tuple[str, ...]


def start(
    series: Series,
    home: Workspace,
    request: Request,
    *,
    source: Version | None,
    into: Path | None,
    edits: Sequence[str] = (),
    note: Note,
) -> RebaseResult:
    """Begin carrying the series to ``request``'s release, stopping at the patches ``edits`` in any case.

    Raises:
        UsageError: a rebase is under way, the release is carried already, or it is not a release; or
            one of ``edits`` is not carried to it.
        ToolError: a base cannot be had, or the series is not the proven one.
    """
    with home.exclusive():
        git = home.open_repository()
        _recover(git, home, note)
        series = load_series(series.root)
        if running := rebase_state.load_state(home):
            raise UsageError(
                f"a rebase onto v{running.onto} is under way",
                where=running.root,
                next_step="go on with it: tool rebase --continue, or give it up: tool rebase --abort",
            )
        state = _begin(git, home, series, request, source, into, edits)
        return _run(git, home, series, state)


def _begin(
    git: Git,
    home: Workspace,
    series: Series,
    request: Request,
    source: Version | None,
    into: Path | None,
    edits: Sequence[str],
) -> State:
    if request.source not in (None, upstream.PYPI) or not upstream.names_release(request.ref):
        raise UsageError(
            f"{request.ref!r} is not a release, and series.lock rests on released wheels",
            next_step=f"see what would happen there: tool drift --onto {request.ref}",
        )
    lock = locks.load(series.lock_path)
    onto = upstream.find_release(series, request)
    entry = lock.releases.get(onto)
    if entry is not None and entry.patches:
        raise UsageError(
            f"the series carries sglang {onto} already",
            where="series.lock",
            next_step=f"check it: tool check --refs v{onto}; or name a release it does not carry",
        )
    begin = previous_release(lock, onto, source)
    patches = compose.select_patches(series, begin)
    compose.check_patch_files(patches, lock.get(begin))
    wanted = _edits(series, patches, begin, onto, edits)
    folder = (into or Path.cwd() / f"sglang-v{onto}-rebase").absolute()
    if folder.exists():
        raise UsageError(
            "exists already, and a stopped rebase would need that place",
            where=str(folder),
            next_step="move it away, or name another folder with --into",
        )
    found = resolve_release(git, home, series, lock, request, whole=True)
    drift.prepare_source(git, home, series, lock, begin, patches, request)
    return State(
        root=str(series.root),
        onto=onto,
        source=begin,
        base_commit=found.base.commit,
        base_tree=found.base.tree,
        wheels=found.wheels,
        folder=str(folder),
        snapshot=rebase_state.snapshot_project(series),
        edits=wanted,
    )


def _edits(
    series: Series, patches: Sequence[Patch], source: Version, onto: Version, edits: Sequence[str]
) -> tuple[str, ...]:
    """The names of the patches to stop at, each with its suffix and once."""
    wanted = tuple(dict.fromkeys(n if n.endswith(".patch") else f"{n}.patch" for n in edits))
    carried = [
        p.name for p in patches if series.change_of(p).needed.contains(onto, prereleases=True)
    ]
    for name in wanted:
        if name not in carried:
            raise UsageError(
                f"{name} is not a patch that v{source} hands on to v{onto}",
                where="--edit",
                why=f"patches: {', '.join(carried) or 'none'}",
                next_step="name one of these",
            )
    return wanted


def show(series: Series, home: Workspace) -> RebaseResult | None:
    """The stop of the rebase under way as it is now; None when a kill left it between two stops.

    Raises:
        UsageError: no rebase is under way.
        IntegrityError: the project was edited since it began.
    """
    with home.exclusive():
        git = home.open_repository()
        landing.recover_checkout(git, home)
        state = rebase_state.require_state(home, series)
        rebase_state.check_snapshot(state, series)
        folder, stop = Path(state.folder), state.stop
        if stop is None or not conflict.is_whole(folder, stop.token):
            return None
        steps = _replay(git, home, series, state)
        merged = conflict.merge_files(git, steps[-1], _label(state))
        now = tuple(conflict.read_from_disk(folder, file) for file in merged)
        return RebaseResult(
            state.source, state.onto, steps, None, Stopped(steps[-1], folder, now), ()
        )


def continue_(series: Series, home: Workspace, note: Note) -> RebaseResult:
    """Take what the worktree holds as the patch, and go on; or resume what a kill interrupted.

    Raises:
        ConflictError: the worktree is not resolved.
        IntegrityError: the project was edited since the rebase began.
    """
    with home.exclusive():
        git = home.open_repository()
        running = rebase_state.load_state(home)
        if (
            _recover(git, home, note)
            and running is not None
            and rebase_state.load_state(home) is None
        ):
            # The kill came after the last decision: the files were all that was left to write.
            return RebaseResult(running.source, running.onto, (), None, None, ())
        state = rebase_state.require_state(home, series)
        rebase_state.check_snapshot(state, series)
        stop = state.stop
        if stop is None or not conflict.is_whole(Path(state.folder), stop.token):
            # Killed before the worktree was whole: nobody has worked in it yet.
            return _run(git, home, series, replace(state, stop=None))
        steps = _replay(git, home, series, state)
        step = steps[-1]
        tree = conflict.read_resolution(git, Path(state.folder), step)
        content = patchfile.render(
            patchfile.parse(step.patch.name, step.patch.content).header,
            canonical_diff(git, step.parent_tree, tree),
        )
        how = AS_MERGED if conflict.is_as_merged(git, step, tree, _label(state)) else BY_HAND
        decision = Decision(stop.kind, stop.evidence, content, how=how)
        decided = replace(state, decisions={**state.decisions, stop.patch: decision})
        _replay(git, home, series, decided, until=stop.patch)  # proves it before it is written down
        state = replace(decided, stop=None)
        rebase_state.save_state(home, state)
        return _run(git, home, series, state)


def skip(series: Series, home: Workspace, why: str, note: Note) -> RebaseResult:
    """Leave out the patch the rebase stopped at; ``why`` goes into its header.

    Raises:
        UsageError: no rebase is stopped at a patch, or ``why`` is empty.
    """
    reason = " ".join(why.split())
    if not reason:
        raise UsageError("a patch is not left out without a reason", next_step="--why TEXT")
    with home.exclusive():
        git = home.open_repository()
        _recover(git, home, note)
        state = rebase_state.require_state(home, series)
        rebase_state.check_snapshot(state, series)
        stop = state.stop
        if stop is None:
            raise UsageError(
                "the rebase has not stopped at a patch", next_step="tool rebase --continue"
            )
        decision = Decision(stop.kind, stop.evidence, skipped=reason)
        state = replace(state, decisions={**state.decisions, stop.patch: decision}, stop=None)
        rebase_state.save_state(home, state)
        return _run(git, home, series, state)


def abort(series: Series, home: Workspace) -> str:
    """Give the rebase up: the project is byte for byte what it was.

    Raises:
        UsageError: none is under way.
    """
    with home.exclusive():
        git = home.open_repository()
        landing.recover_checkout(git, home)
        if rebase_state.load_state(home) is None and transaction.holds(
            home, rebase_state.STATE_FILE
        ):
            transaction.take_back(home)  # killed while it landed, its state removed already
        state = rebase_state.require_state(home, series)
        transaction.take_back(home)
        if state.opened:
            conflict.close_worktree(git, Path(state.folder))
        rebase_state.remove_state(home)
    return f"gave up the rebase onto v{state.onto}; the series is as it was"


def restart(series: Series, home: Workspace, request: Request, note: Note) -> RebaseResult:
    """The same rebase from its beginning, with the same stops, without the decisions made so far."""
    with home.exclusive():
        state = rebase_state.require_state(home, series)
    abort(series, home)
    again = replace(request, ref=f"v{state.onto}")
    return start(
        series,
        home,
        again,
        source=state.source,
        into=Path(state.folder),
        edits=state.edits,
        note=note,
    )


def _recover(git: Git, home: Workspace, note: Note) -> str | None:
    landing.recover_checkout(git, home)
    healed = transaction.complete(home)
    if healed:
        note(healed)
    return healed


def _run(git: Git, home: Workspace, series: Series, state: State) -> RebaseResult:
    """Replay with what is decided; stop at the first open question, or land."""
    folder = Path(state.folder)
    if state.opened:
        conflict.close_worktree(git, folder)
    state = replace(state, opened=False)
    rebase_state.save_state(home, state)
    used: list[str] = []
    base = _base(state)
    while True:
        steps = _replay(git, home, series, state)
        step = steps[-1] if steps and _is_open(steps[-1], state) else None
        if step is None:
            return _write(git, home, series, state, steps, used)
        # Who asked to see a patch is not answered from memory.
        asked = step.patch.name in state.edits
        recalled = None if asked else resolutions.recall_resolution(home, git, series, base, step)
        if recalled is None:
            break
        content, found = recalled
        used.append(str(found))
        decision = Decision(step.verdict.kind, step.verdict.evidence, content, how=f"by a {found}")
        state = replace(state, decisions={**state.decisions, step.patch.name: decision})
    token = os.urandom(16).hex()
    stop = Stop(step.patch.name, step.verdict.kind, step.verdict.evidence, token)
    # First the word that a worktree may be there, then the worktree.
    rebase_state.save_state(home, replace(state, stop=stop, opened=True))
    merged = conflict.open_worktree(git, folder, step, token=token, label=_label(state))
    stopped = Stopped(step, folder, tuple(merged))
    return RebaseResult(state.source, state.onto, steps, None, stopped, tuple(used))


def _replay(
    git: Git, home: Workspace, series: Series, state: State, *, until: str | None = None
) -> tuple[Step, ...]:
    """The steps up to the first that stops, or that of the patch ``until``."""
    lock = locks.load(series.lock_path)
    base = _base(state)
    steps: list[Step] = []
    for step in replays.replay(
        git,
        series,
        base,
        series.for_release(state.source),
        old_tree=lock.get(state.source).base_tree,
        decisions=state.decisions,
    ):
        steps.append(step)
        if _is_open(step, state) or step.patch.name == until:
            break
    return tuple(steps)


def _is_open(step: Step, state: State) -> bool:
    """Does the rebase stop at ``step``?"""
    return step.stops or (step.decision is None and step.patch.name in state.edits)


def _write(
    git: Git,
    home: Workspace,
    series: Series,
    state: State,
    steps: tuple[Step, ...],
    used: list[str],
) -> RebaseResult:
    lock = locks.load(series.lock_path)
    carrier = SeriesWriter(git, series, lock, state.onto)
    carried = carrier.carry(state.source, _base(state), state.wheels, steps)
    data: dict[str, bytes | None] = dict(_resolved(series, state))
    data[rebase_state.STATE_FILE] = None
    transaction.commit(home, series.root, carried.files, data=data)
    return RebaseResult(state.source, state.onto, steps, carried, None, tuple(used))


def _resolved(series: Series, state: State) -> Iterator[tuple[str, bytes]]:
    """Files of the data folder that keep what a person made of patches that did not carry over."""
    patches = {p.name: p for p in series.patches}
    for name, decision in state.decisions.items():
        if (
            decision.content is not None
            and decision.how in (BY_HAND, AS_MERGED)
            and decision.kind not in CARRIES
            # Stale and left so is a word on this release: the next may have more that is left over.
            and not (decision.kind is OutcomeKind.STALE and decision.how == AS_MERGED)
        ):
            yield resolutions.record_resolution(
                patches[name], decision.content, state.source, state.onto
            )


def _label(state: State) -> str:
    """What the release's side of a conflict is called."""
    return f"sglang v{state.onto}"


def _base(state: State) -> Base:
    return Base(state.onto, state.base_commit, state.base_tree, upstream.PYPI, f"v{state.onto}")
