"""What ``bench/tool/peers/run.py`` counts: a person with a job, and a way to do it.

A way is prepared (not counted) up to the point where a person who keeps a series with it has the old
release patched and the new release at hand. Then it types commands and edits files: each command line
and each file written counts one, the seconds are those of the commands. Where it stops, the person
writes the file contents that the project's own series has for that patch.
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

from tool import pycheck

ROOT: Final = Path(__file__).resolve().parents[3]
ABSENT: Final = "0" * 40
_LIMIT: Final = 30
_CONFLICT: Final = re.compile(
    rb"^<{7}[^\n]*\n(.*?)^(?:\|{7}[^\n]*\n.*?^)?={7}\n.*?^>{7}[^\n]*\n", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Piece:
    """A patch as the old release has it, and the tree after it on the new one; None: left out there."""

    name: str
    content: bytes
    wanted: str | None


@dataclass(frozen=True)
class Case:
    """Two releases as commits of a bare repository, which holds the wanted trees too.

    ``project`` is a checkout that carries the releases ``known``, no newer ones; ``bounded`` is its
    series.txt with the changes bounded that the new release does not need. ``quilt`` goes into the
    environment of quilt alone.
    """

    repository: Path
    project: Path
    cache: Path
    known: tuple[str, ...]
    source: str
    onto: str
    old: str
    new: str
    pieces: tuple[Piece, ...]
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
        """Ours, base, theirs as one file, which must merge."""
        with tempfile.TemporaryDirectory() as temp:
            files = [Path(temp) / name for name in ("ours", "base", "theirs")]
            for file, side in zip(files, sides, strict=True):
                file.write_bytes(side or b"")
            return self.git("merge-file", "-p", *map(str, files))

    def changed(self, before: str, after: str) -> list[str]:
        names = self.git("diff-tree", "-r", "--name-only", "--no-renames", "-z", before, after)
        return [name.decode() for name in names.split(b"\0") if name]

    def before(self, number: int) -> str:
        """The wanted tree just before piece ``number`` on the new release."""
        trees = [p.wanted for p in self.pieces[:number] if p.wanted]
        return trees[-1] if trees else self.tree(self.new)

    @property
    def final(self) -> str:
        return self.before(len(self.pieces))


@dataclass(frozen=True)
class Typed:
    line: str
    code: int
    seconds: float
    cpu: float
    output: str


@dataclass
class Desk:
    """What one person did: commands, edited files, and what turned out wrong."""

    home: Path
    typed: list[Typed] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    edits: int = 0
    stops: int = 0
    astray: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(t.seconds for t in self.typed)

    @property
    def cpu(self) -> float:
        """Processor seconds: what a busy machine does not change."""
        return sum(t.cpu for t in self.typed)

    def type(
        self, line: str, folder: Path, command: list[str], extra: Mapping[str, str] | None = None
    ) -> Typed:
        env = {**environment(self.home), **(extra or {})}
        begin = time.perf_counter()
        code, cpu, output = _on_terminal(command, folder, env)
        typed = Typed(line, code, time.perf_counter() - begin, cpu, output)
        self.typed.append(typed)
        self.log.append(f"$ {line}" + (f"    # exit {typed.code}" if typed.code else ""))
        return typed

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
    """Exit code, processor seconds and output, as on a terminal: StGit says less to a pipe.

    The terminal is not the controlling one, so nothing can ask questions there.
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
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while piece := os.read(ours, 65536):
            said += piece
    os.close(ours)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    text = said.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    return process.returncode, usage.ru_utime + usage.ru_stime, text


def environment(home: Path) -> dict[str, str]:
    """A private home: nothing of the user's configuration takes part."""
    temp = home / "tmp"
    temp.mkdir(parents=True, exist_ok=True)
    (home / ".gitconfig").write_text("[user]\n\tname = Ada\n\temail = ada@example.invalid\n")
    # As /etc/quilt.quiltrc has it, without colours; a file of one's own replaces that one.
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


class Way(ABC):
    """``work`` is where the person edits."""

    name: str
    words: re.Pattern[str]
    """Lines of its output that say what became of a patch."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.folder = folder
        self.desk = Desk(folder / "home")

    @abstractmethod
    def prepare(self) -> None:
        """Into ``folder``: not counted, and the same for every round, so it is copied."""

    def settle(self) -> None:  # noqa: B027 - only some need it, as with the two below
        """After the copy, not counted."""

    @abstractmethod
    def begin(self) -> Typed: ...

    @abstractmethod
    def stopped(self) -> str | None:
        """The patch it stopped at."""

    @abstractmethod
    def go_on(self, edited: list[str]) -> Typed: ...

    @property
    @abstractmethod
    def work(self) -> Path: ...

    @abstractmethod
    def result(self) -> str:
        """The tree it arrived at."""

    def finish(self) -> None:  # noqa: B027
        """Commands after the last patch."""

    def carry(self) -> None:
        self.begin()
        for _ in range(_LIMIT):
            name = self.stopped()
            if name is None:
                break
            self.desk.stops += 1
            self.go_on(self._resolve([p.name for p in self.case.pieces].index(name)))
        else:
            raise RuntimeError(f"{self.name} stopped {_LIMIT} times\n{self.transcript()}")
        if self.desk.typed[-1].code:
            raise RuntimeError(f"{self.name} failed\n{self.transcript()}")
        self.finish()
        found, wanted = self.result(), self.case.final
        for path in self.case.changed(found, wanted):
            sides = (self.case.blob(found, path), self.case.blob(wanted, path))
            self.desk.silent.append(f"{path}, {_symbols(self.case, *sides)}")

    def transcript(self) -> str:
        return "\n".join(f"$ {t.line}\n{t.output}" for t in self.desk.typed)

    def _resolve(self, number: int) -> list[str]:
        """Do in every file of the patch what the wanted patch does; the paths of those edited."""
        case, piece = self.case, self.case.pieces[number]
        assert piece.wanted is not None
        before = case.before(number)
        named = re.findall(rb"^\+\+\+ b/(.+)$", piece.content, re.MULTILINE)
        targets: dict[str, bytes | None] = {}
        for path in sorted({n.decode() for n in named} | set(case.changed(before, piece.wanted))):
            file = self.work / path
            have = file.read_bytes() if file.is_file() else None
            parent = self.parent(path)
            wanted = case.blob(piece.wanted, path)
            if parent != case.blob(before, path):
                # What went wrong in an earlier patch stays: nobody has seen it.
                wanted = case.merged(parent, case.blob(before, path), wanted)
            for place in _astray(case, parent, have, wanted):
                self.desk.astray.append(f"{piece.name} in {path}, {place}")
            if have != wanted:
                targets[path] = wanted
        self.ready(list(targets))
        for path, content in targets.items():
            self.desk.edit(self.work / path, content, path)
        return list(targets)

    @abstractmethod
    def parent(self, path: str) -> bytes | None:
        """The file as it was before the patch it stopped at."""

    def ready(self, paths: list[str]) -> None:  # noqa: B027
        """Commands needed before ``paths`` may be edited."""


def _astray(case: Case, base: bytes | None, have: bytes | None, wanted: bytes | None) -> list[str]:
    """Where the way changed ``base``, outside its conflicts, in a symbol the wanted file leaves alone."""
    if base is None or have is None or wanted is None:
        return []
    outline = pycheck.outline(base)
    plain = _CONFLICT.sub(rb"\1", have)
    expected = _regions(case, base, wanted)
    symbols = {outline.symbol_at(line) for region in expected for line in region}
    return [
        f"{outline.symbol_at(start)}, line {start}"
        for start, end in _regions(case, base, plain)
        if not any(start <= e + 1 and s <= end + 1 for s, e in expected)
        and outline.symbol_at(start) not in symbols
    ]


def _symbols(case: Case, found: bytes | None, wanted: bytes | None) -> str:
    if found is None or wanted is None:
        return "the whole file"
    outline = pycheck.outline(wanted)
    return ", ".join(dict.fromkeys(outline.symbol_at(a) for a, _ in _regions(case, wanted, found)))


def _regions(case: Case, one: bytes, other: bytes) -> list[tuple[int, int]]:
    """First and last line, in ``one``, of each difference."""
    if one == other:
        return []
    ids = [case.git("hash-object", "-w", "--stdin", stdin=x).decode().strip() for x in (one, other)]
    diff = case.git("diff", "-U0", "--no-ext-diff", *ids)
    found = re.findall(rb"^@@ -(\d+)(?:,(\d+))? ", diff, re.MULTILINE)
    return [(int(a), int(a) + max(int(n or 1), 1) - 1) for a, n in found]
