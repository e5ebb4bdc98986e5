"""The ways that ``run.py`` compares, each typed as its manual says: quilt, StGit, ``tool rebase``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.version import Version

from bench.tool.peers.workflow import Case, Typed, Way, environment
from tool import lock


class Quilt(Way):
    words = re.compile(r"FAILED|reverse|NOT MERGED|can't find|fuzz|offset|already|ignored|refresh")
    options: tuple[str, ...] = ()
    push = "-af"
    name = "quilt"

    @property
    def work(self) -> Path:
        return self.folder / f"sglang-{self.case.onto}"

    def prepare(self) -> None:
        case = self.case
        for release, commit in ((case.source, case.old), (case.onto, case.new)):
            _unpack(case, commit, self.folder / f"sglang-{release}")
        patches = self.folder / f"sglang-{case.source}" / "patches"
        patches.mkdir()
        for piece in case.pieces:
            (patches / piece.name).write_bytes(piece.content)
        (patches / "series").write_text("".join(f"{p.name}\n" for p in case.pieces))

    def begin(self) -> Typed:
        old = f"../sglang-{self.case.source}/patches"
        self.desk.type(f"cp -r {old} .", self.work, ["cp", "-r", old, "."])
        kept = [p.name for p in self.case.pieces if p.wanted]
        if len(kept) < len(self.case.pieces):
            text = "".join(f"{name}\n" for name in kept)
            self.desk.edit(self.work / "patches/series", text.encode(), "patches/series")
        return self._quilt("push", self.push, *self.options)

    def stopped(self) -> str | None:
        last = self.desk.typed[-1]
        if last.code == 0:
            return None
        if "needs refresh" not in last.output:
            raise RuntimeError(f"{self.name} cannot go on\n{self.transcript()}")
        return self._backup().name

    def parent(self, path: str) -> bytes | None:
        kept = self._backup() / path
        file = kept if kept.exists() else self.work / path
        return file.read_bytes() if file.is_file() else None

    def _backup(self) -> Path:
        """Where quilt keeps the files of the topmost patch as they were before it."""
        applied = (self.work / ".pc/applied-patches").read_text().split()
        return self.work / ".pc" / applied[-1]

    def ready(self, paths: list[str]) -> None:
        known = self._backup()
        others = [p for p in paths if not (known / p).exists()]
        if others:  # a file must belong to the patch before it is edited
            self._quilt("add", *others)

    def go_on(self, edited: list[str]) -> Typed:
        done = self._quilt("refresh")
        if done.code:
            raise RuntimeError(f"{self.name}: refresh failed\n{self.transcript()}")
        return self._quilt("push", self.push, *self.options)

    def result(self) -> str:
        return _tree_of(self.case, self.work, self.folder / "home")

    def _quilt(self, *args: str) -> Typed:
        shown = "".join(f"{k}={v} " for k, v in self.case.quilt.items())
        line = f"{shown}quilt {' '.join(args)}"
        return self.desk.type(line, self.work, ["quilt", *args], self.case.quilt)


class QuiltNoFuzz(Quilt):
    name = "quilt --fuzz=0"
    options = ("--fuzz=0",)


class QuiltMerge(Quilt):
    name = "quilt --merge=diff3"
    options = ("--merge=diff3",)


class Stg(Way):
    name = "stgit"
    words = re.compile(r"CONFLICT|[Cc]onflict|\((empty|merged|modified)\)|Error|[Ff]ound \d+")
    options: tuple[str, ...] = ()

    @property
    def work(self) -> Path:
        return self.folder / "sglang"

    def prepare(self) -> None:
        case = self.case
        self.work.mkdir(parents=True)
        env = environment(self.desk.home)

        def run(*command: str) -> None:
            subprocess.run(
                command, cwd=self.work, env=env, check=True, capture_output=True, text=True
            )

        run("git", "init", "-q", "-b", "ada")
        run("git", "fetch", "-q", str(case.repository), f"{case.old}:refs/tags/v{case.source}")
        run("git", "fetch", "-q", str(case.repository), f"{case.new}:refs/tags/v{case.onto}")
        run("git", "reset", "-q", "--hard", f"v{case.source}")
        run("stg", "init")
        mails = self.folder / "mails"
        mails.mkdir()
        for piece in case.pieces:
            (mails / piece.name).write_bytes(piece.content)
        (mails / "series").write_text("".join(f"{p.name}\n" for p in case.pieces))
        run("stg", "import", "--series", str(mails / "series"))

    def settle(self) -> None:
        # Copied files have other inodes; git would pay for that in the first command.
        env = environment(self.desk.home)
        subprocess.run(
            ["git", "status"], cwd=self.work, env=env, check=True, stdout=subprocess.DEVNULL
        )

    def begin(self) -> Typed:
        self._stg("branch", "--clone", f"ada-{self.case.onto}")
        gone = [p.name for p in self.case.pieces if not p.wanted]
        if gone:
            self._stg("delete", *gone)
        # StGit 0.19's own push after a rebase ends in a traceback at a conflict.
        self._stg("rebase", "--nopush", f"v{self.case.onto}")
        return self._stg("push", "-a", *self.options)

    def stopped(self) -> str | None:
        if self.desk.typed[-1].code == 0:
            return None
        if "onflict" not in self.desk.typed[-1].output:
            raise RuntimeError(f"{self.name} cannot go on\n{self.transcript()}")
        return self._ask("stg", "top")

    def parent(self, path: str) -> bytes | None:
        return at_head(self.work, path)

    def go_on(self, edited: list[str]) -> Typed:
        self._stg("resolved", "-u")  # all of them: refresh refuses an index that is half of it
        if (done := self._stg("refresh")).code:
            raise RuntimeError(f"{self.name}: refresh failed\n{done.output}")
        more = self._ask("stg", "series", "-U")
        return self._stg("push", "-a", *self.options) if more else done

    def finish(self) -> None:
        self._stg("export", "-d", f"../patches-{self.case.onto}")

    def result(self) -> str:
        subprocess.run(
            ["git", "push", "-q", str(self.case.repository), "HEAD:refs/heads/found", "--force"],
            cwd=self.work,
            env=environment(self.desk.home),
            check=True,
        )
        return self.case.tree("refs/heads/found")

    def _stg(self, *args: str) -> Typed:
        return self.desk.type(f"stg {' '.join(args)}", self.work, ["stg", *args])

    def _ask(self, *command: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.work,
            env=environment(self.desk.home),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        return done.stdout.strip()


class StgMerged(Stg):
    name = "stgit --merged"
    options = ("--merged",)


class Tool(Way):
    name = "tool rebase"
    words = re.compile(r"stopped at|evidence|already|\.patch +[a-z ]+ +|error|Error")

    @property
    def project(self) -> Path:
        return self.folder / "project"

    @property
    def work(self) -> Path:
        return self.project / f"sglang-v{self.case.onto}-rebase"

    def prepare(self) -> None:
        shutil.copytree(self.case.project, self.project)
        refs = [word for v in self.case.known for word in ("--sglang-ref", f"v{v}")]
        self._now("lock", *refs, "--offline", "-q")
        self._now("drift", "--onto", f"v{self.case.onto}", "--offline", "-q", codes=(0, 1))

    def begin(self) -> Typed:
        if any(not p.wanted for p in self.case.pieces):
            path = self.project / "series.txt"
            self.desk.edit(path, self.case.bounded.encode(), "series.txt")
        return self._tool("rebase", "--onto", f"v{self.case.onto}")

    def stopped(self) -> str | None:
        last = self.desk.typed[-1]
        if last.code == 0:
            return None
        found = re.search(r"^stopped at (\S+):", last.output, re.MULTILINE)
        if last.code not in (3, 4) or found is None:
            raise RuntimeError(f"{self.name} cannot go on\n{self.transcript()}")
        return found[1]

    def parent(self, path: str) -> bytes | None:
        return at_head(self.work, path)

    def go_on(self, edited: list[str]) -> Typed:
        return self._tool("rebase", "--continue")

    def result(self) -> str:
        locked = lock.load(self.project / "series.lock").get(Version(self.case.onto))
        data = self.folder / "data" / "sglang.git"
        self.case.git("fetch", "-q", str(data), locked.patches[-1].commit)
        return locked.final_tree

    def _tool(self, *args: str) -> Typed:
        command = [sys.executable, "-m", "tool", *args]
        # The wheels are in the cache; --offline says so without being typed.
        offline = ["--offline"] if "--onto" in args else []
        line = f"tool {' '.join(args)}"
        return self.desk.type(line, self.project, command + offline, self._folders())

    def _now(self, *args: str, codes: tuple[int, ...] = (0,)) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "tool", *args],
            cwd=self.project,
            env=environment(self.desk.home) | self._folders(),
            capture_output=True,
            text=True,
        )
        if done.returncode not in codes:
            raise RuntimeError(f"tool {' '.join(args)}: {done.stdout}{done.stderr}")

    def _folders(self) -> dict[str, str]:
        return {
            "TOOL_CACHE_DIR": str(self.case.cache),
            "TOOL_DATA_DIR": str(self.folder / "data"),
        }


def at_head(folder: Path, path: str) -> bytes | None:
    command = ["git", "cat-file", "blob", f"HEAD:{path}"]
    done = subprocess.run(command, cwd=folder, capture_output=True)
    return None if done.returncode else done.stdout


def _unpack(case: Case, commit: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    archive = case.git("archive", commit)
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive, check=True)


def _tree_of(case: Case, folder: Path, home: Path) -> str:
    """The git tree of a plain folder's ``python/``, without what GNU patch leaves lying about."""
    index = home / "index"
    index.unlink(missing_ok=True)
    env = environment(home) | {
        "GIT_DIR": str(case.repository),
        "GIT_WORK_TREE": str(folder),
        "GIT_INDEX_FILE": str(index),
    }
    litter = [":(exclude)*.rej", ":(exclude)*.orig"]
    add = ["git", "add", "--force", "--", "python", *litter]
    subprocess.run(add, cwd=folder, env=env, check=True)
    done = subprocess.run(
        ["git", "write-tree"], cwd=folder, env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()
