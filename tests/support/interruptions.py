"""A scene for every command that writes, and what an interruption may leave of it.

A scene is a folder with a project, its data and its worktrees. It is set up once and put back before every
trial. Two runs without an interruption say what may come out: whoever gives an interrupted command again ends
where one run ends, or where two do.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.lab import B_ONLY, EDITED, NEXT, TREE, TWINS, UTILS, Lab, git
from tests.support.rebases import LIMITS, MERGED, OURS, SOURCE, THEIRS
from tests.support.shipping import release_wheels
from tests.support.upstreams import Upstream
from tool.project import transaction

LATER = "0.5.25"
"""A release in which a patch of the scene conflicts."""
HEADER = ("--change", "demo", "--drop-when", "never", "--subject", "S", "--reason", "R")
STOP = ("rebase", "--onto", f"v{LATER}", "--into", "{rebased}", "--offline")
HANG = 120
"""Seconds; the slowest command takes two or three."""


@dataclass(frozen=True)
class Command:
    """``words`` with ``{name}`` for a folder of the scene; ``prepare`` makes what the command needs."""

    words: tuple[str, ...]
    prepare: Callable[[Scene], object] = lambda scene: None


@dataclass(frozen=True)
class Outcome:
    """The exit code of a run and all that is there afterwards."""

    code: int
    found: Mapping[str, Any] = field(repr=False)


class Scene:
    """A project with three patches, a clean and an edited worktree; the next release carries, the one
    after it conflicts."""

    def __init__(self, folder: Path, command: Command) -> None:
        self.folder = folder / "scene"
        self.good = folder / "good"
        self.folder.mkdir(parents=True)
        self.places = {
            name: self.folder / "place" / name
            for name in (
                "new",
                "out",
                "fork",
                "dirty",
                "rebased",
                "mail",
                "upstream",
                "sglang-upstream-main",
            )
        }
        self.lab = lab = Lab(self.folder / "project", self.folder / "cache", self.folder / "data")
        first = TREE | {"sglang/srt/limits.py": SOURCE}
        lab.release("0.5.23", first)
        for name, edits in {
            "answer": {UTILS: EDITED}, "limits": {LIMITS: OURS}, "twins": {TWINS: B_ONLY}
        }.items():  # fmt: skip
            lab.patch(f"demo/{name}.patch", dict(edits))
        lab.release(NEXT, first | {"sglang/version.py": f"__version__ = '{NEXT}'\n"})
        lab.release(LATER, first | {"sglang/srt/limits.py": THEIRS})
        lab.relock()
        for name in ("fork", "dirty"):
            lab.apply(self.places[name], "--branch", name)
        (self.places["dirty"] / "python/sglang/more.py").write_text("MORE = 1\n")
        command.prepare(self)
        self.args = [word.format(**self.places) for word in command.words]
        self.save()

    def save(self) -> None:
        shutil.rmtree(self.good, ignore_errors=True)
        shutil.copytree(self.folder, self.good, symlinks=True)

    def restore(self) -> None:
        for path in list(self.folder.iterdir()):
            shutil.rmtree(path)
        shutil.copytree(self.good, self.folder, symlinks=True, dirs_exist_ok=True)

    # -- running ----------------------------------------------------------------------------------

    @property
    def command_line(self) -> list[str]:
        return [sys.executable, "-m", "tool", *self.args, "--series", str(self.lab.root)]

    def start(self, **options: Any) -> subprocess.Popen[str]:
        given = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        # The environment without one of pytest's: the command is alone on its machine.
        environ = {k: v for k, v in self.lab.environ.items() if not k.startswith("PYTEST")}
        environ["TMPDIR"] = str(self.temp)
        return subprocess.Popen(
            self.command_line, **given | options, env=environ, cwd=self.folder,
            start_new_session=True,
        )  # fmt: skip

    @property
    def temp(self) -> Path:
        path = self.folder / "tmp"
        path.mkdir(exist_ok=True)
        return path

    def run(self) -> tuple[Outcome, float]:
        """The command in another process, undisturbed, and the seconds it took."""
        begin = time.monotonic()
        process = self.start()
        _, words = process.communicate(timeout=HANG)
        seconds = time.monotonic() - begin
        assert "Traceback" not in words, words
        return Outcome(process.returncode, self.look()), seconds

    def again(self) -> tuple[Outcome, str]:
        """The same command once more, in this process."""
        with within(HANG):
            result = self.lab.tool(*self.args, code=None)
        return Outcome(result.exit_code, self.look()), result.output + result.stderr

    def wait_for_children(self) -> None:
        """Until no process of an interrupted command is left that could write."""
        with within(HANG), self.lab.home.exclusive(self.lab.root):
            pass

    # -- looking ----------------------------------------------------------------------------------

    def look(self) -> dict[str, Any]:
        """All that a person sees: files of the project, branches, worktrees, a rebase under way."""
        listed = git(self.lab.home.repository, "for-each-ref", "--format=%(refname) %(objectname)")
        return {
            "files": self.files(),
            "refs": listed,
            "places": {name: self.look_at(path) for name, path in self.places.items()},
            "rebase": (self.lab.folder / "rebase.json").exists(),
            "cache": sorted(p.name for p in self.lab.home.wheels.iterdir()),
        }

    def files(self) -> dict[str, str]:
        root = self.lab.root
        return {
            str(path.relative_to(root)): digest(path)
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }

    def look_at(self, place: Path) -> Any:
        """HEAD, branch and changes of a worktree; the hashes of other files; None if nothing is there."""
        if not place.exists():
            return None
        if (place / ".git").exists():
            head = git(place, "rev-parse", "HEAD", "--abbrev-ref", "HEAD")
            # Which files differ from HEAD. Whether git's index has them already does not matter.
            changes = git(place, "status", "--porcelain").splitlines()
            return head, sorted(line.split(maxsplit=1)[1] for line in changes)
        if place.is_file():
            return digest(place)
        return {
            path.relative_to(place).as_posix(): digest(path)
            for path in sorted(place.rglob("*"))
            if path.is_file()
        }

    def list_leftovers(self) -> list[str]:
        """What a command makes for its own use and nobody needs after the next one."""
        place = self.folder / "place"
        found = [*place.glob(".*"), *place.glob("*.backup-*")]
        found += self.lab.root.rglob("*.part")
        found += self.lab.home.repository.glob("scratch.*")
        found += (self.lab.home.repository / "refs").rglob("*.lock")
        found += [self.lab.folder / f"{kind}.json" for kind in ("checkout", "folder", "project")]
        return [str(p.relative_to(self.folder)) for p in found if p.exists()]

    def list_torn(self, outcomes: tuple[Outcome, Outcome], before: Mapping[str, Any]) -> list[str]:
        """What is neither old nor new after an interruption, before any other command.

        The files of the project may be a mixture, and a worktree half made, only while a journal says
        what they are to become.
        """
        known = [before, *(outcome.found for outcome in outcomes)]
        torn = []
        files = self.files()
        wholes = [
            {name: found["files"].get(name) for name in [*files, *found["files"]]}
            for found in known
        ]
        for name, content in files.items():
            if not name.endswith(".part") and content not in {w.get(name) for w in wholes}:
                torn.append(f"{name} is neither old nor new")
        seen = {n: c for n, c in files.items() if not n.endswith(".part")}
        if seen not in [found["files"] for found in known] and not self.has_journal("project"):
            torn.append("the project is a mixture and no journal says so")
        if not self.has_journal("checkout"):
            for name in ("new", "fork", "dirty"):
                try:
                    state = self.look_at(self.places[name])
                except subprocess.CalledProcessError as error:
                    state = error.stderr
                if state not in [found["places"][name] for found in known]:
                    torn.append(f"the worktree {name} is neither old nor new: {state}")
        if not self.has_journal("folder"):
            out = self.look_at(self.places["out"])
            if out not in [found["places"]["out"] for found in known]:
                torn.append(f"the folder out is neither old nor new: {out}")
        return torn

    def has_journal(self, kind: str) -> bool:
        return (self.lab.folder / f"{kind}.json").exists()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- the commands -----------------------------------------------------------------------------------


def edit_kernels(scene: Scene) -> None:
    (scene.lab.root / "ada_dsa" / "__init__.py").write_text('"""Other kernels."""\n')


def publish_and_edit_kernels(scene: Scene) -> None:
    """A published folder that another one will replace."""
    release_wheels(scene.lab, "0.5.23", files=TREE | {"sglang/srt/limits.py": SOURCE})
    scene.lab.relock()
    scene.lab.tool("publish", "--out", str(scene.places["out"]), "--offline", "-q")
    edit_kernels(scene)


def edit_header(scene: Scene) -> None:
    path = scene.lab.root / "patches/demo/answer.patch"
    path.write_text(path.read_text().replace("Because it is", "Because it is much"))


def commit(scene: Scene) -> None:
    fork = scene.places["fork"]
    (fork / TWINS).write_text((fork / TWINS).read_text() + "B = 1\n")
    git(fork, "commit", "-qam", "Answer\n\nIt is asked.")


def write_mail(scene: Scene) -> None:
    commit(scene)
    fork = scene.places["fork"]
    mail = git(fork, "format-patch", "-1", "--stdout") + "\n\n"
    scene.places["mail"].write_text(mail)
    git(fork, "reset", "-q", "--hard", "HEAD~1")


def stop(scene: Scene) -> None:
    """A rebase that has stopped at a conflict."""
    scene.lab.tool(*(word.format(**scene.places) for word in STOP), code=3)


def resolve(scene: Scene) -> None:
    stop(scene)
    (scene.places["rebased"] / LIMITS).write_text(MERGED)


def make_upstream(scene: Scene) -> None:
    """A git repository whose main conflicts with a patch."""
    Upstream(scene.places["upstream"]).rename_page()


def edit_on_ref(scene: Scene) -> None:
    """The edited worktree is one of a git ref, with a commit that no release has."""
    upstream, place = Upstream(scene.places["upstream"]), scene.places["dirty"]
    upstream.commit("private", {"sglang/srt/private.py": "SECRET = 1\n"})
    scene.lab.tool("source", "add", "upstream", str(upstream.folder))
    shutil.rmtree(place)
    git(scene.lab.home.repository, "worktree", "prune")
    given = ("--sglang-ref", "upstream/main", "--branch", "on-ref", "-q")
    scene.lab.tool("apply", "--into", str(place), *given)
    (place / "python/sglang/more.py").write_text("MORE = 1\n")


def add_upstream(scene: Scene) -> None:
    """A source that is remembered."""
    make_upstream(scene)
    scene.lab.tool("source", "add", "upstream", str(scene.places["upstream"]))


def resolve_ref(scene: Scene) -> None:
    """A rebase onto a git ref whose conflict is resolved."""
    add_upstream(scene)
    rebased = str(scene.places["rebased"])
    scene.lab.tool("rebase", "--onto", "upstream/main", "--into", rebased, "-q", code=3)
    (scene.places["rebased"] / LIMITS).write_text(MERGED)


def carry_next(scene: Scene) -> None:
    """The series carries the next release too."""
    scene.lab.tool(
        "rebase", "--onto", f"v{NEXT}", "--into", str(scene.places["rebased"]), "--offline"
    )


def make_patch(scene: Scene) -> None:
    """A new patch, which the next release lacks."""
    carry_next(scene)
    scene.lab.tool("new", "more", str(scene.places["dirty"]), *HEADER, "--offline")


def interrupt_drop(scene: Scene) -> None:
    """A drop that has written its journal and nothing else."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(transaction, "complete", lambda journal: None)
        scene.lab.tool("drop", "demo/twins.patch", "--why", "no", "--offline")


COMMANDS: Mapping[str, Command] = {
    "apply, the first time": Command(("apply", "--into", "{new}", "--offline", "-q")),
    "apply, an update": Command(
        ("apply", "--into", "{fork}", "--offline", "-q"), edit_kernels),
    "build": Command(("build", "--out", "{out}", "--offline")),
    "publish": Command(("publish", "--out", "{out}", "--offline"), publish_and_edit_kernels),
    "lock": Command(("lock", "--offline"), edit_header),
    "export": Command(("export", "{fork}"), commit),
    "drop": Command(("drop", "demo/twins.patch", "--why", "W", "--offline")),
    "refresh": Command(("refresh", "demo/twins.patch", "{dirty}", "--offline")),
    "new": Command(("new", "more", "{dirty}", *HEADER, "--offline")),
    "refresh, on a git ref": Command(
        ("refresh", "demo/twins.patch", "{dirty}", "--offline"), edit_on_ref),
    "new, on a git ref": Command(("new", "more", "{dirty}", *HEADER, "--offline"), edit_on_ref),
    "import": Command(("import", "{mail}", "their", *HEADER, "--offline"), write_mail),
    "rebase": Command(
        ("rebase", "--onto", f"v{NEXT}", "--into", "{rebased}", "--offline")),
    "rebase that stops": Command(STOP),
    "rebase --edit": Command((
        "rebase", "--onto", f"v{NEXT}", "--edit", "demo/twins.patch", "--into", "{rebased}",
        "--offline")),
    "rebase --continue": Command(("rebase", "--continue", "--offline"), resolve),
    "rebase --skip": Command(("rebase", "--skip", "--why", "W", "--offline"), stop),
    "rebase --restart": Command(("rebase", "--restart", "--offline"), resolve),
    "rebase --continue on a git ref": Command(("rebase", "--continue", "--offline"), resolve_ref),
    "source add": Command(("source", "add", "upstream", "{upstream}"), make_upstream),
    "source remove": Command(("source", "remove", "upstream"), add_upstream),
    "rebase --abort": Command(("rebase", "--abort", "--offline"), stop),
    "rebase --patch": Command(
        ("rebase", "--patch", "demo/more.patch", "--onto", "all", "--into", "{rebased}", "--offline"),
        make_patch),
    "drop, a release": Command(("drop", f"v{NEXT}", "--why", "W", "--offline"), carry_next),
    "lock --pin": Command(("lock", "--pin", f"v{NEXT}", "--revision", "7"), carry_next),
    "repair": Command(("repair",), interrupt_drop),
}  # fmt: skip
"""Every command that writes something of a person's."""


# -- trials -----------------------------------------------------------------------------------------


@dataclass
class Trials:
    """Interruptions of one command: how many were tried, what went wrong, and in which state they hit."""

    scene: Scene
    outcomes: tuple[Outcome, Outcome]
    before: Mapping[str, Any]
    seconds: float
    tried: int = 0
    early: int = 0
    """Trials after which everything was as before the command."""
    late: int = 0
    """Trials that came after everything was done."""
    torn: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """What the next command, or a wrong exit code, showed."""

    @classmethod
    def of(cls, folder: Path, name: str) -> Trials:
        scene = Scene(folder, COMMANDS[name])
        before = scene.look()
        first, seconds = scene.run()
        second, _ = scene.again()
        scene.restore()
        return cls(scene, (first, second), before, seconds)

    def settle(self, what: str) -> None:
        """After an interruption: look, read, give the same command again, and compare."""
        self.tried += 1
        scene = self.scene
        scene.wait_for_children()
        self.torn += [f"{what}: {text}" for text in scene.list_torn(self.outcomes, self.before)]
        try:
            found = scene.look()
            self.early += found == self.before
            self.late += found == self.outcomes[0].found
        except subprocess.CalledProcessError:
            pass  # half made, with a journal
        result = scene.lab.tool("status", code=None)
        if result.exit_code:
            self.failed.append(
                f"{what}: tool status exits with {result.exit_code}: {result.stderr}"
            )
        outcome, words = scene.again()
        if outcome not in self.outcomes:
            self.failed.append(f"{what}: {describe(outcome, self.outcomes)}\n{words}")
        if left := scene.list_leftovers():
            self.failed.append(f"{what}: left behind: {left}")
        done = subprocess.run(
            ["git", "fsck", "--no-dangling"], cwd=scene.lab.home.repository, capture_output=True
        )
        if done.returncode:
            self.torn.append(f"{what}: git fsck: {done.stderr.decode()}")
        scene.restore()

    def kill(self, delay: float, *, group: bool) -> None:
        """SIGKILL after ``delay`` seconds, to the tool alone or to everything it started."""
        process = self.scene.start(stderr=subprocess.DEVNULL)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        self.settle(f"{'group' if group else 'alone'} after {delay:.3f} s")

    def signal(self, delay: float, number: signal.Signals, *, group: bool) -> None:
        """A signal after ``delay`` seconds. The exit code says so, and nobody sees a traceback."""
        what = f"{number.name} to {'the group' if group else 'the tool'} after {delay:.3f} s"
        process = self.scene.start()
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(process.pid, number)
        _, words = process.communicate(timeout=HANG)
        self._check_end(what, process.returncode, words, number)
        self.settle(what)

    def close_output(self) -> None:
        """The readers of both outputs are gone before anything is written."""
        closed = []
        for _ in range(2):
            reader, writer = os.pipe()
            os.close(reader)
            closed.append(writer)
        process = self.scene.start(stdout=closed[0], stderr=closed[1])
        for descriptor in closed:
            os.close(descriptor)
        code = process.wait(timeout=HANG)
        self._check_end("SIGPIPE", code, "", signal.SIGPIPE)
        self.settle("SIGPIPE")

    def _check_end(self, what: str, code: int, words: str, number: signal.Signals) -> None:
        allowed = {self.outcomes[0].code, 128 + number, -number}
        if number is signal.SIGINT:
            allowed.discard(-number)
        if code not in allowed or "Traceback" in words or "Exception ignored" in words:
            self.failed.append(f"{what}: exit code {code}: {words}")

    def fill(self, disk: Disk, room: int) -> None:
        """Only ``room`` bytes are free while the command runs."""
        scene = self.scene
        disk.leave(room)
        process = scene.start()
        _, words = process.communicate(timeout=HANG)
        disk.leave(None)
        what = f"{room} bytes free"
        code = process.returncode
        if code not in (6, self.outcomes[0].code) or "Traceback" in words:
            self.failed.append(f"{what}: exit code {code}: {words}")
        elif code == 6 and not ("space" in words.lower() and "next:" in words):
            self.failed.append(f"{what}: the message does not name the cause: {words}")
        self.settle(what)


def describe(outcome: Outcome, wanted: tuple[Outcome, Outcome]) -> str:
    codes = [one.code for one in wanted]
    differing = [k for k, v in outcome.found.items() if v != wanted[0].found[k]]
    shown = {k: (outcome.found[k], wanted[0].found[k]) for k in differing if k != "files"}
    return f"the next command exits with {outcome.code} (wanted {codes}); {differing}: {shown}"


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail instead of hanging."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Disk:
    """A file system of its own whose size can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._mount("mount", "-t", "tmpfs", "-o", f"size={self.WHOLE}", "tmpfs")

    WHOLE = 512 << 20

    def used(self) -> int:
        found = os.statvfs(self.folder)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def leave(self, room: int | None) -> None:
        """Let ``room`` bytes be free; None: as many as at first."""
        size = self.WHOLE if room is None else self.used() + room
        self._mount("mount", "-o", f"remount,size={size}")

    def unmount(self) -> None:
        self._mount("umount", "--lazy")  # git goes on reading in a process of this one

    def _mount(self, *command: str) -> None:
        done = subprocess.run([*command, str(self.folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
