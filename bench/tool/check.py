"""Time of ``tool check`` a release, and of ``tool drift`` against plain git applying the same patches.

    python -m bench.tool.check [--onto v0.5.23 --from v0.5.22] [--rounds 9]

Everything starts from a warm cache: releases are imported, patches were applied before, Python's
bytecode is written. The five ways of the second table take turns:

* ``tool drift`` asked for the first time: what it keeps is deleted before every round;
* ``tool drift`` asked the same again;
* ``tool drift`` asked again after series.txt was edited, or a patch beside these: every verdict is
  known, the answer as a whole is not;
* ``git apply --cached --3way`` of every patch on an index that is there already: the reference;
* the same as a person types it: ``git read-tree``, the patches, ``git write-tree``.

Plain git says nothing about where a patch went or whether upstream has it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.tool.meter import Measurement, measure, table

REFERENCE = "git apply --cached --3way"
APPLY = f"{REFERENCE} --whitespace=nowarn"


def check(root: Path, rounds: int) -> str:
    """One row: wall time of all releases at once, and a release."""
    command = [sys.executable, "-m", "tool", "check", "--offline", "-q", "--series", str(root)]
    done = json.loads(_run([*command, "--json"]))["result"]
    times = [measure(command) for _ in range(rounds)]
    seconds = statistics.median(m.seconds for m in times)
    count = len(done["releases"])
    return (
        f"| tool check | releases | seconds | a release | peak MiB |\n|---|---:|---:|---:|---:|\n"
        f"| --refs all, {os.cpu_count()} cores | {count} | {seconds:.2f} | {seconds / count:.2f} | "
        f"{max(m.peak for m in times):.0f} |"
    )


def drift(root: Path, onto: str, source: str, rounds: int) -> list[tuple[str, Measurement]]:
    """``tool drift`` and plain git, taking turns."""
    from tool.home import locate

    known = locate().cache / "known"

    def forget() -> None:
        shutil.rmtree(known)

    with tempfile.TemporaryDirectory() as temp:
        project = Path(temp) / "project"
        shutil.copytree(root / "patches", project / "patches")
        for name in ("series.txt", "series.lock"):
            shutil.copyfile(root / name, project / name)

        def edit() -> None:
            with (project / "series.txt").open("a") as series:
                series.write("# another line\n")

        tool = [
            sys.executable, "-m", "tool", "drift", "--offline", "-q", "--series", str(project),
            "--onto", onto, "--from", source,
        ]  # fmt: skip
        found = json.loads(_run([*tool, "--json"], allowed=(0, 1)))["result"]
        names = [p["patch"] for p in found["patches"] if p["verdict"] != "retired"]
        ours = ["/bin/sh", "-c", f"{shlex.join(tool)} || [ $? = 1 ]"]
        plain = Plain(Path(temp), locate().repository, found["base"], root / "patches", names)
        ways: dict[str, tuple[Callable[[], None], list[str]]] = {
            "tool drift, first time": (forget, ours),
            "tool drift, again": (lambda: None, ours),
            "tool drift, verdicts known": (edit, ours),
            REFERENCE: (plain.prepare, plain.bare()),
            "git read-tree, apply, write-tree": (lambda: None, plain.typed()),
        }
        results: dict[str, list[Measurement]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, (before, command) in ways.items():
                before()
                results[way].append(measure(command))
    return [
        (way, Measurement(statistics.median(m.seconds for m in ms), max(m.peak for m in ms)))
        for way, ms in results.items()
    ]


class Plain:
    """The patches ``names`` on the commit ``base``, by git alone; one that fails is left out."""

    def __init__(
        self, folder: Path, repository: Path, base: str, patches: Path, names: list[str]
    ) -> None:
        self._folder = folder
        self._git = f"GIT_DIR={shlex.quote(str(repository))}"
        self._base = base
        self._names = names
        for name in names:
            diff = (patches / name).read_bytes().partition(b"\n---\n")[2]
            (folder / name).write_bytes(diff)
        # The index as each patch finds it.
        lines = [f"git read-tree {self._base}"]
        for name in names:
            lines += [f"cp index {name}.index", f"{APPLY} {name} || cp {name}.index index"]
        subprocess.run(self._shell("index", lines), check=True, capture_output=True)

    def prepare(self) -> None:
        """Before ``bare``: it changes these."""
        for name in self._names:
            shutil.copyfile(self._folder / f"{name}.index", self._folder / f"{name}.now")

    def bare(self) -> list[str]:
        lines = [f"GIT_INDEX_FILE={name}.now {APPLY} {name} || :" for name in self._names]
        return self._shell("index", lines)

    def typed(self) -> list[str]:
        again = f"git read-tree {self._base}"
        lines = [again, *(f"{APPLY} {name} || {again}" for name in self._names)]
        return self._shell("typed.index", [*lines, "git write-tree"])

    def _shell(self, index: str, lines: list[str]) -> list[str]:
        start = f"cd {shlex.quote(str(self._folder))} && export {self._git} GIT_INDEX_FILE={index}"
        return ["/bin/sh", "-c", "\n".join([start, *lines])]


def _run(command: list[str], allowed: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in allowed:
        raise subprocess.CalledProcessError(done.returncode, command)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--series", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--onto", help="release for tool drift; left out: only tool check")
    parser.add_argument("--from", dest="source", help="release whose patches are carried")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    root = options.series.absolute()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed tool is compiled once
    print(check(root, options.rounds))
    if options.onto and options.source:
        print()
        print(table(drift(root, options.onto, options.source, options.rounds), REFERENCE))


if __name__ == "__main__":
    main()
