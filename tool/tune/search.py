"""What to measure next, and which row follows from what was measured.

Nothing here runs anything: the state follows from the worker's answers alone, so that answers read from a
file give the state that a stopped run had.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tool.tune.candidates import Config, key, list_candidates, order_nearest, order_seeds
from tool.tune.shapes import TOKENS, Shape

BATCH: Final = 6
"""Candidates of one request. The default and the best so far are timed with them."""
MARGIN: Final = 0.98
"""A candidate must take at most this part of the default's time. Two timings of one configuration differ
by less."""


@dataclass(frozen=True)
class Unit:
    """One row of one file: a shape and the number of tokens ``m``."""

    shape: Shape
    m: int

    @property
    def title(self) -> str:
        return f"{self.shape.kind} {self.shape.title} M={self.m}"


@dataclass(frozen=True)
class Row:
    """What goes into the file for ``unit``.

    ``config`` is the default's where nothing was faster. Times in microseconds; ``default_us`` is None when
    the default does not run on the device. ``error`` is the relative error against the float reference.
    """

    unit: Unit
    default: Config | None
    default_us: float | None
    config: Config
    us: float
    error: float | None
    measured: int

    @property
    def ratio(self) -> float | None:
        """Of the default's time to the row's."""
        return self.default_us / self.us if self.default_us is not None else None


@dataclass
class _State:
    left: dict[str, Config]
    """Candidates that were not measured, by their key."""
    default: Config | None = None
    best: Config | None = None
    tried: set[str] = field(default_factory=set)
    row: Row | None = None
    asked: bool = False
    failed: str | None = None


class Search:
    """All rows of ``shapes``, those of few tokens first: decoding has few, and a short run tunes these."""

    def __init__(self, shapes: Sequence[Shape], tokens: Sequence[int] = TOKENS) -> None:
        self.units = tuple(Unit(shape, m) for m in tokens for shape in shapes)
        self._states = {unit: _State(list_candidates(unit.shape, unit.m)) for unit in self.units}
        self._by_title = {unit.title: unit for unit in self.units}

    def find_unit(self, title: str) -> Unit | None:
        return self._by_title.get(title)

    def list_next(self, unit: Unit) -> list[Config] | None:
        """Candidates to measure for ``unit``; the best so far is the first of them, so that it is timed
        beside them. None: there is nothing left."""
        state = self._states[unit]
        if state.failed or not state.left:
            return None
        if not state.asked:
            return order_seeds(unit.shape, unit.m, BATCH)
        best = state.best or state.default
        left = list(state.left.values())
        found = order_nearest(left, best)[:BATCH] if best else left[:BATCH]
        return [best, *found] if best and key(best) != _key(state.default) else found

    def observe(self, unit: Unit, answer: Mapping[str, Any]) -> None:
        """Take what the worker said about a request for ``unit``.

        ``answer`` has ``default`` (``config``, ``us`` or ``rejected``) and ``results``, each with
        ``config`` and either ``us`` or ``rejected``; the one that was checked has ``error`` too. Or it has
        ``failed``: the shape cannot be measured at all, and why.
        """
        state = self._states[unit]
        state.asked = True
        if "failed" in answer:
            state.failed = str(answer["failed"])
            return
        default = answer["default"]
        state.default = default.get("config") or state.default
        for one in answer["results"]:
            state.tried.add(key(one["config"]))
            state.left.pop(key(one["config"]), None)
        row = _choose_row(unit, default, answer["results"], len(state.tried))
        if row is None:
            return
        state.row = row
        state.best = row.config

    def answer_crash(self, unit: Unit, configs: Iterable[Config], why: str) -> dict[str, Any]:
        """The answer that stands for a request during which the worker ended: none of ``configs`` is
        measured again, but the best one that was known before."""
        best = _key(self._states[unit].best)
        tried = [{"config": dict(one), "rejected": why} for one in configs if key(one) != best]
        if not tried:
            return {"failed": why}
        return {"default": {"rejected": why}, "results": tried}

    def list_rows(self) -> list[Row]:
        """The rows that are known, those of few tokens first."""
        rows = (self._states[unit].row for unit in self.units)
        return [row for row in rows if row is not None]

    def list_failures(self) -> dict[str, str]:
        """Titles of units that cannot be measured, and why."""
        failures = ((unit.title, self._states[unit].failed) for unit in self.units)
        return {title: why for title, why in failures if why is not None}


def _choose_row(
    unit: Unit, default: Mapping[str, Any], results: Sequence[Mapping[str, Any]], measured: int
) -> Row | None:
    """The fastest candidate that was checked and beats the default, else the default itself."""
    default_us = default.get("us")
    checked = [one for one in results if "us" in one and one.get("error") is not None]
    best = min(checked, key=lambda one: float(one["us"]), default=None)
    config = default.get("config")
    if best is not None and (default_us is None or best["us"] <= MARGIN * default_us):
        return Row(unit, config, default_us, best["config"], best["us"], best["error"], measured)
    if config is None or default_us is None:
        return None
    return Row(unit, config, default_us, config, default_us, default.get("error"), measured)


def _key(config: Config | None) -> str | None:
    return key(config) if config is not None else None
