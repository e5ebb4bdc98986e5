"""``tool lock --pin`` and ``--revision``: the two numbers of series.txt that a person moves."""

from __future__ import annotations

from dataclasses import dataclass

from packaging.version import Version

from tool.errors import UsageError
from tool.project import Session
from tool.series import SERIES_FILE, SeriesText, parse_series


@dataclass(frozen=True)
class Pinned:
    """The pin and the revision as they are now, and as they were."""

    pin: Version
    revision: int
    old_pin: Version
    old_revision: int


def move_pin(session: Session, pin: Version | None, revision: int | None) -> Pinned:
    """Make ``pin`` the release that is used when none is named, and ``revision`` the N of ``+ada.N``.

    Args:
        pin: None keeps it.
        revision: None keeps it; 0 stands for the next number.

    Raises:
        UsageError: the series does not carry ``pin``, or ``revision`` is not above the present one.
    """
    with session.exclusive():
        series = session.series
        if pin is not None and pin not in session.lock.carried:
            raise UsageError(
                f"the series does not carry sglang {pin}, so it cannot be the pin",
                where="series.lock",
                next_step=f"carry it there first: tool rebase --onto v{pin}",
            )
        if revision is not None and 0 < revision <= series.revision:
            raise UsageError(
                f"the revision is {series.revision}, and {revision} is not above it",
                where=SERIES_FILE,
                why="a wheel of that number may be published, and two wheels of one version must not differ",
                next_step=f"tool lock --revision {series.revision + 1}",
            )
        now = Pinned(
            pin or series.pin,
            series.revision if revision is None else revision or series.revision + 1,
            series.pin,
            series.revision,
        )
        text = SeriesText((series.root / SERIES_FILE).read_text(encoding="utf-8"))
        text.set_value("pin", str(now.pin))
        text.set_value("revision", str(now.revision))
        parse_series(series.root, str(text))
        if (now.pin, now.revision) != (now.old_pin, now.old_revision):
            session.write({SERIES_FILE: str(text).encode()})
        return now
