"""Damaged and hostile series, locks, patches and mails, through every command that reads them.

Each is a good one with a few changes made at random from a fixed seed. Whatever it is: no traceback, no
hang, a documented exit code, and a project that is as it was unless the command succeeded. A sample runs
by default; the whole table with ``-m exhaustive``.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.lab import B_ONLY, NEXT, TREE, TWINS, UTILS, Lab, git

WHOLE = 84
"""Inputs of each of the four kinds."""
SAMPLE = 15
SECONDS = 60
"""Only a hang takes so long: the slowest command takes a second or two."""
DOCUMENTED = frozenset(range(7))
HEADER = ("--change", "demo", "--drop-when", "never", "--subject", "S", "--reason", "R")
FILES = {"series": "series.txt", "lock": "series.lock", "patch": "patches/demo/answer.patch"}

READING = (
    ("lint",),
    ("status",),
    ("explain", "answer", "--offline"),
    ("apply", "--into", "{new}", "--offline"),
    ("check", "--offline"),
    ("build", "--out", "{out}", "--offline"),
    ("publish", "--out", "{out}", "--offline"),
    ("verify", "{fork}"),
    ("diff", "v0.5.23", "v0.5.23", "--offline"),
    ("drift", "--onto", f"v{NEXT}", "--offline"),
)
WRITING = (
    ("lock", "--offline"),
    ("export", "{fork}"),
    ("drop", "answer", "--why", "W", "--offline"),
    ("refresh", "answer", "{fork}", "--offline"),
    ("new", "more", "{dirty}", *HEADER, "--offline"),
    ("rebase", "--onto", f"v{NEXT}", "--into", "{rebased}", "--offline"),
)
NASTY = (
    b"", b"\0", b"\xff\xfe", b"\r", b"\n" * 3000, b" " * 3000, b"../" * 40, b"/etc/passwd", b"-",
    b"--upload-pack=x", b"1" * 5000, b"9" * 30, b"[" * 9000, b"{" * 9000, b'"', b"\\", b"null", b"true",
    b"1e999", b"NaN", b"#", b"---", b"=======", b"$(touch PWNED)", b"\xe2\x80\xae", b"\xef\xbb\xbf",
    b"a" * 9000, b"@@ -1 +1 @@", b"diff --git a/x b/x", b"--- a/x", b"+++ b/x", b"From a Mon ",
    b"Content-Transfer-Encoding: base64", b"GIT binary patch", b"new mode 120000",
    b"change x >=0", b"pin 0.5.23", b"demo/x.patch ==0.5.23", b"Releases: rm -rf", b"\n.\n", b"%s%n",
)  # fmt: skip


class Hang(BaseException):
    """Not an Exception, so that no handler of the tool takes it for an error of its own."""


def mutate(content: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        lines = content.split(b"\n")
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        words = lines[at].split(b" ")
        place = rng.randrange(len(content) + 1)
        match rng.randrange(10):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[other])
            case 2:
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines.insert(at, rng.choice(NASTY))
            case 4 | 5 | 6:
                words[rng.randrange(len(words))] = rng.choice(NASTY)
                lines[at] = b" ".join(words)
            case 7:
                lines = [content[:place]]
            case 8:
                lines = [content[:place] + rng.choice(NASTY) + content[place:]]
            case 9:
                lines = [content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]]
        content = b"\n".join(lines)
    return content


class Project:
    """A project with a clean and an edited worktree, and the way back to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lab = Lab(folder / "project", folder / "cache", folder / "data")
        self.lab.patch("demo/answer.patch", {UTILS: TREE["sglang/srt/utils.py"] + "A = 1\n"})
        self.lab.patch("demo/twins.patch", {TWINS: B_ONLY, "python/sglang/x y.py": "X = 1\n"})
        self.lab.release(NEXT, TREE | {"sglang/version.py": "__version__ = '0.5.24'\n"})
        self.lab.relock()
        for name in ("fork", "dirty"):
            self.lab.apply(folder / name, "--branch", name)
        (folder / "dirty/python/sglang/more.py").write_text("MORE = 1\n")
        (folder / "fork/python/sglang/srt/utils.py").touch()
        self.mail = self._make_mail()
        shutil.copytree(self.lab.root, folder / "good")

    def _make_mail(self) -> bytes:
        fork = self.folder / "fork"
        (fork / TWINS).write_text((fork / TWINS).read_text() + "B = 1\n")
        git(fork, "commit", "-qam", "Answer\n\nIt is asked.")
        mail = git(fork, "format-patch", "-1", "--stdout").encode() + b"\n\n"
        git(fork, "reset", "-q", "--hard", "HEAD~1")
        return mail

    def snapshot(self) -> dict[str, bytes | str]:
        root = self.lab.root
        return {
            str(path.relative_to(root)): path.read_bytes() if path.is_file() else "special"
            for path in root.rglob("*")
            if not path.is_dir() and not str(path).startswith("/dev")
        }

    def restore(self) -> None:
        shutil.rmtree(self.lab.root)
        shutil.copytree(self.folder / "good", self.lab.root)

    def begin_anew(self) -> Project:
        shutil.rmtree(self.folder)
        return Project(self.folder)

    def run(self, words: tuple[str, ...], place: str) -> int:
        names = {n: self.folder / n for n in ("new", "out", "fork", "dirty", "rebased")}
        args = [word.format(**names) if word.startswith("{") else word for word in words]
        before = self.snapshot()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            result = self.lab.tool(*args, code=None)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        told = f"{place}: tool {' '.join(args)}\n{result.output}\n{result.stderr}"
        assert result.exception is None or isinstance(result.exception, SystemExit), told
        assert result.exit_code in DOCUMENTED and "Traceback" not in told, told
        if result.exit_code or words in READING:
            assert self.snapshot() == before, told
        return result.exit_code


def _raise_hang(*_: object) -> None:
    raise Hang


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _raise_hang)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "p")


def try_all(project: Project, kind: str, numbers: range, *, every_command: bool) -> set[int]:
    """Put each input in its place and run the commands; returns the exit codes that were seen."""
    codes = set()
    for number in numbers:
        rng = random.Random(f"{kind} {number}")
        place = f"{kind} {number}"
        if kind == "mail":
            path = project.folder / "mail"
            path.write_bytes(mutate(project.mail, rng))
            codes.add(
                code := project.run(
                    ("import", str(path), f"x{number}", *HEADER, "--offline"), place
                )
            )
            if code == 0:
                project.restore()
            continue
        path = project.lab.root / FILES[kind]
        commands = [*READING, *WRITING]
        for words in commands if every_command else rng.sample(commands, 2):
            path.write_bytes(mutate(path.read_bytes(), random.Random(place)))
            codes.add(code := project.run(words, place))
            if words in WRITING and code in (0, 3, 4):
                project = project.begin_anew()  # refs and worktrees moved, or a rebase stopped
            else:
                project.restore()
    return codes


@pytest.mark.parametrize("kind", [*FILES, "mail"])
def test_a_sample(project: Project, kind: str) -> None:
    assert try_all(project, kind, range(SAMPLE), every_command=False) - {0}


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", [*FILES, "mail"])
def test_all_of_them(
    project: Project, kind: str, record_property: Callable[[str, object], None]
) -> None:
    codes = try_all(project, kind, range(WHOLE), every_command=True)
    record_property("tried", WHOLE)
    record_property(
        "commands run on them", WHOLE * (1 if kind == "mail" else len(READING + WRITING))
    )
    assert codes - {0}, "no input was refused: the table tests nothing"


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("what", ["pipe", "device", "folder", "loop"])
def test_what_is_not_a_file(project: Project, kind: str, what: str) -> None:
    path = project.lab.root / FILES[kind]
    path.unlink()
    match what:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
    for words in [*READING, *WRITING]:
        project.run(words, f"{kind} is a {what}")
