"""What a stopped rebase is: one JSON file in the project's part of the data folder, replaced whole.

It holds decisions, not results. Going on means replaying the series with them, so a kill at any
moment costs at most the work of one command.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from packaging.version import Version

from tool import atomic
from tool.classify import Decision, OutcomeKind
from tool.errors import IntegrityError, UsageError
from tool.project import REPAIR, Recovery, set_aside
from tool.series import LOCK_FILE, PATCH_DIR, SERIES_FILE, LockedWheel, Series

STATE_FILE: Final = "rebase.json"
_FORMAT: Final = 3
_REF_FORMAT: Final = 4
"""That of a rebase onto a git ref: a tool that knows only releases must not land it as one."""


@dataclass(frozen=True)
class Stop:
    """The patch a person has to decide on."""

    patch: str
    kind: OutcomeKind
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Ref:
    """A git ref that is no release, as messages name it, as one types it, and what tells its release."""

    label: str
    typed: str
    how: str


@dataclass(frozen=True)
class State:
    """``snapshot`` is the sha256 of each project file the rebase reads: they may not change meanwhile.
    ``folder`` is where worktrees are made; ``token`` is that of the one that may be there. ``edits`` are
    patches to stop at though they carry over. ``ref``: the rebase is onto a git ref, and ``onto`` is the
    release that this is based on. ``patch`` is set where that patch alone is brought to ``targets``;
    ``onto``, ``source`` and the base are then those of the target that it has come to."""

    root: str
    onto: Version
    source: Version
    base_commit: str
    base_tree: str
    wheels: tuple[LockedWheel, ...]
    folder: str
    snapshot: Mapping[str, str]
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    stop: Stop | None = None
    token: str | None = None
    edits: tuple[str, ...] = ()
    ref: Ref | None = None
    patch: str | None = None
    targets: tuple[Version, ...] = ()

    @property
    def target(self) -> str:
        """What the rebase is onto, for messages."""
        return self.ref.label if self.ref else f"v{self.onto}"


def load_state(folder: Path) -> State | None:
    """The rebase under way of the project whose data is in ``folder``, or None.

    Raises:
        IntegrityError: the file cannot be read.
    """
    path = folder / STATE_FILE
    try:
        raw = json.loads(path.read_bytes())
        if raw["format"] not in (_FORMAT, _REF_FORMAT):
            raise ValueError(f"format {raw['format']}, this tool reads {_FORMAT} and {_REF_FORMAT}")
        return _state(raw)
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(
            "the state of the rebase cannot be read",
            where=str(path),
            why=f"{type(error).__name__}: {error}",
            next_step=REPAIR,
        ) from error


def save_state(folder: Path, state: State) -> None:
    body: dict[str, Any] = {
        "format": _REF_FORMAT if state.ref else _FORMAT,
        "root": state.root,
        "onto": str(state.onto),
        "from": str(state.source),
        "base": [state.base_commit, state.base_tree],
        "wheels": [asdict(w) for w in state.wheels],
        "folder": state.folder,
        "snapshot": dict(state.snapshot),
        "decisions": {name: _pack(d) for name, d in state.decisions.items()},
        "stop": asdict(state.stop) if state.stop else None,
        "token": state.token,
        "edits": list(state.edits),
        "ref": asdict(state.ref) if state.ref else None,
        "patch": state.patch,
        "targets": [str(target) for target in state.targets],
    }
    atomic.write(folder / STATE_FILE, json.dumps(body, indent=1).encode())


def remove_state(folder: Path) -> None:
    (folder / STATE_FILE).unlink(missing_ok=True)


def refuse_while(running: State) -> UsageError:
    """What a command says that cannot run beside the rebase ``running``."""
    return UsageError(
        f"a rebase onto {running.target} is under way",
        where=running.root,
        next_step="go on with it: tool rebase --continue, or give it up: tool rebase --abort",
    )


def require_state(folder: Path) -> State:
    """The rebase under way of the project whose data is in ``folder``.

    Raises:
        UsageError: there is none.
    """
    state = load_state(folder)
    if state is None:
        raise UsageError(
            "no rebase is under way",
            next_step="begin one: tool rebase --onto RELEASE; tool watch names new ones",
        )
    return state


def repair_state(folder: Path, *, dry_run: bool) -> Recovery | None:
    """Set aside a state that cannot be read; None when there is none or it can be read.

    The project was not changed by that rebase; its worktree, if there is one, stays.
    """
    path = folder / STATE_FILE
    try:
        load_state(folder)
        return None
    except IntegrityError as error:
        where = "" if dry_run else f", as {set_aside(path)}"
        what = (
            f"the state of a rebase, which cannot be read ({error.why}){where}; its worktree stays"
        )
        return Recovery("", what, "set aside")


def snapshot_project(series: Series) -> dict[str, str]:
    """sha256 of series.txt, series.lock and every patch."""
    names = [SERIES_FILE, LOCK_FILE, *(f"{PATCH_DIR}/{p.name}" for p in series.patches)]
    return {
        name: hashlib.sha256((series.root / name).read_bytes()).hexdigest()
        for name in names
        if (series.root / name).is_file()
    }


def check_snapshot(state: State, series: Series) -> None:
    """Raises IntegrityError naming the first file edited since the rebase began."""
    found = snapshot_project(series)
    for name in sorted(found.keys() | state.snapshot.keys()):
        if found.get(name) != state.snapshot.get(name):
            raise IntegrityError(
                "changed since the rebase began",
                where=name,
                next_step="restore it; or begin anew from what it is now: tool rebase --restart",
            )


def _state(raw: dict[str, Any]) -> State:
    stop = raw["stop"]
    if not Path(raw["folder"]).is_absolute():
        raise ValueError(f"folder {raw['folder']!r}")
    if raw["token"] is not None and not re.fullmatch(r"[0-9a-f]{32}", raw["token"]):
        raise ValueError(f"token {raw['token']!r}")  # folders are found and deleted by it
    return State(
        root=raw["root"],
        onto=Version(raw["onto"]),
        source=Version(raw["from"]),
        base_commit=raw["base"][0],
        base_tree=raw["base"][1],
        wheels=tuple(LockedWheel(**w) for w in raw["wheels"]),
        folder=raw["folder"],
        snapshot=raw["snapshot"],
        decisions={name: _unpack(d) for name, d in raw["decisions"].items()},
        stop=Stop(stop["patch"], OutcomeKind(stop["kind"]), tuple(stop["reasons"]))
        if stop
        else None,
        token=raw["token"],
        edits=tuple(raw.get("edits", ())),
        ref=Ref(**raw["ref"]) if raw["format"] == _REF_FORMAT else None,
        patch=raw.get("patch"),
        targets=tuple(Version(text) for text in raw.get("targets", ())),
    )


def _pack(decision: Decision) -> dict[str, Any]:
    content = decision.content
    text = base64.b64encode(content).decode() if content is not None else None
    return asdict(decision) | {"content": text}


def _unpack(raw: dict[str, Any]) -> Decision:
    content = base64.b64decode(raw["content"]) if raw["content"] is not None else None
    return Decision(
        OutcomeKind(raw["kind"]), tuple(raw["reasons"]), content, raw["skipped"], raw["how"]
    )
