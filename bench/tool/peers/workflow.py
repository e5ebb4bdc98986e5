"""A job, the workflow of a tool that does it, and a tally of what a person has to do.

The preparation is not counted. At its end the old release is patched, in the form in which the tool keeps
a series, and the new release is at hand. From then on each command line and each edited file counts one,
and the seconds are those of the commands. Where a tool stops, the person writes the contents that the
project's own series has for that patch.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tool.analysis import parse_outline

ROOT: Final = Path(__file__).resolve().parents[3]
ABSENT: Final = "0" * 40
_LIMIT: Final = 30
_CONFLICT: Final = re.compile(
    rb"^<{7}[^\n]*\n(.*?)^(?:\|{7}[^\n]*\n.*?^)?={7}\n.*?^>{7}[^\n]*\n", re.DOTALL | re.MULTILINE
)


def flat_name(patch: str) -> str:
    """The patch's name where folders are not possible: StGit's patches have none."""
    return patch.replace("/", "-")


@dataclass(frozen=True)
class CarriedPatch:
    """A patch of the old release.

    Attributes:
        content: the patch file, refreshed on the old release.
        wanted: the tree after this patch on the new release; None if the new release does not need it.
    """

    name: str
    content: bytes
    wanted: str | None


@dataclass(frozen=True)
class Job:
    """A series to carry from one release to another.

    Attributes:
        repository: a bare repository with both releases and the wanted trees.
        project: a project of ``tool`` that carries the releases ``known`` and no newer ones.
        cache: TOOL_CACHE_DIR, with the wheels of both releases.
        source, onto: the old and the new release.
        old, new: their commits.
        patches: of the old release, in their order.
        bounded: series.txt in which the changes end that the new release does not need.
        quilt: environment variables of quilt.
    """

    repository: Path
    project: Path
    cache: Path
    known: tuple[str, ...]
    source: str
    onto: str
    old: str
    new: str
    patches: tuple[CarriedPatch, ...]
    bounded: str
    quilt: Mapping[str, str] = field(default_factory=dict)

    def git(self, *args: str, stdin: bytes | None = None) -> bytes:
        command = ["git", "--git-dir", str(self.repository), *args]
        done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, check=True)
        return done.stdout

    def tree(self, revision: str) -> str:
        return self.git("rev-parse", f"{revision}^{{tree}}").decode().strip()

    def blob(self, tree: str, path: str) -> bytes | None:
        if not self.git("ls-tree", tree, "--", path):
            return None
        return self.git("cat-file", "blob", f"{tree}:{path}")

    def merged(self, *sides: bytes | None) -> bytes:
        """Merge ours, base and theirs.

        Raises:
            subprocess.CalledProcessError: they conflict.
        """
        with tempfile.TemporaryDirectory() as temp:
            files = [Path(temp) / name for name in ("ours", "base", "theirs")]
            for file, side in zip(files, sides, strict=True):
                file.write_bytes(side or b"")
            return self.git("merge-file", "-p", *map(str, files))

    def changed(self, before: str, after: str) -> list[str]:
        """The paths in which two trees differ."""
        names = self.git("diff-tree", "-r", "--name-only", "--no-renames", "-z", before, after)
        return [name.decode() for name in names.split(b"\0") if name]

    def before(self, number: int) -> str:
        """The wanted tree before patch ``number`` on the new release."""
        trees = [p.wanted for p in self.patches[:number] if p.wanted]
        return trees[-1] if trees else self.tree(self.new)

    @property
    def final(self) -> str:
        return self.before(len(self.patches))


@dataclass(frozen=True)
class Command:
    """A command line that was run, its exit code, wall and processor seconds, and what it printed."""

    line: str
    code: int
    seconds: float
    cpu: float
    output: str


@dataclass
class Tally:
    """What a person did with one tool, and what turned out wrong.

    Attributes:
        home: a home folder without configuration.
        commands: that were run.
        log: command lines and edits in their order, as ``docs/peers.md`` shows them.
        edits: files that were edited.
        stops: how often the tool stopped.
        misplaced: changes that the tool made in a wrong symbol, seen at a stop.
        unnoticed: differences at the end from the wanted tree.
    """

    home: Path
    commands: list[Command] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    edits: int = 0
    stops: int = 0
    misplaced: list[str] = field(default_factory=list)
    unnoticed: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(t.seconds for t in self.commands)

    @property
    def cpu(self) -> float:
        """Processor seconds, which depend less on what else the machine does."""
        return sum(t.cpu for t in self.commands)

    def run(
        self, line: str, folder: Path, command: list[str], extra: Mapping[str, str] | None = None
    ) -> Command:
        env = {**environment(self.home), **(extra or {})}
        begin = time.perf_counter()
        code, cpu, output = _on_terminal(command, folder, env)
        done = Command(line, code, time.perf_counter() - begin, cpu, output)
        self.commands.append(done)
        self.log.append(f"$ {line}" + (f"    # exit {done.code}" if done.code else ""))
        return done

    def edit(self, path: Path, content: bytes | None, name: str) -> None:
        self.edits += 1
        self.log.append(f"# edit {name}")
        if content is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _on_terminal(
    command: list[str], folder: Path, env: Mapping[str, str]
) -> tuple[int, float, str]:
    """Run a command on a terminal and return exit code, processor seconds and output.

    StGit prints less into a pipe. The terminal is not the controlling one, so no program can wait for
    an answer from it.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # Linux raises it when the other end is closed
        while patch := os.read(ours, 65536):
            said += patch
    os.close(ours)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    text = said.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    return process.returncode, usage.ru_utime + usage.ru_stime, text


def environment(home: Path) -> dict[str, str]:
    """Environment variables with a home of its own, so that the user's configuration has no effect."""
    temp = home / "tmp"
    temp.mkdir(parents=True, exist_ok=True)
    (home / ".gitconfig").write_text("[user]\n\tname = Ada\n\temail = ada@example.invalid\n")
    # The settings of /etc/quilt.quiltrc but for colours. A .quiltrc replaces that file.
    (home / ".quiltrc").write_text(
        'QUILT_DIFF_OPTS="--show-c-function"\nQUILT_REFRESH_ARGS="--no-timestamps --backup"\n'
    )
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(temp),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "GIT_CONFIG_NOSYSTEM": "1",
        "EDITOR": "true",
        "COLUMNS": "200",
        "PYTHONPATH": str(ROOT),
    }


class Workflow(ABC):
    """How a person carries the series with one tool."""

    name: str
    words: re.Pattern[str]
    """Matches the lines of output that say what became of a patch."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        self.folder = folder
        self.tally = Tally(folder / "home")

    @abstractmethod
    def prepare(self) -> None:
        """Prepare ``folder``. This is not counted, and every round gets a copy."""

    def after_copy(self) -> None:  # noqa: B027 - only some need it
        """Prepare a copy of the folder, not counted."""

    @abstractmethod
    def begin(self) -> Command:
        """Run the commands up to the first stop or the end; return the last of them."""

    @abstractmethod
    def stopped(self) -> str | None:
        """The patch that the last command stopped at, or None."""

    @abstractmethod
    def continue_(self, edited: list[str]) -> Command:
        """Run the commands up to the next stop or the end, after the files ``edited`` were edited."""

    @property
    @abstractmethod
    def work(self) -> Path:
        """Where the person edits."""

    @abstractmethod
    def result(self) -> str:
        """The tree of the result, an object of the job's repository."""

    def finish(self) -> None:  # noqa: B027
        """Run the commands after the last patch."""

    def carry(self) -> None:
        """Do the job and compare the result.

        Raises:
            RuntimeError: the tool failed in another way than by a stop.
        """
        self.begin()
        for _ in range(_LIMIT):
            name = self.stopped()
            if name is None:
                break
            self.tally.stops += 1
            self.continue_(self._resolve([p.name for p in self.job.patches].index(name)))
        else:
            raise RuntimeError(f"{self.name} stopped {_LIMIT} times\n{self.transcript()}")
        if self.tally.commands[-1].code:
            raise RuntimeError(f"{self.name} failed\n{self.transcript()}")
        self.finish()
        found, wanted = self.result(), self.job.final
        for path in self.job.changed(found, wanted):
            sides = (self.job.blob(found, path), self.job.blob(wanted, path))
            self.tally.unnoticed.append(f"{path}, {_symbols(self.job, *sides)}")

    def transcript(self) -> str:
        return "\n".join(f"$ {t.line}\n{t.output}" for t in self.tally.commands)

    def _resolve(self, number: int) -> list[str]:
        """Edit every file of the patch as the wanted patch has it. Returns the edited paths."""
        job, patch = self.job, self.job.patches[number]
        assert patch.wanted is not None
        before = job.before(number)
        named = re.findall(rb"^\+\+\+ b/(.+)$", patch.content, re.MULTILINE)
        targets: dict[str, bytes | None] = {}
        for path in sorted({n.decode() for n in named} | set(job.changed(before, patch.wanted))):
            file = self.work / path
            have = file.read_bytes() if file.is_file() else None
            parent = self.parent(path)
            wanted = job.blob(patch.wanted, path)
            if parent != job.blob(before, path):
                # An error in an earlier patch stays, because the person has not seen it.
                wanted = job.merged(parent, job.blob(before, path), wanted)
            for place in _misplaced(job, parent, have, wanted):
                self.tally.misplaced.append(f"{patch.name} in {path}, {place}")
            if have != wanted:
                targets[path] = wanted
        self.prepare_edit(list(targets))
        for path, content in targets.items():
            self.tally.edit(self.work / path, content, path)
        return list(targets)

    @abstractmethod
    def parent(self, path: str) -> bytes | None:
        """The file before the patch that the tool stopped at."""

    def prepare_edit(self, paths: list[str]) -> None:  # noqa: B027
        """Run the commands that are needed before ``paths`` can be edited."""


def _misplaced(job: Job, base: bytes | None, have: bytes | None, wanted: bytes | None) -> list[str]:
    """Where the tool changed ``base`` in a symbol that the wanted file leaves alone.

    Conflicts do not count.
    """
    if base is None or have is None or wanted is None:
        return []
    outline = parse_outline(base)
    plain = _CONFLICT.sub(rb"\1", have)
    expected = _regions(job, base, wanted)
    symbols = {outline.symbol_at(line) for region in expected for line in region}
    return [
        f"{outline.symbol_at(start)}, line {start}"
        for start, end in _regions(job, base, plain)
        if not any(start <= e + 1 and s <= end + 1 for s, e in expected)
        and outline.symbol_at(start) not in symbols
    ]


def _symbols(job: Job, found: bytes | None, wanted: bytes | None) -> str:
    if found is None or wanted is None:
        return "the whole file"
    outline = parse_outline(wanted)
    return ", ".join(dict.fromkeys(outline.symbol_at(a) for a, _ in _regions(job, wanted, found)))


def _regions(job: Job, one: bytes, other: bytes) -> list[tuple[int, int]]:
    """The first and the last line in ``one`` of each difference."""
    if one == other:
        return []
    ids = [job.git("hash-object", "-w", "--stdin", stdin=x).decode().strip() for x in (one, other)]
    diff = job.git("diff", "-U0", "--no-ext-diff", *ids)
    found = re.findall(rb"^@@ -(\d+)(?:,(\d+))? ", diff, re.MULTILINE)
    return [(int(a), int(a) + max(int(n or 1), 1) - 1) for a, n in found]
