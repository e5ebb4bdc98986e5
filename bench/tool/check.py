"""Time of ``tool check`` for each release, and of ``tool drift`` against plain git with the same patches.

    python -m bench.tool.check [--onto v0.5.23 --from v0.5.22] [--rounds 9]

Everything starts from a warm cache: the releases are imported, the patches were applied before, and
Python's bytecode is written. The commands of the second table take turns:

* ``tool drift``;
* ``git apply --cached --3way`` of every patch on an index that was made before, which is the reference;
* what a person would type: ``git read-tree``, the patches, ``git write-tree``.

Plain git does not say where a patch went or whether upstream has it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.tool.meter import ROOT, TOOL, Measurement, measure, output, table, typical
from tool.project import locate_workspace

REFERENCE = "git apply --cached --3way"
APPLY = f"{REFERENCE} --whitespace=nowarn"


def check(rounds: int) -> str:
    """A table of ``tool check`` on all releases: seconds, seconds for each release, peak memory."""
    command = [*TOOL, "check", "--offline", "-q", "--series", str(ROOT)]
    done = json.loads(output([*command, "--json"]))["result"]
    m = typical([measure(command) for _ in range(rounds)])
    count = len(done["releases"])
    return (
        f"| tool check | releases | seconds | seconds a release | peak MiB |\n"
        f"|---|---:|---:|---:|---:|\n"
        f"| --refs all, {os.cpu_count()} cores | {count} | {m.seconds:.2f} | {m.seconds / count:.2f} | "
        f"{m.peak:.0f} |"
    )


def drift(onto: str, source: str, rounds: int) -> dict[str, list[Measurement]]:
    """Measure ``tool drift`` and plain git, ``rounds`` times."""
    with tempfile.TemporaryDirectory() as temp:
        tool = [*TOOL, "drift", "--offline", "-q", "--series", str(ROOT)]
        tool += ["--onto", onto, "--from", source]
        found = json.loads(output([*tool, "--json"], allowed=(0, 1)))["result"]
        names = [p["patch"] for p in found["patches"] if p["outcome"] != "retired"]
        ours = ["/bin/sh", "-c", f"{shlex.join(tool)} || [ $? = 1 ]"]  # 1 means findings
        repository = locate_workspace().repository
        plain = PlainGit(Path(temp), repository, found["base"], ROOT / "patches", names)
        commands: dict[str, tuple[Callable[[], None], list[str]]] = {
            "tool drift": (lambda: None, ours),
            REFERENCE: (plain.prepare, plain.bare()),
            "git read-tree, apply, write-tree": (lambda: None, plain.typed()),
        }
        results: dict[str, list[Measurement]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, (before, command) in commands.items():
                before()
                results[name].append(measure(command))
    return results


class PlainGit:
    """Commands that apply the patches ``names`` to the commit ``base`` and leave out those that fail."""

    def __init__(
        self, folder: Path, repository: Path, base: str, patches: Path, names: list[str]
    ) -> None:
        self._folder = folder
        self._git = f"GIT_DIR={shlex.quote(str(repository))}"
        self._base = base
        self._names = [name.replace("/", "-") for name in names]
        for name, flat in zip(names, self._names, strict=True):
            diff = (patches / name).read_bytes().partition(b"\n---\n")[2]
            (folder / flat).write_bytes(diff)
        # Make the index that each patch is applied to.
        lines = [f"git read-tree {self._base}"]
        for name in self._names:
            lines += [f"cp index {name}.index", f"{APPLY} {name} || cp {name}.index index"]
        subprocess.run(self._shell("index", lines), check=True, capture_output=True)

    def prepare(self) -> None:
        """Restore the indexes that the command of :meth:`bare` changes."""
        for name in self._names:
            shutil.copyfile(self._folder / f"{name}.index", self._folder / f"{name}.now")

    def bare(self) -> list[str]:
        """Apply each patch to its index."""
        lines = [f"GIT_INDEX_FILE={name}.now {APPLY} {name} || :" for name in self._names]
        return self._shell("index", lines)

    def typed(self) -> list[str]:
        """Make one index, apply the patches to it and write the tree."""
        again = f"git read-tree {self._base}"
        lines = [again, *(f"{APPLY} {name} || {again}" for name in self._names)]
        return self._shell("typed.index", [*lines, "git write-tree"])

    def _shell(self, index: str, lines: list[str]) -> list[str]:
        start = f"cd {shlex.quote(str(self._folder))} && export {self._git} GIT_INDEX_FILE={index}"
        return ["/bin/sh", "-c", "\n".join([start, *lines])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--onto", help="the release of tool drift; without it, only tool check runs"
    )
    parser.add_argument("--from", dest="source", help="the release whose patches are carried")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if bool(options.onto) != bool(options.source):
        parser.error("--onto and --from need each other")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed tool has its bytecode
    print(check(options.rounds))
    if options.onto:
        print()
        print(table(drift(options.onto, options.source, options.rounds), REFERENCE))


if __name__ == "__main__":
    main()
