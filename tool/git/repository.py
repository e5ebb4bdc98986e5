"""The one door to git: a hardened subprocess runner.

No configuration of a user, a system or the repository, no attribute, hook, template or variable
changes what a command does (see tool.git.isolation). No outside string reaches git's option parser:
revisions are validated here and resolved once to a full object id, and only ids are passed on. Every
mutation and every result that a hash depends on goes through this module.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
import select
import shlex
import signal
import subprocess
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import Final, cast

from tool import atomic
from tool.errors import EnvironmentFault, IntegrityError, ToolError, UsageError
from tool.git.isolation import isolated_folder
from tool.git.objects import FILE, object_id

MINIMUM: Final = (2, 32)
"""``git apply --cached --3way`` exists since 2.32."""

TIMEOUT: Final = 600.0
"""Seconds for one local command; a hung filter or lock must not hang the tool."""

_CONFIG: Final = (
    # Where git's default is not what is wanted. No other setting reaches git: see tool.git.isolation.
    "core.hooksPath=/dev/null",  # no hook of a template or a user runs
    "core.attributesFile=/dev/null",  # the default is a file below the user's home
    "core.excludesFile=/dev/null",
    "core.fileMode=true",
    "core.symlinks=true",
    "core.logAllRefUpdates=false",
    "merge.renames=false",  # a patch names its file; git guesses nothing
    "gc.auto=0",  # nothing deletes objects behind a running transaction
    "maintenance.auto=false",
    "transfer.fsckObjects=true",  # fetched objects are checked, not trusted
    "protocol.ext.allow=never",
    "advice.detachedHead=false",
)

OFFLINE: Final = {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none"}
"""For ``Git.env``: nothing is fetched. The first is known from git 2.45 on."""

_DISK_FULL: Final = (
    "No space left on device",
    "Out of diskspace",
    "File too large",
    "Disk quota exceeded",
    f"died of signal {int(signal.SIGXFSZ)}",  # a checkout worker under ulimit -f
)
_NOT_WRITTEN: Final = ("couldn't write", "could not write", "unable to write", "cannot write")
"""git leaves out why. A full disk is one reason."""
_KEPT: Final = 64
"""Objects at hand: the files that a few patches are about are asked for again and again."""
_KEPT_SIZE: Final = 1 << 20
"""Bytes of the largest object that is kept."""
_REF: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*")
_OID: Final = re.compile(r"[0-9a-f]{40}")
_ANSWER: Final = re.compile(r"([0-9a-f]{40}) ([a-z]+) ([0-9]+)\n")


class GitFailed(ToolError):
    """git exited non-zero where it should not have: most often a repository is damaged."""

    exit_code = EnvironmentFault.exit_code
    kind = "git"


@dataclass(frozen=True)
class Git:
    """Runs git on one repository.

    ``git_dir`` is the repository (or a worktree's administrative folder); ``index_file`` selects a
    private index so that trees are built without touching any worktree. ``cwd`` is where git runs:
    a three-way ``git apply --cached`` of an added file that exists checks it out there (git 2.39).

    Objects are looked up and compared in processes that stay, a process for each thread and kind of
    question: starting git takes fifty times as long as asking it. They end with the last copy of this
    object.
    """

    git_dir: Path
    work_tree: Path | None = None
    index_file: Path | None = None
    cwd: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    _readers: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    def run(
        self,
        *args: str,
        stdin: bytes | None = None,
        check: bool = True,
        timeout: float = TIMEOUT,
        max_file: int | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ``git ARGS``; stdout and stderr are captured as bytes.

        ``max_file``: no file that git writes may have more bytes; git is stopped at it.

        Raises:
            GitFailed: non-zero exit and ``check``.
            EnvironmentFault: no git, no space, or the time limit passed.
        """
        try:
            done = subprocess.run(
                self.command(*args),
                input=b"" if stdin is None else stdin,
                capture_output=True,
                cwd=self.cwd,
                env=self.environment(),
                timeout=timeout,
                pass_fds=atomic.held_locks(),
                preexec_fn=functools.partial(_limit_files, max_file) if max_file else None,
            )
        except FileNotFoundError as err:
            raise EnvironmentFault("git is not installed", next_step="install git ≥ 2.32") from err
        except subprocess.TimeoutExpired as err:
            raise EnvironmentFault(
                f"git {args[0]} did not finish in {timeout:.0f} s", where=str(self.git_dir)
            ) from err
        if check and done.returncode != 0:
            raise failure(args, done.returncode, done.stderr)
        return done

    def out(self, *args: str, stdin: bytes | None = None) -> str:
        """The command's stdout, stripped of the final newline."""
        return self.run(*args, stdin=stdin).stdout.decode("utf-8", "surrogateescape").rstrip("\n")

    def start(
        self, *args: str, stdout: int = subprocess.DEVNULL, reads: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start a command with piped stdin and stderr; the caller waits for it.

        One that only ``reads`` may outlive the command's lock, so it does not hold it.
        """
        return subprocess.Popen(
            self.command(*args),
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
            cwd=self.cwd,
            env=self.environment(),
            pass_fds=() if reads else atomic.held_locks(),
        )

    def command(self, *args: str) -> list[str]:
        config = [part for item in _CONFIG for part in ("-c", item)]
        return ["git", *config, "--no-replace-objects", "--literal-pathspecs", *args]

    def environment(self) -> dict[str, str]:
        """The caller's environment without any ``GIT_*``, plus what pins git's behaviour."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        env |= {
            "GIT_DIR": str(self.git_dir),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": "https:ssh:file",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_EDITOR": "true",
            "LC_ALL": "C",
            "TZ": "UTC",
        }
        if (folder := isolated_folder(self.git_dir)) is not None:
            env["GIT_COMMON_DIR"] = str(folder)
        if self.work_tree is not None:
            env["GIT_WORK_TREE"] = str(self.work_tree)
        else:
            env["GIT_IMPLICIT_WORK_TREE"] = "0"  # else git takes the current folder for one
        if self.index_file is not None:
            env["GIT_INDEX_FILE"] = str(self.index_file)
        return env | dict(self.env)

    def resolve(self, ref: str) -> str | None:
        """The commit id ``ref`` names here, or None. ``ref`` must have passed ``check_ref``."""
        return self.find(f"{ref}^{{commit}}")

    def tree_of(self, commit: str) -> str:
        """The tree of ``commit``. Raises EnvironmentFault when it is not here."""
        tree = self.find(f"{commit}^{{tree}}")
        if tree is None:
            raise missing_object(commit, str(self.git_dir))
        return tree

    def blobs(self, oids: Sequence[str]) -> dict[str, bytes]:
        """Contents by blob id, as :meth:`read_objects`."""
        return self.read_objects(oids)

    def read_objects(self, oids: Sequence[str]) -> dict[str, bytes]:
        """Contents by object id, each once, in the order asked for.

        Raises:
            EnvironmentFault: an object is missing (a shallow or broken repository).
            IntegrityError: an object has another content than its id says.
        """
        found: dict[str, bytes] = {}
        for oid in dict.fromkeys(oids):
            answer = self._reader("cat-file", "--batch").read_object(oid)
            if answer is None:
                raise missing_object(oid, str(self.git_dir))
            found[oid] = answer
        return found

    def find(self, name: str) -> str | None:
        """The object id of ``name``, an id or ``TREE:PATH``; None when there is no such object."""
        return self._reader("cat-file", "--batch-check").find(name)

    def has_objects(self, oids: Sequence[str]) -> dict[str, bool]:
        return {oid: self.find(oid) is not None for oid in oids}

    def compare_trees(self, before: str, after: str, *flags: str) -> bytes:
        """What ``git diff-tree -r FLAGS`` prints for two tree ids.

        Raises:
            EnvironmentFault: a file's content is missing.
            GitFailed: one of the two is no tree here.
        """
        return self._reader("diff-tree", "--stdin", "-r", *flags).compare(before, after)

    def make_tree(self, name: str, blob: str) -> str:
        """The id of a tree with one regular file, which is written if need be."""
        return self._reader("mktree", "--batch", "--missing").make_tree(name, blob)

    def _reader(self, *command: str) -> _Reader:
        readers: dict[tuple[str, ...], _Reader] = self._readers.__dict__.setdefault("started", {})
        if command not in readers:
            # It may stay longer than the index and the folder of whoever asks first.
            readers[command] = _Reader(replace(self, index_file=None, cwd=None), *command)
        return readers[command]


class _Reader:
    """A git command that answers questions until nobody can ask any more."""

    def __init__(self, git: Git, *command: str) -> None:
        self._command = command
        self._process = git.start(*command, stdout=subprocess.PIPE, reads=True)
        self._answers = cast(BufferedReader, self._process.stdout)
        self._git_dir = git.git_dir
        self._kept: dict[str, bytes] = {}
        weakref.finalize(self, _end, self._process)

    def find(self, name: str) -> str | None:
        """The object id that ``name`` stands for (``cat-file --batch-check``)."""
        found = self._look_up(name)
        return found[1] if found else None

    def read_object(self, oid: str) -> bytes | None:
        """The content of an object (``cat-file --batch``); the last few are kept."""
        if oid in self._kept:
            return self._kept[oid]
        found = self._look_up(oid)
        if found is None:
            return None
        content = self._answers.read(int(found[3]) + 1)[:-1]
        # git checks a file it unpacks against its own checksum, but not against its name.
        if object_id(found[2], content) != oid:
            raise IntegrityError(
                f"object {oid} has the content of another one",
                where=str(self._git_dir),
                why="a file below objects/ was replaced or is damaged",
                next_step=f"see which: git -C {shlex.quote(str(self._git_dir))} fsck",
            )
        if len(content) <= _KEPT_SIZE:
            self._kept[oid] = content
            if len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
        return content

    def compare(self, before: str, after: str) -> bytes:
        """What differs between two trees (``diff-tree --stdin``)."""
        # git repeats the names of the trees first, and repeats a line that does not begin with an id. That
        # line ends the answer: no file of a tree can hold the id of that tree.
        pair, end = f"{before} {after}\n", f"end {before} {after}\n"
        self._ask(pair + end, f"of {before} or {after}")
        answer = bytearray(self._answers.read1())
        while not answer.endswith(end.encode()):
            self._wait(f"of {before} or {after}")
            answer += self._answers.read1()
        if not answer.startswith(pair.encode()):
            raise GitFailed(f"git has no trees {before} and {after} to compare")
        return bytes(answer[len(pair) : -len(end)])

    def make_tree(self, name: str, blob: str) -> str:
        """The id of the tree (``mktree --batch``)."""
        self._ask(f"{FILE} blob {blob}\t{name}\n\n", blob)
        return self._answers.readline().decode().rstrip("\n")

    def _look_up(self, name: str) -> re.Match[str] | None:
        """The answer's first line: id, type and size; None when there is no such object.

        git then repeats the name, which may hold spaces.
        """
        assert "\n" not in name
        self._ask(f"{name}\n", name)
        return _ANSWER.fullmatch(self._answers.readline().decode("utf-8", "surrogateescape"))

    def _ask(self, question: str, name: str) -> None:
        """Ask about the object ``name``, and wait until the answer begins."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(question.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; its own words follow
        self._wait(name)

    def _wait(self, name: str) -> None:
        """Wait until there is something to read.

        Raises:
            ToolError: the process ended, or the time limit passed.
        """
        # A repository without file contents fetches one here, over a network that may hang.
        waiting = select.poll()  # select() fails where a process has more than 1024 files open
        waiting.register(self._answers, select.POLLIN)
        if not waiting.poll(TIMEOUT * 1000):
            self._process.kill()
            raise EnvironmentFault(f"git {self._command[0]} did not answer in {TIMEOUT:.0f} s")
        if not self._answers.peek(1):
            assert self._process.stderr is not None
            words = self._process.stderr.read()
            if b"promisor remote" in words:
                raise EnvironmentFault(
                    f"object {name} is not here and cannot be fetched",
                    why=last_line(words),
                    next_step="run it again when the git source can be reached, without --offline, or use "
                    "the released wheel: --source pypi",
                )
            raise failure(self._command, self._process.wait(), words)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let a reader go: it ends when nothing more can be asked."""
    with process, contextlib.suppress(BrokenPipeError):
        assert process.stdin is not None
        process.stdin.close()


def _limit_files(size: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    allowed = size if most == resource.RLIM_INFINITY else min(size, most)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, most))


def failure(args: Sequence[str], code: int, stderr: bytes) -> ToolError:
    """The error for a git command that failed, with git's own words as the reason."""
    words = stderr.decode("utf-8", "replace").strip()
    if code == -signal.SIGXFSZ or any(sign in words for sign in _DISK_FULL):
        return EnvironmentFault(
            "no space left while git was writing",
            why=last_line(stderr) or "a file size limit (ulimit -f) was reached",
            next_step="free some space and run the same command again; nothing was changed",
        )
    if any(sign in words for sign in _NOT_WRITTEN):
        return EnvironmentFault(
            "git could not write",
            why=last_line(stderr),
            next_step="see that there is space left and that the place is yours to write, then run the same "
            "command again; nothing was changed",
        )
    last = "\n".join(words.splitlines()[-8:])
    return GitFailed(f"git {args[0]} failed with exit code {code}", why=last or None)


def last_line(stderr: bytes) -> str | None:
    """The last line that git said, which has the reason; None when it said nothing."""
    words = stderr.decode("utf-8", "replace").strip()
    return words.splitlines()[-1] if words else None


def missing_object(oid: str, where: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"object {oid} is missing",
        where=where,
        why="the repository was cloned without history (shallow) or is damaged",
        next_step="fetch full history into it (git fetch --unshallow), or use the released wheel: "
        "--source pypi",
    )


def check_ref(text: str) -> str:
    """Return ``text`` when it can only be a ref or an object id, never an option or a refspec.

    Raises:
        UsageError: otherwise.
    """
    good = (
        _REF.fullmatch(text)
        and ".." not in text
        and "//" not in text
        and not text.endswith((".lock", "/", "."))
        and "/." not in text
    )
    if not good:
        raise UsageError(
            f"{text!r} is not a release or a git ref",
            next_step="name a release (v0.5.23), pin, a tag, a branch or a commit id",
        )
    return text


def is_oid(text: str) -> bool:
    return _OID.fullmatch(text) is not None


@functools.lru_cache(maxsize=1)
def installed_version() -> str:
    """What the installed git says it is. Raises EnvironmentFault when there is none."""
    try:
        return subprocess.run(["git", "version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as err:
        raise EnvironmentFault("git is not installed", next_step="install git ≥ 2.32") from err


def require_version() -> tuple[int, int]:
    """The installed git's (major, minor). Raises EnvironmentFault below ``MINIMUM``."""
    match = re.search(r"(\d+)\.(\d+)", installed_version())
    found = (int(match[1]), int(match[2])) if match else (0, 0)
    if found < MINIMUM:
        raise EnvironmentFault(
            f"git {found[0]}.{found[1]} is too old",
            why="three-way application into an index needs git 2.32",
            next_step="install git ≥ 2.32",
        )
    return found
