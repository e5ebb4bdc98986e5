"""``tool rebase``: carry the series to another release, patch by patch, and land it whole.

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
from tool.rebase.conflict import (
    MergedFile,
    close_worktree,
    is_as_merged,
    merge_files,
    open_worktree,
    read_from_disk,
    read_resolution,
)
from tool.rebase.preview import prepare_source
from tool.rebase.rerere import TAKEN, recall_resolution, record_resolution
from tool.rebase.state import (
    STATE_FILE,
    Ref,
    State,
    Stop,
    check_snapshot,
    load_state,
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

    ``ref``: onto a git ref; ``update`` is then missing, ``recorded`` counts decisions that are remembered
    from now on, and ``worktree`` is where the result is."""

    source: Version
    onto: Version
    steps: tuple[ReplayStep, ...]
    update: SeriesUpdate | None
    stopped: Stopped | None
    remembered: tuple[str, ...]
    ref: Ref | None = None
    recorded: int = 0
    worktree: Path | None = None

    @property
    def target(self) -> str:
        return self.ref.label if self.ref else f"v{self.onto}"


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
        if running := load_state(session.folder):
            if running.decisions or _has_stopped(session, running):
                raise UsageError(
                    f"a rebase onto {running.target} is under way",
                    where=running.root,
                    next_step="go on with it: tool rebase --continue, or give it up: tool rebase --abort",
                )
            # Interrupted before its first stop: nobody has seen it, and nothing is lost with it.
            _close(session, running)
            remove_state(session.folder)
        return _run(session, _begin(session, request, source, into, edits))


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
    folder = _find_folder(into, f"v{onto}")
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
    folder = _find_folder(into, base.slug)
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


def _find_folder(into: Path | None, slug: str) -> Path:
    folder = (into or Path.cwd() / f"sglang-{slug}-rebase").resolve()
    if folder.exists():
        raise UsageError(
            "exists already, and a stopped rebase would need that place",
            where=str(folder),
            next_step="move it away, or name another folder with --into",
        )
    return folder


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
        stopped = Stopped(steps[-1], folder, now)
        return RebaseResult(state.source, state.onto, steps, None, stopped, (), state.ref)


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
            return RebaseResult(running.source, running.onto, (), None, None, (), running.ref)
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
            folder = _find_folder(Path(state.folder), "")
            now = snapshot_project(session.series)
            fresh = replace(state, folder=str(folder), snapshot=now, decisions={}, stop=None)
            return _run(session, replace(fresh, token=None))
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
    while True:
        steps = _replay(session, state)
        step = steps[-1] if steps and _is_open(steps[-1], state) else None
        if step is None:
            return _write(session, state, steps, used)
        # Who asked to see a patch is not answered from memory.
        asked = step.patch.name in state.edits
        recalled = None if asked else recall_resolution(session, _base(state), step)
        if recalled is None:
            break
        decision, found = recalled
        used.append(str(found))
        state = replace(state, decisions={**state.decisions, step.patch.name: decision})
    stop = Stop(step.patch.name, step.outcome.kind, step.outcome.reasons)
    token = new_token()
    # First the word that a worktree may be there, then the worktree.
    save_state(session.folder, replace(state, stop=stop, token=token))
    merged = open_worktree(git, folder, step, token=token, label=_label(state))
    stopped = Stopped(step, folder, tuple(merged))
    return RebaseResult(state.source, state.onto, steps, None, stopped, tuple(used), state.ref)


def _replay(session: Session, state: State, *, until: str | None = None) -> tuple[ReplayStep, ...]:
    """The steps up to the first that stops, or that of the patch ``until``."""
    series = session.series
    steps: list[ReplayStep] = []
    for step in replay_series(
        session.git,
        series,
        _base(state),
        series.for_release(state.source),
        old_tree=session.lock.get(state.source).base_tree,
        decisions=state.decisions,
    ):
        steps.append(step)
        if _is_open(step, state) or step.patch.name == until:
            break
    return tuple(steps)


def _is_open(step: ReplayStep, state: State) -> bool:
    """Does the rebase stop at ``step``?"""
    return step.stops or (step.decision is None and step.patch.name in state.edits)


def _write(
    session: Session, state: State, steps: tuple[ReplayStep, ...], used: list[str]
) -> RebaseResult:
    series = session.series
    if state.ref is not None:
        return _end_ref(session, state, steps, used)
    writer = SeriesWriter(session.git, series, session.lock, state.onto)
    update = writer.write(state.source, _base(state), state.wheels, steps)
    session.write(update.files, data=dict(_resolved(series, state)), own={STATE_FILE: None})
    return RebaseResult(state.source, state.onto, steps, update, None, tuple(used))


def _end_ref(
    session: Session, state: State, steps: tuple[ReplayStep, ...], used: list[str]
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
    kept = dict(_resolved(session.series, state))
    session.write({}, data=kept, own={STATE_FILE: None})
    return RebaseResult(
        state.source, state.onto, steps, None, None, tuple(used), state.ref, len(kept), folder
    )


def _resolved(series: Series, state: State) -> Iterator[tuple[str, bytes]]:
    """Files of the data folder that keep what a person made of patches that did not carry over."""
    patches = {p.name: p for p in series.patches}
    onto = state.ref.label if state.ref else str(state.onto)
    for name, decision in state.decisions.items():
        if (
            (
                decision.content is not None
                and decision.how in (BY_HAND, AS_MERGED)
                and decision.kind not in CARRIES
                # Stale and left so is a word on this release: the next may have more that is left over.
                and not (decision.kind is OutcomeKind.STALE and decision.how == AS_MERGED)
            )
            or state.ref
            and decision.skipped
            and not decision.how
            and decision.kind in TAKEN
        ):
            yield record_resolution(patches[name], decision, state.source, onto)


def _label(state: State) -> str:
    """What the release's side of a conflict is called."""
    return f"sglang {state.target}"


def _base(state: State) -> Base:
    commit, tree, ref = state.base_commit, state.base_tree, state.ref
    if ref is None:
        return Base(state.onto, commit, tree, PYPI, f"v{state.onto}")
    return Base(state.onto, commit, tree, GIT, ref.label, Basis(state.onto, ref.how), ref.typed)
