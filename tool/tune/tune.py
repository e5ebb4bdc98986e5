"""``tool tune``: keep the worker busy until the time is up, and the results on the disk."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tool.errors import EnvironmentFault
from tool.interpreter import find_interpreter
from tool.project import Progress
from tool.tune.files import list_files, write_files
from tool.tune.process import WORKER, Ended, Worker
from tool.tune.results import Results, Surroundings
from tool.tune.search import Row, Search, Unit
from tool.tune.shapes import Shape

START_SECONDS: Final = 300.0
"""For importing torch and sglang from a cold disk."""
ANSWER_SECONDS: Final = 300.0
"""Without an answer the worker hangs: a request takes less than a second, and a compilation a few."""
MOST_CRASHES: Final = 3
_NOTE_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.5
_MOST_JOBS: Final = 8
LOG: Final = "worker.log"


@dataclass(frozen=True)
class Tuned:
    """``rows`` that were measured, those of few tokens first; ``total``: how many rows the files have.

    ``files``: content by path below the folder that holds ``sglang``. ``rejected``: candidates that were
    not timed or were wrong, by the first words of the reason. ``failures``: rows that cannot be measured,
    and why. ``complete``: there is no candidate left.
    """

    surroundings: Surroundings
    rows: tuple[Row, ...]
    total: int
    files: Mapping[str, bytes]
    rejected: Mapping[str, int]
    failures: Mapping[str, str]
    complete: bool


def tune(
    python: Path | None,
    shapes: tuple[Shape, ...],
    folder: Path,
    *,
    seconds: float,
    progress: Progress,
    device_name: str | None = None,
    jobs: int | None = None,
    worker: Path = WORKER,
) -> Tuned:
    """Measure for ``seconds``, go on with what ``folder`` already has, and write the files into it.

    With 0 seconds nothing is run: the files follow from what is there.

    Raises:
        UsageError: ``python`` is no interpreter, or ``folder`` has results of another environment.
        EnvironmentFault: the environment cannot be tuned, or its process does not stay alive.
    """
    begin = time.monotonic()
    results = Results(folder)
    run = _Run(
        find_interpreter(python),
        shapes,
        results,
        end=begin + seconds,
        begin=begin,
        progress=progress,
        log=folder / LOG,
        worker=worker,
        request={
            "device_name": device_name,
            "jobs": jobs or max(min((os.cpu_count() or 2) - 1, _MOST_JOBS), 1),
            "shapes": [shape.as_request() for shape in shapes],
        },
    )
    if seconds > 0:
        run.go_on()
    where = results.surroundings(shapes)
    search = run.search or run.load(where)
    rows = tuple(search.list_rows())
    files = list_files(rows, where.paths)
    write_files(folder, files)
    complete = all(search.list_next(unit) is None for unit in search.units)
    return Tuned(
        where,
        rows,
        len(search.units),
        files,
        _count_rejected(results.answers),
        search.list_failures(),
        complete,
    )


class _Run:
    """One run of the worker, and again after it crashed."""

    def __init__(
        self,
        python: Path,
        shapes: tuple[Shape, ...],
        results: Results,
        *,
        begin: float,
        end: float,
        progress: Progress,
        log: Path,
        worker: Path,
        request: Mapping[str, Any],
    ) -> None:
        self.python, self.shapes, self.results = python, shapes, results
        self.begin, self.end, self.progress = begin, end, progress
        self.log, self.worker, self.request = log, worker, request
        self.search: Search | None = None
        self.asked: dict[Unit, list[Mapping[str, Any]]] = {}
        """Requests that are not answered yet, the oldest first."""
        self._noted = begin

    def load(self, where: Surroundings) -> Search:
        """The state that follows from the answers so far."""
        fit = [one for one in self.shapes if (one.kind, one.title) in where.paths]
        search = Search(fit)
        for answer in self.results.answers:
            unit = search.find_unit(str(answer["unit"]))
            if unit is not None:
                search.observe(unit, answer)
        return search

    def go_on(self) -> None:
        with self.progress.bar("tuning") as step:
            for crash in range(MOST_CRASHES + 1):
                with Worker(self.python, self.log, self.worker) as process:
                    try:
                        self._describe(process)
                        self._measure(process, step)
                        return
                    except Ended as error:
                        if self.search is None or crash == MOST_CRASHES:
                            raise EnvironmentFault(
                                "the process that measures does not stay alive",
                                where=str(self.python),
                                why=str(error),
                                next_step=f"read {self.log}; what was measured is kept",
                            ) from error
                        self._note_crash(str(error))

    def _describe(self, process: Worker) -> None:
        process.ask(self.request)
        answer = process.answer(START_SECONDS)
        if answer is None:
            raise Ended(f"it did not start within {START_SECONDS:.0f} s")
        if "unfit" in answer:
            raise EnvironmentFault(
                "this environment cannot be tuned",
                where=str(self.python),
                why=str(answer["unfit"]),
                next_step="tool doctor --python PATH says what the environment has",
            )
        if self.search is None:
            self.results.begin(answer["described"])
            where = self.results.surroundings(self.shapes)
            for (kind, title), why in where.unfit.items():
                self.progress.note(f"{kind} {title} is left out: {why}")
            self.search = self.load(where)

    def _measure(self, process: Worker, step: Callable[[int, int], None]) -> None:
        assert self.search is not None
        self.asked.clear()
        for one in self.search.units:
            self._ask(process, one)
        heard = time.monotonic()
        while self.asked and (now := time.monotonic()) < self.end:
            step(int(now - self.begin), int(self.end - self.begin))
            self._note(now)
            answer = process.answer(min(_POLL_SECONDS, self.end - now))
            if answer is None:
                if now - heard > ANSWER_SECONDS:
                    raise Ended(f"it did not answer for {ANSWER_SECONDS:.0f} s")
                continue
            heard = time.monotonic()
            unit = self.search.find_unit(str(answer.get("unit")))
            if unit is None or unit not in self.asked:
                raise Ended(f"it answered about {answer.get('unit')!r}, which was not asked")
            del self.asked[unit]
            self._observe(unit, answer)
            self._ask(process, unit)

    def _ask(self, process: Worker, unit: Unit) -> None:
        assert self.search is not None
        configs = self.search.list_next(unit)
        if configs is None:
            return
        self.asked[unit] = list(configs)
        request = {"unit": unit.title, "m": unit.m, "configs": configs, **unit.shape.as_request()}
        process.ask(request)

    def _observe(self, unit: Unit, answer: Mapping[str, Any]) -> None:
        assert self.search is not None
        self.search.observe(unit, answer)
        self.results.answers.append({**answer, "unit": unit.title})
        self.results.add({**answer, "unit": unit.title})

    def _note_crash(self, why: str) -> None:
        """The worker answers in the order of the requests, so the oldest one was under way."""
        assert self.search is not None
        if self.asked:
            unit, configs = next(iter(self.asked.items()))
            self.progress.note(f"the process ended during {unit.title} and is started again: {why}")
            self._observe(unit, self.search.answer_crash(unit, configs, f"crashed: {why}"))

    def _note(self, now: float) -> None:
        if now - self._noted < _NOTE_SECONDS or self.search is None:
            return
        self._noted = now
        rows = self.search.list_rows()
        faster = sum(row.config != row.default for row in rows)
        left = format_seconds(self.end - now)
        self.progress.note(
            f"{len(rows)} of {len(self.search.units)} rows measured, {faster} faster than the default, "
            f"{left} left"
        )


def format_seconds(seconds: float) -> str:
    """95 → ``1m35s``."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def _count_rejected(answers: list[dict[str, Any]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for answer in answers:
        for one in answer.get("results", ()):
            with contextlib.suppress(KeyError):
                found[_classify(one["rejected"])] += 1
    return dict(found)


def _classify(reason: str) -> str:
    for words, name in (
        ("bytes of shared memory", "shared memory"),
        ("registers spilled", "spills"),
        ("float reference", "wrong result"),
    ):
        if words in reason:
            return name
    return "does not compile or run"
