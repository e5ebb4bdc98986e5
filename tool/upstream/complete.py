"""Wheels of a locked release that were uploaded after it was locked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from packaging.version import Version

from tool.errors import IntegrityError
from tool.project import Session
from tool.upstream.download import download_wheel
from tool.upstream.index import list_wheels
from tool.upstream.wheel_import import compute_base_tree


def complete_wheels(session: Session, releases: Sequence[Version]) -> Mapping[Version, list[str]]:
    """Add to series.lock the Linux wheels of ``releases`` that the index offers and the lock lacks.

    Returns what was added. What is locked already stays as it is. Each release is recorded by itself, so an
    interrupted command loses the work on one release only.

    Raises:
        UsageError: a release is not locked, or a wheel was yanked.
        EnvironmentFault: the index cannot be asked, or a download failed.
        IntegrityError: a wheel holds other Python files than the locked ones.
    """
    added: dict[Version, list[str]] = {}
    with session.exclusive():
        entries = [session.lock.get(release) for release in releases]
        offered = list_wheels()
        for entry in entries:
            held = {wheel.filename for wheel in entry.wheels}
            missing = [n for n, v in offered.items() if v == entry.version and n not in held]
            wheels = list(entry.wheels)
            for name in missing:
                wheels.append(download_wheel(session, name))
                tree = compute_base_tree(session.workspace.wheels / name)
                if tree != entry.base_tree:
                    raise IntegrityError(
                        f"{name} holds other Python files than the locked wheels of the release",
                        where="series.lock",
                        why=f"tree {tree}, locked {entry.base_tree}",
                        next_step="report it upstream; series.lock was not changed for this release",
                    )
            if missing:
                wheels.sort(key=lambda wheel: wheel.filename)
                changed = replace(entry, wheels=tuple(wheels))
                session.save_lock(session.lock.with_release(changed))
                added[entry.version] = missing
    return added
