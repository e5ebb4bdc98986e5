"""Resolutions a person made, kept so that the same conflict is resolved once.

One is keyed by what made the conflict: the patch's diff and the blobs it was written for. It also
holds the blobs upstream had there and the releases, so that it can be said where it is from. It is
offered again like any other patch: merged from the blobs it was made on, and taken only when it carries
over, with the placement proof, the Python checks and nothing stale since. It is written when the rebase it
was made in lands: one that was given up or begun anew leaves nothing behind.

A rebase onto a git ref also leaves behind which patches a person left out because upstream has them. That is
taken again only where upstream has the patch in the same way.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Final

from packaging.version import InvalidVersion, Version

from tool.classify import UPSTREAM, Decision, OutcomeKind, ReplayStep, replay_series
from tool.errors import ToolError
from tool.git import Git, find_blobs
from tool.project import Session, Workspace
from tool.series import Patch, PatchFile, patchfile
from tool.upstream import Base

_FOLDER: Final = "resolutions"
TAKEN: Final = UPSTREAM - {OutcomeKind.PARTIAL}
"""Upstream has the whole patch. Of one it has in part, what is left out is just left out."""


@dataclass(frozen=True)
class Resolution:
    """``preimages`` and ``upstream`` are blob ids by path; ``diff`` is the resolved patch, base64.

    ``onto`` is a release, or the name of a git ref. ``skipped`` is why the patch was left out, and ``kind``
    the outcome that this answered; ``diff`` is then empty.
    """

    patch: str
    source: str
    onto: str
    preimages: dict[str, str]
    upstream: dict[str, str]
    diff: str
    skipped: str = ""
    kind: str = ""

    def __str__(self) -> str:
        onto = f"v{self.onto}" if is_release(self.onto) else self.onto
        return f"remembered resolution of {self.patch}, v{self.source} -> {onto}"


def record_resolution(
    patch: Patch, decision: Decision, source: Version, onto: str
) -> tuple[str, bytes]:
    """What keeps ``decision``, a person's on ``patch``: a file of the data folder and its bytes.

    ``onto`` is a release, or the name of a git ref.
    """
    parsed = patchfile.parse(patch.name, patch.content)
    made = patchfile.parse(patch.name, decision.content) if decision.content is not None else None
    found = Resolution(
        patch.name,
        str(source),
        onto,
        {f.path: f.before for f in parsed.files},
        {f.path: f.before for f in made.files} if made else {},
        base64.b64encode(made.diff).decode() if made else "",
        decision.skipped or "",
        decision.kind.value if decision.skipped else "",
    )
    body = json.dumps(asdict(found), indent=1).encode()
    return f"{_FOLDER}/{_key(parsed)}-{hashlib.sha256(body).hexdigest()[:16]}.json", body


def recall_resolution(
    session: Session, base: Base, step: ReplayStep
) -> tuple[Decision, Resolution] | None:
    """What to do with ``step``'s patch by a remembered resolution that holds here, if there is one."""
    git, series = session.git, session.series
    parsed = patchfile.parse(step.patch.name, step.patch.content)
    here = replace(base, commit=step.parent, tree=step.parent_tree)
    known = _list_resolutions(session.workspace, parsed)
    kind, reasons = step.outcome.kind, step.outcome.reasons
    for found in sorted(known, key=lambda r: _distance(git, step, r)):
        how = f"by a {found}"
        if found.skipped:
            if kind in TAKEN and kind.value == found.kind:
                return Decision(kind, reasons, skipped=found.skipped, how=how), found
            continue
        diff = base64.b64decode(found.diff)
        content = patchfile.render(parsed.header, diff)
        candidate = replace(step.patch, content_override=content)
        try:
            (tried,) = replay_series(git, series, here, [candidate], old_tree=None)
        except ToolError:
            continue  # the blobs it was made on are gone
        if tried.outcome.carries:
            return Decision(kind, reasons, content, how=how), found
    return None


def is_release(text: str) -> bool:
    """Is ``text`` a version, and not the name of a git ref?"""
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def _list_resolutions(workspace: Workspace, parsed: PatchFile) -> Iterator[Resolution]:
    for path in sorted((workspace.data / _FOLDER).glob(f"{_key(parsed)}-*.json")):
        try:
            yield Resolution(**json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            continue  # not written by this version; a resolution is a help, never a duty


def _distance(git: Git, step: ReplayStep, found: Resolution) -> int:
    """How many of the files are others than those it was made on."""
    now = find_blobs(git, step.parent_tree, list(found.upstream))
    return sum(now[path] != blob for path, blob in found.upstream.items())


def _key(parsed: PatchFile) -> str:
    return hashlib.sha256(parsed.diff).hexdigest()[:32]  # holds the ids of the blobs it starts from
