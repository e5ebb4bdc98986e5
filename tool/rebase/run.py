"""``tool rebase``: carry the series to another release, patch by patch, and land it whole; or one patch
to several releases.

The project is not touched until every patch has an answer; then patches, series.txt, series.lock and
the history change in one transaction. A patch that needs a person stops the rebase with a worktree
at exactly that patch.

A rebase onto a git ref is provisional: it ends with a worktree and with what a person decided remembered.
The project stays as it is, because series.lock rests on released wheels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from packaging.version import Version

from tool.apply import check_patch_files, commit_kernels, select_patches
from tool.classify import CARRIES, Decision, OutcomeKind, ReplayStep, replay_series
from tool.errors import ConflictError, UsageError
from tool.git import canonical_diff
from tool.project import Session, carries_token, inspect_folder, new_token
from tool.rebase.carry import replay_carry, select_targets, write_carry
from tool.rebase.conflict import (
    MergedFile,
    close_worktree,
    is_as_merged,
    merge_files,
    open_worktree,
    read_from_disk,
    read_resolution,
)
from tool.rebase.preview import prepare_source, warn_of_lost_changes
from tool.rebase.rerere import TAKEN, recall_resolution, record_resolution
from tool.rebase.state import (
    STATE_FILE,
    Ref,
    State,
    Stop,
    check_snapshot,
    load_state,
    refuse_while,
    remove_state,
    require_state,
    save_state,
    snapshot_project,
)
from tool.rebase.write import SeriesUpdate, SeriesWriter
from tool.series import Patch, Series, patchfile
from tool.upstream import (
    GIT,
    PYPI,
    Base,
    Basis,
    Request,
    carried_release,
    find_release,
    names_release,
    previous_release,
    resolve_release,
)

BY_HAND: Final = "by hand"
AS_MERGED: Final = "as merged"
"""Nothing was changed in the worktree: a person looked at what was there, and went on."""


@dataclass(frozen=True)
class Stopped:
    """What a person has to decide on: the patch, what its files hold now, and where.

    ``asked``: the patch carries over, and the rebase was told to stop at it.
    """

    step: ReplayStep
    folder: Path
    merged: tuple[MergedFile, ...]

    @property
    def asked(self) -> bool:
        return not self.step.stops


@dataclass(frozen=True)
class RebaseResult:
    """``stopped``, or landed. ``update`` and ``steps`` are missing where an earlier command, killed
    while it wrote, had decided everything. ``remembered`` names resolutions used.

    ``patch`` is set where that patch alone was brought to ``targets``. ``ref``: onto a git ref; ``update`` is
    then missing, ``recorded`` counts decisions that are remembered from now on, and ``worktree`` is where the
    result is."""

    source: Version
    onto: Version
    steps: tuple[ReplayStep, ...]
    update: SeriesUpdate | None
    stopped: Stopped | None
    remembered: tuple[str, ...]
    patch: str | None = None
    targets: tuple[Version, ...] = ()
    ref: Ref | None = None
    recorded: int = 0
    worktree: Path | None = None

    @property
    def target(self) -> str:
        return self.ref.label if self.ref else f"v{self.onto}"

    @property
    def done(self) -> tuple[Version, ...]:
        """Where one patch stopped: the ``targets`` that have an answer."""
        return self.targets[: self._reached]

    @property
    def left(self) -> tuple[Version, ...]:
        """Where one patch stopped: the ``targets`` that it has not come to."""
        return self.targets[self._reached + 1 :]

    @property
    def _reached(self) -> int:
        return self.targets.index(self.onto) if self.targets else 0


def start_rebase(
    session: Session,
    request: Request,
    *,
    source: Version | None = None,
    into: Path | None = None,
    edits: Sequence[str] = (),
) -> RebaseResult:
    """Begin carrying the series to ``request``'s release, stopping at the patches ``edits`` in any case.

    A git ref is carried to provisionally.

    Raises:
        UsageError: a rebase is under way, the release is carried already, or one of ``edits`` is not
            carried to it.
        ToolError: a base cannot be had, or the series is not the locked one.
    """
    with session.exclusive():
        _refuse_second(session)
        return _run(session, _begin(session, request, source, into, edits))


def start_carry(
    session: Session, name: str, onto: str, *, into: Path | None = None
) -> RebaseResult:
    """Begin bringing the patch ``name`` to the releases ``onto``: a list, or ``all`` that lack it.

    Raises:
        UsageError: a rebase is under way; or as ``select_targets``.
        ConflictError: a later patch does not apply any more where the patch is; nothing was changed.
        ToolError: a base cannot be had, or the series is not the locked one.
    """
    with session.exclusive():
        _refuse_second(session)
        state = _begin_carry(session, name, onto, into)
        try:
            return _run(session, state)
        except ConflictError:
            if load_state(session.folder) == replace(state, stop=None, token=None):
                remove_state(session.folder)  # nobody has decided anything
            raise


def _refuse_second(session: Session) -> None:
    running = load_state(session.folder)
    if running is None:
        return
    if running.decisions or _has_stopped(session, running):
        raise refuse_while(running)
    # Interrupted before its first stop: nobody has seen it, and nothing is lost with it.
    _close(session, running)
    remove_state(session.folder)


def _begin_carry(session: Session, name: str, onto: str, into: Path | None) -> State:
    series, lock = session.series, session.lock
    patch, targets = select_targets(session, name, onto)
    for release in targets:
        check_patch_files(select_patches(series, release), lock.get(release))
    entry = lock.get(targets[0])
    return State(
        root=str(series.root),
        onto=targets[0],
        source=max(lock.checked_on(patch.name)),
        base_commit=entry.base_commit,
        base_tree=entry.base_tree,
        wheels=entry.wheels,
        folder=str(_free_folder(into or Path.cwd() / f"sglang-{patch.change}-rebase")),
        snapshot=snapshot_project(series),
        patch=patch.name,
        targets=targets,
    )


def _free_folder(place: Path) -> Path:
    folder = place.resolve()
    if folder.exists():
        raise UsageError(
            "exists already, and a stopped rebase would need that place",
            where=str(folder),
            next_step="move it away, or name another folder with --into",
        )
    return folder


def _begin(
    session: Session,
    request: Request,
    source: Version | None,
    into: Path | None,
    edits: Sequence[str],
) -> State:
    if not names_release(request.ref):
        return _begin_ref(session, request, source, into, edits)
    if request.source not in (None, PYPI):
        raise UsageError(
            f"{request.ref} is a release, and series.lock rests on released wheels",
            next_step=f"tool rebase --onto {request.ref}, without --source",
        )
    series, lock = session.series, session.lock
    onto = find_release(series, request)
    entry = lock.releases.get(onto)
    if entry is not None and entry.patches:
        raise UsageError(
            f"the series carries sglang {onto} already",
            where="series.lock",
            next_step=f"check it: tool check --refs v{onto}; or name a release it does not carry",
        )
    begin = previous_release(lock, onto, source)
    patches = select_patches(series, begin)
    check_patch_files(patches, lock.get(begin))
    wanted = _edits(series, patches, begin, onto, edits)
    warn_of_lost_changes(session, begin, onto)
    folder = _free_folder(into or Path.cwd() / f"sglang-v{onto}-rebase")
    found = resolve_release(session, request, whole=True)
    prepare_source(session, begin)
    return State(
        root=str(series.root),
        onto=onto,
        source=begin,
        base_commit=found.base.commit,
        base_tree=found.base.tree,
        wheels=found.wheels,
        folder=str(folder),
        snapshot=snapshot_project(series),
        edits=wanted,
    )


def _begin_ref(
    session: Session,
    request: Request,
    source: Version | None,
    into: Path | None,
    edits: Sequence[str],
) -> State:
    if edits:
        raise UsageError(
            f"--edit changes patches that carry over, and {request.ref!r:.200} is not a release",
            why="a rebase onto a git ref remembers how conflicts were resolved; no patch would keep the edit",
            next_step="tool refresh changes a patch; --edit goes with a release",
        )
    base = resolve_release(session, request, whole=False).base
    assert base.basis is not None
    begin = carried_release(session.lock, base.release, source)
    folder = _free_folder(into or Path.cwd() / f"sglang-{base.slug}-rebase")
    prepare_source(session, begin)
    return State(
        root=str(session.series.root),
        onto=base.release,
        source=begin,
        base_commit=base.commit,
        base_tree=base.tree,
        wheels=(),
        folder=str(folder),
        snapshot=snapshot_project(session.series),
        ref=Ref(base.label, base.typed, base.basis.how),
    )


def _edits(
    series: Series, patches: Sequence[Patch], source: Version, onto: Version, edits: Sequence[str]
) -> tuple[str, ...]:
    """The names of the patches to stop at, each once."""
    wanted = tuple(dict.fromkeys(series.find_patch(name, source).name for name in edits))
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


def show_rebase(session: Session) -> RebaseResult | None:
    """The stop of the rebase under way as it is now; None when a kill left it between two stops.

    Raises:
        UsageError: no rebase is under way.
        IntegrityError: the project was edited since it began.
    """
    with session.exclusive(settle=False):
        state = _require_state(session)
        folder = Path(state.folder)
        if not _has_stopped(session, state):
            return None
        steps = _replay(session, state)
        merged = merge_files(session.git, steps[-1], _label(state))
        now = tuple(read_from_disk(folder, file) for file in merged)
        return _result(state, steps, None, Stopped(steps[-1], folder, now), ())


def continue_rebase(session: Session) -> RebaseResult:
    """Take what the worktree holds as the patch, and go on; or resume what a kill interrupted.

    Raises:
        ConflictError: the worktree is not resolved.
        IntegrityError: the project was edited since the rebase began.
    """
    with session.exclusive(settle=False):
        git = session.git
        running = load_state(session.folder)
        if session.settle() and running is not None and load_state(session.folder) is None:
            # The kill came after the last decision: the files were all that was left to write.
            return _result(running, (), None, None, ())
        state = _require_state(session)
        stop = state.stop
        if stop is None or not _has_stopped(session, state):
            # Killed before the worktree was whole: nobody has worked in it yet.
            return _run(session, state)
        step = _replay(session, state)[-1]
        tree = read_resolution(git, Path(state.folder), step)
        content = patchfile.render(
            patchfile.parse(step.patch.name, step.patch.content).header,
            canonical_diff(git, step.parent_tree, tree),
        )
        how = AS_MERGED if is_as_merged(git, step, tree, _label(state)) else BY_HAND
        decision = Decision(stop.kind, stop.reasons, content, how=how)
        decided = replace(state, decisions={**state.decisions, stop.patch: decision})
        _replay(session, decided, until=stop.patch)  # checks it before it is written down
        state = replace(decided, stop=None)
        save_state(session.folder, state)
        return _run(session, state)


def skip_patch(session: Session, why: str) -> RebaseResult:
    """Leave out the patch the rebase stopped at; ``why`` goes into its header.

    Raises:
        UsageError: no rebase is under way, or ``why`` is empty.
    """
    reason = " ".join(why.split())
    if not reason:
        raise UsageError("a patch is not left out without a reason", next_step="--why TEXT")
    with session.exclusive():
        state = _require_state(session)
        stop = state.stop
        if stop is None or not _has_stopped(session, state):
            # Interrupted before the worktree was whole: nobody has seen the patch that it is for.
            return _run(session, state)
        decision = Decision(stop.kind, stop.reasons, skipped=reason)
        state = replace(state, decisions={**state.decisions, stop.patch: decision}, stop=None)
        save_state(session.folder, state)
        return _run(session, state)


def abort_rebase(session: Session) -> str:
    """Give the rebase up: the project is byte for byte what it was. Returns what it was onto.

    Raises:
        UsageError: none is under way.
    """
    with session.exclusive(settle=False):
        state = _take_back(session)
        remove_state(session.folder)
    return state.target


def restart_rebase(session: Session) -> RebaseResult:
    """The same rebase from its beginning, with the same stops, without the decisions made so far. One onto
    a git ref keeps its commit, wherever the ref is now.

    Raises:
        UsageError: none is under way.
    """
    with session.exclusive(settle=False):
        state = _take_back(session)
        if state.ref is not None:
            prepare_source(session, state.source)
            folder = _free_folder(Path(state.folder))
            now = snapshot_project(session.series)
            fresh = replace(state, folder=str(folder), snapshot=now, decisions={}, stop=None)
            return _run(session, replace(fresh, token=None))
        if state.patch is not None:
            onto = ",".join(map(str, state.targets))
            return _run(session, _begin_carry(session, state.patch, onto, Path(state.folder)))
        again = Request(f"v{state.onto}")
        begun = _begin(session, again, state.source, Path(state.folder), state.edits)
        return _run(session, begun)


def _take_back(session: Session) -> State:
    """The rebase under way, with the project as it was before and without its worktree."""
    if load_state(session.folder) is None and session.is_writing(STATE_FILE):
        session.roll_back()  # killed while it was written, its state removed already
    state = require_state(session.folder)
    session.roll_back()
    try:
        _close(session, state)
    except UsageError as foreign:
        session.warn(f"{foreign.where}: {foreign.message}")
    return state


def _require_state(session: Session) -> State:
    """The rebase under way, of a project that is as it was when the rebase began."""
    state = require_state(session.folder)
    check_snapshot(state, session.series)
    return state


def _has_stopped(session: Session, state: State) -> bool:
    """Has it stopped at a patch, with its worktree in place?"""
    token = state.token
    return bool(state.stop and token) and carries_token(
        session.git, Path(state.folder), token or ""
    )


def _close(session: Session, state: State) -> None:
    if state.token is not None:
        close_worktree(session.git, Path(state.folder), state.token)


def _run(session: Session, state: State) -> RebaseResult:
    """Replay with what is decided; stop at the first open question, or write the project."""
    git, folder = session.git, Path(state.folder)
    _close(session, state)
    state = replace(state, stop=None, token=None)
    save_state(session.folder, state)
    used: list[str] = []
    decisions = dict(state.decisions)
    state = replace(state, decisions=decisions)
    steps: tuple[ReplayStep, ...] = ()
    for step in _iterate(session, state):
        known = steps[:-1] if steps and steps[-1].patch.name == step.patch.name else steps
        steps = (*known, step)
        state = _move_on(session, state, len(steps))
        if not _is_open(step, state):
            continue
        # Who asked to see a patch is not answered from memory.
        asked = step.patch.name in state.edits
        recalled = None if asked else recall_resolution(session, _base(state), step)
        if recalled is None:
            break
        decision, found = recalled
        used.append(str(found))
        decisions[step.patch.name] = decision  # the replay goes on with it: see ``replay_series``
    else:
        return _write(session, state, steps, used)
    stop = Stop(step.patch.name, step.outcome.kind, step.outcome.reasons)
    token = new_token()
    # First the word that a worktree may be there, then the worktree.
    save_state(session.folder, replace(state, stop=stop, token=token))
    merged = open_worktree(git, folder, step, token=token, label=_label(state))
    stopped = Stopped(step, folder, tuple(merged))
    return _result(state, steps, None, stopped, used)


def _result(
    state: State,
    steps: tuple[ReplayStep, ...],
    update: SeriesUpdate | None,
    stopped: Stopped | None,
    used: Sequence[str],
) -> RebaseResult:
    return RebaseResult(
        state.source,
        state.onto,
        steps,
        update,
        stopped,
        tuple(used),
        state.patch,
        state.targets,
        state.ref,
    )


def _move_on(session: Session, state: State, reached: int) -> State:
    """Of a patch that is brought to several releases: the state at the one that it has come to."""
    if state.patch is None:
        return state
    onto = state.targets[reached - 1]
    entry = session.lock.get(onto)
    return replace(state, onto=onto, base_commit=entry.base_commit, base_tree=entry.base_tree)


def _replay(session: Session, state: State, *, until: str | None = None) -> tuple[ReplayStep, ...]:
    """The steps up to the first that stops, or that of the patch ``until``."""
    steps: list[ReplayStep] = []
    for step in _iterate(session, state):
        steps.append(step)
        if _is_open(step, state) or step.patch.name == until:
            break
    return tuple(steps)


def _iterate(session: Session, state: State) -> Iterator[ReplayStep]:
    """The steps of the whole series, or of the one patch on each of its targets."""
    series = session.series
    if state.patch is not None:
        for one in replay_carry(session, state.patch, state.targets, state.decisions):
            yield one.step
        return
    yield from replay_series(
        session.git,
        series,
        _base(state),
        series.for_release(state.source),
        old_tree=session.lock.get(state.source).base_tree,
        decisions=state.decisions,
    )


def _is_open(step: ReplayStep, state: State) -> bool:
    """Does the rebase stop at ``step``?"""
    return step.stops or (step.decision is None and step.patch.name in state.edits)


def _write(
    session: Session, state: State, steps: tuple[ReplayStep, ...], used: list[str]
) -> RebaseResult:
    series = session.series
    if state.patch is not None:
        carried = tuple(replay_carry(session, state.patch, state.targets, state.decisions))
        update = write_carry(session, state.patch, carried)
        decided = [(one.original, one.step.decision, one.source, one.release) for one in carried]
    else:
        patches = {p.name: p for p in series.patches}
        decided = [(patches[s.patch.name], s.decision, state.source, state.onto) for s in steps]
        if state.ref is not None:
            return _end_ref(session, state, steps, used, dict(_resolved(decided, state.ref)))
        writer = SeriesWriter(session.git, series, session.lock, state.onto)
        update = writer.write(state.source, _base(state), state.wheels, steps)
    session.write(update.files, data=dict(_resolved(decided, None)), own={STATE_FILE: None})
    return _result(state, steps, update, None, used)


def _end_ref(
    session: Session,
    state: State,
    steps: tuple[ReplayStep, ...],
    used: list[str],
    kept: dict[str, bytes],
) -> RebaseResult:
    """Make the worktree of a provisional rebase, and remember what a person decided."""
    base = _base(state)
    tip = next((s.applied.commit for s in reversed(steps) if s.applied), base.commit)
    folder: Path | None = Path(state.folder).parent / f"sglang-{base.slug}"
    assert folder is not None
    try:
        head = commit_kernels(session.git, base, tip, session.series.kernel_dir)
        found = inspect_folder(session.git, folder, None, f"ada/{base.slug}")
        if found.head != head:
            with session.publish(found, head, base.commit) as publication:
                publication.finish()
    except (UsageError, ConflictError) as refused:
        where = f"{refused.where}: " if refused.where else ""
        session.warn(f"no worktree of the result was made: {where}{refused.message}")
        folder = None
    session.write({}, data=kept, own={STATE_FILE: None})
    return replace(_result(state, steps, None, None, used), recorded=len(kept), worktree=folder)


def _resolved(
    decided: Sequence[tuple[Patch, Decision | None, Version, Version]], ref: Ref | None
) -> Iterator[tuple[str, bytes]]:
    """Files of the data folder that keep what a person made of patches that did not carry over."""
    for patch, decision, source, onto in decided:
        if decision is not None and _is_kept(decision, ref):
            yield record_resolution(patch, decision, source, ref.label if ref else str(onto))


def _is_kept(decision: Decision, ref: Ref | None) -> bool:
    if decision.content is None:
        return bool(ref and decision.skipped and not decision.how and decision.kind in TAKEN)
    return (
        decision.how in (BY_HAND, AS_MERGED)
        and decision.kind not in CARRIES
        # Stale and left so is a word on this release: the next may have more that is left over.
        and not (decision.kind is OutcomeKind.STALE and decision.how == AS_MERGED)
    )


def _label(state: State) -> str:
    """What the release's side of a conflict is called."""
    return f"sglang {state.target}"


def _base(state: State) -> Base:
    commit, tree, ref = state.base_commit, state.base_tree, state.ref
    if ref is None:
        return Base(state.onto, commit, tree, PYPI, f"v{state.onto}")
    return Base(state.onto, commit, tree, GIT, ref.label, Basis(state.onto, ref.how), ref.typed)
