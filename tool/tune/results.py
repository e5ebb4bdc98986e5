"""What was measured, as it is kept in a folder: a line for each answer, so that a killed run goes on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tool.errors import UsageError
from tool.tune.shapes import Shape

FILE: Final = "results.jsonl"
_SAME: Final = ("sglang", "torch", "triton", "device", "named", "sm")


@dataclass(frozen=True)
class Surroundings:
    """Where a run measured.

    ``device`` is the GPU, ``named`` the name in the files, as sglang writes it. ``sm``: capability as
    ``major * 10 + minor``. ``paths``: the file of a shape (``Shape.title`` after its kind), below the folder
    that holds the package ``sglang``. ``unfit``: why a shape cannot be tuned there.
    """

    sglang: str
    torch: str
    triton: str
    device: str
    named: str
    sm: int
    paths: Mapping[tuple[str, str], str]
    unfit: Mapping[tuple[str, str], str]


class Results:
    """The file of answers in ``folder``.

    Raises:
        UsageError: a line of it is not one that ``tool tune`` writes.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.runs: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        whole, newline, torn = self.path.read_bytes().rpartition(b"\n")
        if torn:  # the run was killed while it wrote
            os.truncate(self.path, len(whole) + len(newline))
        for number, line in enumerate(whole.splitlines(), start=1):
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and "run" in record:
                    self.runs.append(record["run"])
                    continue
                if isinstance(record, dict) and "unit" in record:
                    self.answers.append(record)
                    continue
            raise UsageError(
                "is no result of tool tune",
                where=f"{self.path}:{number}",
                next_step="name another folder with --out, or delete this one",
            )

    def begin(self, described: Mapping[str, Any]) -> None:
        """Note a run.

        Raises:
            UsageError: the earlier runs measured another environment or device.
        """
        for run in self.runs:
            differs = [name for name in _SAME if run[name] != described[name]]
            if differs:
                what = ", ".join(f"{n} {run[n]} then, {described[n]} now" for n in differs)
                raise UsageError(
                    "these results are of another environment",
                    where=str(self.path),
                    why=what,
                    next_step="name another folder with --out, or delete this one",
                )
        self.runs.append(dict(described))
        self._append({"run": described})

    def add(self, answer: Mapping[str, Any]) -> None:
        self._append(answer)

    def surroundings(self, shapes: tuple[Shape, ...]) -> Surroundings:
        """Of all runs; with the paths of ``shapes``.

        Raises:
            UsageError: there was no run.
        """
        if not self.runs:
            raise UsageError(
                "nothing was measured yet",
                where=str(self.path.parent),
                next_step="give --budget a time, for example 20m",
            )
        paths: dict[tuple[str, str], str] = {}
        unfit: dict[tuple[str, str], str] = {}
        for run in self.runs:
            for file in run["files"]:
                for shape in shapes:
                    if shape.as_request() == {"kind": file["kind"], "sizes": file["sizes"]}:
                        into = paths if "path" in file else unfit
                        into[shape.kind, shape.title] = file.get("path") or file["unfit"]
        named = {name: self.runs[-1][name] for name in _SAME}
        return Surroundings(**named, paths=paths, unfit=unfit)

    def _append(self, record: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")
            out.flush()
            os.fsync(out.fileno())
